"""PURE. How long things will take, judged by what the job has done so far. None while there is nothing to judge by."""

from datetime import timedelta

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Pause
from adjourn.v1.usage_pb2 import EpochMetrics


def count_epoch(record: JobRecord, metrics: EpochMetrics) -> None:
    """Adds an epoch to the record's mean epoch time."""
    mean = record.epoch_duration.ToTimedelta().total_seconds()
    record.timed_epochs += 1
    mean += (metrics.active_duration.ToTimedelta().total_seconds() - mean) / record.timed_epochs
    record.epoch_duration.FromTimedelta(timedelta(seconds=mean))


def to_boundary(record: JobRecord, epoch: int | None = None) -> timedelta | None:
    """Returns the training time until an epoch ends, its validation included; the running one, if none is given."""
    if not record.timed_epochs:
        return None
    progress = record.job.progress
    left = 1.0 if epoch is None else float(epoch - progress.epoch)
    if progress.steps_per_epoch:
        left -= min(progress.epoch_step / progress.steps_per_epoch, 1.0)
    return record.epoch_duration.ToTimedelta() * max(left, 0.0)


def to_step(record: JobRecord) -> timedelta | None:
    """Returns the training time of a step, with a step's share of all that comes between the steps."""
    progress = record.job.progress
    return progress.active_duration.ToTimedelta() / progress.step if progress.step else None


def remaining(record: JobRecord) -> timedelta | None:
    """Returns the training time until the job ends, if it runs all its epochs."""
    return to_boundary(record, record.job.spec.total_epochs)


def update_remaining(record: JobRecord) -> None:
    """Sets the estimate of the training time that is left, if there is something to judge by."""
    left = remaining(record)
    if left is not None:
        record.job.progress.remaining_duration.FromTimedelta(left)


def release_after_boundary(past: Pause) -> timedelta | None:
    """Returns how long an earlier pause took from the boundary to free GPUs."""
    if not past.HasField("boundary_time") or not past.HasField("release_time"):
        return None
    return past.release_time.ToDatetime() - past.boundary_time.ToDatetime()
