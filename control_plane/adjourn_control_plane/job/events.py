"""PURE. What can happen to a job. `machine.decide` says what follows from it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Hold, Job, Pause, PauseMode, Progress
from adjourn.v1.usage_pb2 import EpochMetrics, GpuSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. `actor`: who caused it, or who told of it."""

    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Event):
    """The job is handed to a worker, under a new fencing token."""

    worker: str
    device_uuids: tuple[str, ...]
    nonce: str
    instance: str = ""
    """`Worker.instance` of the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced(Event):
    """The scheduler looked at the queued job and did not place it."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested(Event):
    """A caller asks for something. If the state does not allow it, the caller gets an error."""

    verb: ClassVar[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRequested(Requested):
    """A caller adds a hold, the USER's or the OPERATOR's: the job is to rest, at the boundary of `mode`."""

    verb = "pausing"
    mode: PauseMode.ValueType
    reason: str
    kind: Hold.Kind.ValueType = Hold.USER


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested(Requested):
    """A caller removes a hold, the USER's or the OPERATOR's."""

    verb = "resuming"
    allow_inexact: bool = False
    kind: Hold.Kind.ValueType = Hold.USER


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Requested):
    """A caller wants the job stopped for good, now or, with `save_checkpoint`, at its next boundary."""

    verb = "cancelling"
    reason: str
    save_checkpoint: bool = False
    mode: PauseMode.ValueType = PauseMode.EPOCH
    """At which boundary, EPOCH or STEP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequested(Requested):
    """Somebody changes what a job is to do; `fields` names the paths of `job` to take over."""

    verb = "updating"
    job: Job
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(Event):
    """The worker of the job is to become empty: the job pauses at its boundary, and goes on elsewhere."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainWithdrawn(Event):
    """The worker of the job may keep it after all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Event):
    """The worker says how the assignment stands. A later one replaces it."""

    generation: int
    progress: Progress | None = None
    progress_age: timedelta = timedelta()
    """How long ago that was so."""
    persisted_fraction: float | None = None
    released: bool = False
    """The process is gone and holds no GPU, though the attempt still makes its checkpoint durable."""
    boundary_epoch: int | None = None
    """Epoch at which the pause of that generation will be; 0: that is not known any more; None: nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Began(Event):
    """The attempt took its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded(Event):
    """An epoch ended, its validation included."""

    metrics: EpochMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNearlyFull(Event):
    """The memory of a GPU of the attempt is nearly full."""

    gpu: GpuSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered(Event):
    """A checkpoint is complete in object storage."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class PausePhase(Event):
    """A phase of a pause, or of the resume after it, was reached. Only the fields of that phase are set."""

    pause: Pause


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionChanged(Event):
    """The worker says that a condition began, changed or ended. Of one that ended, only the type is set."""

    condition: Condition
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rested(Event):
    """The process is gone and its last checkpoint is registered. `failure`: why, if nobody had asked for it."""

    checkpoint: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """Training reached its end."""

    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The process is gone without a checkpoint. `failure`: why the worker stopped it; None if we asked for that."""

    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The attempt could not go on."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDamaged(Event):
    """The attempt could not begin: what it was to restore is missing or damaged in object storage.

    `sound` and `newest` come from the job's checkpoints in the store; None: there is none.
    """

    failure: Failure
    checkpoint: str
    """The damaged one."""
    sound: Checkpoint | None = None
    """Newest registered one that is not known to be damaged."""
    newest: Checkpoint | None = None
    """Newest registered one, whatever is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost(Event):
    """The attempt counts as lost: its worker was silent for a lease, or cannot say what became of the attempt."""

    failure: Failure
    out_of_reach: bool = False
    """Nobody could be asked: its process may live."""
    instance: str = ""
    """`Worker.instance` of the worker that is out of reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseConfirmed(Event):
    """The process of an attempt whose worker was out of reach is gone; or an operator says so."""

    token: FencingToken
    message: str = ""
    """How that is known; empty: the worker says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted(Event):
    """A worker has a live attempt that the record does not give to any worker, and the job takes it over.

    Either its token is the record's: the attempt counted as lost. Or its attempt is a later one of the same job: the
    store was restored from an older state.
    """

    token: FencingToken
    worker: str
    device_uuids: tuple[str, ...]
    generation: int
    released: bool
    """Its process is gone and its checkpoint on the way."""
