"""Snapshots of what lies on a GPU, and what is restored there; skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adjourn import snapshots
from adjourn.training.snapshot.pinned import Cuda, Pinned
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.snapshot.round_trip import RoundTrip
from adjourn.training.snapshot.writer import SnapshotWriter
from adjourn.training.state.registry import State
from adjourn.v1.job_pb2 import Progress

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda", 0)
TYPES = (
    *(torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32),
    *(torch.float64, torch.complex64, torch.float8_e4m3fn),
)
A_WHILE = 500_000_000
"""Cycles of a GPU, some tenths of a second."""


def values() -> dict[str, Any]:
    """Returns tensors of many types, on the GPU but for one."""
    torch.manual_seed(0)
    numbers = torch.randint(0, 2, (37, 5))
    found: dict[str, Any] = {str(kind): numbers.to(kind).to(GPU) for kind in TYPES}
    large = torch.randn(1 << 20, device=GPU)
    return found | {"large": large, "transposed": torch.randn(30, 20, device=GPU).t(), "here": torch.randn(10)}


def changed_late(live: dict[str, Any]) -> None:
    """Has the GPU change values behind a kernel that takes a while: on the stream of the training, and on another."""
    torch.cuda.synchronize()
    torch.cuda._sleep(A_WHILE)
    live["large"].add_(1)
    aside = torch.cuda.Stream(GPU)
    with torch.cuda.stream(aside):
        torch.cuda._sleep(A_WHILE)
        live["transposed"].add_(1)


def test_a_snapshot_is_of_the_moment_at_which_it_is_asked_for_and_comes_back(tmp_path: Path) -> None:
    live = values()
    state = State(dict, None)
    state.add({"values": live})
    writer = SnapshotWriter([tmp_path / "memory"], GPU, RoundTrip(dict))
    taken = []
    for _ in range(2):  # the second goes to a slot, and on a stream, that is there
        changed_late(live)
        snapshot = writer.save(state, Progress(), {}, last=False, rehearse=False)
        assert snapshot
        taken.append(Path(snapshot.directory))
        assert snapshots.component_digests(taken[-1])["values"] == state.digests()["values"]
        writer.release(snapshot)
    changed_late(live)
    last = writer.save(state, Progress(), {}, last=True, rehearse=False)
    assert last
    expected = state.digests()
    assert snapshots.component_digests(Path(last.directory)) == expected

    again = values()
    restored = State(dict, SnapshotReader(Path(last.directory), GPU))
    restored.add({"values": again})
    restored.complete()
    restored.compare(expected)
    assert again["large"].device == GPU
    assert torch.equal(again["large"], live["large"])
    assert again["here"].device.type == "cpu"


def test_memory_is_pinned_and_let_go() -> None:
    memory = torch.zeros(1 << 20, dtype=torch.uint8)
    pinned = Pinned(Cuda())
    pinned.hold(memory)
    assert bool(pinned)
    assert memory.is_pinned()
    pinned.release()
    assert not memory.is_pinned()


def test_memory_that_cannot_be_pinned_leaves_no_error_behind() -> None:
    memory, cuda = torch.zeros(1 << 20, dtype=torch.uint8), Cuda()
    assert cuda.register(memory) is None
    assert cuda.register(memory) is not None
    assert torch.ones(3, device=GPU).sum().item() == 3
    cuda.unregister(memory)
    cuda.unregister(memory)
    assert torch.ones(3, device=GPU).sum().item() == 3
