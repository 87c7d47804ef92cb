"""The events that reports tell of."""

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, ConditionChange, Exit, FencingToken, Report
from adjourn.v1.job_pb2 import Condition, Failure, Pause
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.job import reports
from adjourn_control_plane.job.events import (
    ConditionChanged,
    EpochEnded,
    Event,
    Failed,
    Finished,
    PausePhase,
    Registered,
    Rested,
    Stopped,
)
from tests.harness.job_life import A, checkpoint

FAILURE = Failure(reason=reasons.PROCESS_KILLED, message="ended by SIGKILL")


def test_an_exit_report_is_the_end_of_the_attempt() -> None:
    report = Report(exit=Exit(phase=AssignmentStatus.FAILED, code=-9, failure=FAILURE))
    assert reports.event_of_report(report, A) == Failed(actor=A, failure=FAILURE)


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (AssignmentStatus.PAUSED, Rested(actor=A, checkpoint="c", failure=FAILURE)),
        (AssignmentStatus.SUCCEEDED, Finished(actor=A, checkpoint="c")),
        (AssignmentStatus.STOPPED, Stopped(actor=A, failure=FAILURE)),
        (AssignmentStatus.FAILED, Failed(actor=A, failure=FAILURE)),
    ],
)
def test_each_way_to_end(phase: AssignmentStatus.Phase.ValueType, event: Event) -> None:
    assert reports.ended(Exit(phase=phase, checkpoint="c", failure=FAILURE), A) == event


def test_an_end_without_a_reason_has_one_all_the_same() -> None:
    failed = reports.ended(Exit(phase=AssignmentStatus.FAILED), A)
    assert isinstance(failed, Failed)
    assert failed.failure.reason == reasons.PROCESS_ENDED
    assert reports.ended(Exit(phase=AssignmentStatus.STOPPED), A) == Stopped(actor=A)
    assert reports.ended(Exit(phase=AssignmentStatus.PAUSED, checkpoint="c"), A) == Rested(actor=A, checkpoint="c")


def test_each_kind_of_report() -> None:
    metrics, made, pause = EpochMetrics(epoch=3), checkpoint(3), Pause(note="n")
    assert reports.event_of_report(Report(epoch=metrics), A) == EpochEnded(actor=A, metrics=metrics)
    assert reports.event_of_report(Report(checkpoint=made), A) == Registered(actor=A, checkpoint=made)
    assert reports.event_of_report(Report(pause=pause), A) == PausePhase(actor=A, pause=pause)
    full = Condition(type=Condition.SNAPSHOT_FAILING, reason="NO_SPACE")
    assert reports.event_of_report(Report(condition=ConditionChange(condition=full, ended=True)), A) == (
        ConditionChanged(actor=A, condition=full, ended=True)
    )
    assert reports.event_of_report(Report(sequence=1, token=FencingToken(attempt=1)), A) is None, "of a later version"
