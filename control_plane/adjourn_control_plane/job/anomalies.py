"""PURE. What looks wrong in the metrics of a job, and what may help: told when it begins, not while it lasts.

Judged is what the control plane is told. At the end of an epoch: losses (`loss`, or a name that ends in `_loss`) and
norms of gradients (`gradient_norm`, `grad_norm`), where the run logs them. As progress goes into the record: the loss
of the newest step, whether that of any step was not finite, and norms of gradients that are logged by steps. As samples
come: the memory of GPUs, where NVML tells it. What was told of the steps of an epoch is not told again at its end.
Nothing is stopped: what is wrong for one training is in order for another.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from adjourn.internal.v1.record_pb2 import JobRecord, MetricHistory
from adjourn.v1.job_pb2 import Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample, ResourceSample

RECENT: Final = 5
"""Epochs that a new value is compared with."""
ENOUGH: Final = 3
"""Epochs without which nothing is usual."""
RECENT_STEPS: Final = 20
"""Values that one of a step is compared with: of steps that are seconds apart."""
ENOUGH_STEPS: Final = 10
QUIET_STEPS: Final = 100
"""As many values of steps that look right are needed before it is told again that one looks wrong."""
METRICS: Final = 20
"""Metrics of a job that are looked at, the first by name: they are kept with its record."""
SPREADS: Final = 3
"""A loss jumps if it is above the usual by more than so many times the range of the recent ones..."""
LEAST_JUMP: Final = 0.01
"""...and by this share of the first one, so that a loss near zero may be noisy; and by the usual itself."""
EXPLOSION: Final = 10
"""A norm of gradients explodes if it is so many times the usual, and twice the greatest of the recent ones."""
GRADIENTS: Final = frozenset({"gradient_norm", "grad_norm"})

NOT_FINITE_HELPS: Final = (
    "Pause or cancel it: what it trains from here on is lost. Look for a division by zero, a logarithm of zero or bad"
    " samples; lower the learning rate, or clip the gradients."
)
JUMP_HELPS: Final = "Watch what follows. If it stays there, lower the learning rate, or look at the data of the epoch."
EXPLOSION_HELPS: Final = "Clip the gradients (torch.nn.utils.clip_grad_norm_), or lower the learning rate."

NEARLY_FULL: Final = 0.95
"""Share of a GPU's memory in use from which it is told: what comes in a peak has no room."""
MEMORY_HELPS: Final = (
    "It trains on; a larger batch or sample may end it with OUT_OF_MEMORY. Lower the batch size, or look for what else"
    " uses the GPU."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """Something that looks wrong."""

    kind: JobEvent.Type.ValueType
    message: str
    details: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A metric at some place of a training."""

    metric: str
    value: float
    epoch: int
    """The epoch that it ends, or is in."""
    step: int | None = None
    """The step that it is of."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)

    @property
    def place(self) -> str:
        return f"after epoch {self.epoch}" if self.step is None else f"by step {self.step}, in epoch {self.epoch}"

    @property
    def details(self) -> dict[str, str]:
        of_step = {} if self.step is None else {"step": str(self.step)}
        return {"metric": self.metric, "value": f"{self.value:.6g}", "epoch": str(self.epoch), **of_step}


def look(record: JobRecord, metrics: EpochMetrics) -> list[Anomaly]:
    """Returns what looks wrong at the end of an epoch, by metric, and notes the values for the next look."""
    watched = sorted(name for name in metrics.values if name in GRADIENTS or is_loss(name))[:METRICS]
    found = []
    for name in watched:
        if name not in record.metric_histories and len(record.metric_histories) >= METRICS:
            continue
        history = record.metric_histories[name]
        value = Value(metric=name, value=metrics.values[name], epoch=metrics.epoch)
        anomaly = judged(value, history, enough=ENOUGH)
        lasts = history.not_finite and not value.finite
        if anomaly and not lasts and record.anomaly_epochs.get(anomaly.kind, 0) < metrics.epoch:
            found.append(anomaly)
        note(history, value.value, RECENT)
    return found


def look_at_steps(record: JobRecord, known: Progress, progress: Progress) -> list[Anomaly]:
    """Returns what looks wrong of the steps since `known`, and notes the newest values for the next look."""
    found = []
    for value in of_steps(known, progress):
        history = record.step_histories[value.metric]
        if value.value in history.recent[-1:]:  # it is not logged by steps, or has stayed the same
            continue
        anomaly = judged(value, history, enough=ENOUGH_STEPS)
        if anomaly:
            ended = (each for name, each in record.metric_histories.items() if is_like(name, value.metric))
            lasts = not value.finite and any(each.not_finite for each in ended)
            if not lasts and (not history.HasField("usual_since") or history.usual_since >= QUIET_STEPS):
                found.append(anomaly)
            record.anomaly_epochs[anomaly.kind] = value.epoch
            history.usual_since = 0
        elif history.HasField("usual_since"):
            history.usual_since += 1
        note(history, value.value, RECENT_STEPS)
    return found


def of_steps(known: Progress, progress: Progress) -> Iterator[Value]:
    """Yields what is judged of the steps since `known`: the newest loss, and norms of gradients."""
    if progress.step <= known.step:
        return
    epoch = progress.epoch + bool(progress.epoch_step)
    if progress.HasField("loss"):
        was_not_finite = progress.not_finite_steps > known.not_finite_steps
        loss = math.nan if was_not_finite and math.isfinite(progress.loss) else progress.loss
        yield Value(metric="loss", value=loss, epoch=epoch, step=progress.step)
    for name in sorted(GRADIENTS & progress.metrics.keys()):
        yield Value(metric=name, value=progress.metrics[name], epoch=epoch, step=progress.step)


def nearly_full(samples: Iterable[ResourceSample]) -> GpuSample | None:
    """Returns the first GPU of these samples whose memory is nearly full; None, too, where nobody can tell."""
    gpus = (gpu for sample in samples for gpu in sample.gpus if gpu.memory_total_bytes)
    return next((gpu for gpu in gpus if gpu.memory_used_bytes >= NEARLY_FULL * gpu.memory_total_bytes), None)


def is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("_loss")


def is_like(name: str, other: str) -> bool:
    """Returns whether both are losses, or both norms of gradients."""
    return (name in GRADIENTS) == (other in GRADIENTS)


def judged(value: Value, history: MetricHistory, *, enough: int) -> Anomaly | None:
    """Returns what looks wrong about a value, given those before; with fewer than `enough` nothing is usual."""
    gradients = value.metric in GRADIENTS
    if not value.finite:
        kind = JobEvent.GRADIENTS_EXPLODED if gradients else JobEvent.LOSS_NOT_FINITE
        message = f"{value.metric} is {value.value:g} {value.place}"
        return Anomaly(kind=kind, message=message, details={**value.details, "action": NOT_FINITE_HELPS})
    recent = list(history.recent)
    if len(recent) < enough or not (exploded if gradients else jumped)(value.value, recent, history.first):
        return None
    kind = JobEvent.GRADIENTS_EXPLODED if gradients else JobEvent.LOSS_JUMPED
    usual = f"{median(recent):.6g}"
    message = f"{value.metric} is {value.value:.6g} {value.place}, and was about {usual}"
    action = EXPLOSION_HELPS if gradients else JUMP_HELPS
    return Anomaly(kind=kind, message=message, details={**value.details, "usual": usual, "action": action})


def jumped(loss: float, recent: Sequence[float], first: float) -> bool:
    usual, spread = median(recent), max(recent) - min(recent)
    return loss - usual > max(abs(usual), SPREADS * spread, LEAST_JUMP * abs(first))


def exploded(norm: float, recent: Sequence[float], _first: float) -> bool:
    return norm > EXPLOSION * median(recent) and norm > 2 * max(recent)


def note(history: MetricHistory, value: float, kept: int) -> None:
    """Adds a value to those that the next one is compared with, of which so many are kept."""
    history.not_finite = not math.isfinite(value)
    if history.not_finite:
        return
    if not history.HasField("first"):
        history.first = value
    history.recent.append(value)
    del history.recent[:-kept]
