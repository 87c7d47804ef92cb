"""A pause never lies: when PAUSED is reached, and when something else is."""

from datetime import timedelta

import pytest

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, Failure, Hold, Pause
from adjourn_control_plane.job.events import PausePhase, Registered
from tests.harness.job_life import A, Life, checkpoint_name, paused


def test_asking_for_a_pause_is_not_being_paused() -> None:
    life = Life().running(2).at(230).pause(reason="lunch")
    assert life.state == "PAUSING"
    assert life.job.worker == A
    assert life.record.target == Assignment.PAUSE
    assert life.record.pause_mode == life.job.pause.mode == EPOCH
    assert (life.job.pause.actor, life.job.pause.reason, life.job.pause.from_worker) == ("bob", "lunch", A)
    assert not life.job.pause.HasField("pause_time")


def test_the_answer_predicts_the_boundary() -> None:
    life = Life().running(2).at(230).pause()
    pause = life.job.pause
    assert pause.predicted_boundary_time.ToDatetime() - pause.request_time.ToDatetime() == timedelta(seconds=7)
    assert not pause.HasField("predicted_release_time"), "nothing to judge by"


def test_the_second_answer_predicts_the_release_from_the_first_pause() -> None:
    life = Life().running(1).pause().trained(2)
    pause = Pause()
    pause.boundary_time.FromDatetime(life.now)
    pause.release_time.FromDatetime(life.now + timedelta(seconds=3))
    life.tell(PausePhase(actor=A, pause=pause)).rests().resume().running().at(200).pause()
    predicted = life.job.pause
    assert predicted.predicted_release_time.ToDatetime() - predicted.predicted_boundary_time.ToDatetime() == timedelta(
        seconds=3
    )


@pytest.mark.parametrize("cut", [1, 2, 10, 18, 19])
def test_early_middle_and_late_epochs_pause_alike(cut: int) -> None:
    life = Life(total_epochs=20).running(cut - 1).pause().trained(cut).released().rests()
    assert life.state == "PAUSED"
    assert life.job.latest_checkpoint == life.job.pause.checkpoint == checkpoint_name(cut)
    assert (life.job.pause.epoch, life.job.pause.step) == (cut, 100 * cut)
    assert (life.job.progress.epoch, life.job.progress.step) == (cut, 100 * cut)


def test_paused_holds_no_worker_and_no_device() -> None:
    life = Life(gpu_count=1).placed(A, "GPU-1").acknowledged().began().pause().trained(1).released().rests()
    assert life.state == "PAUSED"
    assert not life.job.worker
    assert not life.record.device_uuids
    assert life.record.released
    assert life.job.pause.HasField("release_time")
    assert life.job.pause.HasField("pause_time")


@pytest.mark.parametrize("claimed", ["", checkpoint_name(9)])
@pytest.mark.parametrize("epochs", [0, 1])
def test_never_paused_on_a_checkpoint_that_is_not_registered(claimed: str, epochs: int) -> None:
    life = Life().running(epochs).at(100 * epochs + 50).pause().released().rests(on=claimed)
    assert life.job.failure.reason == reasons.CHECKPOINT_NOT_REGISTERED
    if epochs:
        assert life.state == "PAUSED"
        assert life.job.pause.checkpoint == checkpoint_name(1), "on the one that is"
        assert life.job.pause.lost_duration.ToTimedelta() == timedelta(seconds=5)
    else:
        assert life.state == "QUEUED"
        assert life.job.holds, "the pause is still wanted"


def test_progress_is_that_of_the_checkpoint_even_if_the_last_report_was_older() -> None:
    life = Life().running(1).at(130, seconds=13).pause()
    late = Checkpoint(name=checkpoint_name(2), epoch=2, step=200)
    late.active_duration.FromSeconds(20)
    life.tell(Registered(actor=A, checkpoint=late)).rests()
    assert (life.job.progress.epoch, life.job.progress.step, life.job.progress.epoch_step) == (2, 200, 0)
    assert life.job.progress.active_duration.seconds == 20


def test_a_queued_job_rests_at_once() -> None:
    life = Life().pause()
    assert life.state == "PAUSED"
    assert not life.job.pause.checkpoint
    assert life.resume().state == "QUEUED"


def test_a_starting_job_pauses_at_its_first_boundary_and_is_not_killed() -> None:
    life = Life().placed().pause()
    assert (life.state, life.record.target) == ("PAUSING", Assignment.PAUSE)
    assert life.began().state == "PAUSING"
    assert life.trained(1).released().rests().state == "PAUSED"
    assert life.job.pause.epoch == 1


def test_a_pause_in_the_last_epoch_succeeds_and_says_why() -> None:
    life = Life(total_epochs=3).running(2).pause().trained(3).finishes()
    assert life.state == "SUCCEEDED"
    assert life.job.pause.note == "the run finished first"
    assert not life.job.pause.HasField("pause_time")
    assert not life.job.holds
    assert life.decisions[-1].events[-1].message == "before what was asked could take effect"


def test_an_early_stop_in_the_epoch_of_a_pause_succeeds_and_says_why() -> None:
    life = Life(total_epochs=20).running(2).pause().trained(3).finishes()
    assert (life.state, life.job.pause.note) == ("SUCCEEDED", "the run finished first")


def test_a_failure_before_the_boundary_says_what_became_of_the_pause() -> None:
    life = Life().running(1).pause().fails(Failure(reason=reasons.STATE_MISMATCH))
    assert (life.state, life.job.pause.note) == ("FAILED", "the job failed first")


def test_a_task_without_epochs_cannot_pause_and_can_be_cancelled() -> None:
    life = Life(total_epochs=0).running()
    with pytest.raises(errors.JobNotPausableError) as caught:
        life.pause()
    assert caught.value.metadata["state"] == "RUNNING"
    assert life.cancel().stops().state == "CANCELLED"


def test_a_task_without_epochs_succeeds_without_a_checkpoint() -> None:
    assert Life(total_epochs=0).running().finishes(on="").state == "SUCCEEDED"


@pytest.mark.parametrize("epochs", [0, 1, 7])
def test_pausing_again_changes_nothing(epochs: int) -> None:
    life = Life().running(epochs).pause()
    assert life.pause().last is None
    life.trained(epochs + 1).rests()
    assert life.pause().last is None


def test_lost_while_pausing_rests_on_the_newest_checkpoint_and_says_what_it_cost() -> None:
    life = Life().running(2).at(260, seconds=26).pause().is_lost()
    assert life.state == "PAUSED"
    pause = life.job.pause
    assert (pause.checkpoint, pause.cause, pause.epoch) == (checkpoint_name(2), Pause.WORKER_LOST, 2)
    assert pause.lost_duration.ToTimedelta() == timedelta(seconds=6)
    assert life.job.progress.step == 200
    assert life.resume().state == "QUEUED"


def test_lost_while_pausing_without_a_checkpoint_is_queued_and_the_pause_still_wanted() -> None:
    life = Life().running().at(60).pause().is_lost()
    assert life.state == "QUEUED"
    assert [hold.kind for hold in life.job.holds] == [Hold.USER]
    assert life.job.pause.lost_duration.ToTimedelta() == timedelta(seconds=6)
    life.placed().acknowledged()
    assert (life.state, life.record.target) == ("PAUSING", Assignment.PAUSE)
    assert life.began().trained(1).released().rests().state == "PAUSED"


def test_a_pause_that_is_still_wanted_may_be_taken_back_in_the_queue() -> None:
    life = Life().running().pause().is_lost().resume()
    assert (life.state, list(life.job.holds)) == ("QUEUED", [])
    assert life.placed().state == "STARTING"
    assert life.record.target == Assignment.RUN


def test_asking_again_in_the_queue_changes_nothing_while_the_pause_is_wanted() -> None:
    life = Life().running().pause().is_lost()
    assert life.pause().last is None
    assert life.state == "QUEUED"


def test_a_worker_that_stops_while_pausing_costs_no_restart() -> None:
    life = Life().running(1).pause().stops(Failure(reason=reasons.WORKER_STOPPED))
    assert (life.state, life.job.restart_count) == ("PAUSED", 0)
    assert life.job.pause.checkpoint == checkpoint_name(1)


def test_a_failure_while_pausing_with_budget_left_rests_on_what_there_is() -> None:
    life = Life().running(1).pause().fails()
    assert (life.state, life.job.restart_count) == ("PAUSED", 1)


def test_the_newest_checkpoint_and_that_of_the_pause_say_why_they_are_kept() -> None:
    life = Life().running(1)
    first = life.decisions[-1].checkpoints
    assert [list(each.retained_for) for each in first] == [[Checkpoint.LATEST]]
    second = life.trained(2).decisions[-1].checkpoints
    assert {each.epoch: list(each.retained_for) for each in second} == {1: [], 2: [Checkpoint.LATEST]}
    (rested,) = life.pause().rests().decisions[-1].checkpoints
    assert list(rested.retained_for) == [Checkpoint.LATEST, Checkpoint.PAUSE]


def test_the_pause_checkpoint_stays_while_the_resumed_run_has_no_newer_one() -> None:
    life = paused(epochs=2).resume().running()
    assert life.job.latest_checkpoint == checkpoint_name(3)
    assert life.fails().state == "QUEUED"
    assert life.record.checkpoint.name == checkpoint_name(3), "a crash after a resume loses nothing"
