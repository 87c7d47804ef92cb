"""PURE. How long things will take, judged by what the job has done so far. None while there is nothing to judge by.

An epoch is all that comes between the ends of two: its steps, its validation, the checkpoints. What earlier attempts
needed counts like what the running one does; the first epoch of each, which warms up, only while there is no other.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import sqrt
from statistics import fmean, variance
from typing import Final

from adjourn.internal.v1.record_pb2 import EpochTime, JobRecord
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics

KEPT: Final = 16
"""Epochs, and earlier pauses, that are judged by: the newest."""
PROCESS_END: Final = timedelta(seconds=1)
"""From a snapshot until the process is gone and its GPUs are free, of a job that was never paused."""
WIDTH: Final = 1.6
"""Standard deviations on either side that four of five times the time that is left is between. Of values that only vary
1.3 would do; an attempt that is interrupted warms up again."""


def count_epoch(record: JobRecord, metrics: EpochMetrics) -> None:
    """Takes note of what an epoch took, and of how far off was what was expected of it."""
    taken = EpochTime(
        seconds=all_of_it(record.timed_epoch, metrics),
        end_seconds=metrics.end_duration.ToTimedelta().total_seconds(),
        first_of_attempt=not record.HasField("timed_epoch") or record.timed_epoch.attempt != metrics.attempt,
    )
    expected = epoch_seconds(record)
    if expected is not None and taken.seconds > 0:
        error = abs(expected - taken.seconds) / taken.seconds
        known = min(len(record.epoch_times), KEPT)
        record.epoch_error += (error - record.epoch_error) / known
    record.epoch_times.append(taken)
    del record.epoch_times[:-KEPT]
    record.timed_epoch.CopyFrom(
        EpochMetrics(
            epoch=metrics.epoch,
            attempt=metrics.attempt,
            total_active_duration=metrics.total_active_duration if metrics.HasField("total_active_duration") else None,
        )
    )


def all_of_it(before: EpochMetrics, metrics: EpochMetrics) -> float:
    """Returns the seconds since the end of the epoch before, if that was timed; else those that the attempt tells."""
    known = metrics.HasField("total_active_duration") and before.HasField("total_active_duration")
    if known and before.epoch == metrics.epoch - 1:
        since = metrics.total_active_duration.ToTimedelta() - before.total_active_duration.ToTimedelta()
        if since > timedelta():
            return since.total_seconds()
    return metrics.active_duration.ToTimedelta().total_seconds()


def judged_by(record: JobRecord) -> Sequence[EpochTime]:
    """Returns the epochs that others are judged by."""
    warm = [each for each in record.epoch_times if not each.first_of_attempt]
    return warm or record.epoch_times


def epoch_seconds(record: JobRecord) -> float | None:
    """Returns what an epoch takes."""
    times = judged_by(record)
    return fmean(each.seconds for each in times) if times else None


def to_boundary(record: JobRecord, epoch: int | None = None, now: datetime | None = None) -> timedelta | None:
    """Returns the training time until an epoch ends, its validation included; the running one, if none is given.

    `now`: by the control plane's clock, of a job that trains: what it has done since its last report counts. Without
    it: from where that report says that it is.
    """
    seconds = epoch_seconds(record)
    if seconds is None:
        return None
    progress = record.job.progress
    left = 1 if epoch is None else epoch - progress.epoch
    if left <= 0:
        return timedelta()
    running = seconds
    if progress.steps_per_epoch:
        end = fmean(min(each.end_seconds, each.seconds) for each in judged_by(record))
        running = end + (seconds - end) * max(1 - progress.epoch_step / progress.steps_per_epoch, 0.0)
    whole = timedelta(seconds=running + seconds * (left - 1))
    since = now - record.progress_time.ToDatetime(now.tzinfo) if now and record.HasField("progress_time") else None
    return max(whole - since, timedelta()) if since and since > timedelta() else whole


def to_step(record: JobRecord) -> timedelta | None:
    """Returns the training time of a step, with a step's share of all that comes between the steps."""
    progress = record.job.progress
    return progress.active_duration.ToTimedelta() / progress.step if progress.step else None


def remaining(record: JobRecord) -> timedelta | None:
    """Returns the training time until the job ends, if it runs all its epochs."""
    return to_boundary(record, record.job.spec.total_epochs)


def spread(record: JobRecord, left: timedelta) -> timedelta | None:
    """Returns by how much the time that is left may differ, either way, in four of five cases.

    Epochs vary, and their mean is not known better than it was measured. With few of them it is wider.
    """
    seconds = [each.seconds for each in judged_by(record)]
    count, mean = len(seconds), epoch_seconds(record)
    if count < 2 or not mean:
        return None
    epochs = left.total_seconds() / mean
    deviation = sqrt(variance(seconds) * (epochs + epochs**2 / count))
    return timedelta(seconds=WIDTH * count / (count - 1) * deviation)


def update_remaining(record: JobRecord) -> None:
    """Sets the estimate of the training time that is left, if there is something to judge by."""
    left, progress = remaining(record), record.job.progress
    if left is None:
        return
    progress.remaining_duration.FromTimedelta(left)
    around = spread(record, left)
    if around is not None:
        progress.least_remaining_duration.FromTimedelta(max(left - around, timedelta()))
        progress.most_remaining_duration.FromTimedelta(left + around)
    if record.HasField("epoch_error"):
        progress.estimate_error = record.epoch_error


def forget_remaining(job: Job) -> None:
    """Removes the estimate from a job that has come to its end."""
    for field in ("remaining_duration", "least_remaining_duration", "most_remaining_duration"):
        job.progress.ClearField(field)


def to_release(record: JobRecord) -> timedelta | None:
    """Returns how long it takes from the boundary until the GPUs are free.

    As long as in earlier pauses of the job. Before the first: as long as its newest snapshot took, and a moment.
    """
    known = [each for each in map(release_after_boundary, record.job.past_pauses[-KEPT:]) if each is not None]
    if known:
        return sum(known, timedelta()) / len(known)
    if not record.checkpoint.HasField("snapshot_duration"):
        return None
    return record.checkpoint.snapshot_duration.ToTimedelta() + PROCESS_END


def release_after_boundary(past: Pause) -> timedelta | None:
    """Returns how long an earlier pause took from the boundary to free GPUs."""
    if not past.HasField("boundary_time") or not past.HasField("release_time"):
        return None
    return past.release_time.ToDatetime() - past.boundary_time.ToDatetime()


def note_errors(pause: Pause) -> None:
    """Says on a pause by how much it came later than predicted, as far as it has come."""
    if pause.HasField("predicted_boundary_time") and pause.HasField("boundary_time"):
        late = pause.boundary_time.ToDatetime() - pause.predicted_boundary_time.ToDatetime()
        pause.boundary_error.FromTimedelta(late)
    if pause.HasField("predicted_release_time") and pause.HasField("release_time"):
        late = pause.release_time.ToDatetime() - pause.predicted_release_time.ToDatetime()
        pause.release_error.FromTimedelta(late)
