"""Copies a run's state into files that are written again and again: the only part that training stands still for.

A file in memory (`/dev/shm`), mapped once and written to before, takes a copy at the speed of memory; a new one would
first have to be found page by page.
"""

import json
import mmap
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adjourn import snapshots
from adjourn.training.errors import SnapshotFailed
from adjourn.training.state.codec import Blob

REGULAR = 2
"""While one snapshot is made durable, the next goes to the other slot."""


class Slot:
    """One directory for a snapshot, and its mapped file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._map: mmap.mmap | None = None

    @property
    def free(self) -> bool:
        return not (self.directory / snapshots.TAKEN).exists()

    def write(self, document: Mapping[str, Any], blobs: Mapping[str, Blob]) -> int:
        """Writes a snapshot and takes the slot; returns its bytes; raises SnapshotFailed, leaving nothing."""
        head, entries = snapshots.layout((name, blob.dtype, blob.shape) for name, blob in blobs.items())
        size = max([len(head), *(entry.end for entry in entries.values())])
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / snapshots.STATE).unlink(missing_ok=True)
            buffer = torch.frombuffer(self._mapped(size), dtype=torch.uint8)
            buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
            for name, blob in blobs.items():
                target = buffer[entries[name].begin : entries[name].end]
                target.view(blob.data.dtype).view(blob.data.shape).copy_(blob.data)
            text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
            (self.directory / snapshots.STATE).write_bytes(text)
            (self.directory / snapshots.TAKEN).touch()
        except OSError as error:
            self._map = None
            shutil.rmtree(self.directory, ignore_errors=True)  # its space may be what others lack
            raise SnapshotFailed(f"{self.directory}: {error}") from error
        return size + len(text)

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is not None and len(self._map) == size:
            return self._map
        self._map = None
        with (self.directory / snapshots.TENSORS).open("a+b") as file:
            file.truncate(size)
            # Without this, a lack of space would be found while copying, as a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, size)
            self._map = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        return self._map


class Slots:
    """The slots of an attempt."""

    def __init__(self, directory: Path) -> None:
        self._slots = [Slot(directory / f"slot-{number}") for number in range(REGULAR + 1)]

    def next(self, *, last: bool) -> Slot | None:
        """Returns a free slot. The last snapshot of an attempt always finds one: the third is kept for it."""
        for slot in self._slots[:REGULAR]:
            if slot.free:
                return slot
        return self._slots[REGULAR] if last else None
