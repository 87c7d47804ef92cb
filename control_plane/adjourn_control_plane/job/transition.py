"""PURE. A job record while an event is applied to it, and the decision that results."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Hold, Job, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics

WORKER_CONDITIONS: Final = (
    Condition.SNAPSHOT_FAILING,
    Condition.STORAGE_FAILING,
    Condition.GPUS_NOT_RELEASED,
    Condition.HANGING,
    Condition.FETCHING_DATA,
    Condition.INSTALLING,
)
"""Conditions that a worker reports. They end when the attempt leaves the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows from an event. All of it is stored together, or nothing."""

    record: JobRecord
    events: tuple[JobEvent, ...] = ()
    epochs: tuple[EpochMetrics, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()


class Transition:
    """A copy of a record, changed step by step."""

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
        self.told_holds, self.told_checkpoint = kinds_of_holds(self.job), self.job.latest_checkpoint
        """As the history tells them: whoever replays it finds the holds and the newest checkpoint of the record."""

    def record_event(self, kind: JobEvent.Type.ValueType, message: str = "", **details: str) -> None:
        """Adds an event to the job's history.

        It says which holds and which newest checkpoint the job has from now on, if they are others than before.
        """
        self.record.event_sequence += 1
        holds = kinds_of_holds(self.job)
        if holds != self.told_holds:
            details["holds"] = self.told_holds = holds
        if self.job.latest_checkpoint != self.told_checkpoint:
            details["checkpoint"] = self.told_checkpoint = self.job.latest_checkpoint
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
        """Changes the state and records why. What belongs to the state that is left ends with it."""
        if state != Job.QUEUED:
            self.end_condition(Condition.UNPLACED)
        if state != Job.PAUSING and self.job.HasField("pause"):
            for field in ("persisted_fraction", "boundary_epoch"):
                self.job.pause.ClearField(field)
        if self.job.state == Job.PAUSING and state not in (Job.PAUSING, Job.PAUSED, Job.QUEUED):
            self.forget_forecast()
        self.revised = True
        self.job.state = state
        self.job.state_time.FromDatetime(self.now)
        if state in (Job.CANCELLED, Job.SUCCEEDED, Job.FAILED):
            self.job.end_time.FromDatetime(self.now)
        else:
            self.job.ClearField("end_time")
        self.record_event(kind, message, **details)

    def forget_forecast(self) -> None:
        """Takes back what a pause in mode LATEST was to give up: the job goes on, or ends, without it."""
        if self.job.pause.mode == PauseMode.LATEST:
            self.job.pause.ClearField("lost_duration")
            self.job.pause.ClearField("lost_steps")

    def set_target(self, target: Assignment.Target.ValueType) -> None:
        """Changes what the worker should bring about."""
        self.revised = True
        self.record.target = target
        self.record.generation += 1

    def assign(self, token: FencingToken, worker: str, device_uuids: Sequence[str], instance: str = "") -> None:
        """Gives the job to a worker, with devices of its own, under a fencing token. `instance`: of the worker."""
        self.record.token.CopyFrom(token)
        self.record.last_worker, self.record.last_instance = worker, instance
        self.job.attempt, self.job.worker, self.record.released = token.attempt, worker, False
        del self.record.device_uuids[:]
        self.record.device_uuids.extend(device_uuids)

    def unassign(self) -> None:
        """Takes the job from its worker, frees the slot and ends the conditions that the worker reported."""
        for condition in WORKER_CONDITIONS:
            self.end_condition(condition)
        self.job.worker = ""
        self.record.target = Assignment.TARGET_UNSPECIFIED
        self.record.released = True
        del self.record.device_uuids[:]

    def begin_condition(self, kind: Condition.Type.ValueType, reason: str, message: str) -> None:
        """Notes that a condition began, or that its reason changed. With the reason it has, only the message is new."""
        known = next((each for each in self.job.conditions if each.type == kind), None)
        if known is not None and known.reason == reason:
            known.message = message
            return
        condition = known if known is not None else self.job.conditions.add(type=kind)
        condition.reason, condition.message = reason, message
        condition.time.FromDatetime(self.now)
        self.record_event(JobEvent.CONDITION_BEGAN, message, condition=Condition.Type.Name(kind), reason=reason)

    def end_condition(self, kind: Condition.Type.ValueType, message: str = "") -> None:
        """Notes that a condition is no more; nothing, if it was not."""
        for condition in self.job.conditions:
            if condition.type == kind:
                self.job.conditions.remove(condition)
                name = Condition.Type.Name(kind)
                self.record_event(JobEvent.CONDITION_ENDED, message, condition=name, reason=condition.reason)
                return

    def hold(self, kind: Hold.Kind.ValueType, reason: str) -> None:
        """Adds a hold."""
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
        """Returns the decision; `before` is the record that it starts from."""
        if self.revised:
            self.record.revision = before.revision + 1
        return Decision(
            record=self.record,
            events=tuple(self.events),
            epochs=tuple(self.epochs),
            checkpoints=tuple(self.checkpoints),
        )


def kinds_of_holds(job: Job) -> str:
    """Returns the kinds of a job's holds, as events tell them."""
    if not job.holds:
        return ""
    known = Hold.Kind.values()  # a newer version may have stored others
    return ", ".join(sorted(Hold.Kind.Name(each.kind) if each.kind in known else str(each.kind) for each in job.holds))
