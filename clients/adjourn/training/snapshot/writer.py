"""Copies a run's state into files that are written again and again. Training stands still for this part only.

A file in memory (`/dev/shm`) that is mapped and was written to before takes a copy at the speed of memory. In a new
file, the kernel first has to find each page. What GPUs copy is pinned besides (`pinned.py`).
"""

import errno
import json
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from google.protobuf import json_format

from adjourn import failpoints, kept_snapshots, outputs, snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.outputs import OutputFile
from adjourn.snapshots import Entry, SnapshotInvalid, Tree
from adjourn.training.errors import NoSpace, SnapshotDiffers, SnapshotFailed, StateNotEncodable
from adjourn.training.events import log_line
from adjourn.training.output_directory import OutputDirectory
from adjourn.training.snapshot import pinned
from adjourn.training.snapshot.pinned import Cuda, Gpus, Pinned
from adjourn.training.snapshot.round_trip import RoundTrip, Structures, digests
from adjourn.training.state.codec import Blob, Blobs, Head
from adjourn.training.state.environment import fingerprint
from adjourn.v1.job_pb2 import Progress

REGULAR_SLOTS = 2
"""While one snapshot is made durable, the next goes to the other slot. A third slot is kept for the last snapshot."""
SLOTS = REGULAR_SLOTS + 1
LEAST_BYTES = 1 << 20
"""Of a file that is worth being made ready."""
STEP_BYTES = 4 << 20
"""Of a file, made ready at a time: for so long, two milliseconds, a snapshot may wait for it."""
GROWTH = 16
"""A file may grow by this fraction before it is mapped anew."""
Output = tuple[Path, Sequence[OutputFile]]
"""A directory, and the files of it that a snapshot is to have."""
NO_OUTPUT: Output = (Path(), ())
LACK_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})
"""Errors that say so: no space, a quota, a limit on the size of files, no memory."""


class Encodable(Protocol):
    """What the writer needs of `adjourn.training.state.registry.State`."""

    @property
    def remarks(self) -> Sequence[str]: ...

    @property
    def standing(self) -> Mapping[str, str]: ...

    @property
    def drilled(self) -> bool | None: ...

    @property
    def sources(self) -> Mapping[str, Mapping[str, Any]]: ...

    def encode(self, *, anew: bool = False) -> tuple[dict[str, Tree], Mapping[str, Blob]]: ...


@dataclass(slots=True, eq=False)
class Layout:
    """Where the tensors of a state go in a file: the same in every snapshot, as long as their shapes stand."""

    heads: Sequence[Head]
    """Of the blobs that this is known to be right for."""
    shapes: Sequence[tuple[Any, ...]]
    """Of each blob, all that the rest follows from."""
    head: bytes
    entries: Mapping[str, Entry]
    size: int
    """Of the file."""

    @classmethod
    def of(cls, blobs: Mapping[str, Blob], known: "Layout | None" = None) -> "Layout":
        """Returns `known` if it is right for these."""
        blobs = Blobs.of(blobs)
        if known is not None and known.heads is blobs.heads:
            return known
        shapes = [(*head, data.dtype, data.shape) for head, data in zip(blobs.heads, blobs.data, strict=True)]
        if known is not None and known.shapes == shapes:
            known.heads = blobs.heads
            return known
        head, entries = snapshots.layout(blobs.heads)
        size = max([len(head), *(entry.end for entry in entries.values())])
        return cls(blobs.heads, shapes, head, entries, size)

    def targets(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """Returns where in a file's bytes each blob's data is copied to."""
        return [
            buffer[self.entries[name].begin : self.entries[name].end].view(dtype).view(shape)
            for name, _, _, dtype, shape in self.shapes
        ]


class Slot:
    """One directory for a snapshot, and its mapped file."""

    def __init__(self, directory: Path, gpus: Gpus | None = None) -> None:
        """`gpus`: those that tensors may lie on."""
        self.directory = directory
        self._gpus = gpus
        self._pinned = Pinned(gpus) if gpus else None
        self._tensors, self._state, self._in_use, self._output = (
            os.path.join(directory, name)  # noqa: PTH118  (a Path takes longer than the call it is made for)
            for name in (snapshots.TENSORS, snapshots.STATE, snapshots.IN_USE, outputs.DATA)
        )
        self._buffer: torch.Tensor | None = None
        """The mapped file, and some room for it to grow: mapping it anew would have the kernel find each page anew."""
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that is mapped."""
        self._allocated = 0
        """Size of the file; 0 if it is not known that the file system has the room for all of it."""
        self._touched = 0
        """Bytes from the first on that were written to since the file is mapped."""
        self._layout: Layout | None = None
        """Of what is in the file."""
        self._has_output = True
        """Whether files of the run may lie here."""
        self._targets: list[torch.Tensor] = []

    @property
    def free(self) -> bool:
        return not os.path.exists(self._in_use)  # noqa: PTH110

    def release(self) -> None:
        """Lets the next snapshot be written over this one."""
        with suppress(FileNotFoundError):
            os.unlink(self._in_use)  # noqa: PTH108

    def allocated(self) -> int:
        """Returns the bytes that the slot's files hold on their file system."""
        total = 0
        for path in (self._tensors, self._output):
            with suppress(OSError):
                total += os.stat(path).st_blocks * 512  # noqa: PTH116
        return total

    def ready(self, size: int) -> bool:
        """Tells whether a file of `size` bytes is mapped, and was written to before."""
        return self._buffer is not None and size <= min(self._touched, len(self._buffer))

    def holds(self, size: int) -> bool:
        """Tells whether the slot's file is there and has this size, and the file system the room for all of it."""
        return self._allocated == size and self._linked()

    def prepare(self, size: int, stopped: Callable[[], bool]) -> None:
        """Makes the slot ready, step by step, until `stopped`; raises OSError, and then leaves nothing.

        The interpreter's lock is held for moments only: other threads go on.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self._linked():
                self._forget()
            with open(self._tensors, "a+b") as file:  # noqa: PTH123
                buffer = self._mapped(file, size)
                self._allocated = 0
                self._resize(file, size)
                for begin in range(self._touched, size, STEP_BYTES):
                    if stopped():
                        return
                    end = min(begin + STEP_BYTES, size)
                    os.posix_fallocate(file.fileno(), begin, end - begin)
                    buffer[begin : end : mmap.PAGESIZE].zero_()
                    self._touched = end
            self._allocated = size
        except OSError:
            self._remove()
            raise

    def write(
        self, text: bytes, blobs: Mapping[str, Blob], layout: Layout | None = None, output: Output = NO_OUTPUT
    ) -> int:
        """Writes a snapshot and marks the slot as in use; returns the bytes of its files. `text`: of `state.json`.

        Raises SnapshotFailed, or NoSpace, and then leaves nothing.
        """
        layout, beside = layout or Layout.of(blobs), 0
        try:
            self.fit(layout)
            file = os.open(self._state, os.O_CREAT | os.O_WRONLY, 0o666)
            try:
                os.pwrite(file, b"\0", 0)  # until all is written, this is no JSON
                pinned.copy(self._targets, Blobs.of(blobs).data, self._gpus, pinned=bool(self._pinned))
                if output[1] or self._has_output:
                    beside = outputs.pack(*output, self.directory)
                    self._has_output = beside > 0
                write_over(file, text)
            finally:
                os.close(file)
            if not self._linked():
                raise FileNotFoundError(errno.ENOENT, "the file was removed while it was written")
            os.close(os.open(self._in_use, os.O_CREAT | os.O_WRONLY, 0o666))
        except OSError as error:
            self._remove()
            kind = NoSpace if error.errno in LACK_OF_SPACE else SnapshotFailed
            raise kind(f"{self.directory}: {error}") from error
        return layout.size + len(text) + beside

    def fit(self, layout: Layout) -> None:
        """Lets the mapped file be one of this layout, with the room for it; raises OSError."""
        if not self._linked():
            self._forget()
        if self._layout is layout and self._allocated == layout.size:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self._tensors, "a+b") as file:  # noqa: PTH123
            buffer = self._mapped(file, layout.size)
            if self._allocated != layout.size:
                self._resize(file, layout.size)
                # Without this, a lack of space would be found while copying, as a SIGBUS.
                os.posix_fallocate(file.fileno(), 0, layout.size)
        self._allocated = self._touched = layout.size
        buffer[: len(layout.head)] = torch.frombuffer(bytearray(layout.head), dtype=torch.uint8)
        self._layout, self._targets = layout, layout.targets(buffer)
        if self._pinned is not None:
            self._pinned.hold(buffer[: layout.size])

    def _mapped(self, file: BinaryIO, size: int) -> torch.Tensor:
        """Returns the bytes of a file that is to have `size` of them; mapping it takes no memory yet."""
        if self._buffer is None or size > len(self._buffer):
            self._forget()
            reach = size + size // GROWTH
            self._resize(file, reach)
            self._buffer = torch.frombuffer(mmap.mmap(file.fileno(), reach), dtype=torch.uint8)
            status = os.fstat(file.fileno())
            self._file = (status.st_dev, status.st_ino)
        return self._buffer

    def _resize(self, file: BinaryIO, size: int) -> None:
        if self._pinned is not None:  # pages that a file gives up stay where they are pinned, and are no longer its
            self._pinned.release()
        file.truncate(size)

    def _forget(self) -> None:
        if self._pinned is not None:
            self._pinned.release()
        self._buffer, self._file, self._allocated, self._touched = None, None, 0, 0
        self._layout, self._targets = None, []

    def _remove(self) -> None:
        self._forget()
        shutil.rmtree(self.directory, ignore_errors=True)  # its space may be what others lack

    def _linked(self) -> bool:
        """Tells whether the mapped file is still the one of that name: someone may have removed it under us."""
        try:
            status = os.stat(self._tensors)  # noqa: PTH116
        except OSError:
            return False
        return self._file == (status.st_dev, status.st_ino)


def write_over(file: int, text: bytes) -> None:
    """Writes a file whose first byte makes it invalid; that one is put right last. Its pages are used again."""
    written = 1
    while written < len(text):
        written += os.pwrite(file, memoryview(text)[written:], written)
    os.ftruncate(file, len(text))
    os.pwrite(file, text[:1], 0)


class Preparation:
    """Makes slots ready beside the training, in a thread."""

    def __init__(self, slots: Sequence[Slot], layout: Layout) -> None:
        self._slots = slots
        self._layout = layout
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="adjourn-slots")
        self._thread.start()

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Returns once no slot is touched any more."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        for slot in self._slots:
            with suppress(OSError):  # the snapshot that needs the slot says what is wrong with it
                slot.prepare(self._layout.size, self._stopped.is_set)
                if not self._stopped.is_set():
                    slot.fit(self._layout)


class Area:
    """A directory with the slots of an attempt, on one file system."""

    def __init__(self, directory: Path, gpus: Gpus | None = None) -> None:
        self.directory = directory
        self.slots = [Slot(directory / f"slot-{number}", gpus) for number in range(SLOTS)]

    def room(self) -> int:
        """Returns how many bytes snapshots can take here, those that they take already included; 0 if unknown."""
        existing = next(path for path in (self.directory, *self.directory.parents) if path.is_dir())
        try:
            status = os.statvfs(existing)
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize + self.allocated()

    def make_room(self, size: int) -> None:
        """Removes snapshots that were kept for other jobs' return, as far as they are in the way of so many bytes."""
        kept_snapshots.make_room(self.directory.parent / kept_snapshots.KEPT, size - self.allocated())

    def allocated(self) -> int:
        """Returns the bytes that snapshots take here already."""
        return sum(slot.allocated() for slot in self.slots)

    def free_slot(self, *, last: bool) -> Slot | None:
        """Returns a free slot; the third is kept for the last snapshot of the attempt."""
        return next((slot for slot in self.slots[: SLOTS if last else REGULAR_SLOTS] if slot.free), None)

    def holds(self, size: int) -> bool:
        """Tells whether the slot that a snapshot goes to has a file of that size: room is not asked for then."""
        slot = self.free_slot(last=False)
        return slot is not None and slot.holds(size)

    def in_use(self) -> int:
        """Returns how many slots hold snapshots that are not yet durable."""
        return sum(not slot.free for slot in self.slots)


class Written:
    """`state.json` as text. The texts of components whose trees are still the same objects are used again."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[Tree, str]] = {}

    def text(self, trees: Mapping[str, Tree], **others: Any) -> bytes:
        """Returns the file's content; the components come first, and keep their place."""
        for name, tree in trees.items():
            known = self._texts.get(name)
            if known is None or known[0] is not tree or not isinstance(tree, dict | list):
                self._texts[name] = (tree, f"{dumped(name)}:{dumped(tree)}")
        components = ",".join(self._texts[name][1] for name in trees)
        return f'{{"components":{{{components}}},{dumped(others)[1:]}'.encode()


def dumped(tree: Tree) -> str:
    return json.dumps(tree, separators=(",", ":"), allow_nan=False)


class SnapshotWriter:
    """Writes snapshots into the slots of an attempt, numbers them, and proves that they can be restored."""

    def __init__(
        self,
        directories: Sequence[Path],
        device: torch.device,
        round_trip: RoundTrip,
        output: OutputDirectory | None = None,
    ) -> None:
        """`directories`: the preferred one first; the others, where it has no room. `output`: what is kept beside."""
        gpus = Cuda() if device.type == "cuda" else None
        self._areas = [Area(directory, gpus) for directory in directories]
        self._area: Area | None = None
        """Where the last snapshot went."""
        self._device = device
        self._round_trip = round_trip
        self._output = output
        self._proven: set[str] = set()
        """Structures of states that a rehearsed resume took."""
        self._sequence = 0
        self._layout: Layout | None = None
        """Of the last state."""
        self._written = Written()
        self._structures = Structures()
        self._preparation: Preparation | None = None

    @property
    def proven(self) -> bool:
        """Whether a resume was rehearsed with the objects that are tracked now."""
        return bool(self._proven)

    def knows(self, state: Encodable) -> bool:
        """Tells whether a resume was rehearsed with a state of the same structure."""
        try:
            trees, _ = state.encode()
        except StateNotEncodable:
            return False
        return self._structures.digest(trees) in self._proven

    def renew(self) -> None:
        """Has a resume rehearsed with the next snapshot again: other objects are tracked."""
        self._proven.clear()

    def check_room(self, state: Encodable) -> None:
        """Chooses where snapshots go; raises NoSpace if there is no room anywhere, StateNotEncodable."""
        _, blobs = state.encode()
        self._layout = Layout.of(blobs)
        self._choose(self._layout.size)

    def prepare(self, state: Encodable) -> None:
        """Begins to make the slots ready that the next snapshots go to; training goes on meanwhile.

        What is wrong with room or state the next snapshot says.
        """
        with suppress(NoSpace, StateNotEncodable):
            self.check_room(state)
            self._prepare()

    def _prepare(self) -> None:
        if self._area is None or self._layout is None or self._layout.size < LEAST_BYTES:
            return
        size = self._layout.size
        unready = [slot for slot in self._area.slots[:REGULAR_SLOTS] if not slot.ready(size) and slot.free]
        if unready and (fitting := self._area.slots[: min(REGULAR_SLOTS, self._area.room() // size)]):
            self._preparation = Preparation([slot for slot in unready if slot in fitting], self._layout)

    @property
    def preparing(self) -> bool:
        """Whether slots are being made ready."""
        return self._preparation is not None and self._preparation.runs

    def stop_preparing(self) -> None:
        """Returns once no slot is touched any more; what was done stays."""
        if self._preparation is not None:
            self._preparation.stop()
            self._preparation = None

    def save(
        self, state: Encodable, progress: Progress, values: Mapping[str, float], *, last: bool, rehearse: bool = True
    ) -> Snapshot | None:
        """Returns the snapshot taken; None: both slots are still being made durable, and another will follow.

        The last is encoded anew: what a pause rests on trusts nothing that is remembered. The copy is compared with the
        live state if it is the last, or the first whose state has that structure. For the latter, a resume is rehearsed
        too, unless `rehearse` is False. Raises SnapshotFailed, StateNotEncodable, StateNotRestorable, OutputTooLarge.
        """
        begin = time.monotonic()
        self.stop_preparing()
        trees, blobs = state.encode(anew=last)
        self._layout = Layout.of(blobs, self._layout)
        text = self._written.text(
            trees,
            format=snapshots.FORMAT,
            environment=fingerprint(self._device),
            remarks=list(state.remarks),
            drilled=state.drilled,
            standing=dict(state.standing),
            sources=dict(state.sources),
            progress=json_format.MessageToDict(progress, preserving_proto_field_name=True),
        )
        output = (self._output.path, self._output.files()) if self._output else NO_OUTPUT
        found = self._write(text, blobs, self._layout, output, last=last)
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
        if not last:
            self._prepare()
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

    def _write(
        self, text: bytes, blobs: Mapping[str, Blob], layout: Layout, output: Output, *, last: bool
    ) -> tuple[Slot, int] | None:
        """Writes into the first area that takes it; returns the slot and its bytes, None if no slot is free.

        Raises SnapshotFailed.
        """
        self._choose(layout.size + outputs.total_size(output[1]))
        failure: SnapshotFailed | None = None
        for area in sorted(self._areas, key=lambda area: area is not self._area):
            slot = area.free_slot(last=last)
            if slot is None and not last:
                break
            try:
                if slot is None:
                    raise NoSpace(f"every slot of {area.directory} holds a snapshot that is not yet durable")
                size = slot.write(text, blobs, layout, output)
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
        if current and (current.holds(size) or current.room() >= min(current.in_use() + 1, SLOTS) * size):
            return
        for area in self._areas:
            area.make_room(SLOTS * size)
            if area.room() >= SLOTS * size:
                break
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
        shape = self._structures.digest(trees)
        if not last and shape in self._proven:
            return {}
        live = compared(slot.directory, trees, blobs)
        if rehearse and shape not in self._proven:
            self._round_trip.check(slot.directory, trees, blobs, live)
            self._proven.add(shape)
        return live


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
