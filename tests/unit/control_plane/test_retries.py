"""Whether and when a job is placed again after a failure."""

from datetime import timedelta

import pytest

from adjourn import reasons
from adjourn.v1.job_pb2 import Failure, Job
from adjourn_control_plane.job.retries import REFUSED_DELAY, ready_time
from tests.harness.job_life import Life, paused


def wait(life: Life) -> timedelta:
    return ready_time(life.record) - life.now


def test_a_new_job_and_a_resumed_one_are_ready_at_once() -> None:
    assert wait(Life()) <= timedelta()
    assert wait(paused().resume()) == timedelta()


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (20, 60)])
def test_each_restart_waits_a_little_longer(failures: int, seconds: int) -> None:
    life = Life(max_restarts=100)
    for step in range(failures):
        life.running().at(step).fails()
    assert wait(life) == timedelta(seconds=seconds)


def test_a_resume_after_failures_waits_for_nothing() -> None:
    life = Life().running(1).at(110).fails().running().pause().trained(2).rests().resume()
    assert life.job.restart_count == 1
    assert wait(life) == timedelta()


@pytest.mark.parametrize(("third", "state"), [("no", Job.FAILED), ("something else", Job.QUEUED)])
def test_what_fails_three_times_at_one_step_fails_for_ever_wherever_its_logs_are(
    third: str, state: Job.State.ValueType
) -> None:
    life = Life()
    for attempt, message in enumerate(("no", "no", third), start=1):
        where = f"{reasons.WHOLE_LOG}adjourn logs a --attempt {attempt}"
        life.running().at(7).fails(Failure(reason=reasons.TRAINING_RAISED, message=f"{message}{where}"))
    assert life.job.state == state


def test_a_full_disk_costs_no_restart_and_waits_a_little() -> None:
    life = Life(max_restarts=0)
    for _ in range(3):
        life.placed().fails(Failure(reason=reasons.NO_SPACE, message="full"))
        assert (life.state, life.job.restart_count) == ("QUEUED", 0)
        assert wait(life) == REFUSED_DELAY
