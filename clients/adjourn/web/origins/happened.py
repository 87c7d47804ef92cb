"""PURE  What has happened to a job from one message of a watch to the next.

A watch tells how a job is now, and may leave out states between. What a job keeps of its pauses says what they were, so
no pause, resume or epoch is missed, and none is told twice.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Self

from adjourn.client.watching import ENDED
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics


class Kind(Enum):
    """What can happen; in the order in which they happen within one epoch."""

    CREATED = auto()
    STARTED = auto()
    """Its first step was taken."""
    EPOCH_ENDED = auto()
    PAUSED = auto()
    RESUME_REQUESTED = auto()
    RESUMED = auto()
    """It trains again after a pause."""
    PROGRESSED = auto()
    """Steps were taken."""
    STATE_CHANGED = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Happened:
    """One thing that has happened, and the job as it is now."""

    kind: Kind
    job: Job
    pause: Pause | None = None
    epoch: EpochMetrics | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What was told of a job so far. Times are nanoseconds; -1: none."""

    state: Job.State.ValueType
    epoch: int
    step: int
    started: bool
    paused: int
    resume_requested: int
    resumed: int

    @classmethod
    def of(cls, job: Job, *, epoch: int) -> Self:
        """Returns what is told once all of a job was told, its epochs up to `epoch`."""
        cycles = pauses(job)
        return cls(
            state=job.state,
            epoch=epoch,
            step=job.progress.step,
            started=job.HasField("start_time"),
            paused=max((moment(pause, "pause_time") for pause in cycles), default=-1),
            resume_requested=max((moment(pause, "resume_request_time") for pause in cycles), default=-1),
            resumed=max((moment(pause, "resume_time") for pause in cycles), default=-1),
        )


NOTHING = Seen(state=Job.STATE_UNSPECIFIED, epoch=0, step=0, started=False, paused=-1, resume_requested=-1, resumed=-1)


def pauses(job: Job) -> list[Pause]:
    """Returns the pauses that people asked for, oldest first: a drained job goes on by itself."""
    newest = [job.pause] if job.HasField("pause") else []
    return [pause for pause in [*job.past_pauses, *newest] if pause.cause != Pause.DRAINED]


def moment(pause: Pause, field: str) -> int:
    """Returns a time of a pause; -1 if it was not reached, or if the job never came to rest in it."""
    if not pause.HasField("pause_time") or not pause.HasField(field):  # type: ignore[arg-type]  # one of its fields
        return -1
    nanoseconds: int = getattr(pause, field).ToNanoseconds()
    return nanoseconds


def between(before: Seen | None, job: Job, epochs: Iterable[EpochMetrics]) -> list[Happened]:
    """Returns what has happened since `before`, in order; None: the job is new. `epochs`: those that ended since."""
    seen = before or NOTHING
    found = [(0, Happened(Kind.CREATED, job))] if before is None else []
    if job.HasField("start_time") and not seen.started:
        found.append((0, Happened(Kind.STARTED, job)))
    found += [(metrics.epoch, Happened(Kind.EPOCH_ENDED, job, epoch=metrics)) for metrics in epochs]
    found += [cycle for pause in pauses(job) for cycle in steps_of(seen, job, pause)]
    if seen.state in ENDED and job.state not in ENDED:
        found.append((job.progress.epoch, Happened(Kind.RESUME_REQUESTED, job)))
    if job.progress.step > seen.step:
        found.append((job.progress.epoch, Happened(Kind.PROGRESSED, job)))
    if job.state != seen.state:
        found.append((job.progress.epoch, Happened(Kind.STATE_CHANGED, job)))
        if job.state in ENDED:
            found.append((job.progress.epoch, Happened(Kind.ENDED, job)))
    return [each for _, each in sorted(found, key=lambda item: (item[0], item[1].kind.value))]


def steps_of(seen: Seen, job: Job, pause: Pause) -> Iterator[tuple[int, Happened]]:
    for field, told, kind in (
        ("pause_time", seen.paused, Kind.PAUSED),
        ("resume_request_time", seen.resume_requested, Kind.RESUME_REQUESTED),
        ("resume_time", seen.resumed, Kind.RESUMED),
    ):
        if moment(pause, field) > told:
            yield pause.epoch, Happened(kind, job, pause=pause)
