"""A checkpoint that turns out damaged: the job goes on from an older one, never silently, and not for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Job, JobSpec, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import machine, retries
from adjourn_control_plane.job.events import CheckpointDamaged, Placed, Registered
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.store.interface import Change, JobName
from tests.harness.job_history import Told
from tests.harness.job_life import START, UID, A, Life, checkpoint, checkpoint_name, paused
from tests.harness.job_requests import there
from tests.harness.memory_store import MemoryStore


def corrupt(epoch: int) -> Failure:
    message = f"{checkpoint_name(epoch)}: object checkpoints/u/parts/p is missing"
    return Failure(reason=reasons.CHECKPOINT_CORRUPT, message=message)


def finds_damage(life: Life, epoch: int, *, sound: int | None, newest: int | None = None) -> Life:
    """The attempt reports that the checkpoint of `epoch` is damaged; that of `sound` is the newest not known to be."""
    return life.tell(
        CheckpointDamaged(
            actor=A,
            failure=corrupt(epoch),
            checkpoint=checkpoint_name(epoch),
            sound=checkpoint(sound) if sound else None,
            newest=checkpoint(newest or epoch),
        )
    )


def stored(life: Life) -> dict[str, Checkpoint]:
    """Returns the checkpoints as the store has them."""
    return {each.name: each for decision in life.decisions for each in decision.checkpoints}


def test_a_job_goes_on_from_an_older_checkpoint_and_says_what_that_costs() -> None:
    life = Life(max_restarts=0).running(3).stops(Failure(reason=reasons.WORKER_STOPPED)).placed().acknowledged()
    assert life.record.restored_checkpoint == checkpoint_name(3)
    finds_damage(life, 3, sound=1)
    assert (life.state, life.job.restart_count, life.job.failure.reason) == ("QUEUED", 0, reasons.CHECKPOINT_CORRUPT)
    assert life.record.checkpoint.name == life.job.latest_checkpoint == checkpoint_name(1)
    assert (life.job.progress.epoch, life.job.progress.step) == (1, 100)
    assert life.job.progress.active_duration.seconds == 10
    (told,) = [event for event in life.decisions[-1].events if event.type == JobEvent.FELL_BACK]
    assert dict(told.details) == {
        "damaged": checkpoint_name(3),
        "checkpoint": checkpoint_name(1),
        "epochs": "2",
        "steps": "200",
        "seconds": "20.000",
    }
    assert "parts/p is missing" in told.message
    damaged, sound = stored(life)[checkpoint_name(3)], stored(life)[checkpoint_name(1)]
    assert ("parts/p is missing" in damaged.damage, list(damaged.retained_for)) == (True, [])
    assert (sound.damage, list(sound.retained_for)) == ("", [Checkpoint.LATEST])
    life.placed()
    assert life.record.restored_checkpoint == checkpoint_name(1)


def test_epochs_that_are_done_again_take_the_place_of_those_before() -> None:
    life = finds_damage(Life().running(3).fails().placed(), 3, sound=2).running(1)
    assert (life.record.checkpoint.epoch, life.job.progress.epoch) == (3, 3)


def test_the_pause_that_rested_on_it_says_so() -> None:
    """A pause is never set back silently: its record names what was lost, and what it was resumed from."""
    life = finds_damage(paused(epochs=2).resume().placed().acknowledged(), 3, sound=2)
    pause = life.job.pause
    assert life.state == "QUEUED"
    assert (pause.checkpoint, pause.epoch, pause.lost_duration.seconds) == (checkpoint_name(2), 2, 10)
    assert f"{checkpoint_name(3)} is damaged" in pause.note
    finds_damage(life.placed(), 2, sound=1)
    assert (life.job.pause.checkpoint, life.job.pause.lost_duration.seconds) == (checkpoint_name(1), 20)
    life.placed().acknowledged().began().took_a_step()
    assert (life.job.pause.verdict, life.job.pause.to_worker) == (Pause.EXACT, A)
    assert f"{checkpoint_name(1)}, after epoch 1" in life.job.pause.note


def test_a_pause_that_has_ended_well_is_left_as_it_is() -> None:
    life = paused(epochs=2).resume().running(1)
    before = Pause.FromString(life.job.pause.SerializeToString())
    finds_damage(life.fails().placed(), 4, sound=3)
    assert life.job.pause == before


def test_a_pause_on_the_way_rests_on_the_older_checkpoint() -> None:
    life = Life().running(3).fails().placed().acknowledged().pause()
    finds_damage(life, 3, sound=2)
    assert (life.state, life.job.worker) == ("PAUSED", "")
    assert (life.job.pause.checkpoint, life.job.pause.lost_duration.seconds) == (checkpoint_name(2), 10)
    assert f"{checkpoint_name(3)} is damaged" in life.job.pause.note
    assert Checkpoint.PAUSE in stored(life)[checkpoint_name(2)].retained_for


def test_both_the_pause_that_was_resumed_and_the_next_one_say_so() -> None:
    life = finds_damage(paused(epochs=2).resume().placed().acknowledged().pause(), 3, sound=2)
    assert life.state == "PAUSED"
    for pause in (life.job.pause, life.job.past_pauses[-1]):
        assert (pause.checkpoint, pause.lost_duration.seconds) == (checkpoint_name(2), 10)
        assert "is damaged" in pause.note


@pytest.mark.parametrize("pausing", [False, True])
def test_without_another_the_job_has_failed_and_does_not_begin_anew(pausing: bool) -> None:
    life = Life().running(1).fails().placed().acknowledged()
    finds_damage(life.pause() if pausing else life, 1, sound=None)
    assert (life.state, life.job.failure.reason, list(life.job.holds)) == ("FAILED", reasons.CHECKPOINT_CORRUPT, [])
    assert "parts/p is missing" in life.job.failure.message
    assert "does not begin anew" in life.job.failure.message
    assert stored(life)[checkpoint_name(1)].damage
    assert not life.job.worker


def test_a_resume_of_a_failed_job_tries_the_newest_again_and_clears_what_was_mended() -> None:
    life = finds_damage(Life().running(2).fails().placed(), 2, sound=1)
    finds_damage(life.placed(), 1, sound=None, newest=2)
    assert (life.state, life.job.latest_checkpoint) == ("FAILED", checkpoint_name(2))
    life.resume().placed()
    assert life.record.restored_checkpoint == checkpoint_name(2)
    life.record.checkpoint.damage = "missing"
    life.acknowledged().began()
    assert (life.state, life.record.checkpoint.damage) == ("RUNNING", "")
    assert stored(life)[checkpoint_name(2)].damage == ""


def test_a_cancelled_job_is_cancelled_though_its_checkpoint_is_damaged() -> None:
    for sound in (None, 1):
        life = Life().running(2).fails().placed().acknowledged().cancel()
        assert finds_damage(life, 2, sound=sound).state == "CANCELLED"
        assert stored(life)[checkpoint_name(2)].damage


def test_damage_of_a_checkpoint_that_the_store_does_not_know_costs_a_restart() -> None:
    """The attempt is from a newer store than this one: what the record has may be whole."""
    life = Life(max_restarts=1).running(1).stops(Failure(reason=reasons.WORKER_STOPPED)).placed()
    finds_damage(life, 5, sound=1)
    assert (life.state, life.job.restart_count, life.job.latest_checkpoint) == ("QUEUED", 1, checkpoint_name(1))
    assert finds_damage(life.placed(), 5, sound=1).state == "FAILED"


# The worker was out of reach when it found the damage.


def test_a_queued_job_falls_back_late_and_the_loss_costs_nothing() -> None:
    life = Life().running(2).stops(Failure(reason=reasons.WORKER_STOPPED)).placed().acknowledged().is_lost()
    assert (life.state, life.job.restart_count) == ("QUEUED", 1)
    finds_damage(life, 2, sound=1)
    assert (life.state, life.job.restart_count, life.job.latest_checkpoint) == ("QUEUED", 0, checkpoint_name(1))
    assert finds_damage(life, 2, sound=1).last is None


def test_a_pause_falls_back_late() -> None:
    life = Life().running(2).fails().placed().acknowledged().pause().is_lost()
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(2))
    finds_damage(life, 2, sound=1)
    assert (life.state, life.job.pause.checkpoint) == ("PAUSED", checkpoint_name(1))
    assert life.job.pause.lost_duration.seconds == 10
    assert "is damaged" in life.job.pause.note


def test_a_pause_that_rests_on_nothing_whole_is_no_pause() -> None:
    life = Life().running(1).fails().placed().acknowledged().pause().is_lost()
    finds_damage(life, 1, sound=None)
    assert (life.state, list(life.job.holds)) == ("FAILED", [])


def test_a_job_that_had_failed_by_the_loss_goes_on_or_stays_so() -> None:
    for sound, state in ((1, "QUEUED"), (None, "FAILED")):
        life = Life(max_restarts=0).running(2).stops(Failure(reason=reasons.WORKER_STOPPED))
        life.placed().acknowledged().is_lost()
        assert life.state == "FAILED"
        finds_damage(life, 2, sound=sound)
        assert (life.state, life.job.failure.reason) == (state, reasons.CHECKPOINT_CORRUPT)


def test_an_attempt_out_of_reach_that_tells_of_damage_is_known_to_be_gone() -> None:
    for sound in (1, None):
        life = Life().running(2).fails().placed().acknowledged().goes_out_of_reach()
        assert life.record.unconfirmed_releases
        finds_damage(life, 2, sound=sound)
        assert not life.record.unconfirmed_releases
        assert not life.job.conditions


def test_the_history_tells_which_checkpoint_a_failed_job_is_left_with() -> None:
    life = finds_damage(
        Life(max_restarts=0).running(2).stops(Failure(reason=reasons.WORKER_STOPPED)).placed(), 2, sound=1
    )
    life.placed().acknowledged().is_lost()
    assert (life.state, life.job.latest_checkpoint) == ("FAILED", checkpoint_name(1))
    finds_damage(life, 1, sound=None, newest=2)
    assert (life.state, life.job.latest_checkpoint) == ("FAILED", checkpoint_name(2))
    told = Told().after(event for decision in life.decisions for event in decision.events)
    assert told == Told.of(life.record)


def test_conditions_end_with_the_attempt() -> None:
    life = Life().running(2).fails().placed()
    life.record.job.conditions.add(type=Condition.STORAGE_FAILING, reason="r")
    assert not finds_damage(life, 2, sound=1).job.conditions


def test_epochs_that_are_done_again_renew_no_budget() -> None:
    """Storage that damages each new checkpoint would have the job restarted for ever."""
    life = Life(max_restarts=2, total_epochs=100).running(4)
    for restarts in (1, 2):
        finds_damage(life.fails().placed(), 4, sound=1)
        assert (life.state, life.job.restart_count) == ("QUEUED", restarts)
        life.running(3)
        assert (life.record.checkpoint.epoch, life.job.restart_count) == (4, restarts)
    life.trained(5).trained(6)
    assert life.job.restart_count == 2
    assert life.trained(7).job.restart_count == 0, "three that nobody had done before"
    assert life.record.furthest_epoch == 7


@given(st.lists(st.tuples(st.sampled_from(["fails", "damage", "trains", "is lost"]), st.integers(1, 4)), max_size=60))
def test_a_run_has_only_so_many_restarts_whatever_storage_does(befalls: list[tuple[str, int]]) -> None:
    life, limit, restarts = Life(max_restarts=2, total_epochs=1000).running(), 2, 0
    for what, count in befalls:
        epoch = life.record.checkpoint.epoch
        match what:
            case "trains":
                for each in range(epoch + 1, epoch + 1 + count):
                    life.trained(each)
            case "damage" if epoch > 1:
                failure = Failure(reason=reasons.WORKER_STOPPED)
                finds_damage(life.stops(failure).placed(), epoch, sound=max(epoch - count, 1))
            case "fails" | "is lost":
                life = life.acknowledged().is_lost() if what == "is lost" else life.fails(other_each_time(life))
                if life.state == "FAILED":
                    break
                restarts += 1
        if life.state == "QUEUED":
            life.running()
    assert restarts <= limit * (1 + life.record.furthest_epoch // retries.HEALTHY_EPOCHS)


def other_each_time(life: Life) -> Failure:
    """The same exception three times in a row at one step would be taken for deterministic."""
    return Failure(reason=reasons.TRAINING_RAISED, message=f"ValueError: {len(life.decisions)}")


# What the report becomes: the shell knows the job's other checkpoints.


async def test_a_report_falls_back_to_the_newest_that_is_not_marked_until_none_is_left(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adjourn_control_plane.job.updater.CHECKPOINTS_AT_ONCE", 2)
    updater = JobUpdater(memory_store)
    name = JobName("jobs/j")
    made = machine.create(Job(name=name, spec=JobSpec(total_epochs=20)), uid=UID, actor="ann", now=START)
    await memory_store.commit(Change(job=name, expected=0, record=made.record))
    await updater.apply(name, Placed(actor="c", worker=A, device_uuids=(), nonce="0"))
    for epoch in range(1, 6):
        await updater.apply(name, Registered(actor=A, checkpoint=checkpoint(epoch)))
    for left in (4, 3, 2, 1, 0):
        record = await updater.apply(name, Placed(actor="c", worker=A, device_uuids=(), nonce="0"))
        damaged = record.checkpoint.name
        failed = Exit(phase=AssignmentStatus.FAILED, failure=corrupt(left + 1), checkpoint=damaged)
        report = Report(sequence=1, job=name, token=record.token, exit=failed)
        await updater.report(report, A)
        await updater.report(report, A)
        if left:
            record = await there(memory_store)
            assert (record.job.state, record.checkpoint.epoch) == (Job.QUEUED, left)
        marked = [each.epoch for _, each in await memory_store.checkpoints(name, size=10) if each.damage]
        assert marked == [5, 4, 3, 2, 1][: 5 - left]
    record = await there(memory_store)
    assert record.job.state == Job.FAILED
    assert record.job.latest_checkpoint == checkpoint_name(5)
