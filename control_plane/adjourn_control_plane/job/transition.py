"""PURE. A job record while it is being decided on, and the decision that comes of it."""

from dataclasses import dataclass
from datetime import datetime

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Hold, Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What an event comes to: all of it is stored together, or none."""

    record: JobRecord
    events: tuple[JobEvent, ...] = ()
    epochs: tuple[EpochMetrics, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()


class Transition:
    """The record while it is being decided on."""

    def __init__(self, record: JobRecord, actor: str, now: datetime) -> None:
        self.record = JobRecord()
        self.record.CopyFrom(record)
        self.job = self.record.job
        self.actor = actor
        self.now = now
        self.events: list[JobEvent] = []
        self.epochs: list[EpochMetrics] = []
        self.checkpoints: list[Checkpoint] = []
        self.revised = False

    def record_event(self, kind: JobEvent.Type.ValueType, message: str = "", **details: str) -> None:
        """Records what happened, for the job's history."""
        self.record.event_sequence += 1
        event = JobEvent(
            sequence=self.record.event_sequence,
            type=kind,
            actor=self.actor,
            state=self.job.state,
            attempt=self.job.attempt,
            message=message,
            details=details,
        )
        event.time.FromDatetime(self.now)
        self.events.append(event)

    def set_state(
        self, state: Job.State.ValueType, kind: JobEvent.Type.ValueType, message: str = "", **details: str
    ) -> None:
        """Changes the state and records why."""
        self.revised = True
        self.job.state = state
        self.job.state_time.FromDatetime(self.now)
        if state in (Job.CANCELLED, Job.SUCCEEDED, Job.FAILED):
            self.job.end_time.FromDatetime(self.now)
        self.record_event(kind, message, **details)

    def set_target(self, target: Assignment.Target.ValueType) -> None:
        """Tells the worker something else."""
        self.revised = True
        self.record.target = target
        self.record.generation += 1

    def unassign(self) -> None:
        """Takes the job from its worker and frees the slot."""
        self.job.worker = ""
        self.record.target = Assignment.TARGET_UNSPECIFIED
        self.record.released = True
        del self.record.device_uuids[:]

    def hold(self, kind: Hold.Kind.ValueType, reason: str) -> None:
        self.revised = True
        hold = self.job.holds.add(kind=kind, reason=reason, actor=self.actor)
        hold.create_time.FromDatetime(self.now)

    def held(self, kind: Hold.Kind.ValueType) -> bool:
        return any(hold.kind == kind for hold in self.job.holds)

    def unhold(self, kind: Hold.Kind.ValueType) -> bool:
        """Removes the hold of a kind; False if there is none."""
        left = [hold for hold in self.job.holds if hold.kind != kind]
        removed = len(left) < len(self.job.holds)
        self.revised |= removed
        del self.job.holds[:]
        self.job.holds.extend(left)
        return removed

    def decision(self, before: JobRecord) -> Decision:
        if self.revised:
            self.record.revision = before.revision + 1
        return Decision(
            record=self.record,
            events=tuple(self.events),
            epochs=tuple(self.epochs),
            checkpoints=tuple(self.checkpoints),
        )
