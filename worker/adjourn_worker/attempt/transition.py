"""PURE. A held assignment that is being changed, and the outcome of the change."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from adjourn import reasons
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, ConditionChange, Exit, Report
from adjourn.v1.job_pb2 import Condition, Failure, PauseMode, Progress
from adjourn_worker.attempt.events import Drop, Effect

OVER: Final = frozenset(
    {AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED}
)
"""Phases after which nothing more is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of an event."""

    held: HeldAssignment
    effects: tuple[Effect, ...]
    reports: tuple[Report, ...]


class Transition:
    """A copy of a held assignment, to be changed by one event."""

    def __init__(self, held: HeldAssignment, now: datetime) -> None:
        self.held = HeldAssignment()
        self.held.CopyFrom(held)
        self.status = self.held.status
        self.now = now
        self.effects: list[Effect] = []
        self.reports: list[Report] = []

    @property
    def over(self) -> bool:
        return self.status.phase in OVER

    @property
    def alive(self) -> bool:
        """A process was started and has not ended, as far as known."""
        return self.held.HasField("process") and not self.held.HasField("exit")

    @property
    def desired(self) -> DesiredState:
        return desired_state(self.held)

    @property
    def holds_gpus(self) -> bool:
        return bool(self.status.held_device_uuids)

    def do(self, effect: Effect) -> None:
        self.effects.append(effect)

    def drop(self, snapshot: Snapshot) -> None:
        """Gives a snapshot's slot back, and remembers it for an agent that takes over."""
        self.reuse(snapshot.directory)
        self.held.dropped.append(snapshot)
        self.do(Drop(snapshot=snapshot))

    def drop_snapshots(self) -> None:
        for snapshot in self.held.snapshots:
            self.drop(snapshot)
        del self.held.snapshots[:]

    def reuse(self, slot: str) -> None:
        """Forgets the dropped snapshot of a slot that is used again."""
        others = [snapshot for snapshot in self.held.dropped if snapshot.directory != slot]
        del self.held.dropped[:]
        self.held.dropped.extend(others)

    def update_progress(self, progress: Progress) -> None:
        """Takes progress over unless it is older: it comes by two ways, which overtake each other."""
        shown = self.status.progress
        if (progress.step, progress.epoch) >= (shown.step, shown.epoch):
            shown.CopyFrom(progress)

    def report(self) -> Report:
        report = Report(job=self.status.job, token=self.status.token)
        self.reports.append(report)
        return report

    def begin_condition(self, condition: Condition) -> None:
        """Reports a condition when it begins, and when its reason or words change; it keeps the time it began at."""
        conditions = self.held.conditions
        known = next((each for each in conditions if each.type == condition.type), None)
        if known is not None and (known.reason, known.message) == (condition.reason, condition.message):
            return
        reported = Condition()
        reported.CopyFrom(condition)
        if known is not None:
            reported.time.CopyFrom(known.time)
            conditions.remove(known)
        elif not reported.HasField("time"):
            reported.time.FromDatetime(self.now)
        conditions.append(reported)
        self.report().condition.condition.CopyFrom(reported)

    def end_condition(self, kind: Condition.Type.ValueType) -> None:
        """Reports the end of a condition, if it had begun."""
        for condition in list(self.held.conditions):
            if condition.type == kind:
                self.held.conditions.remove(condition)
                self.report().condition.CopyFrom(ConditionChange(condition=Condition(type=kind), ended=True))

    def finish(self, phase: AssignmentStatus.Phase.ValueType, *, failure: Failure | None = None) -> None:
        """Ends the assignment and reports how."""
        self.drop_snapshots()
        del self.held.conditions[:]  # the control plane takes them off the job as the attempt ends
        self.status.phase = phase
        self.status.ClearField("persisted_fraction")
        del self.status.held_device_uuids[:]
        rests = phase in (AssignmentStatus.PAUSED, AssignmentStatus.SUCCEEDED)
        how = Exit(phase=phase, code=self.held.exit.code)
        if rests:
            began_with = self.held.assignment.restore.name if self.held.given_up else ""
            how.checkpoint = self.held.persisted.name or began_with
        if failure is not None:
            if failure.reason == reasons.CHECKPOINT_CORRUPT:
                how.checkpoint = self.held.assignment.restore.name
            how.failure.CopyFrom(failure)
            how.failure.attempt = self.status.token.attempt
            how.failure.time.FromDatetime(self.now)
            if phase == AssignmentStatus.FAILED and self.held.HasField("process"):
                name, attempt = self.status.job.removeprefix("jobs/"), self.status.token.attempt
                how.failure.message += f"{reasons.WHOLE_LOG}adjourn logs {name} --attempt {attempt}"
        self.report().exit.CopyFrom(how)


def desired_state(held: HeldAssignment) -> DesiredState:
    """Returns what the training process should do."""
    assignment = held.assignment
    if assignment.target == Assignment.RUN and held.HasField("pausing_by_itself"):
        return DesiredState(generation=assignment.generation, target=Assignment.PAUSE, mode=PauseMode.EPOCH)
    return DesiredState(generation=assignment.generation, target=assignment.target, mode=assignment.pause_mode)
