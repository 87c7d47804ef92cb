"""Takes snapshots of a run."""

import time
from pathlib import Path
from typing import Protocol

import torch
from google.protobuf import json_format

from adjourn import snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.snapshots import Tree
from adjourn.training.snapshot.slots import Slots
from adjourn.training.state.codec import Blob
from adjourn.training.state.environment import fingerprint
from adjourn.v1.job_pb2 import Progress


class Encodable(Protocol):
    def encode(self) -> tuple[dict[str, Tree], dict[str, Blob]]: ...


class SnapshotWriter:
    """Writes snapshots into the slots of an attempt, numbering them."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self._slots = Slots(directory)
        self._device = device
        self._sequence = 0

    def save(self, state: Encodable, progress: Progress, values: dict[str, float], *, last: bool) -> Snapshot | None:
        """Returns the snapshot taken; None: both slots are still being made durable, and another will follow.

        Raises SnapshotFailed, StateNotEncodable.
        """
        begin = time.monotonic()
        slot = self._slots.next(last=last)
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
