"""Metrics as curves over epochs, with pauses and attempts marked. Pure: what is to be drawn, whoever draws it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import EpochMetrics

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One metric: a point for each epoch that has a finite value of it."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """Metrics of one kind, on one scale: `train_loss` and `val_loss`."""

    title: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Marks:
    """Places on the axis of epochs, where n is the end of epoch n."""

    pauses: Sequence[float]
    restarts: Sequence[float]
    """Where an attempt began for another reason than a pause."""
    best: float | None


def panels(epochs: Iterable[EpochMetrics]) -> list[Panel]:
    """Returns the metrics by kind, the last word of their names; losses first."""
    epochs = list(epochs)
    names = sorted({name for epoch in epochs for name in epoch.values})
    kinds = sorted({kind(name) for name in names}, key=lambda each: (each != "loss", each))
    return [panel([Curve(name, points(name, epochs)) for name in names if kind(name) == each]) for each in kinds]


def panel(curves: Sequence[Curve]) -> Panel:
    return Panel(curves[0].name if len(curves) == 1 else kind(curves[0].name), curves)


def kind(name: str) -> str:
    return name.replace("/", "_").rpartition("_")[2] or name


def points(name: str, epochs: Iterable[EpochMetrics]) -> list[Point]:
    found = ((float(epoch.epoch), epoch.values[name]) for epoch in epochs if name in epoch.values)
    return [(epoch, value) for epoch, value in found if math.isfinite(value)]


def marks(job: Job, epochs: Sequence[EpochMetrics]) -> Marks:
    """Returns where the job paused, where it began anew for other reasons, and its best epoch."""
    rested = [*job.past_pauses, *([job.pause] if job.HasField("pause") else [])]
    pauses = sorted({place(pause.step, pause.epoch, epochs) for pause in rested if pause.HasField("pause_time")})
    begun = [float(after.epoch - 1) for before, after in pairwise(epochs) if after.attempt != before.attempt]
    restarts = [at for at in begun if not any(at <= pause < at + 1 for pause in pauses)]
    best = max((float(epoch.epoch) for epoch in epochs if epoch.best), default=None)
    return Marks(pauses, restarts, best)


def place(step: int, epoch: int, epochs: Iterable[EpochMetrics]) -> float:
    """Returns where on the axis a step is: `epoch` at its boundary, beyond it amid the next epoch."""
    ends = {each.epoch: each.step for each in epochs}
    begin, end = ends.get(epoch, 0 if not epoch else step), ends.get(epoch + 1, 0)
    return epoch + (step - begin) / (end - begin) if begin < step < end else float(epoch)
