"""Pauses and resumes: when PAUSED is reached, what a resume goes on from, what the record of a pause says."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from adjourn import errors, reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, PAUSE_MODE_UNSPECIFIED, Failure, Hold, Job, JobSpec, Money, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import pauses
from adjourn_control_plane.job.events import Adopted, Observed, PausePhase, Registered
from tests.harness.job_life import ALONE, START, UID, A, B, Life, checkpoint, checkpoint_name, paused


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
    left = pause.predicted_boundary_time.ToDatetime() - pause.request_time.ToDatetime()
    assert left == timedelta(seconds=6), "it was told a second before that 70 steps were left"
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


def pausing_at(epoch: int) -> Life:
    life = Life().running(1).pause().told(epoch)
    assert (life.state, life.job.pause.boundary_epoch) == ("PAUSING", epoch)
    return life


def test_with_the_epoch_it_is_predicted_anew_when_that_will_be() -> None:
    life = Life().running(1).pause().trained(2)
    before = Pause()
    before.boundary_time.FromDatetime(life.now)
    before.release_time.FromDatetime(life.now + timedelta(seconds=3))
    life.tell(PausePhase(actor=A, pause=before)).rests().resume().running().at(299).pause().told(4)
    pause = life.job.pause
    assert pause.predicted_boundary_time.ToDatetime(UTC) == life.now + timedelta(seconds=8.1), (
        "an epoch, and a step, as was told 2 s before"
    )
    assert pause.predicted_release_time.ToDatetime(UTC) == life.now + timedelta(seconds=11.1)


def test_without_an_epoch_behind_it_nothing_is_predicted() -> None:
    life = Life().running().pause().told(1)
    assert life.job.pause.boundary_epoch == 1
    assert not life.job.pause.HasField("predicted_boundary_time")


def test_what_was_told_of_an_earlier_order_says_nothing_of_this_one() -> None:
    life = Life().running(1).pause()
    earlier = life.record.generation
    life.resume().pause().told(2, generation=earlier)
    assert life.job.pause.boundary_epoch == 0
    assert life.told(3).job.pause.boundary_epoch == 3
    assert life.told(4).job.pause.boundary_epoch == 4, "it could not be saved there"


@pytest.mark.parametrize(
    "leave",
    [
        lambda life: life.trained(2).released().rests(),
        Life.resume,
        Life.cancel,
        lambda life: life.cancel(save_checkpoint=True),
        lambda life: life.trained(20).finishes(),
        Life.is_lost,
        Life.goes_out_of_reach,
        Life.fails,
        Life.stops,
    ],
)
def test_where_it_pauses_is_known_only_while_it_is_on_its_way(leave: Callable[[Life], Life]) -> None:
    life = leave(pausing_at(2))
    assert life.state != "PAUSING"
    assert life.job.pause.boundary_epoch == 0
    assert life.told(2).job.pause.boundary_epoch == 0, "it comes too late"


def test_another_attempt_that_is_adopted_pauses_elsewhere() -> None:
    life = pausing_at(2)
    token = FencingToken(attempt=9, nonce="9" * 32, job_uid=UID)
    life.tell(Adopted(actor=B, token=token, worker=B, device_uuids=(), generation=4, released=False))
    assert (life.state, life.job.attempt, life.job.pause.boundary_epoch) == ("PAUSING", 9, 0)
    assert life.told(2, generation=4).job.pause.boundary_epoch == 0
    assert life.told(7).job.pause.boundary_epoch == 7


def test_the_attempt_that_was_lost_and_is_back_tells_anew() -> None:
    life = pausing_at(2).goes_out_of_reach()
    assert (life.state, life.job.pause.epoch) == ("PAUSED", 1)
    life.tell(Adopted(actor=A, token=life.record.token, worker=A, device_uuids=(), generation=2, released=False))
    assert (life.state, life.job.pause.boundary_epoch) == ("PAUSING", 0)
    assert life.told(2).job.pause.boundary_epoch == 2


def test_a_drained_job_tells_where_it_leaves() -> None:
    life = Life().running(1).drain().told(2)
    assert life.job.pause.boundary_epoch == 2
    assert life.pause().job.pause.boundary_epoch == 2, "it is the same pause"
    assert life.trained(2).released().undrain().state == "PAUSING"


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


OTHER_HOLD = Hold.OPERATOR


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


def test_a_worker_that_pauses_by_itself_costs_nothing_and_is_no_pause_that_anybody_asked_for() -> None:
    life = Life().running(2).rests(failure=ALONE)
    assert (life.state, life.job.restart_count, life.job.HasField("pause")) == ("QUEUED", 0, False)
    event = life.decisions[-1].events[-1]
    assert (event.type, event.message) == (JobEvent.REQUEUED, ALONE.message)
    assert event.details["reason"] == ALONE.reason
    assert not life.job.HasField("failure")
    assert (life.job.progress.epoch, life.running().state) == (2, "RUNNING")


def test_a_worker_that_pauses_by_itself_does_not_add_to_a_pause_that_was_taken_back() -> None:
    life = Life().running(2).pause().resume().trained(3)
    before = str(life.job.pause)
    life.rests(failure=ALONE)
    assert (life.state, str(life.job.pause)) == ("QUEUED", before)


def test_a_worker_that_paused_by_itself_has_done_what_a_pause_asks_for() -> None:
    asked = Life().running(2).pause().trained(3).rests(failure=ALONE)
    assert (asked.state, asked.job.pause.epoch) == ("PAUSED", 3)


def test_a_worker_that_paused_by_itself_while_it_counted_as_lost_has_lost_nothing() -> None:
    life = Life().running(2).is_lost()
    assert life.job.restart_count == 1
    life.rests(failure=ALONE)
    assert (life.state, life.job.restart_count) == ("QUEUED", 0)


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
    life = Life(max_restarts=1).running(1).at(120).fails().running().at(150, seconds=15).fails()
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
    left = life.record.pause_release_time.ToDatetime()
    life.resume().placed(B, "GPU-3", "GPU-4").began().took_a_step()
    pause = life.job.pause
    assert (pause.from_worker, pause.to_worker, pause.verdict) == (A, B, Pause.EXACT)
    idle = pause.resume_time.ToDatetime() - left
    assert pause.saved_gpu_seconds == 2 * idle.total_seconds() > 0
    assert pause.request_time.seconds < pause.release_time.seconds <= pause.pause_time.seconds
    assert pause.pause_time.seconds < pause.resume_request_time.seconds < pause.resume_time.seconds


EURO_AN_HOUR = Money(currency="EUR", amount=3600)
"""One Euro a second, for one GPU."""


def test_a_pause_says_what_it_has_saved_so_far_and_what_that_costs() -> None:
    life = Life(gpu_count=2).placed(A, "1", "2").acknowledged().began().pause().trained(1)
    life.record.job.gpu_hour_price.CopyFrom(EURO_AN_HOUR)

    def shown(seconds: int) -> Pause:
        job = Job()
        job.CopyFrom(life.job)
        pauses.count_savings(life.record, job, life.now + timedelta(seconds=seconds))
        return job.pause

    assert shown(50).saved_gpu_seconds == 0, "nothing is free yet"
    assert not shown(50).HasField("saved_cost")
    life.released()
    assert shown(50).saved_gpu_seconds == 100
    assert shown(50).saved_cost == Money(currency="EUR", amount=100)
    life.rests().resume().placed(B, "3", "4").began()
    final = life.job.pause.saved_gpu_seconds
    assert shown(500) == life.job.pause, "it is over"
    assert life.job.pause.saved_cost == Money(currency="EUR", amount=final)


def test_without_a_price_nothing_is_said_of_money() -> None:
    life = Life(gpu_count=1).placed(A, "1").acknowledged().began().pause().trained(1).released().rests()
    assert not life.resume().placed(B, "2").began().job.pause.HasField("saved_cost")


def test_a_job_that_is_cancelled_while_it_rests_saves_no_more() -> None:
    life = Life(gpu_count=1).placed(A, "1").acknowledged().began().pause().trained(1).released().rests()
    freed = life.record.pause_release_time.ToDatetime(UTC)
    life.cancel()
    ended = life.job.end_time.ToDatetime(UTC)
    pauses.count_savings(life.record, life.job, life.now + timedelta(days=1))
    assert life.job.pause.saved_gpu_seconds == (ended - freed).total_seconds()


@given(
    trained=st.integers(600, 5000),
    paused_for=st.integers(3600, 50_000),
    gpus=st.integers(1, 8),
    offset=st.integers(0, 4),
)
def test_what_is_saved_is_the_integral_of_the_samples_within_one_percent(
    trained: int, paused_for: int, gpus: int, offset: int
) -> None:
    """A sample every 5 s while the GPUs are held. Between two that are further apart, nobody held them."""
    resumed = trained + paused_for
    held = [*range(offset, trained, 5), *range(resumed + offset, resumed + 600, 5)]
    idle = sum(later - earlier - 5 for earlier, later in pairwise(held) if later - earlier > 5) * gpus
    pause, since = Pause(), Timestamp(seconds=trained)
    job = Job(spec=JobSpec(gpu_count=gpus))
    pauses.save(job, pause, since, datetime.fromtimestamp(resumed, UTC))
    assert pause.saved_gpu_seconds == pytest.approx(idle, rel=0.01)


def test_a_pause_tells_of_the_checkpoint_that_it_rests_on() -> None:
    life = Life().running().pause()
    made = checkpoint(1)
    made.size_bytes, made.uploaded_bytes = 1000, 300
    life.at(100).tell(Registered(actor=A, checkpoint=made))
    assert life.released().rests().state == "PAUSED"
    pause = life.job.pause
    assert (pause.checkpoint_size_bytes, pause.checkpoint_uploaded_bytes) == (1000, 300)
    assert pause.checkpoint_verified
    pauses.rest_on(pause, Checkpoint())
    assert not pause.checkpoint_verified, "there is none"


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


def asked(job: Job) -> JobRecord:
    record = JobRecord(job=job)
    pauses.request(record, mode=PAUSE_MODE_UNSPECIFIED, actor="bob", reason="r", now=START)
    return record


def test_a_request_opens_a_record() -> None:
    pause = asked(Job(worker=A)).job.pause
    assert (pause.cause, pause.mode, pause.actor, pause.reason, pause.from_worker) == (Pause.HELD, EPOCH, "bob", "r", A)
    assert pause.request_time.ToDatetime() == START.replace(tzinfo=None)


def test_the_pause_before_moves_to_the_past() -> None:
    job = asked(Job(pause=Pause(reason="first"), past_pauses=[Pause(reason="zeroth")])).job
    assert [each.reason for each in (*job.past_pauses, job.pause)] == ["zeroth", "first", "r"]


def test_rest_fills_in_a_release_that_nobody_reported() -> None:
    record = asked(Job(worker=A))
    record.checkpoint.CopyFrom(Checkpoint(name="c", epoch=2, step=20))
    pauses.rest(record, START)
    pause = record.job.pause
    assert pause.release_time == pause.pause_time == record.pause_release_time
    assert (pause.checkpoint, pause.epoch, pause.step) == ("c", 2, 20)


def test_a_reported_release_stays() -> None:
    record = asked(Job(worker=A))
    record.job.pause.release_time.FromSeconds(7)
    pauses.rest(record, START)
    assert record.job.pause.release_time.seconds == 7


def test_a_pause_in_the_queue_releases_nothing_and_saves_nothing() -> None:
    life = Life(gpu_count=4).pause()
    assert not life.job.pause.HasField("release_time")
    life.now += timedelta(days=3)
    life.resume().placed(A, "1", "2", "3", "4").began()
    assert life.job.pause.HasField("resume_time")
    assert life.job.pause.saved_gpu_seconds == 0


def test_phases_of_no_pause_are_dropped() -> None:
    record = JobRecord()
    phase = Pause()
    phase.release_time.FromSeconds(7)
    pauses.phase_reached(record, phase, A, START)
    assert record == JobRecord()


def test_phases_of_a_pause_that_has_ended_are_dropped() -> None:
    record = JobRecord(job=Job(pause=Pause(from_worker=A)))
    record.job.pause.release_time.FromDatetime(START)
    record.job.pause.resume_time.FromDatetime(START + timedelta(hours=1))
    before = JobRecord.FromString(record.SerializeToString())
    phase = Pause()
    phase.release_time.FromDatetime(START + timedelta(hours=2))
    pauses.phase_reached(record, phase, A, START + timedelta(hours=2))
    assert record == before


def test_phases_that_another_worker_reached_are_dropped() -> None:
    life = Life().running().pause().is_lost()
    life.placed(B)
    left = Pause()
    left.release_time.FromDatetime(life.now)
    life.tell(PausePhase(actor=A, pause=left))
    assert not life.job.pause.HasField("release_time")
    assert life.job.pause.from_worker == B


def test_a_first_step_closes_the_pause_whose_resume_placed_the_attempt_and_no_restart_does() -> None:
    """A pause of a second in the queue, then three days of training, then a crash (C19)."""
    life = Life(gpu_count=8).pause().resume().running(2)
    pause = Pause()
    pause.CopyFrom(life.job.pause)
    assert (pause.HasField("resume_time"), pause.verdict) == (True, Pause.VERDICT_UNSPECIFIED)
    life.now += timedelta(days=3)
    life.fails().placed().acknowledged().began().took_a_step()
    assert life.job.pause == pause


def test_a_job_without_anything_to_restore_gets_no_verdict() -> None:
    life = Life().running().pause().is_lost().resume().placed().acknowledged().began().took_a_step()
    assert life.job.pause.verdict == Pause.VERDICT_UNSPECIFIED


def test_an_attempt_that_fails_before_its_first_step_leaves_the_pause_to_the_next() -> None:
    life = paused().resume().placed().fails()
    assert not life.job.pause.HasField("resume_time")
    life.running(0).took_a_step()
    assert (life.job.pause.HasField("resume_time"), life.job.pause.verdict) == (True, Pause.EXACT)


def test_a_pause_that_was_taken_back_in_time_is_not_closed_by_a_later_restart() -> None:
    life = Life(gpu_count=1).running(1).pause().resume().is_lost().running().took_a_step()
    assert life.job.pause.note == "resumed before the boundary"
    assert not life.job.pause.HasField("resume_time")
    assert life.job.pause.saved_gpu_seconds == 0


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(hours=1)])
def test_what_was_saved_does_not_depend_on_the_clock_of_any_worker(off: timedelta) -> None:
    life = Life(gpu_count=2).placed(A, "1", "2").acknowledged().began().pause().trained(1)
    left = Pause()
    left.release_time.FromDatetime(life.now + off)
    life.tell(PausePhase(actor=A, pause=left))
    released = life.now
    life.rests().resume().placed(B, "3", "4").acknowledged().began()
    idle = life.now - released
    back = Pause(verdict=Pause.EXACT, verdict_reasons=["because"])
    back.resume_time.FromDatetime(life.now - off)
    life.tell(PausePhase(actor=B, pause=back))
    assert life.job.pause.saved_gpu_seconds == 2 * idle.total_seconds()
    assert (life.job.pause.verdict, list(life.job.pause.verdict_reasons)) == (Pause.EXACT, ["because"])


def test_the_share_that_is_durable_is_shown_while_it_travels_only() -> None:
    life = Life().running(1).pause().released()
    life.tell(Observed(actor=A, generation=life.record.generation, persisted_fraction=0.25))
    assert life.job.pause.persisted_fraction == 0.25
    life.trained(2).rests()
    assert not life.job.pause.HasField("persisted_fraction")
