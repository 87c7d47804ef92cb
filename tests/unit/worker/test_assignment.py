"""The machine of an assignment: its life, and the orders that change it."""

from datetime import timedelta

import pytest

from adjourn.internal.v1.trainer_pb2 import TrainingBegan
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn_worker.attempt.events import (
    Advanced,
    Drop,
    Ended,
    Launch,
    Launched,
    Measured,
    Ordered,
    Persist,
    Persisted,
    Prepare,
    Prepared,
    SetDesired,
)
from tests.harness.attempt_driver import (
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
    finished,
    order,
    paused,
    pausing,
    progress,
    running,
    snapshot,
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
    assert machine.order(PAUSE, 2) == (SetDesired(order=order(PAUSE, 2)),)
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
    assert machine.order(RUN, 3) == (SetDesired(order=order(RUN, 3)),)
    assert (machine.phase, machine.held.status.observed_generation) == (RUNNING, 3)


def test_a_pause_that_is_taken_back_after_the_boundary_is_one_all_the_same() -> None:
    machine = pausing()
    assert machine.order(RUN, 3) == (SetDesired(order=order(RUN, 3)),)  # the process may not have ended yet
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


def test_progress_does_not_go_back() -> None:
    machine = running()
    machine(Measured(progress=progress(1, 12), usage=None))
    machine.tell((1, 10), epoch=epoch(1))
    assert machine.held.status.progress == progress(1, 12)
    machine.tell((2, 20), epoch=epoch(2))
    assert machine.held.status.progress == progress(2, 20)
