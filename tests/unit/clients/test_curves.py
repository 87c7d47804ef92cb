"""Metrics as curves: which belong together, where pauses and attempts are, and how they are drawn."""

import math
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import Result

from adjourn.cli import chart, curves
from adjourn.cli.curves import Curve, Marks, Panel
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]
EPOCHS = [
    EpochMetrics(
        epoch=number,
        step=10 * number,
        attempt=1 + (number > 2) + (number > 4),
        best=number == 3,
        values={"train_loss": 1 / number, "val_loss": 2 / number, "acc": math.nan if number == 1 else number / 5},
    )
    for number in range(1, 6)
]


def paused() -> Job:
    job = Job(name="jobs/x")
    job.pause.CopyFrom(Pause(epoch=2, step=25))
    job.pause.pause_time.FromSeconds(1)
    job.past_pauses.add(epoch=1, step=10).pause_time.FromSeconds(1)
    job.past_pauses.add(epoch=3, note="the run finished first")
    return job


def drawn(*panels: Panel, marks: Marks | None = None, width: int = 60) -> list[str]:
    out = StringIO()
    Console(file=out, width=width).print(chart.drawn(panels, marks or Marks([], [], None), width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_metrics_of_one_kind_share_a_scale_and_losses_come_first() -> None:
    found = curves.panels(curves.of_epochs(EPOCHS))
    assert [(panel.title, [curve.name for curve in panel.curves]) for panel in found] == [
        ("loss", ["train_loss", "val_loss"]),
        ("acc", ["acc"]),
    ]
    assert [x for x, _ in found[1].curves[0].points] == [2, 3, 4, 5], "what is not finite is no point"


def test_pauses_are_where_they_were_and_other_attempts_are_told_apart() -> None:
    assert curves.marks(paused(), EPOCHS) == Marks(pauses=[1, 2.5], restarts=[4], best=3)
    assert curves.marks(Job(), []) == Marks([], [], None)


@pytest.mark.parametrize(
    ("step", "epoch", "at"), [(5, 0, 0.5), (10, 1, 1), (25, 2, 2.5), (50, 5, 5), (55, 5, 5), (700, 70, 70)]
)
def test_a_step_has_a_place_among_epochs(step: int, epoch: int, at: float) -> None:
    assert curves.place(step, epoch, EPOCHS) == at


def test_a_chart_has_names_scale_curves_and_marks() -> None:
    lines = drawn(Panel("loss", [Curve("loss", [(1, 4), (2, 0)])]), marks=Marks([1.5], [1.25, 9], 2), width=90)
    assert lines[0].strip() == "loss"
    assert lines[1].startswith("           4 │⠉")
    assert lines[10].startswith("           0 │")
    assert lines[12].split() == ["1", "epoch", "2"]
    assert [lines[1].count(sign) for sign in (chart.PAUSE, chart.RESTART)] == [1, 1]
    assert lines[-1] == "┊ paused after epoch 1.5; ╎ began anew after epoch 1.25, 9; best: epoch 2"


def test_what_does_not_change_is_a_sentence() -> None:
    assert drawn(Panel("lr", [Curve("lr", [(1, 0.1), (2, 0.1)])]))[0].strip() == "lr  is 0.1 in every epoch"
    assert drawn(Panel("lr", [Curve("lr", [])]))[0].strip() == "lr  has no finite value"


@given(
    st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=200),
    st.lists(st.floats(0, 300), max_size=3),
    st.integers(20, 200),
)
def test_any_curve_fits(values: list[float], pauses: list[float], width: int) -> None:
    points = [(float(number), value) for number, value in enumerate(values, start=1)]
    lines = chart.chart(Panel("x", [Curve("x", points)]), Marks(pauses, [], None), width)
    assert all(line.cell_len <= max(width, 24) for line in lines[1:])


def test_curves_are_drawn_on_the_terminal(adjourn: Adjourn, plane: "Plane") -> None:
    plane.jobs["jobs/x"], plane.epochs = paused(), EPOCHS
    shown = adjourn("metrics", "x", "--plot").stdout
    for fact in ("train_loss  val_loss", "acc", "⠑", "┊ paused after epoch 1, 2.5", "best: epoch 3"):
        assert fact in shown
    assert adjourn("metrics", "--plot", "x").stdout == shown, "x is the job, not a file"
    plane.epochs = []
    assert adjourn("metrics", "x", "--plot").stdout == "no epoch has ended yet\n"


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_curves_are_drawn_into_a_file(
    adjourn: Adjourn, plane: "Plane", tmp_path: Path, suffix: str, magic: bytes
) -> None:
    pytest.importorskip("matplotlib")
    plane.jobs["jobs/x"], plane.epochs = paused(), EPOCHS
    file = tmp_path / f"curves.{suffix}"
    assert adjourn("metrics", "x", "--plot", str(file)).stdout == f"{file} has 2 panels of 5 epochs\n"
    assert file.read_bytes().startswith(magic)
    refused = adjourn("metrics", "x", "--plot", str(file))
    assert refused.exit_code == 2
    assert "is there; --force replaces it" in refused.stderr
    assert adjourn("metrics", "x", "--plot", str(file), "--force").exit_code == 0


@pytest.mark.parametrize(
    ("file", "said"), [("a.pdf", "should end in .png or .svg"), ("no/a.png", "there is no directory")]
)
def test_a_file_that_cannot_be_drawn_is_told(adjourn: Adjourn, plane: "Plane", file: str, said: str) -> None:
    refused: Any = adjourn("metrics", "x", "--plot", file)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert plane.asked == []
