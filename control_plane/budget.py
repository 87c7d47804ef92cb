"""PURE. Whether an attempt that went wrong is followed by another."""

from typing import Final

from adjourn import reasons
from adjourn.v1.job_pb2 import Failure
from adjourn.v1.record_pb2 import JobRecord

DEFAULT_MAX_RESTARTS: Final = 3


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
        and past.failure.message == failure.message
        and past.step == record.job.progress.step
    )
    return not repeated
