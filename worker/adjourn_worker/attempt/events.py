"""PURE. Events of an assignment, and the effects that its machine asks the agent for."""

from dataclasses import dataclass
from datetime import datetime

from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import ProcessExit, Snapshot, TrainingEvent, TrainingProcess
from adjourn.v1.agent_service_pb2 import Assignment, ConditionChange
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Progress
from adjourn.v1.usage_pb2 import GpuSample, ResourceSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to an assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentChanged(Event):
    """The control plane wants something else of the assignment."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Event):
    """Code, and what is to be restored, lie on the disk."""

    gpus: tuple[GpuSample, ...] = ()
    """The assignment's GPUs before the launch, as far as NVML shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotGoOn(Event):
    """The attempt cannot be continued: its code, checkpoint or files are unusable. No process of it runs any more."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched(Event):
    process: TrainingProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRead(Event):
    """The training process wrote an event; `offset` is where the next one begins."""

    event: TrainingEvent
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Event):
    """How the process does between its events; not worth journaling."""

    progress: Progress | None
    usage: ResourceSample | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Event):
    """The training process is gone, and all its events are read. `exit` is None if nobody saw it end."""

    exit: ProcessExit | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusReleased(Event):
    """The GPUs of an ended process are free, or quarantined because they are not."""

    time: datetime
    memory_bytes: int | None
    """In use on them now; None: NVML does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced(Event):
    """So much of a checkpoint is durable, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted(Event):
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistFailed(Event):
    """A snapshot could not be made durable, though storage answers."""

    failure: Failure
    lost: bool
    """The snapshot is gone or damaged, so that trying again is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionChanged(Event):
    """The agent's work has found that a condition of the job began, changed or ended."""

    change: ConditionChange


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseByItself(Event):
    """The worker is out of contact, or drains: what trains is to pause at its next boundary, whatever was wanted."""

    why: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached(Event):
    """The control plane was heard again: what it wants counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundaryFound(Event):
    """Training has seen what is wanted of it, or will see it when it decides next, which is after `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHanging(Event):
    """Training has been silent for longer than it may be."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSuspended(Event):
    """The training process is stopped by a signal that is not the agent's."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedOn(Event):
    """Training that was found hanging has shown a sign of life, or what was found suspended goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillHanging(Event):
    """Training was found hanging, and the grace is over: the attempt is to be ended."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStopping(Event):
    """The worker has to stop with all it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Something for the agent to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(Effect):
    """Fetch the code and the checkpoint; answer Prepared or CannotGoOn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch(Effect):
    """Write the desired state and have the process forked; answer Launched or CannotGoOn."""

    desired: DesiredState


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDesired(Effect):
    """Write the desired state where the process reads it; for a pause, answer BoundaryFound once that is certain."""

    desired: DesiredState


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Effect):
    """End the process and all it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteStacks(Effect):
    """Have the process write the stacks of its threads to its log."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRelease(Effect):
    """Wait until the memory of the assignment's GPUs is free again, for a while; answer GpusReleased."""

    before: tuple[GpuSample, ...]
    """The GPUs before the process was launched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist(Effect):
    """Make a snapshot durable; answer Advanced, Persisted or PersistFailed."""

    snapshot: Snapshot
    again: bool = False
    """It has failed before: wait a little first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Effect):
    """Give a snapshot's slot back."""

    snapshot: Snapshot
