"""PURE. A held assignment while an event is worked into it, and the outcome that comes of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from adjourn import reasons
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.job_pb2 import Failure, Progress
from adjourn_worker.attempt.events import Drop, Effect

OVER: Final = frozenset(
    {AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED}
)
"""Phases after which nothing more is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an event comes to."""

    held: HeldAssignment
    instructions: tuple[Effect, ...]
    reports: tuple[Report, ...]


class Transition:
    """A held assignment while an event is worked into it."""

    def __init__(self, held: HeldAssignment, now: datetime) -> None:
        self.held = HeldAssignment()
        self.held.CopyFrom(held)
        self.status = self.held.status
        self.now = now
        self.instructions: list[Effect] = []
        self.reports: list[Report] = []

    @property
    def over(self) -> bool:
        return self.status.phase in OVER

    @property
    def alive(self) -> bool:
        """A process was started and has not ended, as far as known."""
        return self.held.HasField("process") and not self.held.HasField("exit")

    @property
    def order(self) -> DesiredState:
        return order(self.held)

    def do(self, instruction: Effect) -> None:
        self.instructions.append(instruction)

    def drop(self, snapshot: Snapshot) -> None:
        """Gives a snapshot's slot back, and remembers it for a successor."""
        self.reuse(snapshot.directory)
        self.held.dropped.append(snapshot)
        self.do(Drop(snapshot=snapshot))

    def reuse(self, slot: str) -> None:
        """Forgets what was dropped of a slot."""
        others = [snapshot for snapshot in self.held.dropped if snapshot.directory != slot]
        del self.held.dropped[:]
        self.held.dropped.extend(others)

    def show(self, progress: Progress) -> None:
        """Takes progress over unless it is older: it comes by two ways, which overtake each other."""
        shown = self.status.progress
        if (progress.step, progress.epoch) >= (shown.step, shown.epoch):
            shown.CopyFrom(progress)

    def report(self) -> Report:
        report = Report(job=self.status.job, token=self.status.token)
        self.reports.append(report)
        return report

    def finish(self, phase: AssignmentStatus.Phase.ValueType, *, failure: Failure | None = None) -> None:
        """Ends the assignment and reports how."""
        for snapshot in self.held.snapshots:
            self.drop(snapshot)
        del self.held.snapshots[:]
        self.status.phase = phase
        self.status.ClearField("persisted_fraction")
        del self.status.held_device_uuids[:]
        rests = phase in (AssignmentStatus.PAUSED, AssignmentStatus.SUCCEEDED)
        how = Exit(phase=phase, code=self.held.exit.code, checkpoint=self.held.persisted.name if rests else "")
        if failure is not None:
            told = how.failure
            told.CopyFrom(failure)
            told.attempt = self.status.token.attempt
            told.time.FromDatetime(self.now)
            if phase == AssignmentStatus.FAILED and self.held.HasField("process"):
                told.message += f"{reasons.WHOLE_LOG}{self.held.log}"
        self.report().exit.CopyFrom(how)


def order(held: HeldAssignment) -> DesiredState:
    """Returns what the training process is to be told."""
    assignment = held.assignment
    return DesiredState(generation=assignment.generation, target=assignment.target, mode=assignment.pause_mode)
