"""The record of a pause, by itself."""

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, PAUSE_MODE_UNSPECIFIED, Job, JobSpec, Pause
from adjourn_control_plane.job import pauses
from tests.harness.job_life import START, A


def asked(job: Job) -> Job:
    record = JobRecord(job=job)
    pauses.request(record, mode=PAUSE_MODE_UNSPECIFIED, actor="bob", reason="r", now=START)
    return record.job


def test_a_request_opens_a_record() -> None:
    pause = asked(Job(worker=A)).pause
    assert (pause.cause, pause.mode, pause.actor, pause.reason, pause.from_worker) == (Pause.HELD, EPOCH, "bob", "r", A)
    assert pause.request_time.ToDatetime() == START.replace(tzinfo=None)


def test_the_pause_before_moves_to_the_past() -> None:
    job = asked(Job(pause=Pause(reason="first"), past_pauses=[Pause(reason="zeroth")]))
    assert [each.reason for each in (*job.past_pauses, job.pause)] == ["zeroth", "first", "r"]


def test_rest_fills_in_what_nobody_reported() -> None:
    job = asked(Job())
    pauses.rest(job, Checkpoint(name="c", epoch=2, step=20), START)
    assert job.pause.release_time == job.pause.pause_time
    assert (job.pause.checkpoint, job.pause.epoch, job.pause.step) == ("c", 2, 20)


def test_a_reported_release_stays() -> None:
    job = asked(Job())
    job.pause.release_time.FromSeconds(7)
    pauses.rest(job, Checkpoint(), START)
    assert job.pause.release_time.seconds == 7


def test_phases_of_no_pause_are_dropped() -> None:
    job = Job()
    progress_events = Pause()
    progress_events.release_time.FromSeconds(7)
    pauses.merge(job, progress_events)
    assert job == Job()


def test_the_first_step_counts_what_was_saved() -> None:
    job = Job(spec=JobSpec(gpu_count=4))
    job.pause.release_time.FromSeconds(100)
    job.pause.resume_request_time.FromSeconds(150)
    progress_events = Pause(verdict=Pause.EXACT)
    progress_events.resume_time.FromSeconds(160)
    pauses.merge(job, progress_events)
    assert (job.pause.saved_gpu_seconds, job.pause.verdict) == (240, Pause.EXACT)
    progress_events.resume_time.FromSeconds(900)
    pauses.merge(job, progress_events)
    assert job.pause.resume_time.seconds == 160, "a later restart is none of this pause's business"


def test_a_worker_whose_clock_is_behind_saves_nothing_negative() -> None:
    job = Job(spec=JobSpec(gpu_count=1))
    job.pause.release_time.FromSeconds(100)
    job.pause.resume_request_time.FromSeconds(150)
    progress_events = Pause()
    progress_events.resume_time.FromSeconds(90)
    pauses.merge(job, progress_events)
    assert job.pause.saved_gpu_seconds == 0
