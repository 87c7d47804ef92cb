"""A job that is stopped for good at its next boundary, with a last checkpoint."""

import pytest

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.fleet import reconcile
from adjourn_control_plane.job.events import Adopted, ConditionChanged, Registered
from tests.harness.job_life import A, Life, checkpoint, checkpoint_name, paused, status


def last_event(life: Life) -> JobEvent:
    return life.decisions[-1].events[-1]


def saving(epochs: int = 1) -> Life:
    return Life().running(epochs).cancel(save_checkpoint=True)


def test_it_trains_on_to_its_boundary_and_rests_on_what_it_saved_there() -> None:
    life = saving()
    assert (life.state, life.record.target) == ("CANCELLING", Assignment.PAUSE)
    life.trained(2).released().rests()
    assert (life.state, life.job.latest_checkpoint, life.job.progress.epoch) == ("CANCELLED", checkpoint_name(2), 2)
    assert list(life.record.checkpoint.retained_for) == [Checkpoint.LATEST, Checkpoint.FINAL]
    assert last_event(life).message == "with its checkpoint of epoch 2"
    assert not life.job.HasField("pause"), "it was no pause"


def test_it_goes_on_from_there_if_it_is_resumed_and_the_checkpoint_is_no_longer_the_end() -> None:
    life = saving().trained(2).rests().resume()
    assert (life.state, life.record.checkpoint.epoch) == ("QUEUED", 2)
    life.running(1)
    assert list(life.record.checkpoint.retained_for) == [Checkpoint.LATEST]
    released = next(each for each in life.decisions[-1].checkpoints if each.name == checkpoint_name(2))
    assert list(released.retained_for) == []


def test_a_second_cancel_that_does_not_save_stops_it_now() -> None:
    life = saving().cancel()
    assert (life.state, life.record.target, life.record.generation) == ("CANCELLING", Assignment.STOP, 3)
    assert life.stops().state == "CANCELLED"
    assert last_event(life).message == "", "nothing was to be saved any more"


def test_saving_is_not_added_to_a_cancel_that_does_not_save() -> None:
    assert Life().running(1).cancel().cancel(save_checkpoint=True).last is None


def test_asked_again_it_changes_nothing() -> None:
    assert saving().cancel(save_checkpoint=True).last is None


def test_a_run_that_ends_first_has_succeeded() -> None:
    life = Life(total_epochs=2).running(1).cancel(save_checkpoint=True).trained(2).finishes()
    assert life.state == "SUCCEEDED"


@pytest.mark.parametrize("how", ["is_lost", "fails", "stops"])
def test_an_attempt_that_ends_on_the_way_leaves_the_newest_checkpoint(how: str) -> None:
    life = getattr(saving(), how)()
    assert (life.state, life.job.restart_count) == ("CANCELLED", 0)
    told = last_event(life)
    assert told.message == "with its checkpoint of epoch 1: the attempt ended on its way to the boundary"
    assert told.details["checkpoint"] == checkpoint_name(1)


def test_without_any_checkpoint_that_is_said() -> None:
    life = saving(0).is_lost()
    assert last_event(life).message == "without a checkpoint: the attempt ended on its way to the boundary"


def test_what_a_lost_worker_saved_is_registered_when_it_is_back() -> None:
    life = saving().is_lost()
    life.tell(Registered(actor=A, checkpoint=checkpoint(2)))
    assert (life.state, life.job.latest_checkpoint) == ("CANCELLED", checkpoint_name(2))
    assert Checkpoint.FINAL in life.record.checkpoint.retained_for
    life.rests()
    assert (life.state, life.job.progress.epoch, life.job.HasField("failure")) == ("CANCELLED", 2, False)
    assert last_event(life).message.startswith("with its checkpoint of epoch 2: its worker was out of reach")
    assert life.rests().last is None, "the attempt is over"


def test_a_lost_run_that_trained_to_its_end_stays_cancelled_with_its_checkpoint() -> None:
    life = Life(total_epochs=2).running(1).cancel(save_checkpoint=True).is_lost()
    life.tell(Registered(actor=A, checkpoint=checkpoint(2))).finishes()
    assert (life.state, life.job.latest_checkpoint) == ("CANCELLED", checkpoint_name(2))


def test_a_lost_process_that_trains_still_is_stopped_and_one_that_has_left_saves() -> None:
    record = saving().is_lost().record
    for phase, told in ((AssignmentStatus.PAUSING, 1), (AssignmentStatus.PERSISTING, 0)):
        report = status(record, phase)
        assert reconcile.reconcile(A, [], [report], {record.job.name: record}) == []
        orders = reconcile.desired_assignments([], [report], {record.job.name: record}, worker=A)
        assert [order.target for order in orders] == [Assignment.STOP] * told


@pytest.mark.parametrize("life", [Life(), paused()], ids=["queued", "paused"])
def test_a_job_that_no_worker_has_is_cancelled_at_once(life: Life) -> None:
    life.cancel(save_checkpoint=True)
    assert (life.state, list(life.job.holds)) == ("CANCELLED", [])
    assert not life.record.checkpoint.name or Checkpoint.FINAL in life.record.checkpoint.retained_for


def test_a_task_without_epochs_has_no_boundary_to_save_at() -> None:
    life = Life(total_epochs=0).running()
    with pytest.raises(errors.JobNotPausableError, match="no boundary to save at"):
        life.cancel(save_checkpoint=True)


def test_a_pause_under_way_becomes_a_cancel_without_another_order() -> None:
    life = Life().running(1).pause()
    generation = life.record.generation
    life.cancel(save_checkpoint=True)
    assert (life.state, life.record.target, life.record.generation) == ("CANCELLING", Assignment.PAUSE, generation)
    life.trained(2).released().rests()
    assert (life.state, life.job.pause.note) == ("CANCELLED", "cancelled before it came to rest")
    assert life.job.pause.HasField("release_time"), "what the pause still reached is told"


def test_the_phases_of_a_cancel_are_not_those_of_an_earlier_pause() -> None:
    life = Life().running(1).pause().resume().cancel(save_checkpoint=True)
    before = Pause()
    before.CopyFrom(life.job.pause)
    life.trained(2).released()
    assert life.record.released
    assert life.job.pause == before


def test_a_snapshot_that_fails_keeps_it_cancelling_with_the_reason() -> None:
    life = saving()
    failing = Condition(type=Condition.SNAPSHOT_FAILING, reason=reasons.SNAPSHOT_FAILED)
    life.tell(ConditionChanged(actor=A, condition=failing, ended=False)).at(200)
    assert (life.state, [each.reason for each in life.job.conditions]) == ("CANCELLING", [reasons.SNAPSHOT_FAILED])
    assert life.cancel().stops().state == "CANCELLED"


def test_an_older_store_still_has_it_saved() -> None:
    life = saving()
    token = type(life.record.token)()
    token.CopyFrom(life.record.token)
    token.attempt += 1
    life.tell(Adopted(actor=A, token=token, worker=A, device_uuids=(), generation=1, released=False))
    assert (life.state, life.record.target) == ("CANCELLING", Assignment.PAUSE)


def test_failures_after_the_loss_change_nothing_but_that_no_more_is_waited_for() -> None:
    for how in ("fails", "stops"):
        life = getattr(saving().is_lost(), how)()
        assert (life.state, life.record.HasField("lost_attempt")) == ("CANCELLED", False)
    stopped = saving().is_lost().stops(Failure(reason=reasons.WORKER_STOPPED))
    assert (stopped.state, stopped.record.HasField("lost_attempt")) == ("CANCELLED", False)
