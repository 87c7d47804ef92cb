"""Pauses after the running step, and pauses that give up what no checkpoint has."""

from datetime import timedelta

import pytest

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.job_pb2 import EPOCH, LATEST, STEP, Best, Failure, Hold, Pause, PauseMode, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.fleet import reconcile
from adjourn_control_plane.job.events import Adopted, CheckpointDamaged, Observed, Registered
from tests.harness.job_life import A, B, Life, checkpoint, checkpoint_at, checkpoint_name, status


def lost(life: Life) -> tuple[int, timedelta]:
    return life.job.pause.lost_steps, life.job.pause.lost_duration.ToTimedelta()


def killed() -> Life:
    """A job whose worker kills its training: 40 steps after its newest checkpoint, as far as is known."""
    life = Life().running(2).at(240).pause(mode=LATEST).acknowledged()
    assert life.state == "PAUSING"
    return life


def test_the_mode_goes_to_the_worker() -> None:
    life = Life().running(2).pause(mode=STEP)
    assert (life.record.pause_mode, life.job.pause.mode) == (STEP, STEP)
    sent = reconcile.assignment(life.record, is_held=True)
    assert (sent.target, sent.pause_mode, sent.generation) == (Assignment.PAUSE, STEP, life.record.generation)
    assert life.decisions[-1].events[-1].details["mode"] == "STEP"


def test_a_pause_after_the_step_predicts_the_time_of_a_step() -> None:
    life = Life().running(2).at(230).pause(mode=STEP)
    pause = life.job.pause
    assert pause.predicted_boundary_time.ToDatetime() - pause.request_time.ToDatetime() == timedelta(seconds=0.1)
    assert not Life().running().pause(mode=STEP).job.pause.HasField("predicted_boundary_time"), "nothing to judge by"


def test_nothing_is_claimed_of_where_a_pause_after_the_step_will_be() -> None:
    life = Life().running(1).pause(mode=STEP).acknowledged()
    told = status(life.record, AssignmentStatus.PAUSING)
    told.pause_epoch = 2  # of an agent that knows no other mode than EPOCH
    assert not reconcile.reconcile(A, [life.record], [told], {})


def test_a_job_rests_amid_an_epoch() -> None:
    life = Life().running(2).at(230).pause(mode=STEP).saved_at(231).released().rests()
    pause, at = life.job.pause, life.job.progress
    assert (life.state, pause.checkpoint) == ("PAUSED", checkpoint_at(231).name)
    assert (pause.epoch, pause.step, at.epoch, at.step, at.epoch_step) == (2, 231, 2, 231, 31)
    assert not pause.HasField("lost_duration")
    assert life.job.progress.remaining_duration.ToTimedelta() == timedelta(seconds=176.9)
    life.resume().placed(B)
    assert life.record.restored_checkpoint == checkpoint_at(231).name


@pytest.mark.parametrize(("first", "second"), [(EPOCH, STEP), (EPOCH, LATEST), (STEP, LATEST)])
def test_a_pause_under_way_becomes_earlier(first: PauseMode.ValueType, second: PauseMode.ValueType) -> None:
    life = Life().running(2).pause(mode=first)
    request_time, generation = life.job.pause.request_time, life.record.generation
    etag = life.record.revision
    life.pause("now please", mode=second)
    assert (life.state, life.record.pause_mode, life.job.pause.mode) == ("PAUSING", second, second)
    assert (life.record.generation, life.record.revision) == (generation + 1, etag + 1)
    assert (life.job.pause.request_time, len(life.job.holds)) == (request_time, 1), "it is the same pause"
    event = life.decisions[-1].events[-1]
    assert (event.type, event.details["mode"]) == (JobEvent.PAUSE_REQUESTED, PauseMode.Name(second))


@pytest.mark.parametrize(("first", "second"), [(STEP, EPOCH), (LATEST, STEP), (LATEST, EPOCH), (STEP, STEP)])
def test_a_pause_under_way_never_becomes_later(first: PauseMode.ValueType, second: PauseMode.ValueType) -> None:
    life = Life().running(2).pause(mode=first)
    assert life.pause(mode=second).last is None
    life.held_by(Hold.OPERATOR, mode=second)
    assert (life.record.pause_mode, life.job.pause.mode, len(life.job.holds)) == (first, first, 2)


def test_another_hold_makes_it_earlier_too() -> None:
    life = Life().running(2).pause().told(3).held_by(Hold.OPERATOR, mode=STEP)
    assert (life.record.pause_mode, life.job.pause.boundary_epoch) == (STEP, 0)
    life.let_go_by(Hold.OPERATOR)
    assert (life.state, life.record.pause_mode) == ("PAUSING", STEP), "and it stays so"


def test_a_drained_job_may_pause_earlier() -> None:
    life = Life().running(2).drain().pause(mode=STEP).saved_at(230).released().rests()
    assert (life.state, life.job.pause.step) == ("PAUSED", 230)


def test_training_that_has_left_is_not_told_again() -> None:
    life = Life().running(2).pause().trained(3).released()
    generation = life.record.generation
    life.pause(mode=LATEST)
    assert (life.record.generation, life.job.pause.mode) == (generation, EPOCH)


def test_a_pause_that_waits_for_a_first_checkpoint_keeps_its_mode() -> None:
    life = Life().running().at(40).pause(mode=STEP).is_lost().placed(B)
    assert (life.state, life.record.pause_mode) == ("PAUSING", STEP)
    life = Life().running().at(40).pause().is_lost()
    assert (life.state, life.pause(mode=STEP).placed(B).record.pause_mode) == ("QUEUED", STEP)


def test_an_attempt_that_is_back_is_told_the_mode_again() -> None:
    life = Life().running(2).pause(mode=STEP).is_lost()
    assert life.state == "PAUSED"
    life.tell(Adopted(actor=A, token=life.record.token, worker=A, device_uuids=(), generation=1, released=False))
    assert (life.state, life.record.pause_mode) == ("PAUSING", STEP)


# What no checkpoint has is given up.


def test_the_answer_says_what_would_be_given_up() -> None:
    life = Life().running(2).at(240).pause(mode=LATEST)
    assert lost(life) == (40, timedelta(seconds=4))
    assert (life.state, life.job.latest_checkpoint) == ("PAUSING", checkpoint_name(2))
    assert not life.job.pause.HasField("predicted_boundary_time")


def test_a_snapshot_that_was_on_its_way_is_not_given_up() -> None:
    life = killed().saved_at(230).at(240)
    assert lost(life) == (10, timedelta(seconds=1))
    life.left().rests()
    assert (life.state, life.job.pause.step, life.job.progress.step) == ("PAUSED", 230, 230)
    assert lost(life) == (10, timedelta(seconds=1)), "final"
    assert life.decisions[-1].events[-1].message == "10 steps, 1 s of training are given up"


def test_it_rests_on_the_newest_checkpoint_and_costs_no_restart() -> None:
    life = killed().at(245).left().rests()
    assert (life.state, life.job.pause.checkpoint, life.job.restart_count) == ("PAUSED", checkpoint_name(2), 0)
    assert lost(life) == (45, timedelta(seconds=4.5)), "what it had reached when it was killed"
    assert (life.job.progress.step, life.job.HasField("failure")) == (200, False)
    assert (life.resume().state, life.placed(B).record.restored_checkpoint) == ("QUEUED", checkpoint_name(2))


def test_what_had_paused_before_it_was_to_be_killed_has_lost_nothing() -> None:
    life = Life().running(2).pause().at(290).pause(mode=LATEST).trained(3)
    life.released()
    assert not life.job.pause.HasField("lost_duration"), "it is not going to"
    life.rests()
    assert (life.state, life.job.pause.step, life.job.pause.HasField("lost_duration")) == ("PAUSED", 300, False)


@pytest.mark.parametrize("ends", ["rests", "is_lost", "fails", "stops"])
def test_however_the_attempt_ends_it_costs_no_restart(ends: str) -> None:
    life = killed()
    getattr(life, ends)()
    assert (life.state, life.job.restart_count, lost(life)) == ("PAUSED", 0, (40, timedelta(seconds=4)))


def test_a_run_that_finishes_first_has_given_up_nothing() -> None:
    life = Life(total_epochs=3).running(2).at(290).pause(mode=LATEST).trained(3).finishes()
    assert (life.state, life.job.pause.note) == ("SUCCEEDED", "the run finished first")
    assert lost(life) == (0, timedelta())


def test_without_a_checkpoint_it_is_refused() -> None:
    for life in (Life().placed(), Life().running().at(40), Life().running().at(40).pause(), Life().running().drain()):
        before = life.record
        with pytest.raises(errors.NoCheckpointError, match="has no checkpoint yet that it could rest on"):
            life.pause(mode=LATEST)
        with pytest.raises(errors.NoCheckpointError):
            life.held_by(Hold.OPERATOR, mode=LATEST)
        assert life.record == before
    waiting = Life().running().at(40).pause().is_lost()
    with pytest.raises(errors.NoCheckpointError):
        waiting.pause(mode=LATEST)
    assert Life().pause(mode=LATEST).state == "PAUSED", "nothing was running"


def test_a_job_that_loads_its_checkpoint_rests_on_it_again() -> None:
    life = Life().running(2).is_lost().placed(B).pause(mode=LATEST)
    assert (life.state, lost(life)) == ("PAUSING", (0, timedelta()))
    life.acknowledged().rests()
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(2))
    assert not life.job.pause.HasField("lost_duration")


def test_a_change_of_mind_before_the_worker_knew_goes_on_where_it_is() -> None:
    life = Life().running(2).at(240).pause(mode=LATEST).resume()
    assert (life.state, life.record.target, life.job.pause.lost_steps) == ("RUNNING", Assignment.RUN, 0)
    assert life.trained(3).state == "RUNNING"


def test_a_change_of_mind_after_the_kill_goes_on_from_the_checkpoint() -> None:
    life = killed().resume()
    assert (life.state, life.record.target) == ("PAUSING", Assignment.PAUSE), "it is being killed"
    life.left().rests()
    assert (life.state, life.job.restart_count, life.job.progress.step) == ("QUEUED", 0, 200)
    assert lost(life) == (40, timedelta(seconds=4)), "and says what that cost"
    assert life.placed(B).began().state == "RUNNING"


def test_a_change_of_mind_that_crosses_the_kill_goes_on_from_the_checkpoint() -> None:
    life = Life().running(2).at(240).pause(mode=LATEST).resume()
    assert life.state == "RUNNING"
    life.left().rests()
    assert (life.state, life.job.restart_count, life.job.pause.checkpoint) == ("QUEUED", 0, checkpoint_name(2))
    assert lost(life) == (40, timedelta(seconds=4))
    life.running().rests(failure=Failure(reason=reasons.WORKER_OUT_OF_CONTACT))
    assert lost(life) == (40, timedelta(seconds=4)), "of another attempt it says nothing"


def test_a_pause_that_was_asked_for_again_says_what_the_kill_before_it_cost() -> None:
    life = Life().running(2).at(240).pause(mode=LATEST).resume().pause()
    assert (life.state, life.job.pause.mode) == ("PAUSING", EPOCH)
    life.left().rests()
    assert (life.state, lost(life)) == ("PAUSED", (40, timedelta(seconds=4)))


def test_a_cancel_takes_the_forecast_back() -> None:
    life = killed().cancel()
    assert (life.state, lost(life)) == ("CANCELLING", (0, timedelta()))
    assert life.stops().state == "CANCELLED"


def test_a_worker_that_is_back_tells_what_was_given_up_in_the_end() -> None:
    life = killed().is_lost()
    assert (life.state, lost(life)[0]) == ("PAUSED", 40)
    life.tell(Registered(actor=A, checkpoint=checkpoint_at(230)))
    assert (life.job.pause.step, lost(life)) == (230, (10, timedelta(seconds=1)))
    life.left().rests()
    assert (life.state, life.job.pause.cause, lost(life)) == ("PAUSED", Pause.HELD, (10, timedelta(seconds=1)))


def test_a_worker_that_is_back_with_the_attempt_kills_it() -> None:
    life = killed().is_lost()
    life.tell(Adopted(actor=A, token=life.record.token, worker=A, device_uuids=(), generation=1, released=False))
    assert (life.state, life.record.target, life.record.pause_mode) == ("PAUSING", Assignment.PAUSE, LATEST)


def test_what_a_damaged_checkpoint_costs_is_added() -> None:
    life = killed().left().rests().resume().placed(B)
    failure = Failure(reason=reasons.CHECKPOINT_CORRUPT, message="a part is cut")
    life.tell(CheckpointDamaged(actor=B, failure=failure, checkpoint=checkpoint_name(2), sound=checkpoint(1)))
    assert lost(life) == (140, timedelta(seconds=14))


# A cancel that saves.


def test_a_cancel_may_save_after_the_running_step() -> None:
    life = Life().running(1).cancel(save_checkpoint=True, mode=STEP)
    assert (life.record.target, life.record.pause_mode) == (Assignment.PAUSE, STEP)
    life.saved_at(120).released().rests()
    assert (life.state, life.job.progress.epoch_step) == ("CANCELLED", 20)
    assert life.decisions[-1].events[-1].message == "with its checkpoint of epoch 1, step 120"


def test_a_cancel_that_saves_may_save_sooner_never_later() -> None:
    life = Life().running(1).cancel(save_checkpoint=True).cancel(save_checkpoint=True, mode=STEP)
    assert (life.record.target, life.record.pause_mode) == (Assignment.PAUSE, STEP)
    assert life.cancel(save_checkpoint=True).last is None
    pausing = Life().running(1).pause().cancel(save_checkpoint=True, mode=STEP)
    assert (pausing.state, pausing.record.pause_mode) == ("CANCELLING", STEP)
    pausing = Life().running(1).pause(mode=STEP).cancel(save_checkpoint=True)
    assert (pausing.state, pausing.record.pause_mode) == ("CANCELLING", STEP)


# Checkpoints amid an epoch.


def test_of_two_checkpoints_of_one_epoch_the_later_is_told_from_the_earlier() -> None:
    life = Life().running(2).saved_at(230).saved_at(260).at(290)
    failure = Failure(reason=reasons.CHECKPOINT_CORRUPT, message="a part is cut")
    life.is_lost().placed(B)
    life.tell(CheckpointDamaged(actor=B, failure=failure, checkpoint=checkpoint_at(260).name, sound=checkpoint_at(230)))
    event = next(each for each in life.decisions[-1].events if each.type == JobEvent.FELL_BACK)
    assert (event.details["epochs"], event.details["steps"]) == ("0", "30")
    assert "after epoch 2, step 230" in event.message
    assert (life.job.progress.step, life.job.progress.epoch_step) == (230, 30)


def test_a_cancelled_job_goes_over_to_a_later_checkpoint_of_the_same_epoch() -> None:
    life = Life().running(2).cancel(save_checkpoint=True).is_lost()
    life.tell(Registered(actor=A, checkpoint=checkpoint_at(230))).rests()
    assert (life.state, life.job.progress.step) == ("CANCELLED", 230)
    assert "with its checkpoint of epoch 2, step 230" in life.decisions[-1].events[-1].message


def test_progress_in_the_epoch_is_what_the_checkpoint_had() -> None:
    life = Life().running(2).saved_at(230).at(290).is_lost()
    at = life.job.progress
    assert (at.epoch, at.step, at.epoch_step) == (2, 230, 30)


def test_a_pause_that_gives_training_up_shows_what_was_so_at_its_checkpoint() -> None:
    life = Life().running(1)
    made = checkpoint(2)
    then = Progress(epoch=2, step=200, loss=0.5, metrics={"val_loss": 0.6}, not_finite_steps=1)
    then.best.CopyFrom(Best(metric="val_loss", value=0.6, epoch=2))
    made.progress.CopyFrom(then)
    life.tell(Registered(actor=A, checkpoint=made))
    later = Progress(epoch=3, step=310, loss=0.1, metrics={"val_loss": 0.2, "late": 1.0}, not_finite_steps=7)
    life.tell(Observed(actor=A, generation=life.record.generation, progress=later))
    life.pause(mode=LATEST).released().rests()
    shown = life.job.progress
    assert (life.state, shown.step, shown.loss, dict(shown.metrics)) == ("PAUSED", 200, 0.5, {"val_loss": 0.6})
    assert (shown.best, shown.not_finite_steps) == (then.best, 1)
