"""A resume continues: what it queues, what it takes back, and what it refuses."""

from datetime import timedelta

import pytest

from adjourn import errors
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Failure, Hold, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from tests.harness.job_life import A, B, Life, checkpoint_name, paused

OTHER_HOLD = Hold.Kind.ValueType(4)
"""A kind that a later version may know."""


def test_a_paused_job_goes_on_from_its_checkpoint() -> None:
    life = paused(epochs=2).resume()
    assert (life.state, life.job.latest_checkpoint, life.job.progress.epoch) == ("QUEUED", checkpoint_name(3), 3)
    life.placed(B)
    assert (life.state, life.job.attempt, life.job.pause.to_worker) == ("STARTING", 2, B)
    assert life.began().state == "RUNNING"


def test_a_change_of_mind_before_the_process_left_goes_on_where_it_is() -> None:
    life = Life().running(2).pause()
    asked = life.record.generation
    life.resume()
    assert (life.state, life.record.target, life.job.attempt) == ("RUNNING", Assignment.RUN, 1)
    assert life.record.generation == asked + 1
    assert life.job.pause.note == "resumed before the boundary"
    assert life.trained(3).state == "RUNNING"


def test_a_change_of_mind_before_the_first_step_is_starting_again() -> None:
    assert Life().placed().pause().resume().state == "STARTING"


def test_a_change_of_mind_after_the_process_left_queues_with_the_checkpoint_it_just_made() -> None:
    life = Life().running(2).pause().released().resume()
    assert (life.state, life.record.target) == ("PAUSING", Assignment.PAUSE)
    life.trained(3).rests()
    assert (life.state, life.record.checkpoint.name) == ("QUEUED", checkpoint_name(3))
    assert (life.job.pause.checkpoint, life.job.pause.epoch) == (checkpoint_name(3), 3)
    assert life.job.pause.note == "resumed after training had left"


def test_a_change_of_mind_that_training_did_not_hear_in_time_queues_as_well() -> None:
    life = Life().running(2).pause().resume()
    assert life.state == "RUNNING"
    life.trained(3).released().rests()
    assert (life.state, life.record.checkpoint.name, life.job.restart_count) == ("QUEUED", checkpoint_name(3), 0)
    assert (life.job.pause.epoch, life.job.pause.note) == (3, "resumed after training had left")


def test_minds_may_change_any_number_of_times() -> None:
    life = Life().running(1)
    for _ in range(5):
        assert life.pause().state == "PAUSING"
        assert life.resume().state == "RUNNING"
    assert life.pause().released().resume().state == "PAUSING"
    life.pause()
    assert not life.job.pause.HasField("resume_request_time")
    assert life.trained(2).rests().state == "PAUSED"


def test_resuming_again_changes_nothing() -> None:
    life = paused().resume()
    assert life.resume().last is None
    life.placed()
    assert life.resume().last is None
    assert life.state == "STARTING"


@pytest.mark.parametrize("begin", [lambda life: life, lambda life: life.placed(), lambda life: life.running(1)])
def test_what_is_not_paused_cannot_be_resumed(begin: object) -> None:
    assert callable(begin)
    life = begin(Life())
    with pytest.raises(errors.JobNotPausedError) as caught:
        life.resume()
    assert caught.value.metadata["state"] == life.state
    assert "PAUSED" in caught.value.metadata["allowed_states"]


def test_a_job_that_failed_goes_on_from_its_checkpoint_with_a_fresh_budget() -> None:
    life = Life(max_restarts=1).running(1).at(150).fails().running().at(150, seconds=15).fails()
    assert (life.state, life.job.restart_count) == ("FAILED", 1)
    assert life.job.progress.step == 150, "shows how far it got"
    life.resume()
    assert (life.state, life.job.restart_count) == ("QUEUED", 0)
    assert (life.job.progress.epoch, life.job.progress.step) == (1, 100), "and now where it goes on"
    assert not life.job.HasField("end_time")
    assert life.running().fails().state == "QUEUED", "the same failure may be tried again after a resume"


def test_a_cancelled_job_goes_on_from_its_checkpoint() -> None:
    life = Life().running(1).cancel().stops()
    assert life.state == "CANCELLED"
    life.resume()
    assert (life.state, life.record.checkpoint.name) == ("QUEUED", checkpoint_name(1))


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED"])
def test_without_a_checkpoint_there_is_nothing_to_resume(end: str) -> None:
    life = Life(max_restarts=0).running()
    life = life.fails() if end == "FAILED" else life.cancel().stops()
    with pytest.raises(errors.NoCheckpointError) as caught:
        life.resume()
    assert caught.value.metadata["state"] == life.state == end


def test_a_succeeded_job_cannot_be_resumed() -> None:
    life = Life(total_epochs=1).running(1).finishes()
    with pytest.raises(errors.JobFinishedError):
        life.resume()


def test_a_resume_removes_the_users_hold_and_only_it() -> None:
    life = paused().held_by(OTHER_HOLD).resume()
    assert (life.state, [hold.kind for hold in life.job.holds]) == ("PAUSED", [OTHER_HOLD])
    assert life.resume().last is None, "the other hold is not the caller's"
    assert life.pause().state == "PAUSED"
    assert sorted(hold.kind for hold in life.job.holds) == [Hold.USER, OTHER_HOLD]


def test_a_change_of_mind_does_not_lift_another_hold() -> None:
    life = Life().running(1).pause().held_by(OTHER_HOLD).resume()
    assert (life.state, life.record.target) == ("PAUSING", Assignment.PAUSE)
    assert life.trained(2).rests().state == "PAUSED"


def test_an_inexact_environment_is_allowed_for_this_resume_only() -> None:
    life = paused().resume(allow_inexact=True)
    assert life.record.allow_inexact
    life.running(1).pause().trained(5).rests().resume()
    assert not life.record.allow_inexact


def test_the_record_of_a_pause_ends_with_the_first_step_after_it() -> None:
    life = Life(gpu_count=2).placed(A, "GPU-1", "GPU-2").acknowledged().began().pause().trained(1).released().rests()
    left = life.job.pause.release_time.ToDatetime()
    life.resume().placed(B, "GPU-3", "GPU-4").began().took_a_step()
    pause = life.job.pause
    assert (pause.from_worker, pause.to_worker, pause.verdict) == (A, B, Pause.EXACT)
    idle = pause.resume_time.ToDatetime() - left
    assert pause.saved_gpu_seconds == 2 * idle.total_seconds() > 0
    assert pause.request_time.seconds < pause.release_time.seconds <= pause.pause_time.seconds
    assert pause.pause_time.seconds < pause.resume_request_time.seconds < pause.resume_time.seconds


def test_a_restart_after_a_failure_does_not_touch_the_record_of_an_old_pause() -> None:
    life = paused().resume().running().took_a_step()
    closed = Pause()
    closed.CopyFrom(life.job.pause)
    life.trained(4).is_lost().running().took_a_step()
    assert life.job.pause == closed


def test_a_restart_does_not_close_a_pause_that_is_only_asked_for() -> None:
    life = Life().running(1).is_lost().placed().pause().began().took_a_step()
    assert not life.job.pause.HasField("resume_time")
    assert life.trained(2).released().rests().state == "PAUSED"


def test_a_pause_before_the_first_step_leaves_the_step_to_the_pause_before() -> None:
    life = paused().resume().placed().pause().began().took_a_step()
    assert life.job.past_pauses[-1].HasField("resume_time")
    assert not life.job.pause.HasField("resume_time")


def test_every_cycle_leaves_one_record() -> None:
    life = Life(total_epochs=30).running()
    for cut in (5, 12, 20):
        first = life.record.checkpoint.epoch + 1
        for epoch in range(first, cut):
            life.trained(epoch)
        life.pause(reason=f"at {cut}").trained(cut).released().rests().resume().running().took_a_step()
    records = [*life.job.past_pauses, life.job.pause]
    assert [(each.epoch, each.reason) for each in records] == [(5, "at 5"), (12, "at 12"), (20, "at 20")]
    assert all(each.HasField("resume_time") and each.checkpoint for each in records)
    for epoch in range(21, 31):
        life.trained(epoch)
    assert life.finishes().state == "SUCCEEDED"
    assert life.job.restart_count == 0


def test_elapsed_time_leaves_pauses_out() -> None:
    life = paused(epochs=2)
    life.now += timedelta(days=3)
    life.resume().running(1)
    assert life.job.progress.active_duration.ToTimedelta() == timedelta(seconds=40)


def test_stopping_for_the_worker_shows_no_failure_of_an_earlier_attempt() -> None:
    life = Life().running(1).fails(Failure(reason="TRAINING_RAISED", message="old")).running().stops()
    (event,) = life.decisions[-1].events
    assert (event.type, event.message, event.details["reason"]) == (JobEvent.REQUEUED, "", "")
