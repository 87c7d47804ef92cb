"""Reads a snapshot that a run goes on from."""

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from google.protobuf import json_format

from adjourn import snapshots
from adjourn.snapshots import SnapshotInvalid, Tree
from adjourn.training.errors import SnapshotUnreadable
from adjourn.training.snapshot.pinned import Cuda, Gpus, Pinned
from adjourn.training.state.codec import Decoder
from adjourn.v1.job_pb2 import Progress


class SnapshotReader:
    """Reads the components of a snapshot, each when it is wanted."""

    def __init__(self, directory: Path, device: torch.device, gpus: Gpus | None = None) -> None:
        """Reads and checks headers; raises SnapshotUnreadable. `gpus`: as they are called if `device` is one."""
        try:
            self._state = snapshots.read_state(directory)
            self._entries = snapshots.read_layout(directory / snapshots.TENSORS)
            self.progress = json_format.ParseDict(dict(self._state.progress), Progress(), ignore_unknown_fields=True)
            on_gpu = device.type != "cpu"
            with (directory / snapshots.TENSORS).open("r+b" if on_gpu else "rb") as file:
                # A GPU reads the file's own pages: pinned, a private mapping would be a copy. Nobody writes to either.
                access = mmap.ACCESS_WRITE if on_gpu else mmap.ACCESS_COPY
                self._map = mmap.mmap(file.fileno(), 0, access=access)
        except (SnapshotInvalid, json_format.ParseError, OSError) as error:
            raise SnapshotUnreadable(f"{directory}: {error}") from error
        self._decoder = Decoder(self._bytes, device)
        self._pinned = Pinned(gpus or Cuda()) if on_gpu else None
        """Held as long as something is read."""
        if self._pinned is not None:
            self._pinned.hold(torch.frombuffer(self._map, dtype=torch.uint8))

    @property
    def components(self) -> Mapping[str, Tree]:
        return self._state.components

    @property
    def environment(self) -> Mapping[str, str]:
        return self._state.environment

    @property
    def remarks(self) -> Sequence[str]:
        """What may not come back as it was, a sentence each."""
        return self._state.remarks

    @property
    def drilled(self) -> bool | None:
        """Whether a drill of the job came to the same bits; None: it is not known."""
        return self._state.drilled

    @property
    def standing(self) -> Mapping[str, str]:
        """How what is in no component stood, if the run was cut amid an epoch."""
        return self._state.standing

    def value(self, component: str) -> Any:
        """Returns the state of a component, a copy; raises SnapshotUnreadable."""
        try:
            return self._decoder.decode(self._state.components[component])
        except (SnapshotInvalid, KeyError) as error:
            raise SnapshotUnreadable(f"{component}: {error}") from error

    def _bytes(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        if entry.begin == entry.end:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
