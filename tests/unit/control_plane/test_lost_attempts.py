"""What an attempt that was lost did out of reach counts for as long as no other has been handed out (C5)."""

from datetime import timedelta
from typing import Any

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Pause
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.job.events import Adopted, ConditionChanged, EpochEnded, PausePhase, Registered
from tests.harness.job_life import A, B, Life, checkpoint, checkpoint_name, paused

STOPPED = Failure(reason=reasons.WORKER_STOPPED, message="SIGTERM")


def back(life: Life, *devices: str, released: bool = False) -> Life:
    """The worker is back with the attempt, alive."""
    return life.tell(
        Adopted(actor=A, token=life.record.token, worker=A, device_uuids=devices, generation=7, released=released)
    )


def registers(life: Life, epoch: int) -> Life:
    """The worker is back, and reports a checkpoint that it made out of reach."""
    life.tell(EpochEnded(actor=A, metrics=EpochMetrics(epoch=epoch)))
    return life.tell(Registered(actor=A, checkpoint=checkpoint(epoch)))


def queued(**spec: Any) -> Life:
    life = Life(**spec).running(2).at(260, seconds=26).is_lost()
    assert (life.state, life.job.restart_count) == ("QUEUED", 1)
    return life


def resting() -> Life:
    life = Life().running(1).at(160, seconds=16).pause().is_lost()
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(1))
    return life


def waiting() -> Life:
    """Lost while PAUSING, before its first checkpoint."""
    life = Life().running().at(60).pause().is_lost()
    assert life.state == "QUEUED"
    return life


def given_up(*, pausing: bool = False) -> Life:
    life = Life(max_restarts=0).running(2)
    life = (life.pause() if pausing else life).at(260).is_lost()
    assert (life.state, life.job.failure.reason) == ("FAILED", reasons.WORKER_LOST)
    return life


# queued


def test_a_queued_job_goes_on_from_a_checkpoint_that_became_known_late() -> None:
    life = registers(queued(), 3)
    assert (life.state, life.job.latest_checkpoint, life.job.progress.epoch) == ("QUEUED", checkpoint_name(3), 3)
    assert life.placed(B).record.restored_checkpoint == checkpoint_name(3)


def test_a_run_that_ended_out_of_reach_has_succeeded_and_is_not_trained_again() -> None:
    life = registers(queued(total_epochs=3), 3).finishes()
    assert (life.state, life.job.restart_count) == ("SUCCEEDED", 0)
    assert life.job.HasField("end_time")
    assert not life.job.HasField("failure")


def test_a_task_without_epochs_that_ended_out_of_reach_has_succeeded() -> None:
    assert Life(total_epochs=0).running().is_lost().finishes(on="").state == "SUCCEEDED"


def test_an_end_on_an_unknown_checkpoint_changes_nothing_but_that_nothing_more_is_learned() -> None:
    life = queued().finishes(on=checkpoint_name(20))
    assert (life.state, life.job.restart_count, life.record.HasField("lost_attempt")) == ("QUEUED", 1, False)
    assert back(life).last is None


def test_a_live_attempt_is_adopted_in_the_queue_and_costs_nothing() -> None:
    life = back(queued(gpu_count=1), "GPU-1")
    assert (life.state, life.job.attempt, life.job.restart_count, life.job.worker) == ("RUNNING", 1, 0, A)
    assert (life.record.target, list(life.record.device_uuids)) == (Assignment.RUN, ["GPU-1"])
    assert life.record.generation == 8
    assert not life.job.HasField("failure"), "it has not ended"
    assert life.trained(3).state == "RUNNING"


def test_a_live_attempt_that_had_not_begun_is_starting_again() -> None:
    assert back(Life().placed().acknowledged().is_lost()).began().state == "RUNNING"


def test_a_loss_that_follows_an_adoption_costs_as_the_first_would_have() -> None:
    life = back(queued()).is_lost()
    assert (life.state, life.job.restart_count) == ("QUEUED", 1)


def test_an_attempt_that_was_replaced_is_not_adopted() -> None:
    life = queued()
    token = FencingToken()
    token.CopyFrom(life.record.token)
    life.placed(B)
    assert not life.record.HasField("lost_attempt")
    assert life.record.token != token


def test_a_failure_out_of_reach_takes_the_place_of_the_loss() -> None:
    life = queued().fails()
    assert (life.state, life.job.restart_count, life.job.failure.reason) == ("QUEUED", 1, reasons.TRAINING_RAISED)
    assert queued().fails(Failure(reason=reasons.STATE_MISMATCH)).state == "FAILED"


def test_a_stop_out_of_reach_costs_nothing() -> None:
    life = queued().stops(STOPPED)
    assert (life.state, life.job.restart_count, life.job.failure.reason) == ("QUEUED", 0, reasons.WORKER_STOPPED)
    assert queued().stops().job.restart_count == 1, "a stop that we asked for leaves the loss as it is"


# queued, with a pause that waits for the first checkpoint


def test_a_pause_that_waited_for_its_first_checkpoint_rests_on_it() -> None:
    life = registers(waiting(), 1)
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(1))
    assert life.job.pause.lost_duration.ToTimedelta() == timedelta()
    assert life.rests().state == "PAUSED"
    assert (life.job.pause.cause, life.job.restart_count) == (Pause.HELD, 0)


def test_a_live_attempt_of_a_pause_that_waits_is_pausing_again() -> None:
    life = back(waiting())
    assert (life.state, life.record.target, life.job.pause.cause) == ("PAUSING", Assignment.PAUSE, Pause.HELD)
    assert life.trained(1).released().rests().state == "PAUSED"


# paused


def test_a_pause_goes_over_to_a_newer_checkpoint_and_corrects_what_was_lost() -> None:
    """PAUSING, a partition of 15 s, PAUSED on epoch 1; the durable pause checkpoint arrives next."""
    life = resting()
    assert life.job.pause.lost_duration.ToTimedelta() == timedelta(seconds=6)
    registers(life, 2)
    pause = life.job.pause
    assert (life.state, pause.checkpoint, pause.epoch, life.job.progress.epoch) == ("PAUSED", checkpoint_name(2), 2, 2)
    assert pause.lost_duration.ToTimedelta() == timedelta()
    kept = {each.epoch: list(each.retained_for) for each in life.decisions[-1].checkpoints}
    assert kept == {1: [], 2: [Checkpoint.LATEST, Checkpoint.PAUSE]}
    life.rests()
    assert (life.state, life.job.pause.cause, life.job.restart_count) == ("PAUSED", Pause.HELD, 0)
    assert not life.job.pause.HasField("lost_duration"), "nothing was"
    assert life.resume().placed(B).record.restored_checkpoint == checkpoint_name(2)


def test_phases_that_were_reached_out_of_reach_are_noted() -> None:
    life = resting()
    assert life.job.pause.release_time == life.job.pause.pause_time, "nobody had told"
    left = Pause()
    left.boundary_time.FromSeconds(100)
    left.release_time.FromSeconds(101)
    life.tell(PausePhase(actor=A, pause=left))
    assert (life.job.pause.boundary_time.seconds, life.job.pause.release_time.seconds) == (100, 101)


def test_what_should_rest_and_runs_is_pausing_again_with_its_devices() -> None:
    life = back(resting(), "GPU-1")
    assert (life.state, life.job.worker, life.record.target) == ("PAUSING", A, Assignment.PAUSE)
    assert list(life.record.device_uuids) == ["GPU-1"], "or another job would be given them"
    assert not life.record.released
    assert life.record.generation == 8
    for field in ("pause_time", "release_time", "lost_duration"):
        assert not life.job.pause.HasField(field)
    assert (life.job.pause.cause, life.job.restart_count) == (Pause.HELD, 0)
    assert life.trained(2).rests().state == "PAUSED"
    assert life.job.pause.checkpoint == checkpoint_name(2)


def test_a_process_that_has_left_holds_no_slot_when_its_attempt_is_adopted() -> None:
    life = back(resting(), released=True)
    assert (life.state, life.record.released) == ("PAUSING", True)


def test_a_run_that_ended_out_of_reach_ends_its_pause() -> None:
    life = registers(resting(), 2).finishes()
    assert (life.state, life.job.pause.note) == ("SUCCEEDED", "the run finished first")
    assert not life.job.holds


def test_a_job_at_rest_stays_at_rest_when_its_attempt_had_failed() -> None:
    life = resting().fails()
    assert (life.state, life.job.restart_count, life.job.failure.reason) == ("PAUSED", 1, reasons.TRAINING_RAISED)
    assert resting().fails(Failure(reason=reasons.STATE_MISMATCH)).state == "PAUSED"
    assert resting().stops(STOPPED).job.restart_count == 0


def test_a_live_attempt_of_a_pause_that_was_taken_back_meanwhile_goes_on() -> None:
    life = back(resting().resume())
    assert (life.state, life.job.pause.note) == ("RUNNING", "resumed before the boundary")
    assert not life.job.pause.HasField("pause_time")
    life.is_lost().running().took_a_step()
    assert not life.job.pause.HasField("resume_time"), "a pause that never came to rest is closed by nothing"


# failed


def test_a_job_that_was_given_up_has_succeeded_if_its_run_had_ended() -> None:
    life = registers(given_up(), 3).finishes()
    assert (life.state, life.job.restart_count) == ("SUCCEEDED", 0)


def test_a_resume_of_a_job_that_was_given_up_goes_on_from_what_became_known_late() -> None:
    life = registers(given_up(), 3)
    assert (life.state, life.job.progress.epoch) == ("FAILED", 3)
    assert life.resume().placed(B).record.restored_checkpoint == checkpoint_name(3)


@pytest.mark.parametrize(("pausing", "state"), [(False, "RUNNING"), (True, "PAUSING")])
def test_a_job_that_was_given_up_goes_on_if_its_attempt_lives(pausing: bool, state: str) -> None:
    life = back(given_up(pausing=pausing))
    assert (life.state, life.job.restart_count) == (state, 0)
    assert not life.job.HasField("end_time")
    assert life.job.pause.note == ""


def test_a_job_that_was_given_up_rests_if_its_pause_had_been_reached() -> None:
    life = registers(given_up(pausing=True), 3).rests()
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(3))
    assert not life.job.HasField("end_time")


def test_a_job_that_was_given_up_is_queued_if_its_worker_had_only_stopped() -> None:
    assert given_up().stops(STOPPED).state == "QUEUED"
    assert given_up(pausing=True).stops(STOPPED).state == "PAUSED"
    assert given_up().stops().state == "FAILED", "it was stopped because the job had failed"


def test_a_job_that_was_given_up_says_how_its_attempt_really_ended() -> None:
    life = given_up().fails()
    assert (life.state, life.job.failure.reason) == ("FAILED", reasons.TRAINING_RAISED)


def test_a_job_that_was_given_up_is_queued_if_its_attempt_had_only_met_another_environment() -> None:
    """Such a failure costs no restart, and takes the place of the loss that did."""
    refused = Failure(reason=reasons.ENVIRONMENT_DIFFERS, message="torch")
    life = given_up().fails(refused)
    assert (life.state, life.job.restart_count, life.job.failure.reason) == ("QUEUED", 0, refused.reason)
    assert given_up(pausing=True).fails(refused).state == "PAUSED"


def test_epochs_that_heal_the_budget_are_counted_once_when_a_loss_is_taken_back() -> None:
    life = Life(max_restarts=1).running().fails().running(1).is_lost()
    assert (life.state, life.record.epochs_since_restart) == ("FAILED", 1)
    assert back(life).record.epochs_since_restart == 1
    life = Life(max_restarts=2).running().fails().running(1).is_lost()
    assert (life.state, life.record.epochs_since_restart) == ("QUEUED", 0)
    assert back(life).record.epochs_since_restart == 1


def test_a_failure_that_was_reported_is_final_whoever_comes_back() -> None:
    life = Life(max_restarts=0).running(1).fails()
    assert back(life).last is None
    assert registers(life, 2).last is None


def test_a_budget_that_a_resume_has_renewed_is_not_taken_back() -> None:
    life = Life(max_restarts=1).running(2).at(210).fails().running().at(220).is_lost().resume()
    assert life.job.restart_count == 0
    assert back(life).job.restart_count == 0


# cancelled, and older stores


def test_what_was_cancelled_stays_cancelled() -> None:
    for life in (queued().cancel(), resting().cancel(), Life().running(1).cancel().is_lost()):
        assert life.state == "CANCELLED"
        assert back(life).last is None
        assert registers(life, 9).last is None
        assert life.finishes().last is None
        assert back(life.resume()).last is None, "its worker was told to stop it"


def test_conditions_of_a_lost_attempt_are_back_with_it() -> None:
    life = Life().running(1)
    full = Condition(type=Condition.SNAPSHOT_FAILING, reason="NO_SPACE", message="m")
    life.tell(ConditionChanged(actor=A, condition=full, ended=False)).is_lost()
    assert not life.job.conditions
    away = Condition(type=Condition.STORAGE_FAILING, reason="REFUSED")
    life.tell(ConditionChanged(actor=A, condition=away, ended=False))
    life.tell(ConditionChanged(actor=A, condition=Condition(type=full.type), ended=True))
    back(life)
    assert [(each.type, each.reason) for each in life.job.conditions] == [(away.type, "REFUSED")]


def test_a_later_attempt_than_we_know_of_is_adopted() -> None:
    token = FencingToken(attempt=8, nonce="b" * 32)
    adopted = Adopted(actor=B, token=token, worker=B, device_uuids=("GPU-9",), generation=4, released=False)
    life = Life().running(1).tell(adopted)
    assert (life.state, life.job.worker, life.record.target) == ("STARTING", B, Assignment.RUN)
    assert life.record.token == token
    assert list(life.record.device_uuids) == ["GPU-9"]
    assert life.record.generation > 4
    assert life.history[-1] == "ADOPTED"
    assert life.began().state == "RUNNING"
    assert Life().placed().tell(adopted).state == "STARTING"
    assert Life().tell(adopted).state == "STARTING"
    for held in (Life().running(1).pause(), paused()):
        held.tell(adopted)
        assert (held.state, held.record.target) == ("PAUSING", Assignment.PAUSE)
        assert not held.job.pause.HasField("pause_time")
    cancelling = Life().running(1).cancel().tell(adopted)
    assert (cancelling.state, cancelling.record.target) == ("CANCELLING", Assignment.STOP)


# drained


def drained(epochs: int = 1) -> Life:
    """Lost on its way to the boundary that a drain had sent it to."""
    life = Life().running(epochs).at(100 * epochs + 60, seconds=10 * epochs + 6).drain("upgrade").is_lost()
    assert (life.state, life.job.pause.cause) == ("QUEUED", Pause.WORKER_LOST)
    return life


def test_a_drained_attempt_that_is_back_goes_on_to_the_boundary_in_the_same_pause() -> None:
    life = back(drained())
    assert (life.state, life.record.target) == ("PAUSING", Assignment.PAUSE)
    pause = life.job.pause
    assert (pause.cause, pause.reason, pause.from_worker) == (Pause.DRAINED, "upgrade", A)
    assert not pause.HasField("lost_duration"), "nothing was lost"
    assert not life.job.past_pauses
    life.trained(2).released().rests()
    assert (life.state, life.job.pause.epoch, life.job.pause.note) == ("QUEUED", 2, "")


def test_a_drain_that_was_taken_back_meanwhile_lets_the_attempt_train_on() -> None:
    life = back(drained()).undrain()
    assert (life.state, life.record.target) == ("RUNNING", Assignment.RUN)
    assert life.job.pause.note == "the drain was taken back before the boundary"


def test_a_drained_job_that_had_rested_out_of_reach_was_not_resumed_by_anybody() -> None:
    life = registers(drained(), 2).rests()
    assert (life.state, life.job.restart_count) == ("QUEUED", 0)
    pause = life.job.pause
    assert (pause.cause, pause.checkpoint, pause.note) == (Pause.DRAINED, checkpoint_name(2), "")
    assert pause.HasField("pause_time")
    assert not pause.HasField("lost_duration")


def test_a_pause_of_a_user_is_never_told_as_a_drain() -> None:
    """The pause ended with the job, which its user has begun again: nothing sends it to a boundary."""
    life = registers(given_up(pausing=True).resume(), 3).rests()
    assert (life.state, life.job.pause.cause) == ("QUEUED", Pause.WORKER_LOST)
    life = back(given_up(pausing=True).resume())
    assert (life.state, life.record.target) == ("RUNNING", Assignment.RUN)
