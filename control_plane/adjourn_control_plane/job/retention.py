"""PURE. Which checkpoints of a job are kept, and why.

A look at all of a job's checkpoints says which of them nothing keeps. Those are retired in one commit with that look,
so whatever would keep one (a pin, a pause, a fall back to it, a new attempt) comes before, and is seen, or after, and
finds it gone. `fleet/collector.py` removes their objects afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job.transition import Decision, Transition

ACTOR: Final = "control_plane"
KEEP_LAST: Final = 3
BEST_METRICS: Final = ("val_loss", "loss")
"""Metrics that say which checkpoint is best, the first that there is, where the job names none."""
NAMED: Final = 10
"""Retired checkpoints that an event names."""
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


Numbered = tuple[int, Checkpoint]
"""A registered checkpoint, with the number of its registration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a look at all checkpoints of a job comes to."""

    best: str
    """Name of the best one; empty: there is none."""
    retired: tuple[Checkpoint, ...]
    """Those that nothing keeps."""


def review(record: JobRecord, checkpoints: Sequence[Numbered]) -> Review:
    """Returns which of a job's registered checkpoints nothing keeps. `checkpoints`: all of them."""
    best = best_of(record, [each for _, each in checkpoints])
    kept = {*resting(record), *record.pinned_checkpoints, best}
    oldest = oldest_recent(record, checkpoints)
    return Review(
        best=best,
        retired=tuple(each for number, each in checkpoints if number < oldest and each.name not in kept),
    )


def resting(record: JobRecord) -> set[str]:
    """Returns the checkpoints that a job rests on or goes on from, or that its attempt is being restored from."""
    job = record.job
    names = {record.checkpoint.name, job.latest_checkpoint}
    if job.pause.HasField("pause_time") and not job.pause.HasField("resume_time"):
        names.add(job.pause.checkpoint)
    if job.worker or record.HasField("lost_attempt"):
        names.add(record.restored_checkpoint)
    return names - {""}


def oldest_recent(record: JobRecord, checkpoints: Sequence[Numbered]) -> int:
    """Returns the number from which on checkpoints are kept because they are recent.

    Damaged ones are not counted: what is restored after one turns out damaged has to be there. A damaged one that is
    newer than the last that counts is kept too, for its objects may be put back.
    """
    wanted = keep_last(record.job.spec)
    sound = sorted((number for number, each in checkpoints if not each.damage), reverse=True)
    return sound[wanted - 1] if len(sound) >= wanted else 0


def keep_last(spec: JobSpec) -> int:
    return spec.retention.keep_last if spec.retention.HasField("keep_last") else KEEP_LAST


def best_of(record: JobRecord, checkpoints: Sequence[Checkpoint]) -> str:
    """Returns the name of the best checkpoint that is not damaged; of equal ones the newest; empty: there is none."""
    wanted = record.job.spec.retention
    for metric in [wanted.best_metric] if wanted.best_metric else BEST_METRICS:
        valued = [
            (each.metrics[metric], each.epoch, each.step, each.name)
            for each in checkpoints
            if not each.damage and math.isfinite(each.metrics.get(metric, math.nan))
        ]
        if valued:
            sign = -1 if wanted.best == JobSpec.Retention.MAXIMUM else 1
            return min(valued, key=lambda found: (sign * found[0], -found[1], -found[2], found[3]))[3]
    return ""


def count_best(record: JobRecord, checkpoint: Checkpoint) -> None:
    """Notes a checkpoint that has just been registered as the best, if it is.

    So a look at all of them changes the job only if it retires some, or if the best turned out damaged.
    """
    known = [record.best_checkpoint] if record.best_checkpoint.name else []
    if best_of(record, [*known, checkpoint]) == checkpoint.name:
        set_best(record, checkpoint)


def set_best(record: JobRecord, checkpoint: Checkpoint) -> None:
    best = Checkpoint(name=checkpoint.name, epoch=checkpoint.epoch, step=checkpoint.step, metrics=checkpoint.metrics)
    record.best_checkpoint.CopyFrom(best)


def reviewed(record: JobRecord, checkpoints: Sequence[Numbered], now: datetime) -> tuple[Decision, Review] | None:
    """Returns what retention makes of a job, and the review it comes from; None: everything stays as it is."""
    found = review(record, checkpoints)
    if not found.retired and found.best == record.best_checkpoint.name:
        return None
    transition = Transition(record, ACTOR, now)
    best = next((each for _, each in checkpoints if each.name == found.best), Checkpoint())
    set_best(transition.record, best)
    if found.retired:
        names = ", ".join(each.name.rpartition("/")[2] for each in found.retired[:NAMED])
        transition.record_event(
            JobEvent.CHECKPOINTS_RETIRED, "nothing keeps them", retired=names, count=str(len(found.retired))
        )
    return transition.decision(record), found


def shown(record: JobRecord, checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint as callers see it, with every reason why it is kept."""
    found = Checkpoint()
    found.CopyFrom(checkpoint)
    del found.retained_for[:]
    found.retained_for.extend(reasons(record, checkpoint) or [Checkpoint.RECENT])
    return found


def reasons(record: JobRecord, checkpoint: Checkpoint) -> list[Checkpoint.Retention.ValueType]:
    """Returns what keeps a checkpoint beside its being recent."""
    best = [Checkpoint.BEST] if checkpoint.name == record.best_checkpoint.name else []
    pinned = [Checkpoint.PINNED] if checkpoint.name in record.pinned_checkpoints else []
    return [*checkpoint.retained_for, *best, *pinned]
