"""The machine of an assignment: how it ends when it neither pauses nor finishes."""

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus
from adjourn_worker.attempt.events import (
    CannotGoOn,
    Drop,
    Ended,
    Kill,
    Persist,
    Persisted,
    PersistFailed,
    Prepared,
    WorkerStopping,
)
from tests.harness.attempt_driver import (
    NOW,
    STOP,
    Machine,
    assigned,
    checkpoint,
    failure,
    paused,
    pausing,
    running,
    snapshot,
)

STARTING, RUNNING, PAUSING = AssignmentStatus.STARTING, AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
PERSISTING, PAUSED, STOPPED = AssignmentStatus.PERSISTING, AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED


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


def test_a_failure_ends_with_the_place_of_the_log() -> None:
    machine = running()
    machine.tell(failed=failure())
    machine.end(1)
    why = machine.exit.failure
    assert (machine.exit.phase, machine.exit.code, why.reason) == (FAILED, 1, "TRAINING_RAISED")
    assert why.message == "ValueError: no\nThe whole log: /data/logs/a/3.log on workers/w"


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
