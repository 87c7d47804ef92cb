"""PURE. What can happen to an assignment, and what its machine can tell the agent to do."""

from dataclasses import dataclass

from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import ProcessExit, Snapshot, TrainingEvent, TrainingProcess
from adjourn.v1.agent_service_pb2 import Assignment, ConditionChange
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Progress
from adjourn.v1.usage_pb2 import ResourceSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to an assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered(Event):
    """The control plane says what should be."""

    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared(Event):
    """Code, and what is to be restored, lie on the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotGoOn(Event):
    """The attempt cannot be carried on here: its code, checkpoint or files are unusable."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched(Event):
    process: TrainingProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Event):
    """The training process wrote an event; `offset` is where the next one begins."""

    event: TrainingEvent
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured(Event):
    """What the process shows of itself between events; not worth journaling."""

    progress: Progress | None
    usage: ResourceSample | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Event):
    """The training process is gone; all it wrote has been told. `exit` is None if nobody saw it end."""

    exit: ProcessExit | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced(Event):
    """So much of a checkpoint is durable, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted(Event):
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistFailed(Event):
    """The snapshot cannot be read any more; storage that is away is waited for instead."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionChanged(Event):
    """The agent's work has found that a condition of the job began, changed or ended."""

    change: ConditionChange


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
    """Write `start` and the order, have the process forked; answer Launched or CannotGoOn."""

    order: DesiredState


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDesired(Effect):
    """Write the order where the process reads it."""

    order: DesiredState


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill(Effect):
    """End the process and all it started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist(Effect):
    """Make a snapshot durable; answer Advanced, Persisted or PersistFailed."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Effect):
    """Give a snapshot's slot back."""

    snapshot: Snapshot
