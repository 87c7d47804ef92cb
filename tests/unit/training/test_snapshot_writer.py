import errno
import json
import os
import struct
from pathlib import Path

import pytest
import torch

from adjourn import snapshots, training
from adjourn.snapshots import IN_USE, STATE, TENSORS
from adjourn.training.snapshot.writer import Slot, SnapshotWriter
from adjourn.training.state.codec import Blob


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
    writer = SnapshotWriter(tmp_path, torch.device("cpu"))
    used = []
    for _ in range(2):
        slot = writer.free_slot(last=False)
        assert slot
        slot.write({}, blobs(1))
        used.append(slot.directory)
    assert len(set(used)) == 2
    assert writer.free_slot(last=False) is None
    last = writer.free_slot(last=True)
    assert last
    assert last.directory not in used
    (used[0] / IN_USE).unlink()
    again = writer.free_slot(last=False)
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
        with pytest.raises(training.SnapshotFailed, match="No space left"):
            slot.write({}, blobs(2, 2000))
    assert not slot.directory.exists()
    assert slot.free
    slot.write({}, blobs(3))
    assert content(slot) == [3] * 1000


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(training.SnapshotFailed, match="file"):
        Slot(tmp_path / "file" / "slot").write({}, blobs(1))
