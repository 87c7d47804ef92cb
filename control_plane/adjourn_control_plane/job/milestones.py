"""PURE. Which share of a job's epochs is trained, told at every quarter."""

from typing import Final

from adjourn.internal.v1.record_pb2 import JobRecord

PERCENTS: Final = (25, 50, 75, 100)


def reached(record: JobRecord, epoch: int) -> int:
    """Notes that an epoch has ended; returns the percentage that is reached by it for the first time, 0 for none.

    Where one epoch passes several, the greatest counts. A job that is given more epochs reaches them by the new number.
    """
    total, before = record.job.spec.total_epochs, record.furthest_ended_epoch
    record.furthest_ended_epoch = max(before, epoch)
    percent = passed(record.furthest_ended_epoch, total)
    return percent if percent > passed(before, total) else 0


def passed(epoch: int, total: int) -> int:
    """Returns the greatest of PERCENTS that so many epochs of `total` are at least; 0 if they are less than all."""
    return max((percent for percent in PERCENTS if total and 100 * epoch >= percent * total), default=0)
