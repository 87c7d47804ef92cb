"""Metrics as curves over epochs or steps, pauses and attempts marked. Pure: what is to be drawn, whoever draws it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics, StepMetrics

Point = tuple[float, float]
Values = tuple[float, Mapping[str, float]]
"""A place on the axis, and what was measured there."""


@dataclass(frozen=True)
class Curve:
    """One metric: a point for each place that has a finite value of it."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """Metrics of one kind, on one scale: `train_loss` and `val_loss`."""

    title: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Marks:
    """Places on the axis. On that of epochs n is the end of epoch n."""

    pauses: Sequence[float]
    restarts: Sequence[float]
    """Where an attempt began for another reason than a pause."""
    best: float | None
    axis: str = "epoch"


def of_epochs(epochs: Iterable[EpochMetrics]) -> list[Values]:
    return [(float(epoch.epoch), epoch.values) for epoch in epochs]


def of_steps(steps: Iterable[StepMetrics]) -> list[Values]:
    return [(float(step.step), step_values(step)) for step in steps]


def step_values(step: StepMetrics) -> Mapping[str, float]:
    """Returns the values of a step, with its loss by that name."""
    return {**({"loss": step.loss} if step.HasField("loss") else {}), **step.values}


def panels(measured: Sequence[Values]) -> list[Panel]:
    """Returns the metrics by kind, the last word of their names; losses first."""
    names = sorted({name for _, values in measured for name in values})
    kinds = sorted({kind(name) for name in names}, key=lambda each: (each != "loss", each))
    return [panel([Curve(name, points(name, measured)) for name in names if kind(name) == each]) for each in kinds]


def panel(curves: Sequence[Curve]) -> Panel:
    return Panel(curves[0].name if len(curves) == 1 else kind(curves[0].name), curves)


def kind(name: str) -> str:
    return name.replace("/", "_").rpartition("_")[2] or name


def points(name: str, measured: Iterable[Values]) -> list[Point]:
    found = ((place, values[name]) for place, values in measured if name in values)
    return [(place, value) for place, value in found if math.isfinite(value)]


def marks(job: Job, epochs: Sequence[EpochMetrics]) -> Marks:
    """Returns where the job paused, where it began anew for other reasons, and its best epoch."""
    pauses = sorted({place(pause.step, pause.epoch, epochs) for pause in rested(job)})
    begun = [float(after.epoch - 1) for before, after in pairwise(epochs) if after.attempt != before.attempt]
    restarts = [at for at in begun if not any(at <= pause < at + 1 for pause in pauses)]
    best = max((float(epoch.epoch) for epoch in epochs if epoch.best), default=None)
    return Marks(pauses, restarts, best)


def step_marks(job: Job, steps: Sequence[StepMetrics]) -> Marks:
    """Returns the same on the axis of steps, but for the best epoch."""
    pauses = sorted({float(pause.step) for pause in rested(job)})
    begun = [(before.step, after.step) for before, after in pairwise(steps) if after.attempt != before.attempt]
    restarts = [float(low) for low, high in begun if not any(low <= pause <= high for pause in pauses)]
    return Marks(pauses, restarts, None, "step")


def rested(job: Job) -> list[Pause]:
    """Returns the pauses in which the job came to rest."""
    every = [*job.past_pauses, *([job.pause] if job.HasField("pause") else [])]
    return [pause for pause in every if pause.HasField("pause_time")]


def place(step: int, epoch: int, epochs: Iterable[EpochMetrics]) -> float:
    """Returns where on the axis a step is: `epoch` at its boundary, beyond it amid the next epoch."""
    ends = {each.epoch: each.step for each in epochs}
    begin, end = ends.get(epoch, 0 if not epoch else step), ends.get(epoch + 1, 0)
    return epoch + (step - begin) / (end - begin) if begin < step < end else float(epoch)
