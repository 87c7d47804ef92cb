"""The machine of an assignment."""

from datetime import timedelta

import pytest

from adjourn import reasons
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import Snapshot, SnapshotFailed, TrainingBegan, TrainingEvent
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, ConditionChange
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, JobSpec, PauseMode
from adjourn.v1.usage_pb2 import GpuSample, ResourceSample
from adjourn_worker.attempt.events import (
    Advanced,
    AssignmentChanged,
    BoundaryFound,
    CannotGoOn,
    ConditionChanged,
    ConfirmRelease,
    Drop,
    Ended,
    Event,
    EventRead,
    GpusReleased,
    Kill,
    Launch,
    Launched,
    Measured,
    PauseByItself,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    Reached,
    SetDesired,
    WorkerStopping,
)
from tests.harness.attempt_driver import (
    EXACT,
    NOW,
    PAUSE,
    PROCESS,
    RUN,
    STOP,
    TOKEN,
    AttemptDriver,
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

STARTING, RUNNING, PAUSING = AssignmentStatus.STARTING, AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
PERSISTING, PAUSED, STOPPED = AssignmentStatus.PERSISTING, AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED


ALONE = PauseByItself(why=failure(reasons.WORKER_OUT_OF_CONTACT, "nobody speaks"))
BY_ITSELF = DesiredState(generation=1, target=PAUSE, mode=PauseMode.EPOCH)

# Its life, and the orders that change it.


def test_a_run_from_its_beginning_to_its_end() -> None:
    machine = AttemptDriver(assigned(device_uuids=["GPU-1"]))
    assert (machine.phase, list(machine.held.status.held_device_uuids)) == (STARTING, ["GPU-1"])
    assert machine.recover() == (Prepare(),)
    assert machine(Prepared()) == (Launch(desired=order()),)
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
    assert machine.end() == (ConfirmRelease(before=()),)
    assert machine(GpusReleased(time=NOW, memory_bytes=None)) == ()
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
    again = AttemptDriver(assigned(restore=Checkpoint(name="c")))
    again(Prepared())
    again(Launched(process=PROCESS))
    again.tell(began=TrainingBegan(verdict=EXACT))
    pause = again.reports[0].pause
    assert (pause.verdict, pause.resume_time.ToDatetime(NOW.tzinfo)) == (EXACT, NOW + timedelta(seconds=10))


def used(second: int) -> Measured:
    sample = ResourceSample(memory_bytes=second)
    sample.time.FromDatetime(NOW + timedelta(seconds=second))
    return Measured(progress=None, usage=sample)


@pytest.mark.parametrize(
    ("samples", "told"),
    [(range(1, 5), 4), (range(1, 100), 1), (range(1, 8), 5), (range(6, 8), None)],
    ids=["all before", "many while the snapshot was taken", "some after", "none before"],
)
def test_a_pause_tells_what_was_used_last_before_its_boundary(samples: range, told: int | None) -> None:
    """The boundary is at second 5, and known only when the snapshot is there."""
    machine = running()
    machine.order(PAUSE, 2)
    for second in samples:
        machine(used(second))
    machine.tell((1, 10), epoch=epoch(1))
    machine.tell((1, 10), snapshot=snapshot(1, last=True))
    machine.tell((1, 10), paused=paused())
    machine.end()
    usage = machine.reports[1].pause.usage
    assert (usage.memory_bytes if usage.HasField("memory_bytes") else None) == told


def test_a_pause() -> None:
    machine = running()
    machine(Measured(progress=None, usage=ResourceSample(memory_bytes=7)))
    assert machine.order(PAUSE, 2) == (SetDesired(desired=order(PAUSE, 2)),)
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
    assert machine.order(RUN, 3) == (SetDesired(desired=order(RUN, 3)),)
    assert (machine.phase, machine.held.status.observed_generation) == (RUNNING, 3)


def test_a_pause_that_is_taken_back_after_the_boundary_is_one_all_the_same() -> None:
    machine = pausing()
    assert machine.order(RUN, 3) == (SetDesired(desired=order(RUN, 3)),)  # the process may not have ended yet
    machine.end()
    assert machine.order(PAUSE, 4) == ()
    assert (machine.phase, machine.held.status.observed_generation) == (PERSISTING, 4)
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.phase == PAUSED


def test_where_it_pauses_is_told_for_as_long_as_it_is_so() -> None:
    machine = running(assigned(spec=JobSpec(total_epochs=5)))
    machine(BoundaryFound(epoch=1))
    assert machine.held.status.pause_epoch == 0, "nobody wants it to pause"
    machine.order(PAUSE, 2)
    machine(BoundaryFound(epoch=6))
    assert machine.held.status.pause_epoch == 0, "no run goes beyond its end"
    for epoch_found in (1, 2):  # the second, because the first could not be saved
        machine(BoundaryFound(epoch=epoch_found))
        assert machine.held.status.pause_epoch == epoch_found
    machine.order(RUN, 3)
    assert machine.held.status.pause_epoch == 0
    machine.order(PAUSE, 4)
    machine(BoundaryFound(epoch=3))
    machine.order(PAUSE, 6)
    assert machine.held.status.pause_epoch == 0, "it may have trained on in between"
    machine(BoundaryFound(epoch=4))
    machine.tell((4, 40), snapshot=snapshot(1, last=True))
    machine.tell((4, 40), paused=paused())
    machine.end()
    assert (machine.phase, machine.held.status.pause_epoch) == (PERSISTING, 4)


@pytest.mark.parametrize("event", [Ended(exit=None), CannotGoOn(failure=failure())])
def test_where_it_would_have_paused_is_not_told_of_training_that_has_failed(event: Event) -> None:
    machine = running(assigned(PAUSE, spec=JobSpec(total_epochs=5)))
    machine.tell((1, 10), snapshot=snapshot(1))
    machine(BoundaryFound(epoch=2))
    assert machine.held.status.pause_epoch == 2
    machine(event)
    assert machine.held.status.pause_epoch == 0


def test_out_of_contact_where_it_pauses_is_not_told() -> None:
    machine = running(assigned(spec=JobSpec(total_epochs=5)))
    machine(ALONE)
    machine(BoundaryFound(epoch=1))
    assert machine.held.status.pause_epoch == 0, "there is no pause that it would be the epoch of"


def test_out_of_contact_it_pauses_at_its_boundary_and_says_why_nobody_asked_for_that() -> None:
    machine = running(assigned(device_uuids=["GPU-1"]))
    assert machine(ALONE) == (SetDesired(desired=BY_ITSELF),)
    assert machine.phase == PAUSING
    assert machine(ALONE) == ()
    assert machine.recover() == (SetDesired(desired=BY_ITSELF),), "a successor of the agent goes on with it"
    machine.tell((1, 10), snapshot=snapshot(1, last=True))
    machine.tell((1, 10), paused=paused())
    assert machine.end() == (ConfirmRelease(before=()),)
    machine(GpusReleased(time=NOW, memory_bytes=None))
    assert (machine.phase, list(machine.held.status.held_device_uuids)) == (PERSISTING, [])
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.kinds == ["checkpoint", "exit"], "of no pause that anybody asked for"
    how = machine.exit
    assert (how.phase, how.checkpoint) == (PAUSED, checkpoint(1).name)
    assert (how.failure.reason, how.failure.message) == (reasons.WORKER_OUT_OF_CONTACT, "nobody speaks")


def test_contact_before_the_boundary_has_training_go_on() -> None:
    machine = running()
    machine(ALONE)
    assert machine(Reached()) == (SetDesired(desired=order()),)
    assert machine.phase == RUNNING
    assert machine(Reached()) == ()
    machine.tell((1, 10), snapshot=snapshot(1))
    assert machine.recover()[0] == SetDesired(desired=order())


def test_contact_after_the_boundary_does_not_hide_why_it_paused() -> None:
    machine = running()
    machine(ALONE)
    machine.tell((1, 10), snapshot=snapshot(1, last=True))
    machine.tell((1, 10), paused=paused())
    assert machine(Reached()) == ()
    machine.end()
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.failure.reason == reasons.WORKER_OUT_OF_CONTACT


def test_a_pause_that_was_asked_for_after_training_had_left_by_itself_is_one() -> None:
    machine = running()
    machine(ALONE)
    machine.tell((1, 10), snapshot=snapshot(1, last=True))
    machine.tell((1, 10), paused=paused())
    machine.order(PAUSE, 2)
    machine(Reached())
    machine.end()
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.kinds == ["pause", "checkpoint", "exit"]
    assert not machine.exit.HasField("failure")


def test_out_of_contact_what_is_to_pause_or_stop_hears_nothing_new() -> None:
    machine = running()
    machine.order(PAUSE, 2)
    assert machine(ALONE) == ()
    assert machine(Reached()) == ()
    assert machine.order(STOP, 3) == (Kill(),)
    assert machine(ALONE) == ()


def test_what_is_launched_out_of_contact_pauses_at_its_first_boundary() -> None:
    machine = AttemptDriver()
    assert machine(ALONE) == ()
    assert machine(Prepared()) == (Launch(desired=BY_ITSELF),)


def test_an_order_before_the_launch_is_what_the_process_starts_with() -> None:
    machine = AttemptDriver()
    assert machine.order(PAUSE, 2) == ()
    assert machine(Prepared()) == (Launch(desired=order(PAUSE, 2)),)
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
    machine(AssignmentChanged(assignment=assigned(PAUSE, 2, device_uuids=["GPU-2"])))
    assert list(machine.held.assignment.device_uuids) == ["GPU-1"]


def test_progress_does_not_go_back() -> None:
    machine = running()
    machine(Measured(progress=progress(1, 12), usage=None))
    machine.tell((1, 10), epoch=epoch(1))
    assert machine.held.status.progress == progress(1, 12)
    machine.tell((2, 20), epoch=epoch(2))
    assert machine.held.status.progress == progress(2, 20)


# How it ends when it neither pauses nor finishes.


def test_what_is_to_be_stopped_from_the_first_is_not_begun() -> None:
    machine = AttemptDriver(assigned(STOP))
    assert (machine.exit.phase, machine.recover()) == (STOPPED, ())


def test_a_stop_while_preparing() -> None:
    machine = AttemptDriver()
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
    machine = AttemptDriver()
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
    assert why.message == "ValueError: no\nThe whole log: adjourn logs a --attempt 3"


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


@pytest.mark.parametrize(("killed", "reason"), [(False, reasons.OUT_OF_MEMORY), (True, reasons.WORKER_STOPPED)])
def test_an_end_while_memory_had_run_out(killed: bool, reason: str) -> None:
    machine = running()
    machine.end(-9, killed=killed, out_of_memory=True)
    assert machine.exit.failure.reason == reason


@pytest.mark.parametrize(("spoke", "reason"), [(False, reasons.NO_SPACE), (True, reasons.PROCESS_ENDED)])
def test_an_end_for_lack_of_room_is_the_worker_s_alone_if_training_had_not_begun(spoke: bool, reason: str) -> None:
    machine = AttemptDriver(assigned())
    machine(Prepared(gpus=()))
    machine(Launched(process=PROCESS))
    if spoke:
        machine.tell(epoch=epoch(1))
    machine.end(122, no_room=True)
    assert machine.exit.failure.reason == reason


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
    assert machine(PersistFailed(failure=lost, lost=True)) == (Drop(snapshot=snapshot(1, last=True)),)
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reasons.SNAPSHOT_FAILED)


def test_a_pause_whose_snapshot_is_lost_before_training_says_so_is_none() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine(Persisted(checkpoint=checkpoint(1)))
    machine.tell(snapshot=snapshot(2, last=True))
    machine(PersistFailed(failure=failure(reasons.SNAPSHOT_FAILED, "gone"), lost=True))
    machine.tell(paused=paused())
    machine.end()
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reasons.SNAPSHOT_FAILED)


def test_the_first_failure_is_told() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(failed=failure())
    machine.end(1)
    machine(PersistFailed(failure=failure(reasons.SNAPSHOT_FAILED, "gone"), lost=True))
    assert machine.exit.failure.reason == "TRAINING_RAISED"


def test_a_second_end_is_not_told() -> None:
    machine = pausing()
    machine.end()
    before = machine.held
    assert machine.end(-9) == ()
    assert machine.held == before


def test_the_worker_stops_while_preparing() -> None:
    machine = AttemptDriver()
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


# Snapshots on their way, and what an agent that takes over does about them.


def waiting(machine: AttemptDriver) -> list[int]:
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
    gone = PersistFailed(failure=failure(reasons.SNAPSHOT_FAILED, "gone"), lost=True)
    assert machine(gone) == (Drop(snapshot=snapshot(1)), Persist(snapshot=snapshot(2)))
    assert machine(gone) == (Drop(snapshot=snapshot(2)),)
    assert (machine.phase, machine.kinds) == (RUNNING, ["condition"])
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
    machine = AttemptDriver()
    assert machine.recover() == (Prepare(),)
    machine(Prepared())
    assert machine.recover() == (Prepare(),)


def test_a_living_process_is_told_again_what_it_should_do() -> None:
    machine = AttemptDriver()
    machine(Prepared())
    machine(Launched(process=PROCESS))
    assert machine.recover() == (SetDesired(desired=order()),)
    machine.order(PAUSE, 2)
    assert machine.recover() == (SetDesired(desired=order(PAUSE, 2)),)
    machine.order(STOP, 3)
    assert machine.recover() == (Kill(),)


def test_persisting_goes_on_with_the_first_snapshot() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine.tell(snapshot=snapshot(2))
    assert machine.recover() == (SetDesired(desired=order()), Persist(snapshot=snapshot(1)))
    machine.end(1)
    assert machine.recover() == (Persist(snapshot=snapshot(1)),)


def test_a_slot_is_given_back_again_until_it_is_used_again() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine(Persisted(checkpoint=checkpoint(1)))
    machine.tell(snapshot=snapshot(2))
    machine(Persisted(checkpoint=checkpoint(2)))
    assert machine.recover() == (Drop(snapshot=snapshot(1)), Drop(snapshot=snapshot(2)), SetDesired(desired=order()))
    machine.tell(snapshot=snapshot(3))
    assert machine.recover() == (Drop(snapshot=snapshot(2)), SetDesired(desired=order()), Persist(snapshot=snapshot(3)))


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
        EventRead(event=TrainingEvent(snapshot=Snapshot(sequence=9)), offset=999),
        Measured(progress=None, usage=None),
        Advanced(fraction=1),
        Persisted(checkpoint=checkpoint(9)),
        PersistFailed(failure=failure(), lost=True),
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


# GPUs.


GPU = ["GPU-1"]
BEFORE = (GpuSample(uuid="GPU-1", memory_used_bytes=100),)


def training_on_gpus() -> AttemptDriver:
    """Returns a machine whose process trains on a GPU and uses memory there."""
    machine = AttemptDriver(assigned(device_uuids=GPU))
    machine(Prepared(gpus=BEFORE))
    machine(Launched(process=PROCESS))
    machine.tell(began=TrainingBegan())
    usage = ResourceSample(gpus=[GpuSample(uuid="GPU-1", memory_used_bytes=5_100)])
    machine(Measured(progress=None, usage=usage))
    return machine


def released(seconds: int = 120, memory_bytes: int | None = 150) -> GpusReleased:
    return GpusReleased(time=NOW + timedelta(seconds=seconds), memory_bytes=memory_bytes)


def test_a_pause_lets_go_of_its_gpus_when_their_memory_is_free() -> None:
    machine = training_on_gpus()
    machine.order(PAUSE, 2)
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(paused=paused())
    assert machine.end() == (ConfirmRelease(before=BEFORE),)
    assert (machine.phase, list(machine.held.status.held_device_uuids), machine.kinds) == (PAUSING, GPU, [])
    assert machine.recover() == (ConfirmRelease(before=BEFORE), Persist(snapshot=snapshot(1, last=True)))
    machine(released())
    assert (machine.phase, list(machine.held.status.held_device_uuids)) == (PERSISTING, [])
    pause = machine.reports[0].pause
    assert pause.release_time.ToDatetime(NOW.tzinfo) == NOW + timedelta(seconds=120)
    assert pause.released_gpu_memory_bytes == 4_950
    assert machine(released()) == ()
    assert machine.kinds == ["pause"]


def test_what_nvml_does_not_tell_is_not_reported_as_released() -> None:
    machine = training_on_gpus()
    machine.tell(paused=paused())
    machine.end()
    machine(released(memory_bytes=None))
    assert not machine.reports[0].pause.HasField("released_gpu_memory_bytes")


def test_a_pause_whose_checkpoint_is_durable_first_still_waits_for_its_gpus() -> None:
    machine = training_on_gpus()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(paused=paused())
    machine.end()
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.kinds == ["checkpoint"]
    machine(released())
    assert machine.kinds == ["checkpoint", "pause", "exit"]
    assert machine.exit.phase == PAUSED


@pytest.mark.parametrize("last", ["finished", "failed", "nothing"])
def test_a_run_that_ends_lets_go_of_its_gpus_before_the_upload(last: str) -> None:
    machine = training_on_gpus()
    machine.tell(snapshot=snapshot(1, last=last == "finished"))
    if last == "finished":
        machine.tell(finished=finished())
    elif last == "failed":
        machine.tell(failed=failure())
    machine.end()
    machine(released())
    assert (machine.phase, list(machine.held.status.held_device_uuids)) == (PERSISTING, [])
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.phase == (SUCCEEDED if last == "finished" else FAILED)


def test_a_stop_is_over_when_the_gpus_are_free() -> None:
    machine = training_on_gpus()
    machine.tell(snapshot=snapshot(1))
    assert machine.order(STOP, 2) == (Kill(),)
    machine.end(-9, killed=True)
    assert machine.order(STOP, 3) == ()
    assert machine.kinds == []
    assert machine(released()) == (Drop(snapshot=snapshot(1)),)
    assert machine.exit.phase == STOPPED


def test_an_attempt_whose_files_are_unusable_is_over_when_the_gpus_are_free() -> None:
    machine = training_on_gpus()
    machine.tell(snapshot=snapshot(1))
    unusable = CannotGoOn(failure=failure(reasons.PROCESS_ENDED, "garbage"))
    assert machine(unusable) == (Drop(snapshot=snapshot(1)), ConfirmRelease(before=BEFORE))
    assert machine(WorkerStopping()) == ()
    assert machine.kinds == []
    machine(released())
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, reasons.PROCESS_ENDED)


def test_why_gpus_are_waited_for_is_a_condition_until_they_are_free() -> None:
    machine = training_on_gpus()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(finished=finished())
    machine.end()
    busy = Condition(type=Condition.GPUS_NOT_RELEASED, reason=reasons.GPU_MEMORY_IN_USE, message="5 GiB")
    machine(ConditionChanged(change=ConditionChange(condition=busy)))
    machine(released())
    assert conditions(machine) == [("GPUS_NOT_RELEASED", reasons.GPU_MEMORY_IN_USE), ("GPUS_NOT_RELEASED", "")]


# Conditions.


def conditions(machine: AttemptDriver) -> list[tuple[str, str]]:
    """Returns type and reason of each condition that was reported; the reason of an end is empty."""
    changes = [report.condition for report in machine.reports if report.HasField("condition")]
    assert all(change.ended == (not change.condition.reason) for change in changes)
    return [(Condition.Type.Name(change.condition.type), change.condition.reason) for change in changes]


def storage_failing(reason: str, message: str = "") -> ConditionChanged:
    condition = Condition(type=Condition.STORAGE_FAILING, reason=reason, message=message)
    return ConditionChanged(change=ConditionChange(condition=condition))


STORAGE_WORKS = ConditionChanged(
    change=ConditionChange(condition=Condition(type=Condition.STORAGE_FAILING), ended=True)
)


def test_a_condition_is_reported_when_it_begins_and_when_it_ends() -> None:
    machine = running()
    machine(storage_failing("A"))
    assert [each.reason for each in machine.held.conditions] == ["A"]
    machine(STORAGE_WORKS)
    assert conditions(machine) == [("STORAGE_FAILING", "A"), ("STORAGE_FAILING", "")]
    assert not machine.held.conditions


def test_a_condition_is_reported_again_when_its_reason_or_words_change_and_keeps_its_time() -> None:
    machine = running()
    for event in (storage_failing("A", "one"), storage_failing("A", "two"), storage_failing("B")):
        machine(event)
    assert conditions(machine) == [("STORAGE_FAILING", "A"), ("STORAGE_FAILING", "A"), ("STORAGE_FAILING", "B")]
    assert [each.time.ToDatetime(NOW.tzinfo) for each in machine.held.conditions] == [NOW]


def test_what_never_began_does_not_end() -> None:
    machine = running()
    machine(STORAGE_WORKS)
    assert machine.reports == []


def fail_snapshot(machine: AttemptDriver, reason: str = "NO_SPACE", *, last: bool = False) -> None:
    machine.tell(snapshot_failed=SnapshotFailed(reason=reason, message="no room", last=last))


def test_a_snapshot_that_could_not_be_taken_is_a_condition_until_the_next_is() -> None:
    machine = running()
    fail_snapshot(machine)
    fail_snapshot(machine)
    assert machine.phase == RUNNING
    machine.tell(snapshot=snapshot(1))
    machine.tell(snapshot=snapshot(2))
    assert conditions(machine) == [("SNAPSHOT_FAILING", "NO_SPACE"), ("SNAPSHOT_FAILING", "")]


def test_a_pause_that_cannot_save_stays_pending_with_the_reason() -> None:
    machine = running()
    machine.order(PAUSE, 2)
    fail_snapshot(machine, last=True)
    assert (machine.phase, conditions(machine)) == (PAUSING, [("SNAPSHOT_FAILING", "NO_SPACE")])
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(paused=paused())
    machine.end()
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.phase == PAUSED


def test_nothing_that_ends_leaves_a_condition() -> None:
    machine = running()
    fail_snapshot(machine)
    machine.end(1)
    assert not machine.held.conditions


# Snapshots that cannot be made durable.


def fault(*, lost: bool = False) -> PersistFailed:
    return PersistFailed(failure=failure("SNAPSHOT_FAILED", "OSError: 5"), lost=lost)


def test_the_last_snapshot_of_a_finished_run_is_tried_until_it_is_durable() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(finished=finished())
    machine.end()
    again = (Persist(snapshot=snapshot(1, last=True), again=True),)
    assert machine(fault()) == machine(fault()) == again
    assert conditions(machine) == [("SNAPSHOT_FAILING", reasons.PERSIST_FAILED)]
    assert machine.recover() == (Persist(snapshot=snapshot(1, last=True)),)
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.phase == SUCCEEDED
    assert conditions(machine)[-1] == ("SNAPSHOT_FAILING", "")


def test_the_last_snapshot_of_a_pause_is_tried_again_while_its_process_lives() -> None:
    machine = running()
    machine.order(PAUSE, 2)
    machine.tell(snapshot=snapshot(1, last=True))
    machine(fault())
    machine.tell(paused=paused())
    machine.end()
    machine(Persisted(checkpoint=checkpoint(1)))
    assert machine.exit.phase == PAUSED


def test_a_finished_run_whose_last_snapshot_is_gone_has_failed() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(finished=finished())
    machine.end()
    machine(fault(lost=True))
    assert (machine.exit.phase, machine.exit.failure.reason) == (FAILED, "SNAPSHOT_FAILED")


@pytest.mark.parametrize("lost", [True, False])
def test_one_of_many_snapshots_that_fails_is_dropped_and_shown_until_one_is_durable(lost: bool) -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    assert machine(fault(lost=lost)) == (Drop(snapshot=snapshot(1)),)
    machine.tell(snapshot=snapshot(2))
    assert conditions(machine) == [("SNAPSHOT_FAILING", reasons.PERSIST_FAILED)]
    machine(Persisted(checkpoint=checkpoint(2)))
    assert conditions(machine)[-1] == ("SNAPSHOT_FAILING", "")


def test_an_older_snapshot_that_becomes_durable_does_not_end_the_condition_of_a_newer() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    fail_snapshot(machine)
    machine(Persisted(checkpoint=checkpoint(1)))
    assert conditions(machine) == [("SNAPSHOT_FAILING", "NO_SPACE")]


TAKEN = PersistFailed(failure=failure("FENCED", "somebody else's manifest"), lost=True)


@pytest.mark.parametrize("last", [False, True])
def test_an_attempt_that_is_not_alone_under_its_token_ends_and_registers_nothing_more(last: bool) -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1))
    machine(Persisted(checkpoint=checkpoint(1)))
    machine.tell(snapshot=snapshot(2, last=last))
    assert Kill() in machine(TAKEN)
    assert machine.recover() == (*(Drop(snapshot=each) for each in machine.held.dropped), Kill())
    assert machine.tell(snapshot=snapshot(3)) == (Drop(snapshot=snapshot(3)),)
    machine.tell(paused=paused())
    machine.end(-9, killed=True)
    assert (machine.phase, machine.exit.failure.reason) == (FAILED, "FENCED")
    assert machine.kinds.count("checkpoint") == 1


def test_an_attempt_that_is_over_but_for_its_snapshot_is_fenced_too() -> None:
    machine = running()
    machine.tell(snapshot=snapshot(1, last=True))
    machine.tell(paused=paused())
    machine.end()
    machine(TAKEN)
    assert (machine.phase, machine.exit.failure.reason, machine.exit.checkpoint) == (FAILED, "FENCED", "")
    assert "checkpoint" not in machine.kinds
