"""Copies a run's state into files that are written again and again. Training stands still for this part only.

A file in memory (`/dev/shm`) that is mapped and was written to before takes a copy at the speed of memory. In a new
file, the kernel first has to find each page.
"""

import json
import mmap
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from google.protobuf import json_format

from adjourn import snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.snapshots import Tree
from adjourn.training.errors import SnapshotFailed
from adjourn.training.state.codec import Blob
from adjourn.training.state.environment import fingerprint
from adjourn.v1.job_pb2 import Progress

REGULAR_SLOTS = 2
"""While one snapshot is made durable, the next goes to the other slot. A third slot is kept for the last snapshot."""


class Encodable(Protocol):
    def encode(self) -> tuple[dict[str, Tree], dict[str, Blob]]: ...


class Slot:
    """One directory for a snapshot, and its mapped file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._map: mmap.mmap | None = None

    @property
    def free(self) -> bool:
        return not (self.directory / snapshots.IN_USE).exists()

    def write(self, document: Mapping[str, Any], blobs: Mapping[str, Blob]) -> int:
        """Writes a snapshot and marks the slot as in use; returns the bytes of its files.

        Raises SnapshotFailed, and then leaves nothing.
        """
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
            (self.directory / snapshots.IN_USE).touch()
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


class SnapshotWriter:
    """Writes snapshots into the slots of an attempt, numbering them."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self._slots = [Slot(directory / f"slot-{number}") for number in range(REGULAR_SLOTS + 1)]
        self._device = device
        self._sequence = 0

    def save(self, state: Encodable, progress: Progress, values: dict[str, float], *, last: bool) -> Snapshot | None:
        """Returns the snapshot taken; None: both slots are still being made durable, and another will follow.

        Raises SnapshotFailed, StateNotEncodable.
        """
        begin = time.monotonic()
        slot = self.free_slot(last=last)
        if slot is None:
            return None
        trees, blobs = state.encode()
        document = {
            "format": snapshots.FORMAT,
            "components": trees,
            "environment": fingerprint(self._device),
            "progress": json_format.MessageToDict(progress, preserving_proto_field_name=True),
        }
        size = slot.write(document, blobs)
        self._sequence += 1
        return Snapshot(
            directory=str(slot.directory),
            sequence=self._sequence,
            progress=progress,
            size_bytes=size,
            stall_seconds=time.monotonic() - begin,
            metrics=values,
            last=last,
        )

    def free_slot(self, *, last: bool) -> Slot | None:
        """Returns a free slot. The last snapshot of an attempt always finds one: the third is kept for it."""
        for slot in self._slots[:REGULAR_SLOTS]:
            if slot.free:
                return slot
        return self._slots[REGULAR_SLOTS] if last else None
