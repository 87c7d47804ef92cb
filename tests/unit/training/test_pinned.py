"""Snapshots of what lies on a GPU, with a stand-in for CUDA; `test_cuda.py` does it with a GPU where there is one."""

import errno
import gc
import os
from pathlib import Path

import pytest
import torch

from adjourn import snapshots
from adjourn.snapshots import IN_USE, TENSORS
from adjourn.training.errors import NoSpace
from adjourn.training.snapshot.pinned import Cuda, Pinned
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.snapshot.writer import Layout, Slot, dumped
from adjourn.training.state.codec import Blob
from tests.harness.emulated_gpu import EmulatedGpus


def state(gpus: EmulatedGpus, value: float, size: int = 1000) -> dict[str, Blob]:
    """Returns a tensor of a GPU and one of the CPU."""
    tensors = {"there": gpus.put(torch.full((size,), float(value))), "here": torch.full((3,), -float(value))}
    return {name: Blob(dtype="F32", shape=tuple(each.shape), data=each) for name, each in tensors.items()}


def content(slot: Slot) -> dict[str, list[float]]:
    file = (slot.directory / TENSORS).read_bytes()
    found = snapshots.read_layout(slot.directory / TENSORS)
    return {
        name: torch.frombuffer(bytearray(file[entry.begin : entry.end]), dtype=torch.float32).tolist()
        for name, entry in found.items()
    }


def test_memory_is_pinned_first_and_the_slot_is_handed_over_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = EmulatedGpus()
    slot = Slot(tmp_path / "slot", gpus)
    live = state(gpus, 1.5)
    gpus.late.append((live["there"].data, torch.full((1000,), 2.5)))  # a kernel that was asked for before
    opened = os.open

    def seen(path: str, *options: int) -> int:
        gpus.calls += ["handed over"] * str(path).endswith(IN_USE)
        return opened(path, *options)

    monkeypatch.setattr(os, "open", seen)
    slot.write(b"{}", live)
    assert gpus.calls == ["register", "settle", "copy", "finish", "handed over"]
    assert content(slot) == {"there": [2.5] * 1000, "here": [-1.5] * 3}
    gpus.calls.clear()
    slot.release()
    slot.write(b"{}", state(gpus, 3))
    assert content(slot)["here"] == [-3] * 3


def test_memory_stays_pinned_from_snapshot_to_snapshot(tmp_path: Path) -> None:
    gpus = EmulatedGpus()
    slot = Slot(tmp_path / "slot", gpus)
    layout = Layout.of(state(gpus, 0))
    for value in range(3):
        slot.write(b"{}", state(gpus, value), layout)
        assert content(slot)["there"] == [value] * 1000
    assert gpus.calls.count("register") == 1


def test_memory_is_let_go_before_its_file_gets_another_length_or_is_unmapped(tmp_path: Path) -> None:
    """Pages that a file gives up stay where they are pinned: a GPU would write to what is no longer the file's."""
    gpus = EmulatedGpus()
    slot = Slot(tmp_path / "slot", gpus)
    for value, size in ((1, 1_000_000), (2, 1_010_000), (3, 10), (4, 3_000_000)):
        slot.write(b"{}", state(gpus, value, size))
        assert content(slot)["there"] == [value] * size
        assert list(gpus.pinned.values()) == [(slot.directory / TENSORS).stat().st_size]
    assert gpus.calls.count("unregister") == 3
    del slot
    gc.collect()
    assert not gpus.pinned


def test_memory_that_was_made_ready_beside_the_training_is_pinned_there(tmp_path: Path) -> None:
    gpus = EmulatedGpus()
    slot = Slot(tmp_path / "slot", gpus)
    layout = Layout.of(state(gpus, 0))
    slot.prepare(layout.size, lambda: False)
    slot.fit(layout)
    assert gpus.calls == ["register"]
    slot.write(b"{}", state(gpus, 1), layout)
    assert gpus.calls.count("register") == 1


def test_a_snapshot_that_fails_lets_go_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = EmulatedGpus()
    slot = Slot(tmp_path / "slot", gpus)
    slot.write(b"{}", state(gpus, 1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpace):
        slot.write(b"{}", state(gpus, 2))
    assert not gpus.pinned


def test_memory_that_cannot_be_pinned_takes_plain_copies_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pinned, "_told", set())
    gpus = EmulatedGpus(refusal="out of memory")
    for name in ("one", "other"):
        slot = Slot(tmp_path / name, gpus)
        for value in (1, 2):
            live = state(gpus, value)
            gpus.late.append((live["there"].data, torch.full((1000,), value + 0.5)))
            slot.write(b"{}", live, Layout.of(live))
            assert content(slot) == {"there": [value + 0.5] * 1000, "here": [-value] * 3}
    assert set(gpus.calls) == {"register", "settle"}
    assert capsys.readouterr().err.count("cannot be pinned (out of memory)") == 1


def test_a_snapshot_without_tensors_of_a_gpu_asks_nothing_of_it(tmp_path: Path) -> None:
    gpus = EmulatedGpus()
    slot = Slot(tmp_path / "slot", gpus)
    here = state(gpus, 1)["here"]
    slot.write(b"{}", {"here": here})
    slot.write(b"{}", {})
    assert not {"settle", "copy", "finish"} & set(gpus.calls)


def test_what_is_restored_on_a_gpu_is_pinned_until_all_is_read(tmp_path: Path) -> None:
    gpus = EmulatedGpus()
    document = {"format": snapshots.FORMAT, "components": {}, "environment": {}, "remarks": [], "progress": {}}
    Slot(tmp_path).write(dumped(document).encode(), state(EmulatedGpus(), 1))
    reader = SnapshotReader(tmp_path, torch.device("meta"), gpus)
    assert list(gpus.pinned.values()) == [(tmp_path / TENSORS).stat().st_size]
    del reader
    gc.collect()
    assert not gpus.pinned


def test_a_torch_without_a_gpu_pins_nothing_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """A job on GPUs may train with something else than torch, and keep a state on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    pinned = Pinned(Cuda())
    pinned.hold(torch.zeros(10))
    assert not pinned
    assert "torch finds no GPU" in capfd.readouterr().err
