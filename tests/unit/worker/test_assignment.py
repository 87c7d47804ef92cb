"""The machine of an assignment: its life, and the orders that change it."""

from datetime import timedelta

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.trainer_pb2 import TrainingBegan
from adjourn.v1.usage_pb2 import ResourceSample
from tests.machine import (
    EXACT,
    NOW,
    PAUSE,
    PROCESS,
    RUN,
    STOP,
    TOKEN,
    Machine,
    assigned,
    checkpoint,
    epoch,
    failure,
    finished,
    order,
    paused,
    pausing,
    progress,
    running,
    snapshot,
)
from worker.words import (
    Advanced,
    CannotGoOn,
    Drop,
    Ended,
    Instruct,
    Kill,
    Launch,
    Launched,
    Measured,
    Ordered,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    WorkerStopping,
)

STARTING, RUNNING, PAUSING = AssignmentStatus.STARTING, AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
PERSISTING, PAUSED, STOPPED = AssignmentStatus.PERSISTING, AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED


def test_a_run_from_its_beginning_to_its_end() -> None:
    machine = Machine(assigned(device_uuids=["GPU-1"]))
    assert (machine.phase, list(machine.held.status.held_device_uuids)) == (STARTING, ["GPU-1"])
    assert machine.recover() == (Prepare(),)
    assert machine(Prepared()) == (Launch(order=order()),)
    assert machine(Launched(process=PROCESS)) == ()
    assert machine.phase == STARTING
    assert machine.tell((0, 1), began=TrainingBegan()) == ()
    assert (machine.phase, machine.reports) == (RUNNING, [])
    assert machine.tell((1, 9), epoch=epoch(1)) == ()
    assert machine.tell((1, 9), snapshot=snapshot(1)) == (Persist(snapshot=snapshot(1)),)
    assert machine(Persisted(checkpoint=checkpoint(1))) == (Drop(snapshot=snapshot(1)),)
    machine.tell((2, 18), epoch=epoch(2))
    machine.tell((2, 18), snapshot=snapshot(2, last=True))
    machine.tell((2, 18), finished=finished())
    assert machine.phase == RUNNING
    assert machine.end() == ()
    assert (machine.phase, list(machine.held.status.held_device_uuids)) == (PERSISTING, [])
    assert machine(Persisted(checkpoint=checkpoint(2))) == (Drop(snapshot=snapshot(2, last=True)),)
    assert machine.phase == SUCCEEDED
    assert machine.kinds == ["epoch", "checkpoint", "epoch", "checkpoint", "exit"]
    assert [report.epoch.attempt for report in machine.reports if report.HasField("epoch")] == [3, 3]
    assert all((report.job, report.token) == ("jobs/a", TOKEN) for report in machine.reports)
    assert (machine.exit.phase, machine.exit.checkpoint) == (SUCCEEDED, checkpoint(2).name)
    assert not machine.exit.HasField("failure")
    assert machine.held.status.progress == progress(2, 18)
    assert machine.held.events_offset == machine.offset


def test_a_task_without_epochs_succeeds_without_a_checkpoint() -> None:
    machine = running()
    machine.tell(finished=finished())
    machine.end()
    assert (machine.exit.phase, machine.exit.checkpoint) == (SUCCEEDED, "")


def test_a_resumed_run_tells_when_and_how_it_went_on() -> None:
    machine = running(assigned(restore=Checkpoint(name="c")))
    assert machine.kinds == ["pause"]
    again = Machine(assigned(restore=Checkpoint(name="c")))
    again(Prepared())
    again(Launched(process=PROCESS))
    again.tell(began=TrainingBegan(verdict=EXACT))
    pause = again.reports[0].pause
    assert (pause.verdict, pause.resume_time.ToDatetime(NOW.tzinfo)) == (EXACT, NOW + timedelta(seconds=10))


def test_a_pause() -> None:
    machine = running()
    machine(Measured(progress=None, usage=ResourceSample(memory_bytes=7)))
    assert machine.order(PAUSE, 2) == (Instruct(order=order(PAUSE, 2)),)
    assert (machine.phase, machine.held.status.observed_generation) == (PAUSING, 2)
    machine.tell((1, 10), epoch=epoch(1))
    machine.tell((1, 10), snapshot=snapshot(1, last=True))
    machine.tell((1, 10), paused=paused())
    assert machine.phase == PAUSING
    machine.end()
    assert machine.phase == PERSISTING
    assert machine.kinds == ["epoch", "pause"]
    pause = machine.reports[1].pause
    assert pause.boundary_time.ToDatetime(NOW.tzinfo) == NOW + timedelta(seconds=5)
    assert pause.snapshot_time.ToDatetime(NOW.tzinfo) == NOW + timedelta(seconds=40)
    assert pause.release_time.ToDatetime(NOW.tzinfo) == NOW + timedelta(seconds=99)
    assert pause.usage.memory_bytes == 7
    machine(Advanced(fraction=0.6))
    assert machine.held.status.persisted_fraction == 0.6
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.kinds == ["epoch", "pause", "checkpoint", "exit"]
    assert (machine.exit.phase, machine.exit.checkpoint) == (PAUSED, checkpoint(1).name)
    assert not machine.held.status.HasField("persisted_fraction")


def test_a_pause_whose_snapshot_is_durable_before_the_process_has_ended() -> None:
    machine = pausing(persist=True)
    assert machine.phase == PAUSING
    machine.end()
    assert machine.kinds == ["checkpoint", "pause", "exit"]
    assert (machine.exit.phase, machine.exit.checkpoint) == (PAUSED, checkpoint(1).name)


def test_the_end_of_a_paused_process_that_nobody_saw_is_still_a_pause() -> None:
    machine = pausing(persist=True)
    machine(Ended(exit=None))
    assert machine.exit.phase == PAUSED
    assert machine.reports[-2].pause.release_time.ToDatetime(NOW.tzinfo) == NOW


def test_a_pause_that_is_taken_back_before_the_boundary() -> None:
    machine = running()
    machine.order(PAUSE, 2)
    assert machine.order(RUN, 3) == (Instruct(order=order(RUN, 3)),)
    assert (machine.phase, machine.held.status.observed_generation) == (RUNNING, 3)


def test_a_pause_that_is_taken_back_after_the_boundary_is_one_all_the_same() -> None:
    machine = pausing()
    assert machine.order(RUN, 3) == (Instruct(order=order(RUN, 3)),)  # the process may not have ended yet
    machine.end()
    assert machine.order(PAUSE, 4) == ()
    assert (machine.phase, machine.held.status.observed_generation) == (PERSISTING, 4)
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.phase == PAUSED


def test_an_order_before_the_launch_is_what_the_process_starts_with() -> None:
    machine = Machine()
    assert machine.order(PAUSE, 2) == ()
    assert machine(Prepared()) == (Launch(order=order(PAUSE, 2)),)
    machine(Launched(process=PROCESS))
    assert machine.phase == STARTING
    machine.tell(began=TrainingBegan())
    assert machine.phase == PAUSING


@pytest.mark.parametrize("generation", [0, 1, 2])
@pytest.mark.parametrize("target", [RUN, PAUSE, STOP])
def test_an_order_that_is_not_newer_changes_nothing(target: Assignment.Target.ValueType, generation: int) -> None:
    machine = running()
    machine.order(PAUSE, 2)
    before = machine.held
    assert machine.order(target, generation) == ()
    assert machine.held == before


def test_an_order_changes_only_what_is_wanted() -> None:
    machine = running(assigned(device_uuids=["GPU-1"]))
    machine(Ordered(assignment=assigned(PAUSE, 2, device_uuids=["GPU-2"])))
    assert list(machine.held.assignment.device_uuids) == ["GPU-1"]


def test_what_is_to_be_stopped_from_the_first_is_not_begun() -> None:
    machine = Machine(assigned(STOP))
    assert (machine.exit.phase, machine.recover()) == (STOPPED, ())


def test_a_stop_while_preparing() -> None:
    machine = Machine()
    assert machine.order(STOP, 2) == ()
    assert (machine.exit.phase, machine.held.status.observed_generation) == (STOPPED, 2)
    assert not machine.exit.HasField("failure")
    assert machine(Prepared()) == ()


def test_a_stop_while_running_gives_up_what_is_not_durable() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    assert machine.order(STOP, 2) == (Kill(),)
    assert machine.phase == RUNNING
    assert machine.recover() == (Kill(), Persist(snapshot=snapshot(1)))
    assert machine.end(-9, killed=True) == (Drop(snapshot=snapshot(1)),)
    assert (machine.exit.phase, machine.exit.code, machine.exit.checkpoint) == (STOPPED, -9, "")
    assert not machine.exit.HasField("failure")
    assert machine(Persisted(checkpoint=checkpoint(1))) == ()


def test_a_stop_while_persisting() -> None:
    machine = pausing()
    machine.end()
    assert machine.order(STOP, 3) == (Drop(snapshot=snapshot(1, last=True)),)
    assert (machine.exit.phase, machine.exit.checkpoint) == (STOPPED, "")


def test_an_attempt_that_cannot_be_carried_on() -> None:
    machine = Machine()
    machine(CannotGoOn(failure=failure(reasons.BUNDLE_UNUSABLE, "it is damaged")))
    assert machine.phase == FAILED
    why = machine.exit.failure
    assert (why.reason, why.message, why.attempt) == (reasons.BUNDLE_UNUSABLE, "it is damaged", 3)
    assert why.time.ToDatetime(NOW.tzinfo) == NOW
    assert machine.held.status.failure == why


def test_a_failure_ends_with_the_place_of_the_log() -> None:
    machine = running()
    machine.tell(failed=failure())
    machine.end(1)
    why = machine.exit.failure
    assert (machine.exit.phase, machine.exit.code, why.reason) == (FAILED, 1, "TRAINING_RAISED")
    assert why.message == "ValueError: no\nThe whole log: /data/logs/a/3.log on workers/w"
    assert machine.held.status.failure == why


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (-9, reasons.PROCESS_KILLED, "SIGKILL"),
        (-11, reasons.PROCESS_KILLED, "SIGSEGV"),
        (-64, reasons.PROCESS_KILLED, "SIGRTMAX"),
        (-99, reasons.PROCESS_KILLED, "signal 99"),
        (3, reasons.PROCESS_ENDED, "exit code 3"),
        (0, reasons.PROCESS_ENDED, "exit code 0"),
        (None, reasons.PROCESS_LOST, "nobody saw it end"),
    ],
)
def test_an_end_without_a_last_word(code: int | None, reason: str, words: str) -> None:
    machine = running()
    if code is None:
        machine(Ended(exit=None))
    else:
        machine.end(code)
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reason)
    assert words in machine.exit.failure.message


def test_what_was_trained_before_a_failure_becomes_durable_first() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine.end(-9)
    assert machine.phase == PERSISTING
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.kinds == ["checkpoint", "exit"]
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reasons.PROCESS_KILLED)
    assert machine.exit.checkpoint == ""


def test_a_pause_whose_snapshot_is_lost_is_none() -> None:
    machine = pausing()
    machine.end()
    lost = failure(reasons.SNAPSHOT_FAILED, "gone")
    assert machine(PersistFailed(failure=lost)) == (Drop(snapshot=snapshot(1, last=True)),)
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reasons.SNAPSHOT_FAILED)


def test_a_pause_whose_snapshot_is_lost_before_training_says_so_is_none() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine(Persisted(checkpoint=checkpoint(1)))
    machine.tell(snapshot=snapshot(2, last=True))
    machine(PersistFailed(failure=failure(reasons.SNAPSHOT_FAILED, "gone")))
    machine.tell(paused=paused())
    machine.end()
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reasons.SNAPSHOT_FAILED)


def test_the_first_failure_is_told() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(failed=failure())
    machine.end(1)
    machine(PersistFailed(failure=failure(reasons.SNAPSHOT_FAILED, "gone")))
    assert machine.exit.failure.reason == "TRAINING_RAISED"


def test_a_second_end_is_not_told() -> None:
    machine = pausing()
    machine.end()
    before = machine.held
    assert machine.end(-9) == ()
    assert machine.held == before


def test_progress_does_not_go_back() -> None:
    machine = running()
    machine(Measured(progress=progress(1, 12), usage=None))
    machine.tell((1, 10), epoch=epoch(1))
    assert machine.held.status.progress == progress(1, 12)
    machine.tell((2, 20), epoch=epoch(2))
    assert machine.held.status.progress == progress(2, 20)


def test_the_worker_stops_while_preparing() -> None:
    machine = Machine()
    assert machine(WorkerStopping()) == ()
    assert (machine.exit.phase, machine.exit.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)


def test_the_worker_stops_while_running() -> None:
    machine = running()
    assert machine(WorkerStopping()) == (Kill(),)
    machine.tell(snapshot=snapshot(1))
    machine.end(-9, killed=True)
    assert machine.phase == PERSISTING
    machine(Persisted(checkpoint=checkpoint(1)))
    assert (machine.exit.phase, machine.exit.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)
    assert "log" not in machine.exit.failure.message


def test_the_worker_stops_while_persisting_and_its_next_start_goes_on() -> None:
    machine = pausing()
    machine.end()
    assert machine(WorkerStopping()) == ()
    assert machine.phase == PERSISTING
    assert machine.recover() == (Persist(snapshot=snapshot(1, last=True)),)
