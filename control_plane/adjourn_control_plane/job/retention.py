"""PURE. Which checkpoints of a job are kept, and why."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job.transition import Decision, Transition

PINS: Final = 100
"""Pinned checkpoints of a job, at most: their names are in its record."""


def pinned(record: JobRecord, checkpoint: str, *, actor: str, reason: str, now: datetime) -> Decision | None:
    """Returns what pinning a checkpoint makes of the job; None: it is pinned. Raises TooManyPinsError."""
    if checkpoint in record.pinned_checkpoints:
        return None
    if len(record.pinned_checkpoints) >= PINS:
        raise errors.TooManyPinsError(
            f"{PINS} checkpoints of {record.job.name} are pinned; unpin one of them first", job=record.job.name
        )
    transition = Transition(record, actor, now)
    transition.record.pinned_checkpoints.append(checkpoint)
    transition.record_event(JobEvent.CHECKPOINT_PINNED, reason, pinned=checkpoint)
    return transition.decision(record)


def unpinned(record: JobRecord, checkpoint: str, *, actor: str, now: datetime) -> Decision | None:
    """Returns what taking a pin back makes of the job; None: there is none."""
    if checkpoint not in record.pinned_checkpoints:
        return None
    transition = Transition(record, actor, now)
    transition.record.pinned_checkpoints.remove(checkpoint)
    transition.record_event(JobEvent.CHECKPOINT_UNPINNED, pinned=checkpoint)
    return transition.decision(record)


def shown(record: JobRecord, checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint as callers see it, with every reason why it is kept."""
    found = Checkpoint()
    found.CopyFrom(checkpoint)
    del found.retained_for[:]
    found.retained_for.extend(reasons(record, checkpoint))
    return found


def reasons(record: JobRecord, checkpoint: Checkpoint) -> Iterator[Checkpoint.Retention.ValueType]:
    """Yields why a checkpoint is kept."""
    yield from checkpoint.retained_for
    if checkpoint.name in record.pinned_checkpoints:
        yield Checkpoint.PINNED
