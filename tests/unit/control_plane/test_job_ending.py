"""How jobs end, what is tried again, and what it is paid from."""

import pytest

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure
from adjourn_control_plane.job.events import Adopted, FoundRunning
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
        "CREATED", "PLACED", "BEGAN", "CHECKPOINT_REGISTERED", "CHECKPOINT_REGISTERED", "SUCCEEDED",
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


def test_the_same_exception_at_the_same_step_is_not_tried_a_third_time() -> None:
    life = Life(max_restarts=100).running(1).at(150).fails()
    assert life.state == "QUEUED"
    assert life.running().at(150).fails().state == "FAILED"


@pytest.mark.parametrize(
    ("step", "failure"),
    [
        (151, Failure(reason=reasons.TRAINING_RAISED, message="ValueError: no")),
        (150, Failure(reason=reasons.TRAINING_RAISED, message="KeyError: other")),
        (150, Failure(reason=reasons.PROCESS_KILLED, message="ValueError: no")),
    ],
)
def test_another_failure_is_tried_again(step: int, failure: Failure) -> None:
    life = Life(max_restarts=100).running(1).at(150).fails().running().at(step).fails(failure)
    assert (life.state, life.job.restart_count) == ("QUEUED", 2)


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


def test_a_later_attempt_than_we_know_of_is_adopted() -> None:
    token = FencingToken(attempt=8, nonce="b" * 32)
    adopted = Adopted(actor=B, token=token, worker=B, device_uuids=("GPU-9",), generation=4)
    life = Life().running(1).tell(adopted)
    assert (life.state, life.job.worker, life.record.target) == ("RUNNING", B, Assignment.RUN)
    assert life.record.token == token
    assert list(life.record.device_uuids) == ["GPU-9"]
    assert life.record.generation > 4
    assert life.history[-1] == "ADOPTED"
    assert Life().placed().tell(adopted).state == "RUNNING"
    assert Life().tell(adopted).state == "RUNNING"
    for held in (Life().running(1).pause(), paused()):
        held.tell(adopted)
        assert (held.state, held.record.target) == ("PAUSING", Assignment.PAUSE)
        assert not held.job.pause.HasField("pause_time")
    cancelling = Life().running(1).cancel().tell(adopted)
    assert (cancelling.state, cancelling.record.target) == ("CANCELLING", Assignment.STOP)


def test_what_runs_though_it_should_rest_is_pausing_again_with_its_devices() -> None:
    life = Life(gpu_count=1).placed(A, "GPU-1").acknowledged().began().trained(1).pause().is_lost()
    assert life.state == "PAUSED"
    life.tell(FoundRunning(actor=A, device_uuids=("GPU-1",), generation=7))
    assert (life.state, life.job.worker, life.record.target) == ("PAUSING", A, Assignment.PAUSE)
    assert list(life.record.device_uuids) == ["GPU-1"], "or another job would be given them"
    assert not life.record.released
    assert life.record.generation == 8
    assert not life.job.pause.HasField("pause_time")
    assert life.trained(2).rests().state == "PAUSED"
    assert life.job.pause.checkpoint == checkpoint_name(2)
