"""How much memory a rehearsal may take, and what is said when that is too little."""

from pathlib import Path

import pytest
import torch
from torch import nn

from adjourn.training.errors import StateNotRestorable
from adjourn.training.snapshot import round_trip
from adjourn.training.snapshot.round_trip import COPY_LIMIT_BYTES, RoundTrip, available_memory
from adjourn.training.snapshot.writer import SnapshotWriter
from adjourn.training.state.registry import State
from adjourn.v1.job_pb2 import Progress

GIB = 1 << 30


def kernel(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),
        (MACHINE, 8 * GIB),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/pod/it\n",
                "sys/fs/cgroup/pod/it/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/pod/it/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/pod/it/memory.stat": f"anon {GIB}\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/of/the/host\n",
                "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
            },
            GIB,
        ),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "0::/it\n",
                "sys/fs/cgroup/it/memory.max": "max\n",
                "sys/fs/cgroup/it/memory.current": f"{3 * GIB}\n",
            },
            8 * GIB,
        ),
        (
            {
                **MACHINE,
                "proc/self/cgroup": "5:cpu:/it\n4:memory:/it\n0::/\n",
                "sys/fs/cgroup/memory/it/memory.limit_in_bytes": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory/it/memory.usage_in_bytes": f"{3 * GIB}\n",
            },
            GIB,
        ),
    ],
    ids=["unknown", "machine", "cgroup", "container", "unlimited", "cgroup-v1"],
)
def test_available_memory_is_that_of_machine_and_cgroup(
    tmp_path: Path, files: dict[str, str], available: int | None
) -> None:
    assert available_memory(kernel(tmp_path, files)) == available


def test_available_memory_of_this_machine_is_known() -> None:
    assert (available_memory() or 0) > 0


def rehearse(directory: Path, model: nn.Module) -> None:
    trip = RoundTrip(dict)
    state = State(dict, None)
    trip.prepare({"model": model})
    state.add({"model": model})
    trip.seal()
    model.append(nn.Linear(1, 1))  # type: ignore[operator]  # a new model has no such layer
    SnapshotWriter([directory], torch.device("cpu"), trip).save(state, Progress(), {}, last=True)


def test_rehearsal_without_memory_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StateNotRestorable, match="model"):
        rehearse(tmp_path / "a", nn.Sequential())
    monkeypatch.setattr(round_trip, "available_memory", lambda: 1)
    rehearse(tmp_path / "b", nn.Sequential())
    assert "a resume was not rehearsed: the state takes" in capsys.readouterr().err


def test_what_an_object_holds_beside_its_tensors_is_not_copied_without_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(round_trip, "COPY_LIMIT_BYTES", COPY_LIMIT_BYTES >> 20)
    model = nn.Linear(1000, 1000)
    RoundTrip(dict).prepare({"model": model})
    assert capsys.readouterr().err == ""
    vars(model)["data"] = [torch.zeros(200)] * 2 + [torch.ones(200)]
    RoundTrip(dict).prepare({"model": model})
    assert "model: it cannot be copied (CopyTooLarge: it holds over" in capsys.readouterr().err
