"""The machine of an assignment: snapshots on their way, and what a successor does about them."""

import pytest

from adjourn import reasons
from adjourn.internal.v1.trainer_pb2 import Snapshot, TrainingEvent
from adjourn.v1.agent_service_pb2 import AssignmentStatus
from adjourn_worker.attempt.events import (
    Advanced,
    Drop,
    Ended,
    Event,
    Kill,
    Launched,
    Measured,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    SetDesired,
    Told,
    WorkerStopping,
)
from tests.harness.attempt_driver import (
    PAUSE,
    PROCESS,
    STOP,
    Machine,
    assigned,
    checkpoint,
    failure,
    finished,
    order,
    pausing,
    running,
    snapshot,
)


def waiting(machine: Machine) -> list[int]:
    return [item.sequence for item in machine.held.snapshots]


def test_one_snapshot_is_persisted_at_a_time_and_only_the_newest_waits() -> None:
    machine = running()
    assert machine.tell(snapshot=snapshot(1)) == (Persist(snapshot=snapshot(1)),)
    assert machine.tell(snapshot=snapshot(2)) == ()
    last = snapshot(3, last=True)
    assert machine.tell(snapshot=last) == (Drop(snapshot=snapshot(2)),)
    assert waiting(machine) == [1, 3]
    assert machine(Persisted(checkpoint=checkpoint(1))) == (Drop(snapshot=snapshot(1)), Persist(snapshot=last))
    assert machine(Persisted(checkpoint=checkpoint(3))) == (Drop(snapshot=last),)
    assert (waiting(machine), machine.held.persisted) == ([], checkpoint(3))
    assert [report.checkpoint.epoch for report in machine.reports] == [1, 3]


def test_a_periodic_snapshot_that_cannot_be_persisted_costs_nothing_but_itself() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine.tell(snapshot=snapshot(2))
    gone = PersistFailed(failure=failure(reasons.SNAPSHOT_FAILED, "gone"))
    assert machine(gone) == (Drop(snapshot=snapshot(1)), Persist(snapshot=snapshot(2)))
    assert machine(gone) == (Drop(snapshot=snapshot(2)),)
    assert (machine.phase, machine.reports) == (AssignmentStatus.RUNNING, [])
    machine.tell(snapshot=snapshot(3, last=True))
    machine.tell(finished=finished())
    machine.end()
    machine(Persisted(checkpoint=checkpoint(3)))
    assert machine.exit.phase == AssignmentStatus.SUCCEEDED


def test_all_waiting_snapshots_become_durable_before_the_exit_is_told() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine.tell(snapshot=snapshot(2, last=True))
    machine.tell(finished=finished())
    machine.end()
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.phase == AssignmentStatus.PERSISTING
    machine(Persisted(checkpoint=checkpoint(2)))
    assert machine.kinds == ["checkpoint", "checkpoint", "exit"]


def test_how_far_persisting_is_shows_only_once_the_process_is_gone() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine(Advanced(fraction=0.5))
    assert not machine.held.status.HasField("persisted_fraction")


def test_a_new_assignment_is_prepared_again() -> None:
    machine = Machine()
    assert machine.recover() == (Prepare(),)
    machine(Prepared())
    assert machine.recover() == (Prepare(),)


def test_a_living_process_is_told_again_what_it_should_do() -> None:
    machine = Machine()
    machine(Prepared())
    machine(Launched(process=PROCESS))
    assert machine.recover() == (SetDesired(order=order()),)
    machine.order(PAUSE, 2)
    assert machine.recover() == (SetDesired(order=order(PAUSE, 2)),)
    machine.order(STOP, 3)
    assert machine.recover() == (Kill(),)


def test_persisting_goes_on_with_the_first_snapshot() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine.tell(snapshot=snapshot(2))
    assert machine.recover() == (SetDesired(order=order()), Persist(snapshot=snapshot(1)))
    machine.end(1)
    assert machine.recover() == (Persist(snapshot=snapshot(1)),)


def test_a_slot_is_given_back_again_until_it_is_used_again() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine(Persisted(checkpoint=checkpoint(1)))
    machine.tell(snapshot=snapshot(2))
    machine(Persisted(checkpoint=checkpoint(2)))
    assert machine.recover() == (Drop(snapshot=snapshot(1)), Drop(snapshot=snapshot(2)), SetDesired(order=order()))
    machine.tell(snapshot=snapshot(3))
    assert machine.recover() == (Drop(snapshot=snapshot(2)), SetDesired(order=order()), Persist(snapshot=snapshot(3)))


@pytest.mark.parametrize("phase", ["PAUSED", "STOPPED", "SUCCEEDED", "FAILED"])
def test_what_is_over_is_over(phase: str) -> None:
    machine = pausing(persist=True)
    machine.end()
    machine.held.status.phase = AssignmentStatus.Phase.Value(phase)
    before, said = machine.held, len(machine.reports)
    assert machine.recover() == ()
    late: list[Event] = [
        Prepared(),
        Launched(process=PROCESS),
        Told(event=TrainingEvent(snapshot=Snapshot(sequence=9)), offset=999),
        Measured(progress=None, usage=None),
        Advanced(fraction=1),
        Persisted(checkpoint=checkpoint(9)),
        PersistFailed(failure=failure()),
        Ended(exit=None),
        WorkerStopping(),
    ]
    for event in late:
        assert machine(event) == ()
    assert machine.order(STOP, 99) == ()
    assert machine.held == before
    assert len(machine.reports) == said


def test_a_machine_is_what_its_journal_says() -> None:
    machine = running(assigned(PAUSE, 4))
    machine.tell((3, 4), snapshot=snapshot(1))
    parsed = type(machine.held).FromString(machine.held.SerializeToString())
    assert parsed == machine.held
