"""How jobs end, what is tried again, and what it is paid from."""

from datetime import timedelta

import pytest

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.job import retries
from adjourn_control_plane.job.events import ConditionChanged, EpochEnded
from adjourn_control_plane.job.retries import ready_time
from tests.harness.job_life import A, B, Life, checkpoint_name, paused


def test_a_run_to_its_end() -> None:
    life = Life(total_epochs=2).running(2).finishes()
    assert life.state == "SUCCEEDED"
    assert life.job.HasField("start_time")
    assert life.job.HasField("end_time")
    assert not life.job.worker
    assert life.job.progress.epoch == 2
    assert not life.job.progress.HasField("remaining_duration")
    assert Checkpoint.FINAL in life.decisions[-1].checkpoints[-1].retained_for
    assert life.history == [
        "CREATED", "PLACED", "BEGAN", "MILESTONE_REACHED", "CHECKPOINT_REGISTERED",
        "MILESTONE_REACHED", "CHECKPOINT_REGISTERED", "SUCCEEDED",
    ]  # fmt: skip


def test_success_needs_a_registered_checkpoint() -> None:
    life = Life(total_epochs=2).running(1).finishes(on=checkpoint_name(2))
    assert (life.state, life.job.failure.reason) == ("QUEUED", reasons.CHECKPOINT_NOT_REGISTERED)
    assert life.record.checkpoint.name == checkpoint_name(1)


def test_a_run_that_was_cancelled_too_late_has_succeeded() -> None:
    life = Life(total_epochs=1).running().cancel().trained(1).finishes()
    assert life.state == "SUCCEEDED"


def test_a_cancelled_run_with_an_unknown_last_checkpoint_is_cancelled() -> None:
    assert Life(total_epochs=1).running().cancel().finishes(on=checkpoint_name(1)).state == "CANCELLED"


def test_cancelling_stops_the_worker_and_waits_for_it() -> None:
    life = Life().running(1).cancel()
    assert (life.state, life.record.target, life.job.worker) == ("CANCELLING", Assignment.STOP, A)
    assert life.cancel().last is None
    assert life.stops().state == "CANCELLED"
    assert life.cancel().last is None
    assert life.job.HasField("end_time")


@pytest.mark.parametrize("how", ["stops", "fails", "is_lost", "rests"])
def test_cancelling_ends_cancelled_however_the_attempt_ends(how: str) -> None:
    life = getattr(Life().running(1).cancel(), how)()
    assert (life.state, life.job.restart_count) == ("CANCELLED", 0)


def test_a_paused_job_can_be_cancelled() -> None:
    life = paused().cancel()
    assert (life.state, list(life.job.holds)) == ("CANCELLED", [])


def test_a_pause_that_is_under_way_can_be_cancelled() -> None:
    life = Life().running(1).pause().cancel()
    assert (life.state, life.record.target) == ("CANCELLING", Assignment.STOP)
    assert life.job.pause.note == "cancelled before it came to rest"


def test_a_queued_job_is_cancelled_at_once() -> None:
    assert Life().cancel().state == "CANCELLED"


def test_what_has_ended_cannot_be_cancelled() -> None:
    life = Life(total_epochs=1).running(1).finishes()
    with pytest.raises(errors.JobFinishedError):
        life.cancel()


def test_a_hundred_pauses_cost_no_restart() -> None:
    life = Life(total_epochs=200, max_restarts=1).running(1)
    for epoch in range(2, 102):
        life.pause().trained(epoch).released().rests().resume().running()
    assert (life.state, life.job.restart_count, life.job.attempt) == ("RUNNING", 0, 101)
    assert len(life.job.past_pauses) == 99
    assert life.fails().state == "QUEUED"


def test_past_pauses_are_capped() -> None:
    life = Life(total_epochs=200).running(1)
    for epoch in range(2, 110):
        life.pause().trained(epoch).rests().resume().running()
    assert len(life.job.past_pauses) == 100
    assert life.job.past_pauses[-1].epoch == 108
    assert life.job.pause.epoch == 109


def test_a_worker_that_is_told_to_stop_costs_no_restart() -> None:
    life = Life(max_restarts=0).running(1)
    for _ in range(10):
        life.stops(Failure(reason=reasons.WORKER_STOPPED)).running()
    assert (life.state, life.job.restart_count) == ("RUNNING", 0)


def test_failures_and_lost_workers_share_a_budget() -> None:
    life = Life(max_restarts=2).running(1).at(110).fails().running().at(120).is_lost()
    assert (life.state, life.job.restart_count) == ("QUEUED", 2)
    life.running().at(130).fails()
    assert (life.state, life.job.failure.attempt) == ("FAILED", 3)
    assert life.decisions[-1].events[-1].details["reason"] == reasons.TRAINING_RAISED


def test_unset_max_restarts_are_three_and_zero_is_none() -> None:
    life = Life()
    for step in (10, 20, 30):
        assert life.running().at(step).fails().state == "QUEUED"
    assert life.running().at(40).fails().state == "FAILED"
    assert Life(max_restarts=0).running().fails().state == "FAILED"


@pytest.mark.parametrize("reason", sorted(reasons.DETERMINISTIC))
def test_what_would_fail_again_fails_at_once(reason: str) -> None:
    life = Life(max_restarts=100).running(1).fails(Failure(reason=reason, message="m"))
    assert (life.state, life.job.restart_count, life.job.failure.reason) == ("FAILED", 0, reason)


def test_the_same_exception_at_the_same_step_is_not_tried_a_fourth_time() -> None:
    life = Life(max_restarts=100).running(1)
    for _ in range(2):
        assert life.at(150).fails().state == "QUEUED"
        life.running()
    assert life.at(150).fails().state == "FAILED"


def test_a_data_server_that_is_away_for_a_moment_does_not_fail_a_job() -> None:
    """Two attempts raise the same words at step 0; the third finds the server back (C18)."""
    away = Failure(reason=reasons.TRAINING_RAISED, message="ConnectionError: data server")
    life = Life(total_epochs=2).placed().acknowledged().fails(away).placed().acknowledged().fails(away)
    assert life.state == "QUEUED"
    assert life.running(2).finishes().state == "SUCCEEDED"


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        (151, Failure(reason=reasons.TRAINING_RAISED, message="ValueError: no")),
        (150, Failure(reason=reasons.TRAINING_RAISED, message="KeyError: other")),
        (150, Failure(reason=reasons.PROCESS_KILLED, message="ValueError: no")),
    ],
)
def test_another_failure_is_tried_again(step: int, failure: Failure) -> None:
    life = Life(max_restarts=100).running(1).at(150).fails().running().at(150).fails().running().at(step).fails(failure)
    assert (life.state, life.job.restart_count) == ("QUEUED", 3)


def test_a_restart_goes_on_from_the_newest_checkpoint_never_from_scratch() -> None:
    life = Life().running(3).at(370).fails()
    assert (life.job.progress.epoch, life.job.progress.step, life.record.checkpoint.epoch) == (3, 300, 3)
    life.placed()
    assert life.record.checkpoint.name == checkpoint_name(3)
    assert (life.record.generation, life.record.observed_generation, life.record.applied_report) == (1, 0, 0)


def test_an_attempt_that_its_worker_never_saw_costs_nothing() -> None:
    assert Life(max_restarts=0).placed().is_lost().state == "QUEUED"


def test_each_hand_out_has_a_token_of_its_own() -> None:
    life = Life().running()
    first = life.record.token
    life.fails().placed()
    assert life.record.token.attempt == first.attempt + 1 == life.job.attempt
    assert life.record.token.nonce != first.nonce


def test_success_forgets_the_failure_before() -> None:
    life = Life(total_epochs=1).running().fails().running(1).finishes()
    assert not life.job.HasField("failure")


def test_a_job_that_gets_on_has_its_budget_renewed() -> None:
    """Four lost workers in a month are no reason to give up a job that trains on between them (C18)."""
    life = Life(total_epochs=100).running(1)
    for _ in range(4):
        life.is_lost()
        assert (life.state, life.job.restart_count) == ("QUEUED", 1)
        life.running(retries.HEALTHY_EPOCHS)
        assert (life.state, life.job.restart_count) == ("RUNNING", 0)


def test_epochs_that_are_trained_again_and_again_renew_nothing() -> None:
    life = Life(total_epochs=100).running(1)
    for lost in range(1, 4):
        life.running(0) if lost > 1 else life
        for epoch in range(2, 10):
            life.tell(EpochEnded(actor=A, metrics=EpochMetrics(epoch=epoch)))
        life.is_lost()
        assert (life.state, life.job.restart_count) == ("QUEUED", lost)
    assert life.running().is_lost().state == "FAILED"


def test_progress_in_small_steps_counts_too() -> None:
    life = Life(total_epochs=100).running(1).is_lost().running(2).stops(Failure(reason=reasons.WORKER_STOPPED))
    assert life.job.restart_count == 1
    assert life.running(1).job.restart_count == 0


def test_another_environment_sends_the_job_back_to_the_queue_and_costs_nothing() -> None:
    differs = Failure(reason=reasons.ENVIRONMENT_DIFFERS, message="cpu: a, was b")
    life = Life(max_restarts=0).running(1).pause().trained(2).rests().resume().placed().acknowledged().fails(differs)
    assert (life.state, life.job.restart_count) == ("QUEUED", 0)
    (condition,) = life.job.conditions
    assert (condition.type, condition.reason) == (Condition.UNPLACED, reasons.NO_EQUAL_ENVIRONMENT)
    assert ready_time(life.record) - life.now == retries.REFUSED_DELAY
    assert not life.placed(B).job.conditions
    assert life.history[-3:] == ["CONDITION_BEGAN", "CONDITION_ENDED", "PLACED"]


def test_another_environment_under_a_pause_lets_it_rest_again() -> None:
    life = paused(max_restarts=0).resume().placed().pause().fails(Failure(reason=reasons.ENVIRONMENT_DIFFERS))
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(3))


HANGS = Failure(reason=reasons.TRAINING_HANGS, message="no step for 300 s")


def test_training_that_hangs_costs_a_restart_like_any_other_failure() -> None:
    life = Life(max_restarts=1).running(2).at(250).fails(HANGS)
    assert (life.state, life.job.restart_count, life.job.progress.step) == ("QUEUED", 1, 200)
    assert life.job.failure.reason == reasons.TRAINING_HANGS
    life.running().fails(HANGS)
    assert (life.state, life.job.restart_count) == ("FAILED", 1)


@pytest.mark.parametrize("budget", [0, 3])
def test_a_pause_of_training_that_hangs_rests_on_the_newest_checkpoint_whatever_the_budget(budget: int) -> None:
    life = Life(max_restarts=budget).running(2).at(250).pause().fails(HANGS)
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(2))
    assert life.job.restart_count == 0
    assert life.job.pause.lost_duration.ToTimedelta() == timedelta(seconds=5)
    assert "TRAINING_HANGS, no step for 300 s" in life.decisions[-1].events[-1].message


def test_a_pause_of_training_that_hangs_before_its_first_checkpoint_is_still_wanted() -> None:
    life = Life(max_restarts=1).running().at(50).pause().fails(HANGS)
    assert (life.state, life.job.restart_count) == ("QUEUED", 1)
    assert life.job.holds, "another attempt is to bring about the pause"
    assert life.placed().state == "PAUSING"
    assert life.fails(HANGS).state == "FAILED", "and does not try for ever"


def test_a_hang_is_known_for_as_long_as_the_worker_has_the_job() -> None:
    condition = Condition(type=Condition.HANGING, reason=reasons.TRAINING_HANGS, message="no step for 300 s")
    life = Life().running(1).tell(ConditionChanged(actor=A, condition=condition, ended=False))
    assert [each.type for each in life.job.conditions] == [Condition.HANGING]
    life.tell(ConditionChanged(actor=A, condition=Condition(type=Condition.HANGING), ended=True))
    assert not life.job.conditions
    life.tell(ConditionChanged(actor=A, condition=condition, ended=False)).fails(HANGS)
    assert not life.job.conditions
