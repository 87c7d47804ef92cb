"""Copies a run's state into files that are written again and again. Training stands still for this part only.

A file in memory (`/dev/shm`) that is mapped and was written to before takes a copy at the speed of memory. In a new
file, the kernel first has to find each page.
"""

import errno
import json
import mmap
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from google.protobuf import json_format

from adjourn import failpoints, snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.snapshots import Entry, SnapshotInvalid, Tree
from adjourn.training.errors import NoSpace, SnapshotDiffers, SnapshotFailed
from adjourn.training.events import log_line
from adjourn.training.snapshot.round_trip import RoundTrip, digests, structure
from adjourn.training.state.codec import Blob
from adjourn.training.state.environment import fingerprint
from adjourn.v1.job_pb2 import Progress

REGULAR_SLOTS = 2
"""While one snapshot is made durable, the next goes to the other slot. A third slot is kept for the last snapshot."""
SLOTS = REGULAR_SLOTS + 1
LACK_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})
"""Errors that say so: no space, a quota, a limit on the size of files, no memory."""


class Encodable(Protocol):
    """What the writer needs of `adjourn.training.state.registry.State`."""

    @property
    def remarks(self) -> Sequence[str]: ...

    def encode(self) -> tuple[dict[str, Tree], dict[str, Blob]]: ...


class Slot:
    """One directory for a snapshot, and its mapped file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._map: mmap.mmap | None = None
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that is mapped."""

    @property
    def free(self) -> bool:
        return not (self.directory / snapshots.IN_USE).exists()

    def release(self) -> None:
        """Lets the next snapshot be written over this one."""
        (self.directory / snapshots.IN_USE).unlink(missing_ok=True)

    def allocated(self) -> int:
        """Returns the bytes that the slot's files hold on their file system."""
        try:
            return (self.directory / snapshots.TENSORS).stat().st_blocks * 512
        except OSError:
            return 0

    def write(self, document: Mapping[str, Any], blobs: Mapping[str, Blob]) -> int:
        """Writes a snapshot and marks the slot as in use; returns the bytes of its files.

        Raises SnapshotFailed, or NoSpace, and then leaves nothing.
        """
        head, entries = layout(blobs)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / snapshots.STATE).unlink(missing_ok=True)
            buffer = torch.frombuffer(self._mapped(tensor_bytes(head, entries)), dtype=torch.uint8)
            buffer[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
            for name, blob in blobs.items():
                target = buffer[entries[name].begin : entries[name].end]
                target.view(blob.data.dtype).view(blob.data.shape).copy_(blob.data)
            text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
            (self.directory / snapshots.STATE).write_bytes(text)
            if not self._linked():
                raise FileNotFoundError(errno.ENOENT, "the file was removed while it was written")
            (self.directory / snapshots.IN_USE).touch()
        except OSError as error:
            self._map = None
            shutil.rmtree(self.directory, ignore_errors=True)  # its space may be what others lack
            kind = NoSpace if error.errno in LACK_OF_SPACE else SnapshotFailed
            raise kind(f"{self.directory}: {error}") from error
        return len(buffer) + len(text)

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is not None and len(self._map) == size and self._linked():
            return self._map
        self._map = None
        with (self.directory / snapshots.TENSORS).open("a+b") as file:
            file.truncate(size)
            # Without this, a lack of space would be found while copying, as a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, size)
            status = os.fstat(file.fileno())
            self._file = (status.st_dev, status.st_ino)
            self._map = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        return self._map

    def _linked(self) -> bool:
        """Tells whether the mapped file is still the one of that name: someone may have removed it under us."""
        try:
            status = (self.directory / snapshots.TENSORS).stat()
        except OSError:
            return False
        return self._file == (status.st_dev, status.st_ino)


class Area:
    """A directory with the slots of an attempt, on one file system."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.slots = [Slot(directory / f"slot-{number}") for number in range(SLOTS)]

    def room(self) -> int:
        """Returns how many bytes snapshots can take here, those that they take already included; 0 if unknown."""
        existing = next(path for path in (self.directory, *self.directory.parents) if path.is_dir())
        try:
            status = os.statvfs(existing)
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize + sum(slot.allocated() for slot in self.slots)

    def free_slot(self, *, last: bool) -> Slot | None:
        """Returns a free slot; the third is kept for the last snapshot of the attempt."""
        return next((slot for slot in self.slots[: SLOTS if last else REGULAR_SLOTS] if slot.free), None)

    def in_use(self) -> int:
        """Returns how many slots hold snapshots that are not yet durable."""
        return sum(not slot.free for slot in self.slots)


class SnapshotWriter:
    """Writes snapshots into the slots of an attempt, numbers them, and proves that they can be restored."""

    def __init__(self, directories: Sequence[Path], device: torch.device, round_trip: RoundTrip) -> None:
        """`directories`: the preferred one first; the others, where it has no room."""
        self._areas = [Area(directory) for directory in directories]
        self._area: Area | None = None
        """Where the last snapshot went."""
        self._device = device
        self._round_trip = round_trip
        self._proven: set[str] = set()
        """Structures of states that a rehearsed resume took."""
        self._sequence = 0

    @property
    def proven(self) -> bool:
        """Whether a resume from a snapshot of this attempt was rehearsed."""
        return bool(self._proven)

    def check_room(self, state: Encodable) -> None:
        """Chooses where snapshots go; raises NoSpace if there is no room anywhere, StateNotEncodable."""
        _, blobs = state.encode()
        self._choose(tensor_bytes(*layout(blobs)))

    def save(
        self, state: Encodable, progress: Progress, values: Mapping[str, float], *, last: bool, rehearse: bool = True
    ) -> Snapshot | None:
        """Returns the snapshot taken; None: both slots are still being made durable, and another will follow.

        The copy is compared with the live state if it is the last, or the first whose state has that structure. For
        the latter, a resume is rehearsed too, unless `rehearse` is False. Raises SnapshotFailed, StateNotEncodable,
        StateNotRestorable.
        """
        begin = time.monotonic()
        trees, blobs = state.encode()
        document = {
            "format": snapshots.FORMAT,
            "components": trees,
            "environment": fingerprint(self._device),
            "remarks": list(state.remarks),
            "progress": json_format.MessageToDict(progress, preserving_proto_field_name=True),
        }
        found = self._write(document, blobs, last=last)
        failpoints.hit("training.snapshot-written")
        if found is None:
            return None
        slot, size = found
        try:
            digests = self._prove(slot, trees, blobs, last=last, rehearse=rehearse)
        except BaseException:
            slot.release()
            raise
        self._sequence += 1
        return Snapshot(
            directory=str(slot.directory),
            sequence=self._sequence,
            progress=progress,
            size_bytes=size,
            stall_seconds=time.monotonic() - begin,
            metrics=values,
            last=last,
            live_digests=digests,
        )

    def release(self, snapshot: Snapshot) -> None:
        """Gives a slot back that nobody was told of."""
        Slot(Path(snapshot.directory)).release()

    def _write(self, document: Mapping[str, Any], blobs: Mapping[str, Blob], *, last: bool) -> tuple[Slot, int] | None:
        """Writes into the first area that takes it; returns the slot and its bytes, None if no slot is free.

        Raises SnapshotFailed.
        """
        self._choose(tensor_bytes(*layout(blobs)))
        failure: SnapshotFailed | None = None
        for area in sorted(self._areas, key=lambda area: area is not self._area):
            slot = area.free_slot(last=last)
            if slot is None and not last:
                break
            try:
                if slot is None:
                    raise NoSpace(f"every slot of {area.directory} holds a snapshot that is not yet durable")
                size = slot.write(document, blobs)
            except SnapshotFailed as error:
                failure = failure or error
                continue
            self._area = area
            return slot, size
        if failure:
            raise failure
        return None

    def _choose(self, size: int) -> None:
        """Chooses the first area with room for all slots, or else for one, but stays where there is room for one more.

        Raises NoSpace if no area has room for a single snapshot of `size` bytes.
        """
        current = self._area
        if current and current.room() >= min(current.in_use() + 1, SLOTS) * size:
            return
        rooms = {area: area.room() for area in self._areas}
        ample = [area for area in self._areas if rooms[area] >= SLOTS * size]
        enough = [area for area in self._areas if rooms[area] >= (area.in_use() + 1) * size]
        listed = ", ".join(f"{area.directory} has room for {megabytes(room)}" for area, room in rooms.items())
        if not ample and not enough:
            raise NoSpace(f"a snapshot takes {megabytes(size)}, and {listed}")
        self._area = (ample or enough)[0]
        if self._area is not self._areas[0] or not ample:
            log_line(
                f"snapshots go to {self._area.directory}: {SLOTS} of them take {megabytes(SLOTS * size)}, and {listed}"
            )

    def _prove(
        self, slot: Slot, trees: Mapping[str, Tree], blobs: Mapping[str, Blob], *, last: bool, rehearse: bool
    ) -> dict[str, str]:
        """Returns the digests of the live state, after comparing the copy with them; empty if that was not due."""
        shape = structure(trees)
        if not last and shape in self._proven:
            return {}
        live = compared(slot.directory, trees, blobs)
        if rehearse and shape not in self._proven:
            self._round_trip.check(slot.directory, trees, blobs, live)
            self._proven.add(shape)
        return live


def layout(blobs: Mapping[str, Blob]) -> tuple[bytes, dict[str, Entry]]:
    """Returns the head of a tensors file and where each blob goes in it."""
    return snapshots.layout((name, blob.dtype, blob.shape) for name, blob in blobs.items())


def tensor_bytes(head: bytes, entries: Mapping[str, Entry]) -> int:
    """Returns the size of a tensors file."""
    return max([len(head), *(entry.end for entry in entries.values())])


def compared(directory: Path, trees: Mapping[str, Tree], blobs: Mapping[str, Blob]) -> dict[str, str]:
    """Returns the digest of each live component; raises SnapshotDiffers if a copy in the snapshot has another.

    Hashes the live state and the files at the same time, on two threads.
    """
    with ThreadPoolExecutor(1) as executor:
        written = executor.submit(snapshots.component_digests, directory)
        live = digests(trees, blobs)
        try:
            copied = written.result()
        except SnapshotInvalid as error:
            raise SnapshotDiffers(f"{directory}: the snapshot cannot be read back: {error}") from error
    different = [name for name in live if live[name] != copied.get(name)]
    if different:
        raise SnapshotDiffers(
            f"{directory}: the copy of {', '.join(different)} is not equal to the state in memory: a thread of the"
            " training changes it meanwhile, or the memory is faulty"
        )
    return live


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
