"""What becomes of an attempt that is to pause at its newest checkpoint: mode LATEST."""

from typing import Any

from adjourn import reasons
from adjourn.desired_state import DesiredState
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import LATEST, STEP, Failure, JobSpec, Pause
from adjourn_worker.attempt.events import (
    BoundaryFound,
    CannotGoOn,
    Ended,
    FoundHanging,
    FoundSuspended,
    GpusReleased,
    Kill,
    Launched,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    SetDesired,
    StillHanging,
    WorkerStopping,
)
from tests.harness.attempt_driver import (
    NOW,
    PAUSE,
    PROCESS,
    RUN,
    STOP,
    AttemptDriver,
    assigned,
    checkpoint,
    failure,
    finished,
    paused,
    running,
    snapshot,
)

BEGAN_WITH = Checkpoint(name="jobs/a/checkpoints/2-eeeeeeee-7", epoch=7, step=70)


def killed(**fields: Any) -> AttemptDriver:
    """Returns a machine that was told to give up what it has not saved; its process is about to be gone."""
    attempt = running(assigned(restore=BEGAN_WITH, **fields))
    assert Kill() in attempt.order(PAUSE, 2, LATEST)
    return attempt


def rest(attempt: AttemptDriver) -> str:
    """Returns the checkpoint that an attempt has come to rest on."""
    assert attempt.exit.phase == AssignmentStatus.PAUSED
    assert not attempt.exit.HasField("failure")
    return attempt.exit.checkpoint


def pause_of(attempt: AttemptDriver) -> Pause:
    return next(report.pause for report in attempt.reports if report.pause.HasField("release_time"))


def test_it_is_killed_and_rests_on_what_it_began_with() -> None:
    attempt = killed()
    assert (attempt.phase, attempt.held.status.observed_generation) == (AssignmentStatus.PAUSING, 2)
    attempt.end(-9, killed=True)
    assert rest(attempt) == BEGAN_WITH.name
    assert not pause_of(attempt).HasField("boundary_time"), "it came to none"


def test_what_it_has_made_durable_is_newer_than_what_it_began_with() -> None:
    attempt = running(assigned(restore=BEGAN_WITH))
    attempt.tell((8, 80), snapshot=snapshot(1))
    attempt(Persisted(checkpoint=checkpoint(1)))
    attempt.order(PAUSE, 2, LATEST)
    attempt.end(-9, killed=True)
    assert rest(attempt) == checkpoint(1).name


def test_snapshots_that_were_taken_are_made_durable_first() -> None:
    attempt = running(assigned(restore=BEGAN_WITH))
    attempt.tell((8, 80), snapshot=snapshot(1))
    attempt.order(PAUSE, 2, LATEST)
    attempt.tell((9, 90), snapshot=snapshot(2))  # it was written before the process was gone
    attempt.end(-9, killed=True)
    assert attempt.phase == AssignmentStatus.PERSISTING
    assert list(attempt(Persisted(checkpoint=checkpoint(1))))[-1] == Persist(snapshot=snapshot(2))
    attempt(Persisted(checkpoint=checkpoint(2)))
    assert rest(attempt) == checkpoint(2).name
    assert attempt.kinds[-3:] == ["checkpoint", "checkpoint", "exit"]


def test_its_gpus_are_free_before_that() -> None:
    attempt = killed(device_uuids=["GPU-1"])
    attempt.tell((8, 80), snapshot=snapshot(1))
    attempt.end(-9, killed=True)
    assert attempt.phase == AssignmentStatus.PAUSING
    attempt(GpusReleased(time=NOW, memory_bytes=None))
    assert attempt.phase == AssignmentStatus.PERSISTING
    assert pause_of(attempt).release_time.ToDatetime(NOW.tzinfo) == NOW


def test_the_next_agent_goes_on_with_it() -> None:
    attempt = killed()
    assert list(attempt.recover()) == [Kill()]
    attempt.order(RUN, 3)
    assert list(attempt.recover()) == [Kill()], "it cannot be taken back"
    attempt.end(-9, killed=True)
    assert rest(attempt) == BEGAN_WITH.name


def test_an_end_that_nobody_saw_is_the_end_that_was_wanted() -> None:
    attempt = killed()
    attempt(Ended(exit=None))
    assert rest(attempt) == BEGAN_WITH.name


def test_what_had_not_been_launched_rests_at_once() -> None:
    attempt = AttemptDriver(assigned(restore=BEGAN_WITH))
    assert list(attempt.recover()) == [Prepare()]
    assert list(attempt.order(PAUSE, 2, LATEST)) == []
    assert rest(attempt) == BEGAN_WITH.name
    handed_out_so = AttemptDriver(assigned(PAUSE, 1, LATEST, restore=BEGAN_WITH))
    assert rest(handed_out_so) == BEGAN_WITH.name


def test_without_any_checkpoint_it_is_stopped_without_one() -> None:
    attempt = running()
    attempt.order(PAUSE, 2, LATEST)
    attempt.end(-9, killed=True)
    assert (attempt.exit.phase, attempt.exit.HasField("failure")) == (AssignmentStatus.STOPPED, False)
    unlaunched = AttemptDriver(assigned(PAUSE, 1, LATEST))
    assert unlaunched.exit.phase == AssignmentStatus.STOPPED


def test_a_run_that_had_finished_has_succeeded() -> None:
    attempt = killed()
    attempt.tell((9, 90), snapshot=snapshot(1, last=True))
    attempt.tell((9, 90), finished=finished())
    attempt.end(0)
    attempt(Persisted(checkpoint=checkpoint(1)))
    assert (attempt.exit.phase, attempt.exit.checkpoint) == (AssignmentStatus.SUCCEEDED, checkpoint(1).name)


def test_training_that_had_paused_rests_at_its_boundary() -> None:
    attempt = running(assigned(restore=BEGAN_WITH))
    attempt.order(PAUSE, 2)
    attempt.tell((8, 80), snapshot=snapshot(1, last=True))
    attempt.tell((8, 80), paused=paused())
    assert Kill() in attempt.order(PAUSE, 3, LATEST)
    attempt.end(-9, killed=True)
    attempt(Persisted(checkpoint=checkpoint(1)))
    assert rest(attempt) == checkpoint(1).name
    assert pause_of(attempt).HasField("boundary_time")


def test_training_that_had_failed_has_failed() -> None:
    attempt = killed()
    attempt.tell(failed=failure())
    attempt.end(1)
    assert attempt.exit.failure.reason == reasons.TRAINING_RAISED


def test_what_has_left_goes_on_to_its_end() -> None:
    attempt = running(assigned(restore=BEGAN_WITH))
    attempt.order(PAUSE, 2)
    attempt.tell((8, 80), snapshot=snapshot(1, last=True))
    attempt.tell((8, 80), paused=paused())
    attempt.end()
    assert list(attempt.order(PAUSE, 3, LATEST)) == []
    attempt(Persisted(checkpoint=checkpoint(1)))
    assert rest(attempt) == checkpoint(1).name


def test_a_process_that_hangs_or_is_suspended_is_killed_too() -> None:
    for found in (FoundHanging(message="m"), FoundSuspended(message="m")):
        attempt = running(assigned(restore=BEGAN_WITH, spec=JobSpec(hang_policy=JobSpec.REPORT)))
        attempt(found)
        assert Kill() in attempt.order(PAUSE, 2, LATEST)
        assert list(attempt(StillHanging(message="m"))) == [Kill()]
        attempt.end(-9, killed=True)
        assert rest(attempt) == BEGAN_WITH.name, "that it hung is no failure of what was given up"


def test_the_newest_snapshot_is_tried_again_until_it_is_durable() -> None:
    attempt = running(assigned(restore=BEGAN_WITH))
    attempt.tell((8, 80), snapshot=snapshot(1))
    attempt.order(PAUSE, 2, LATEST)
    attempt.end(-9, killed=True)
    again = PersistFailed(failure=Failure(reason=reasons.SNAPSHOT_FAILED), lost=False)
    assert list(attempt(again)) == [Persist(snapshot=snapshot(1), again=True)]
    gone = PersistFailed(failure=Failure(reason=reasons.SNAPSHOT_FAILED), lost=True)
    attempt(gone)
    assert rest(attempt) == BEGAN_WITH.name


def test_an_attempt_that_is_not_alone_is_fenced() -> None:
    attempt = killed()
    attempt.tell((8, 80), snapshot=snapshot(1))
    attempt.end(-9, killed=True)
    attempt(PersistFailed(failure=Failure(reason=reasons.FENCED), lost=False))
    assert attempt.exit.failure.reason == reasons.FENCED


def test_files_that_cannot_be_read_end_it() -> None:
    attempt = killed()
    attempt(CannotGoOn(failure=failure()))
    assert attempt.exit.phase == AssignmentStatus.FAILED


def test_a_stop_after_it_stops_it() -> None:
    attempt = killed()
    attempt.tell((8, 80), snapshot=snapshot(1))
    assert list(attempt.order(STOP, 3)) == [Kill()]
    attempt.end(-9, killed=True)
    assert attempt.exit.phase == AssignmentStatus.STOPPED


def test_a_worker_that_is_stopped_meanwhile_rests_all_the_same() -> None:
    attempt = killed()
    assert list(attempt(WorkerStopping())) == [Kill()]
    attempt.end(-9, killed=True)
    assert rest(attempt) == BEGAN_WITH.name


def test_a_pause_after_the_step_is_told_to_training_and_names_no_epoch() -> None:
    attempt = AttemptDriver(assigned(spec=JobSpec(total_epochs=9)))
    attempt(Prepared())
    attempt(Launched(process=PROCESS))
    attempt.order(PAUSE, 2)
    attempt(BoundaryFound(epoch=3))
    assert attempt.held.status.pause_epoch == 3
    desired = DesiredState(generation=3, target=Assignment.PAUSE, mode=STEP)
    assert list(attempt.order(PAUSE, 3, STEP)) == [SetDesired(desired=desired)]
    attempt(BoundaryFound(epoch=3))
    assert attempt.held.status.pause_epoch == 0
