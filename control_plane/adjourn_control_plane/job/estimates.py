"""PURE. How long things will take, judged by what the job has done so far. None while there is nothing to judge by.

An epoch is all that comes between the ends of two: the checkpoint before it, its steps, its validation. What earlier
attempts needed counts like what the running one does; the first epoch of each, which warms up, only while there is no
other. The pace may change, most of all as others begin to use the machine: newer epochs count for more, and the running
one for as much of it as is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import sqrt
from statistics import variance
from typing import Final

from adjourn.internal.v1.record_pb2 import EpochTime, JobRecord
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics

KEPT: Final = 16
"""Epochs, and earlier pauses, that are judged by: the newest."""
FADING: Final = 0.7
"""What an epoch counts for, beside the one after it."""
PRIOR: Final = 0.25
"""As much of the running epoch is needed to believe its own pace as much as that of the epochs before."""
PROCESS_END: Final = timedelta(seconds=0.3)
"""From a snapshot until the process is gone and its GPUs are free, of a job that was never paused. Without a GPU it is
0.1 to 0.2 s on an idle machine, and 0.5 s on a busy one; on a GPU it was not measured."""
WIDTH: Final = 1.6
"""Standard deviations on either side that four of five times the time that is left is between. Of values that only vary
1.3 would do; an attempt that is interrupted warms up again."""


def count_epoch(record: JobRecord, metrics: EpochMetrics) -> None:
    """Takes note of what an epoch took, and of how far off was what was expected of it."""
    seconds = all_of_it(record.timed_epoch, metrics)
    taken = EpochTime(
        seconds=seconds,
        end_seconds=metrics.end_duration.ToTimedelta().total_seconds(),
        begin_seconds=max(seconds - metrics.active_duration.ToTimedelta().total_seconds(), 0.0),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an epoch takes, in seconds."""

    begin: float
    """Until it begins: the checkpoint of the boundary before."""
    steps: float
    end: float
    """After its last step."""

    @property
    def seconds(self) -> float:
        return self.begin + self.steps + self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How far the running epoch is."""

    done: float
    """Share of its steps, over 0."""
    seconds: float
    """What all of its steps would take at the pace of these."""


def expected(record: JobRecord, running: Running | None = None) -> Expected | None:
    """Returns what an epoch takes: the mean over past ones, and as much of the running one as is known."""
    times = judged_by(record)
    if not times:
        return None
    ends = [min(each.end_seconds, each.seconds) for each in times]
    begins = [min(each.begin_seconds, each.seconds - end) for each, end in zip(times, ends, strict=True)]
    steps = [each.seconds - begin - end for each, begin, end in zip(times, begins, ends, strict=True)]
    weights = faded(len(times))
    usual = Expected(begin=mean(begins, weights), steps=mean(steps, weights), end=mean(ends, weights))
    if running is None:
        return usual
    counts = FADING * sum(weights), running.done
    return replace(usual, steps=mean([usual.steps, running.seconds], counts))


def faded(count: int) -> list[float]:
    """Returns what values count for, oldest first."""
    return [FADING**age for age in reversed(range(count))]


def mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def epoch_seconds(record: JobRecord) -> float | None:
    """Returns what an epoch takes, by those that are over."""
    known = expected(record)
    return known.seconds if known else None


def running_epoch(record: JobRecord, begin: float) -> Running | None:
    """Returns how far the running epoch is, which began `begin` seconds after the last; None: nobody can tell."""
    progress, before = record.job.progress, record.timed_epoch
    known = progress.HasField("active_duration") and before.HasField("total_active_duration")
    if not (progress.steps_per_epoch and progress.epoch_step and known and before.epoch == progress.epoch):
        return None
    spent = progress.active_duration.ToTimedelta() - before.total_active_duration.ToTimedelta()
    done = min(progress.epoch_step / progress.steps_per_epoch, 1.0)
    seconds = spent.total_seconds() - begin
    return Running(done=done, seconds=seconds / done) if seconds > 0 else None


def to_boundary(record: JobRecord, epoch: int | None = None, now: datetime | None = None) -> timedelta | None:
    """Returns the training time until an epoch ends, its validation included; the running one, if none is given.

    `now`: by the control plane's clock, of a job that trains: what it has done since its last report counts. Without
    it: from where that report says that it is.
    """
    past = expected(record)
    if past is None:
        return None
    progress = record.job.progress
    left = 1 if epoch is None else epoch - progress.epoch
    if left <= 0:
        return timedelta()
    running = running_epoch(record, past.begin)
    later = expected(record, running) or past
    seconds = to_end_of_running(record, past, running) + later.seconds * (left - 1)
    whole = timedelta(seconds=seconds)
    since = now - record.progress_time.ToDatetime(now.tzinfo) if now and record.HasField("progress_time") else None
    return max(whole - since, timedelta()) if since and since > timedelta() else whole


def to_end_of_running(record: JobRecord, past: Expected, running: Running | None) -> float:
    """Returns the seconds until the running epoch ends: at its own pace, the more of it is done."""
    progress = record.job.progress
    if not (progress.steps_per_epoch and progress.epoch_step):
        return past.seconds
    steps = past.steps
    if running:
        steps = mean([running.seconds, past.steps], [running.done, PRIOR])
    return steps * max(1 - progress.epoch_step / progress.steps_per_epoch, 0.0) + past.end


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
    seconds, usual = [each.seconds for each in judged_by(record)], epoch_seconds(record)
    if len(seconds) < 2 or not usual:
        return None
    weights = faded(len(seconds))
    count = sum(weights) ** 2 / sum(weight**2 for weight in weights)  # as many count alike
    epochs = left.total_seconds() / usual
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
