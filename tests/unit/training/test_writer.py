import errno
import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adjourn import snapshots
from adjourn.snapshots import IN_USE, STATE, TENSORS
from adjourn.training.errors import NoSpace, SnapshotDiffers, SnapshotFailed
from adjourn.training.snapshot.round_trip import RoundTrip
from adjourn.training.snapshot.writer import Area, Slot, SnapshotWriter
from adjourn.training.state.codec import Blob, Encoder
from adjourn.v1.job_pb2 import Progress


def blobs(value: float, size: int = 1000) -> dict[str, Blob]:
    return {"it": Blob(dtype="F32", shape=(size,), data=torch.full((size,), float(value)))}


def content(slot: Slot) -> list[float]:
    entry = snapshots.read_layout(slot.directory / TENSORS)["it"]
    data = (slot.directory / TENSORS).read_bytes()[entry.begin : entry.end]
    return [value for (value,) in struct.iter_unpack("<f", data)]


def test_snapshot_is_written_and_the_slot_is_in_use(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    size = slot.write({"format": 1}, blobs(1.5))
    assert not slot.free
    assert content(slot) == [1.5] * 1000
    assert json.loads((slot.directory / STATE).read_text()) == {"format": 1}
    assert size == sum((slot.directory / name).stat().st_size for name in (STATE, TENSORS))


def test_same_file_is_written_again(tmp_path: Path) -> None:
    slot = Slot(tmp_path)
    slot.write({}, blobs(1))
    file = (slot.directory / TENSORS).stat().st_ino
    for value, size in ((2, 1000), (3, 50_000), (4, 10), (5, 0)):
        (slot.directory / IN_USE).unlink()
        slot.write({}, blobs(value, size))
        assert content(slot) == [value] * size
    assert (slot.directory / TENSORS).stat().st_ino == file


def test_snapshot_without_tensors(tmp_path: Path) -> None:
    Slot(tmp_path).write({}, {})
    assert snapshots.read_layout(tmp_path / TENSORS) == {}


def test_slots_take_turns_and_the_last_snapshot_finds_a_place(tmp_path: Path) -> None:
    area = Area(tmp_path)
    used = []
    for _ in range(2):
        slot = area.free_slot(last=False)
        assert slot
        slot.write({}, blobs(1))
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
    slot.write({}, blobs(1))
    (slot.directory / IN_USE).unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(NoSpace, match="No space left"):
            slot.write({}, blobs(2, 2000))
    assert not slot.directory.exists()
    assert slot.free
    slot.write({}, blobs(3))
    assert content(slot) == [3] * 1000


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotFailed, match="file"):
        Slot(tmp_path / "file" / "slot").write({}, blobs(1))


def test_file_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    slot = Slot(tmp_path / "slot")
    slot.write({}, blobs(1))
    for name in (TENSORS, IN_USE):
        (slot.directory / name).unlink()
    slot.write({}, blobs(2))
    assert content(slot) == [2] * 1000


def test_file_that_is_removed_while_it_is_written_is_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = Slot(tmp_path / "slot")
    write_bytes = Path.write_bytes

    def remove_and_write(path: Path, data: bytes) -> int:
        (slot.directory / TENSORS).unlink()
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", remove_and_write)
    with pytest.raises(SnapshotFailed, match="removed while it was written"):
        slot.write({}, blobs(1))
    assert slot.free


class Live:
    """A state of one tensor."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.remarks: list[str] = []
        self.value = torch.ones(size)

    def encode(self) -> tuple[dict[str, Any], dict[str, Blob]]:
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

    def write_and_change(slot: Slot, document: Any, blobs: Any) -> int:
        size = write(slot, document, blobs)
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
