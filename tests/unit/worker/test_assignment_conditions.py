from datetime import UTC, datetime

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, ConditionChange, FencingToken
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.attempt import machine
from adjourn_worker.attempt.events import ConditionChanged

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def began(reason: str, message: str = "") -> ConditionChanged:
    condition = Condition(type=Condition.STORAGE_FAILING, reason=reason, message=message)
    return ConditionChanged(change=ConditionChange(condition=condition))


ENDED = ConditionChanged(change=ConditionChange(condition=Condition(type=Condition.STORAGE_FAILING), ended=True))


def told(*events: ConditionChanged) -> tuple[list[tuple[str, bool]], list[str]]:
    """Returns the reason and end of each condition that is reported, and the reasons that are left."""
    held = HeldAssignment(assignment=Assignment(job="jobs/a", token=FencingToken(attempt=1)))
    held.status.phase = AssignmentStatus.RUNNING
    reports = []
    for event in events:
        outcome = machine.handle(held, event, NOW)
        held = outcome.held
        reports += [report.condition for report in outcome.reports]
    return [(each.condition.reason, each.ended) for each in reports], [each.reason for each in held.conditions]


def test_a_condition_is_reported_when_it_begins_and_when_it_ends() -> None:
    assert told(began("A")) == ([("A", False)], ["A"])
    assert told(began("A"), ENDED) == ([("A", False), ("", True)], [])


def test_a_condition_is_reported_again_when_its_reason_changes() -> None:
    assert told(began("A", "one"), began("A", "two"), began("B")) == ([("A", False), ("B", False)], ["B"])


def test_what_never_began_does_not_end() -> None:
    assert told(ENDED) == ([], [])
