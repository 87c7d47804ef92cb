"""PURE. Whether a failed attempt is followed by another, and when."""

from datetime import UTC, datetime, timedelta
from typing import Final

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Failure

DEFAULT_MAX_RESTARTS: Final = 3
HEALTHY_EPOCHS: Final = 3
"""Epochs that must become durable after a restart to bring `restart_count` back to 0.

One epoch could be luck between two crashes. Each epoch counts once, also if its checkpoint turns out damaged and it is
done again, so a run has only so many restarts even if the budget is renewed again and again.
"""
SAME_FAILURES: Final = 3
"""Times that an exception with the same words is seen at the same step before it counts as deterministic.

Twice is not enough: a data server that is away for two seconds fails the first step twice in the same words.
"""
FIRST_DELAY: Final = timedelta(seconds=1)
LONGEST_DELAY: Final = timedelta(minutes=1)
"""The delay before a restart doubles with each one, from FIRST_DELAY to LONGEST_DELAY."""
REFUSED_DELAY: Final = timedelta(seconds=10)
"""Delay after a worker turned out not to be fit (WORKERS_FAULT). It keeps a job from going back and forth between the
queue and a worker that did not report what it lacks."""
WORKERS_FAULT: Final = frozenset({reasons.ENVIRONMENT_DIFFERS, reasons.NO_SPACE})
"""The worker alone is to blame: another environment than it said, or a full disk. The job is not worse for it."""


def ready_time(record: JobRecord) -> datetime:
    """Returns when a queued job may be placed (UTC): at once, or some time after its last failure."""
    return record.job.state_time.ToDatetime(UTC) + delay(record)


def delay(record: JobRecord) -> timedelta:
    """Returns how long a job that was queued waits before its next attempt."""
    restarts = record.job.restart_count
    if not record.job.HasField("failure") or record.job.failure.time != record.job.state_time:
        return timedelta()
    if record.job.failure.reason in WORKERS_FAULT:
        return REFUSED_DELAY
    if not restarts:
        return timedelta()
    doublings: int = min(restarts - 1, 16)
    return min(LONGEST_DELAY, FIRST_DELAY * (1 << doublings))


def costs_a_restart(failure: Failure) -> bool:
    """Returns whether a failure counts against `max_restarts`. One that is the worker's alone does not."""
    return failure.reason not in WORKERS_FAULT


def may_restart(record: JobRecord, failure: Failure) -> bool:
    """Returns whether another attempt could end differently, and the budget has one left."""
    spec = record.job.spec
    limit = spec.max_restarts if spec.HasField("max_restarts") else DEFAULT_MAX_RESTARTS
    if failure.reason in reasons.DETERMINISTIC or record.job.restart_count >= limit:
        return False
    return times_in_a_row(record, failure) < SAME_FAILURES


def times_in_a_row(record: JobRecord, failure: Failure) -> int:
    """Returns how often this exception has now been raised at this step, without another failure in between.

    At the same step means without progress: a run repeats its steps exactly. Failures that the training code did not
    raise are not compared: they have other causes than the step.
    """
    past = record.past_failure
    same = (
        failure.reason == past.failure.reason == reasons.TRAINING_RAISED
        and words(past.failure) == words(failure)
        and past.step == record.job.progress.step
    )
    return past.times + 1 if same else 1


def words(failure: Failure) -> str:
    """Returns the message without the path of the log, which differs from attempt to attempt."""
    return failure.message.partition(reasons.WHOLE_LOG)[0]
