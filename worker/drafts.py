"""PURE. A held assignment while an event is worked into it, and the outcome that comes of it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from adjourn.orders import Order
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.job_pb2 import Failure
from adjourn.v1.trainer_pb2 import HeldAssignment
from worker.words import Drop, Instruction

OVER: Final = frozenset(
    {AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED}
)
"""Phases after which nothing more is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an event comes to."""

    held: HeldAssignment
    instructions: tuple[Instruction, ...]
    reports: tuple[Report, ...]


class Draft:
    """A held assignment while an event is worked into it."""

    def __init__(self, held: HeldAssignment, now: datetime) -> None:
        self.held = HeldAssignment()
        self.held.CopyFrom(held)
        self.status = self.held.status
        self.now = now
        self.instructions: list[Instruction] = []
        self.reports: list[Report] = []

    @property
    def over(self) -> bool:
        return self.status.phase in OVER

    @property
    def alive(self) -> bool:
        """A process was started and has not ended, as far as known."""
        return self.held.HasField("process") and not self.held.HasField("exit")

    @property
    def order(self) -> Order:
        assignment = self.held.assignment
        return Order(generation=assignment.generation, target=assignment.target, mode=assignment.pause_mode)

    def do(self, instruction: Instruction) -> None:
        self.instructions.append(instruction)

    def report(self) -> Report:
        report = Report(job=self.status.job, token=self.status.token)
        self.reports.append(report)
        return report

    def finish(self, phase: AssignmentStatus.Phase.ValueType, *, failure: Failure | None = None) -> None:
        """Ends the assignment and reports how."""
        for snapshot in self.held.snapshots:
            self.do(Drop(snapshot=snapshot))
        del self.held.snapshots[:]
        self.status.phase = phase
        self.status.ClearField("persisted_fraction")
        del self.status.held_device_uuids[:]
        rests = phase in (AssignmentStatus.PAUSED, AssignmentStatus.SUCCEEDED)
        how = Exit(phase=phase, code=self.held.exit.code, checkpoint=self.held.persisted.name if rests else "")
        if failure is not None:
            failure.attempt = self.status.token.attempt
            failure.time.FromDatetime(self.now)
            self.status.failure.CopyFrom(failure)
            how.failure.CopyFrom(failure)
        self.report().exit.CopyFrom(how)
