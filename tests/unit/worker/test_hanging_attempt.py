"""What becomes of an attempt whose training hangs."""

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus
from adjourn.v1.job_pb2 import Condition, JobSpec
from adjourn_worker.attempt import machine
from adjourn_worker.attempt.events import (
    AssignmentChanged,
    FoundHanging,
    FoundSuspended,
    GpusReleased,
    Kill,
    MovedOn,
    Persist,
    Persisted,
    StillHanging,
    WorkerStopping,
    WriteStacks,
)
from tests.harness.attempt_driver import (
    NOW,
    PAUSE,
    RUN,
    STOP,
    AttemptDriver,
    assigned,
    checkpoint,
    finished,
    paused,
    pausing,
    running,
    snapshot,
)

SUSPENDED = FoundSuspended(message="SIGCONT continues it")
FOUND, STILL = FoundHanging(message="no step for 130 s"), StillHanging(message="no step for 140 s")


def hanging(policy: JobSpec.HangPolicy.ValueType = JobSpec.HANG_POLICY_UNSPECIFIED) -> AttemptDriver:
    attempt = running(assigned(spec=JobSpec(hang_policy=policy)))
    assert list(attempt(FOUND)) == [WriteStacks(why=FOUND.message)]
    return attempt


def told(attempt: AttemptDriver) -> list[tuple[int, str, bool]]:
    """Returns what was reported of conditions."""
    changes = [report.condition for report in attempt.reports if report.HasField("condition")]
    return [(change.condition.type, change.condition.reason, change.ended) for change in changes]


def test_a_hang_is_a_condition_until_training_gets_on() -> None:
    attempt = hanging()
    assert machine.is_hanging(attempt.held)
    assert told(attempt) == [(Condition.HANGING, reasons.TRAINING_HANGS, False)]
    assert attempt.reports[-1].condition.condition.message == FOUND.message
    attempt(MovedOn())
    assert not machine.is_hanging(attempt.held)
    assert told(attempt)[1:] == [(Condition.HANGING, "", True)]
    assert attempt.phase == AssignmentStatus.RUNNING


def test_what_goes_on_hanging_is_killed_and_has_failed() -> None:
    attempt = hanging()
    assert list(attempt(STILL)) == [Kill()]
    assert list(attempt(StillHanging(message="later"))) == [Kill()], "the launcher may have been gone"
    attempt.end(-9, killed=True)
    how = attempt.exit
    assert (how.phase, how.failure.reason) == (AssignmentStatus.FAILED, reasons.TRAINING_HANGS)
    assert how.failure.message.startswith(STILL.message)
    assert "log" in how.failure.message


def test_what_was_saved_before_is_made_durable_first() -> None:
    attempt = hanging()
    assert list(attempt.tell((1, 10), snapshot=snapshot(1))) == [Persist(snapshot=snapshot(1))]
    attempt(STILL)
    attempt.end(-9, killed=True)
    assert attempt.phase == AssignmentStatus.PERSISTING
    attempt(Persisted(checkpoint=checkpoint(1)))
    assert attempt.exit.failure.reason == reasons.TRAINING_HANGS
    assert attempt.kinds[-2:] == ["checkpoint", "exit"]


def test_what_is_only_to_be_reported_is_not_killed() -> None:
    attempt = hanging(JobSpec.REPORT)
    assert not machine.hang_ends_attempt(attempt.held)
    assert list(attempt(STILL)) == []
    assert attempt.phase == AssignmentStatus.RUNNING


@pytest.mark.parametrize("policy", JobSpec.HangPolicy.values())
def test_a_pause_does_not_wait_for_a_hang_whatever_the_policy(policy: JobSpec.HangPolicy.ValueType) -> None:
    attempt = running(assigned(spec=JobSpec(hang_policy=policy), device_uuids=["GPU-1"]))
    attempt(FOUND)
    attempt.order(PAUSE, 2)
    assert list(attempt(STILL)) == [Kill()]
    attempt.end(-9, killed=True)
    attempt(GpusReleased(time=NOW, memory_bytes=None))
    assert attempt.exit.failure.reason == reasons.TRAINING_HANGS
    (pause,) = [report.pause for report in attempt.reports if report.HasField("pause")]
    assert pause.release_time.ToDatetime(NOW.tzinfo) == NOW, "the GPUs are free"
    assert not pause.HasField("boundary_time")


def test_a_pause_that_was_said_to_be_done_stays_so_if_the_process_hangs_at_its_end() -> None:
    attempt = pausing(persist=True)
    attempt(FOUND)
    assert machine.hang_ends_attempt(attempt.held)
    assert list(attempt(STILL)) == [Kill()]
    attempt.end(-9, killed=True)
    assert attempt.exit.phase == AssignmentStatus.PAUSED


def test_so_does_the_end_of_a_run() -> None:
    attempt = running(assigned(spec=JobSpec(hang_policy=JobSpec.REPORT)))
    attempt.tell((2, 20), snapshot=snapshot(1, last=True))
    attempt(Persisted(checkpoint=checkpoint(1)))
    attempt.tell((2, 20), finished=finished())
    attempt(FOUND)
    assert list(attempt(STILL)) == [Kill()]
    attempt.end(-9, killed=True)
    assert attempt.exit.phase == AssignmentStatus.SUCCEEDED


def test_a_pause_that_is_reached_as_the_attempt_is_ended_comes_too_late() -> None:
    attempt = hanging()
    attempt.order(PAUSE, 2)
    attempt(STILL)
    attempt.tell((1, 10), snapshot=snapshot(1, last=True))
    attempt.tell((1, 10), paused=paused())
    attempt.end()
    attempt(Persisted(checkpoint=checkpoint(1)))
    assert attempt.exit.failure.reason == reasons.TRAINING_HANGS
    assert "checkpoint" in attempt.kinds, "but what it saved counts"


def test_the_next_agent_ends_what_was_to_be_ended() -> None:
    attempt = hanging()
    attempt(STILL)
    assert attempt.recover()[0] == Kill()
    waiting = hanging()
    assert Kill() not in waiting.recover(), "its grace begins anew"
    assert machine.is_hanging(waiting.held)


@pytest.mark.parametrize("policy", [JobSpec.RESTART, JobSpec.REPORT])
def test_what_somebody_else_has_stopped_is_told_and_not_ended(policy: JobSpec.HangPolicy.ValueType) -> None:
    attempt = running(assigned(spec=JobSpec(hang_policy=policy)))
    assert not attempt(SUSPENDED), "no stacks are asked for: it could not write any"
    assert told(attempt) == [(Condition.HANGING, reasons.PROCESS_SUSPENDED, False)]
    assert (machine.is_suspended(attempt.held), machine.is_hanging(attempt.held)) == (True, False)
    attempt(MovedOn())
    assert told(attempt)[-1] == (Condition.HANGING, "", True)


def test_what_hangs_and_is_then_stopped_says_so() -> None:
    attempt = hanging()
    assert not attempt(SUSPENDED)
    assert [reason for _, reason, _ in told(attempt)] == [reasons.TRAINING_HANGS, reasons.PROCESS_SUSPENDED]
    assert (machine.is_suspended(attempt.held), machine.is_hanging(attempt.held)) == (True, False)


def test_what_ends_otherwise_is_not_found_hanging_any_more() -> None:
    for ending in (AssignmentChanged(assignment=assigned(STOP, 2)), WorkerStopping()):
        attempt = hanging()
        attempt(ending)
        attempt.end(-9, killed=True)
        assert attempt.exit.phase == AssignmentStatus.STOPPED
        assert list(attempt(STILL)) == list(attempt(FOUND)) == []
    attempt = running()
    attempt.end(1)
    assert attempt.order(RUN, 2) == ()
