"""PURE. Whether an attempt that went wrong is followed by another, and when."""

from datetime import UTC, datetime, timedelta
from typing import Final

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Failure

DEFAULT_MAX_RESTARTS: Final = 3


FIRST_DELAY: Final = timedelta(seconds=1)
LONGEST_DELAY: Final = timedelta(minutes=1)


def ready_time(record: JobRecord) -> datetime:
    """Returns when a queued job may be placed: at once, or, after a failure, a little later with each one (UTC)."""
    queued = record.job.state_time.ToDatetime(UTC)
    restarts = record.job.restart_count
    failed = record.job.HasField("failure") and record.job.failure.time == record.job.state_time
    if not restarts or not failed:
        return queued
    doublings: int = min(restarts - 1, 16)
    return queued + min(LONGEST_DELAY, FIRST_DELAY * (1 << doublings))


def may_restart(record: JobRecord, failure: Failure) -> bool:
    """Returns whether another attempt is worth it and paid for.

    A run is deterministic: what failed twice at the same step, in the same words, fails there for ever.
    """
    spec = record.job.spec
    limit = spec.max_restarts if spec.HasField("max_restarts") else DEFAULT_MAX_RESTARTS
    if failure.reason in reasons.DETERMINISTIC or record.job.restart_count >= limit:
        return False
    past = record.past_failure
    repeated = (
        failure.reason == reasons.TRAINING_RAISED
        and past.failure.reason == failure.reason
        and words(past.failure) == words(failure)
        and past.step == record.job.progress.step
    )
    return not repeated


def words(failure: Failure) -> str:
    """Returns what went wrong, without the place of the log, which differs from attempt to attempt."""
    return failure.message.partition(reasons.WHOLE_LOG)[0]
