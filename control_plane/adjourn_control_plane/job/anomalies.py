"""PURE. What looks wrong in the metrics of an epoch, and what may help: told when it begins, not while it lasts.

Judged is what the control plane is told, at the end of an epoch: losses (`loss`, or a name that ends in `_loss`) and
norms of gradients (`gradient_norm`, `grad_norm`), where the run logs them; and, as samples come, the memory of GPUs,
where NVML tells it. Nothing is stopped: what is wrong for one training is in order for another.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from adjourn.internal.v1.record_pb2 import JobRecord, MetricHistory
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample, ResourceSample

RECENT: Final = 5
"""Epochs that a new value is compared with."""
ENOUGH: Final = 3
"""Epochs without which nothing is usual."""
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
JUMP_HELPS: Final = (
    "Watch the next epochs. If it stays there, lower the learning rate, or look at the data of the epoch."
)
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


def look(record: JobRecord, metrics: EpochMetrics) -> list[Anomaly]:
    """Returns what looks wrong at the end of an epoch, by metric, and notes the values for the next look."""
    watched = sorted(name for name in metrics.values if name in GRADIENTS or is_loss(name))[:METRICS]
    found = []
    for name in watched:
        if name not in record.metric_histories and len(record.metric_histories) >= METRICS:
            continue
        history, value = record.metric_histories[name], metrics.values[name]
        anomaly = judged(name, value, history, metrics.epoch)
        if anomaly is not None:
            found.append(anomaly)
        note(history, value)
    return found


def nearly_full(samples: Iterable[ResourceSample]) -> GpuSample | None:
    """Returns the first GPU of these samples whose memory is nearly full; None, too, where nobody can tell."""
    gpus = (gpu for sample in samples for gpu in sample.gpus if gpu.memory_total_bytes)
    return next((gpu for gpu in gpus if gpu.memory_used_bytes >= NEARLY_FULL * gpu.memory_total_bytes), None)


def is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("_loss")


def judged(name: str, value: float, history: MetricHistory, epoch: int) -> Anomaly | None:
    """Returns what looks wrong about a value, given those before."""
    gradients = name in GRADIENTS
    details = {"metric": name, "value": f"{value:.6g}", "epoch": str(epoch)}
    if not math.isfinite(value):
        if history.not_finite:
            return None
        kind = JobEvent.GRADIENTS_EXPLODED if gradients else JobEvent.LOSS_NOT_FINITE
        message = f"{name} is {value:g} after epoch {epoch}"
        return Anomaly(kind=kind, message=message, details={**details, "action": NOT_FINITE_HELPS})
    recent = list(history.recent)
    if len(recent) < ENOUGH or not (exploded if gradients else jumped)(value, recent, history.first):
        return None
    kind = JobEvent.GRADIENTS_EXPLODED if gradients else JobEvent.LOSS_JUMPED
    usual = f"{median(recent):.6g}"
    message = f"{name} is {value:.6g} after epoch {epoch}, and was about {usual}"
    action = EXPLOSION_HELPS if gradients else JUMP_HELPS
    return Anomaly(kind=kind, message=message, details={**details, "usual": usual, "action": action})


def jumped(loss: float, recent: Sequence[float], first: float) -> bool:
    usual, spread = median(recent), max(recent) - min(recent)
    return loss - usual > max(abs(usual), SPREADS * spread, LEAST_JUMP * abs(first))


def exploded(norm: float, recent: Sequence[float], _first: float) -> bool:
    return norm > EXPLOSION * median(recent) and norm > 2 * max(recent)


def note(history: MetricHistory, value: float) -> None:
    """Adds a value to those that the next one is compared with."""
    history.not_finite = not math.isfinite(value)
    if history.not_finite:
        return
    if not history.HasField("first"):
        history.first = value
    history.recent.append(value)
    del history.recent[:-RECENT]
