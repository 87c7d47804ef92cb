"""PURE  Figures of a job in the units of the origins: seconds, percent, bytes, ISO 8601."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1.job_pb2 import Job

TRAIN_LOSS: Final = ("train_loss", "loss")
TRAIN_ACCURACY: Final = ("train_accuracy", "accuracy", "train_acc")
VAL_ACCURACY: Final = ("val_accuracy", "val_acc")
LEARNING_RATE: Final = ("learning_rate", "lr")
GRADIENT_NORM: Final = ("gradient_norm", "grad_norm")
"""Names under which training code logs what the origins give one name, the usual one first."""


def time(moment: Timestamp) -> str:
    return iso(moment.ToDatetime(tzinfo=UTC))


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def time_of(job: Job, field: str) -> str | None:
    return time(getattr(job, field)) if job.HasField(field) else None  # type: ignore[arg-type]  # the name of one of its fields


def number(value: float | None) -> float | None:
    """Returns a number that JSON has: None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def value(values: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    """Returns the first of the named values that is there."""
    return number(next((values[name] for name in names if name in values), None))


def identifier(job: Job) -> str:
    return job.name.removeprefix("jobs/")


def percent(job: Job) -> float:
    """Returns how much of its epochs a job has trained, from 0 to 100, the steps of the running one counted."""
    progress, total = job.progress, job.spec.total_epochs
    if total == 0:
        return 100.0 if job.state == Job.SUCCEEDED else 0.0
    running = progress.epoch_step / progress.steps_per_epoch if progress.steps_per_epoch else 0.0
    return round(min((progress.epoch + min(running, 1.0)) / total, 1.0) * 100, 2)


def loss(job: Job) -> float | None:
    """Returns the newest training loss."""
    return number(job.progress.loss) if job.progress.HasField("loss") else value(job.progress.metrics, TRAIN_LOSS)
