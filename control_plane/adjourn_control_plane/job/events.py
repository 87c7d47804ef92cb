"""PURE. What can happen to a job; the job machine in `jobs.py` says what comes of it."""

from dataclasses import dataclass
from typing import ClassVar

from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Job, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job; `actor` says through whom."""

    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Event):
    """The job is handed to a worker, under a new fencing token."""

    worker: str
    device_uuids: tuple[str, ...]
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested(Event):
    """Somebody wants something: a contradiction is an error, not late news."""

    verb: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRequested(Requested):
    """Somebody wants the job to rest after its running epoch."""

    verb = "pausing"
    mode: PauseMode.ValueType
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested(Requested):
    """Somebody takes the USER hold away."""

    verb = "resuming"
    allow_inexact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Requested):
    """Somebody wants the job stopped for good, now."""

    verb = "cancelling"
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequested(Requested):
    """Somebody changes what a job is to do; `fields` names the paths of `job` to take over."""

    verb = "updating"
    job: Job
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Event):
    """The worker says how the assignment stands; nothing of it needs to be kept for ever."""

    generation: int
    progress: Progress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Began(Event):
    """The attempt took its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Event):
    metrics: EpochMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(Event):
    """A checkpoint is complete in object storage."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class PausePhase(Event):
    """A phase of the pause (or of the resume after it) was reached; only its own fields are set."""

    pause: Pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Rested(Event):
    """The process is gone, its last checkpoint is registered."""

    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """Training reached its end."""

    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The process is gone without a checkpoint: it was told to, or the worker had to (`failure` says why)."""

    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The attempt could not go on."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The worker is silent for a lease, or knows nothing of the attempt."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRunning(Event):
    """A worker trains what should be at rest, with the job's own token (our record was older)."""

    device_uuids: tuple[str, ...]
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted(Event):
    """A worker runs a later attempt than we know of (our record was older): it is right."""

    token: FencingToken
    worker: str
    device_uuids: tuple[str, ...]
    generation: int
