import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adjourn import kept_snapshots, snapshots
from adjourn.snapshots import IN_USE, STATE, TENSORS
from adjourn.training.errors import NoSpace, SnapshotDiffers, SnapshotFailed, StateNotEncodable
from adjourn.training.snapshot import writer as module
from adjourn.training.snapshot.round_trip import RoundTrip
from adjourn.training.snapshot.writer import Area, Layout, Preparation, Slot, SnapshotWriter
from adjourn.training.state.codec import Blob, Encoder
from adjourn.v1.job_pb2 import Progress
from tests.harness.training_processes import PAUSE, TrainingProcesses, until


def blobs(value: float, size: int = 1000) -> dict[str, Blob]:
    return {"it": Blob(dtype="F32", shape=(size,), data=torch.full((size,), float(value)))}


def content(slot: Slot) -> list[float]:
    entry = snapshots.read_layout(slot.directory / TENSORS)["it"]
    data = (slot.directory / TENSORS).read_bytes()[entry.begin : entry.end]
    return [value for (value,) in struct.iter_unpack("<f", data)]


def test_snapshot_is_written_and_the_slot_is_in_use(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    size = slot.write(b'{"format":1}', blobs(1.5))
    assert not slot.free
    assert content(slot) == [1.5] * 1000
    assert json.loads((slot.directory / STATE).read_text()) == {"format": 1}
    assert size == sum((slot.directory / name).stat().st_size for name in (STATE, TENSORS))


def test_same_file_is_written_again(tmp_path: Path) -> None:
    slot = Slot(tmp_path)
    slot.write(b"{}", blobs(1))
    file = (slot.directory / TENSORS).stat().st_ino
    for value, size in ((2, 1000), (3, 50_000), (4, 10), (5, 0)):
        (slot.directory / IN_USE).unlink()
        slot.write(b"{}", blobs(value, size))
        assert content(slot) == [value] * size
    assert (slot.directory / TENSORS).stat().st_ino == file


def test_snapshot_without_tensors(tmp_path: Path) -> None:
    Slot(tmp_path).write(b"{}", {})
    assert snapshots.read_layout(tmp_path / TENSORS) == {}


def test_slots_take_turns_and_the_last_snapshot_finds_a_place(tmp_path: Path) -> None:
    area = Area(tmp_path)
    used = []
    for _ in range(2):
        slot = area.free_slot(last=False)
        assert slot
        slot.write(b"{}", blobs(1))
        used.append(slot.directory)
    assert len(set(used)) == 2
    assert area.free_slot(last=False) is None
    last = area.free_slot(last=True)
    assert last
    assert last.directory not in used
    (used[0] / IN_USE).unlink()
    again = area.free_slot(last=False)
    assert again
    assert again.directory == used[0]


def test_lack_of_space_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Slot(tmp_path / "slot")
    slot.write(b"{}", blobs(1))
    (slot.directory / IN_USE).unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoSpace, match="No space left"):
            slot.write(b"{}", blobs(2, 2000))
    assert not slot.directory.exists()
    assert slot.free
    slot.write(b"{}", blobs(3))
    assert content(slot) == [3] * 1000


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotFailed, match="file"):
        Slot(tmp_path / "file" / "slot").write(b"{}", blobs(1))


def test_file_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    slot.write(b"{}", blobs(1))
    for name in (TENSORS, IN_USE):
        (slot.directory / name).unlink()
    slot.write(b"{}", blobs(2))
    assert content(slot) == [2] * 1000


def test_file_that_is_removed_while_it_is_written_is_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = Slot(tmp_path / "slot")

    write_over = module.write_over

    def remove_and_write(file: int, text: bytes) -> None:
        (slot.directory / TENSORS).unlink()
        write_over(file, text)

    monkeypatch.setattr(module, "write_over", remove_and_write)
    with pytest.raises(SnapshotFailed, match="removed while it was written"):
        slot.write(b"{}", blobs(1))
    assert slot.free


class Live:
    """A state of one tensor."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.remarks: list[str] = []
        self.standing: dict[str, str] = {}
        self.drilled: bool | None = None
        self.sources: dict[str, dict[str, Any]] = {}
        self.value = torch.ones(size)

    def encode(self, *, anew: bool = False) -> tuple[dict[str, Any], dict[str, Blob]]:
        encoder = Encoder()
        return {"it": encoder.encode(self.value, ("it",))}, encoder.blobs


class Space:
    """Free bytes by directory, as `os.statvfs` tells of them."""

    def __init__(self, **free: int) -> None:
        self.free = free

    def statvfs(self, path: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=self.free[path.name], f_frsize=1)


@pytest.mark.parametrize(
    ("memory", "disk", "chosen"),
    [
        (40_000, 0, "memory"),  # 8,192 bytes each for three snapshots
        (20_000, 40_000, "disk"),
        (20_000, 20_000, "memory"),  # no room for three anywhere: one is better than none
        (5_000, 20_000, "disk"),
        (5_000, 5_000, None),
    ],
)
def test_first_directory_with_room_for_all_slots_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, disk: int, chosen: str | None
) -> None:
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "statvfs", Space(memory=memory, disk=disk).statvfs)
    writer = SnapshotWriter([tmp_path / "memory", tmp_path / "disk"], torch.device("cpu"), RoundTrip(dict))
    if chosen is None:
        with pytest.raises(NoSpace, match=r"takes 0.0 MB, and .*memory has room for 0.0 MB, .*disk has room"):
            writer.save(Live(1000), Progress(), {}, last=False)
        assert list((tmp_path / "memory").iterdir()) == []
    else:
        snapshot = writer.save(Live(1000), Progress(), {}, last=True, rehearse=False)
        assert snapshot
        assert Path(snapshot.directory).parent.name == chosen


@pytest.mark.parametrize(
    ("size", "left", "chosen"),
    [
        (1000, ["0", "1", "2"], "memory"),  # 3 * 8,192 bytes are free beside them
        (3000, ["1", "2"], "memory"),  # 3 * 16,384 bytes, with what one of them takes
        (10_000, ["0", "1", "2"], "disk"),  # all of it would not be enough
    ],
)
def test_what_is_kept_for_other_jobs_makes_room_for_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, left: list[str], chosen: str
) -> None:
    kept = tmp_path / "memory" / kept_snapshots.KEPT
    for age, name in enumerate(("2", "1", "0")):
        (kept / name).mkdir(parents=True)
        (kept / name / TENSORS).write_bytes(bytes(20_480))
        os.utime(kept / name, (1e9 - age, 1e9 - age))
    for name in ("memory", "disk"):
        (tmp_path / name / "attempt").mkdir(parents=True)

    def statvfs(path: Path) -> SimpleNamespace:
        in_memory = path.is_relative_to(tmp_path / "memory")
        free = 92_000 - sum(map(kept_snapshots.taken, kept.iterdir())) if in_memory else 10_000_000
        return SimpleNamespace(f_bavail=free, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    places = [tmp_path / name / "attempt" for name in ("memory", "disk")]
    writer = SnapshotWriter(places, torch.device("cpu"), RoundTrip(dict))
    snapshot = writer.save(Live(size), Progress(), {}, last=False, rehearse=False)
    assert snapshot
    assert Path(snapshot.directory).parent.parent.name == chosen
    assert sorted(path.name for path in kept.iterdir()) == left


def test_growing_state_moves_to_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory", "disk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "statvfs", Space(memory=40_000, disk=1_000_000).statvfs)
    writer = SnapshotWriter([tmp_path / "memory", tmp_path / "disk"], torch.device("cpu"), RoundTrip(dict))
    places = [
        writer.save(Live(size), Progress(), {}, last=False, rehearse=False) for size in (1000, 1000, 20_000, 20_000)
    ]
    assert [Path(place.directory).parent.name if place else None for place in places] == [
        *("memory", "memory"),
        *("disk", "disk"),
    ]


def test_copy_that_differs_from_the_live_state_is_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a thread changed the state between copy and comparison."""
    live = Live(1000)
    writer = SnapshotWriter([tmp_path], torch.device("cpu"), RoundTrip(dict))
    write = Slot.write

    def write_and_change(slot: Slot, *what: Any) -> int:
        size = write(slot, *what)
        live.value[999] += 1
        return size

    with monkeypatch.context() as patch:
        patch.setattr(Slot, "write", write_and_change)
        with pytest.raises(SnapshotDiffers, match="the copy of it is not equal"):
            writer.save(live, Progress(), {}, last=True)
    snapshot = writer.save(live, Progress(), {}, last=True, rehearse=False)
    assert snapshot
    assert snapshot.sequence == 1
    assert dict(snapshot.live_digests) == snapshots.component_digests(Path(snapshot.directory))


@pytest.mark.parametrize("sizes", [(1_000_000, 1_010_000, 990_000, 1_020_000), (1_000_000, 3_000_000, 10, 3_000_000)])
def test_a_state_that_grows_and_shrinks_is_always_the_whole_file(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    slot = Slot(tmp_path / "slot")
    for value, size in enumerate(sizes):
        slot.write(b"{}", blobs(value, size))
        assert content(slot) == [value] * size


def test_a_file_that_grows_a_little_is_not_mapped_anew(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    slot.write(b"{}", blobs(1, 1_000_000))
    buffer = slot._buffer
    slot.write(b"{}", blobs(2, 1_050_000))
    assert slot._buffer is buffer
    slot.write(b"{}", blobs(3, 1_100_000))
    assert slot._buffer is not buffer


def test_where_tensors_go_is_found_anew_only_if_their_shapes_change() -> None:
    first = Layout.of(blobs(1))
    assert Layout.of(blobs(2), first) is first
    assert Layout.of(blobs(2, 1001), first) is not first
    assert Layout.of({"other": blobs(2)["it"]}, first) is not first
    ints = {"it": Blob(dtype="I32", shape=(1000,), data=torch.ones(1000, dtype=torch.int32))}
    assert Layout.of(ints, first) is not first
    stored_as_bytes = {"it": Blob(dtype="F32", shape=(1000,), data=torch.ones(4000, dtype=torch.uint8))}
    assert Layout.of(stored_as_bytes, first) is not first


LARGE = 1_000_000
"""Elements of a state for which slots are made ready."""
BYTES = Layout.of(blobs(1, LARGE)).size


@pytest.fixture
def writer(tmp_path: Path) -> SnapshotWriter:
    return SnapshotWriter([tmp_path / "memory"], torch.device("cpu"), RoundTrip(dict))


def save(writer: SnapshotWriter, live: Live) -> Slot:
    """Takes a snapshot and returns the slot that it is in."""
    snapshot = writer.save(live, Progress(), {}, last=False, rehearse=False)
    assert snapshot
    slot = next(slot for slot in slots(writer) if str(slot.directory) == snapshot.directory)
    assert content(slot) == live.value.tolist()
    return slot


def slots(writer: SnapshotWriter) -> list[Slot]:
    return writer._areas[0].slots


def prepared(writer: SnapshotWriter, live: Live) -> None:
    writer.prepare(live)
    assert writer._preparation
    writer._preparation._thread.join()


def test_slots_are_ready_before_the_first_snapshot(writer: SnapshotWriter) -> None:
    live = Live(LARGE)
    prepared(writer, live)
    assert [slot.ready(BYTES) for slot in slots(writer)] == [True, True, False]
    assert [slot.allocated() >= BYTES for slot in slots(writer)] == [True, True, False]
    buffers = [slot._buffer for slot in slots(writer)]
    used = [save(writer, live), save(writer, live)]
    assert [slot._buffer for slot in used] == buffers[:2]
    assert not writer.preparing


def test_a_snapshot_does_not_wait_until_slots_are_ready(
    writer: SnapshotWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops what is being done at the next step; what is left is done afterwards."""
    live = Live(LARGE)
    begun, go_on = threading.Event(), threading.Event()
    fallocate = os.posix_fallocate

    def slow(file: int, offset: int, length: int) -> None:
        fallocate(file, offset, length)
        if threading.current_thread() is not threading.main_thread() and not go_on.is_set():
            begun.set()
            assert go_on.wait(30)

    monkeypatch.setattr(module, "STEP_BYTES", 1 << 20)
    monkeypatch.setattr(os, "posix_fallocate", slow)
    writer.prepare(live)
    assert begun.wait(30)
    stop = Preparation.stop

    def stop_within_a_step(preparation: Preparation) -> None:
        preparation._stopped.set()
        go_on.set()
        stop(preparation)
        assert [slot.ready(BYTES) for slot in slots(writer)] == [False, False, False]

    monkeypatch.setattr(Preparation, "stop", stop_within_a_step)
    assert save(writer, live) is slots(writer)[0]
    assert writer._preparation
    writer._preparation._thread.join()
    assert slots(writer)[1].ready(BYTES)


@pytest.mark.parametrize(("room", "ready"), [(1.5, 1), (2.5, 2), (0.5, 0)])
def test_only_as_many_slots_are_made_ready_as_there_is_room_for(
    writer: SnapshotWriter, monkeypatch: pytest.MonkeyPatch, room: float, ready: int
) -> None:
    free = SimpleNamespace(f_bavail=int(room * BYTES), f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    writer.prepare(Live(LARGE))
    if writer._preparation:
        writer._preparation._thread.join()
    assert sum(slot.ready(BYTES) for slot in slots(writer)) == ready
    assert sum(slot.directory.exists() for slot in slots(writer)) == ready


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_what_keeps_a_slot_from_being_made_ready_is_said_by_the_snapshot(
    writer: SnapshotWriter, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    live = Live(LARGE)

    def full(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        prepared(writer, live)
        assert not any(slot.directory.exists() for slot in slots(writer))
        with pytest.raises(NoSpace, match=os.strerror(error)):
            save(writer, live)
    assert save(writer, live) is slots(writer)[0]


def test_a_state_that_cannot_be_encoded_is_said_by_the_snapshot(
    writer: SnapshotWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(LARGE)
    monkeypatch.setattr(live, "encode", lambda **_: Encoder().encode(object(), ("it",)))
    writer.prepare(live)
    assert not writer.preparing
    with pytest.raises(StateNotEncodable):
        save(writer, live)


def test_a_slot_that_was_removed_since_it_was_ready_is_made_anew(writer: SnapshotWriter) -> None:
    live = Live(LARGE)
    prepared(writer, live)
    shutil.rmtree(slots(writer)[0].directory)
    assert save(writer, live) is slots(writer)[0]


KILLED = """
import os, signal, sys
from pathlib import Path
from adjourn.training.snapshot import writer
from adjourn.training.snapshot.writer import Slot

writer.STEP_BYTES = 1 << 20
steps = iter(range(3))
Slot(Path(sys.argv[1])).prepare(8 << 20, lambda: next(steps, None) is None and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_process_left_that_was_killed_while_it_made_a_slot_ready_is_no_snapshot(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(slot.directory)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert (slot.directory / TENSORS).stat().st_size == 8 << 20
    assert slot.free
    with pytest.raises(snapshots.SnapshotInvalid):
        snapshots.component_digests(slot.directory)
    slot.write(b"{}", blobs(1))
    assert content(slot) == [1] * 1000


def test_slots_are_made_ready_while_training_runs(trainings: TrainingProcesses, tmp_path: Path) -> None:
    """A new run's once a step was made, when its optimizers have a state; a resumed run's before."""
    gate = tmp_path / "gate"
    gate.touch()
    whole = trainings.run("unusual:waits", args={"gate": str(gate), "early": False}, epochs=3)
    first = trainings.run("unusual:waits", args={"gate": str(gate), "early": False}, epochs=3, order=PAUSE)
    gate.unlink()
    for restore in (None, first):
        area = tmp_path / f"snapshots-{restore is not None}"
        directory = trainings.prepare(
            "unusual:waits",
            args={"gate": str(gate), "early": restore is not None},
            epochs=3,
            restore=restore,
            snapshot_directory=str(area),
        )
        with trainings.running(directory) as wait:
            until((area / "slot-1" / TENSORS).exists)
            gate.touch()
            attempt = wait()
        gate.unlink()
        assert attempt.digests == whole.digests
