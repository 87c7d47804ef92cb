"""PURE. The record of one cycle of pause and resume, filled in as its phases are reached."""

from datetime import datetime, timedelta
from typing import Final

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Pause, PauseMode
from adjourn_control_plane.job import estimates

KEPT: Final = 100
"""Earlier pauses kept in the job; all of them are in its events."""


def request(record: JobRecord, *, mode: PauseMode.ValueType, actor: str, reason: str, now: datetime) -> None:
    """Opens the record of a new pause; the one before it moves to the past."""
    job = record.job
    past = archive(job)
    pause = Pause(cause=Pause.HELD, mode=mode or PauseMode.EPOCH, actor=actor, reason=reason, from_worker=job.worker)
    pause.request_time.FromDatetime(now)
    boundary = estimates.to_boundary(record) if job.worker else None
    if boundary is not None:
        pause.predicted_boundary_time.FromDatetime(now + boundary)
        release = estimates.release_after_boundary(past)
        if release is not None:
            pause.predicted_release_time.FromDatetime(now + boundary + release)
    job.pause.CopyFrom(pause)


def archive(job: Job) -> Pause:
    """Moves the last pause, if there was one, to the past and returns it."""
    past = Pause()
    if job.HasField("pause"):
        past.CopyFrom(job.pause)
        job.past_pauses.append(past)
        del job.past_pauses[:-KEPT]
        job.ClearField("pause")
    return past


def rest(job: Job, checkpoint: Checkpoint, now: datetime) -> None:
    """Notes that the job is at rest, on `checkpoint` if it has one."""
    pause = job.pause
    pause.pause_time.FromDatetime(now)
    if not pause.HasField("release_time"):
        pause.release_time.FromDatetime(now)
    set_checkpoint(pause, checkpoint)


def overtaken(job: Job, checkpoint: Checkpoint) -> None:
    """Notes that training had left, with `checkpoint`, when the pause was taken back."""
    if job.pause.HasField("resume_request_time") and not job.pause.HasField("resume_time"):
        set_checkpoint(job.pause, checkpoint)
        job.pause.note = "resumed after training had left"


def set_checkpoint(pause: Pause, checkpoint: Checkpoint) -> None:
    pause.checkpoint, pause.epoch, pause.step = checkpoint.name, checkpoint.epoch, checkpoint.step


def merge(job: Job, progress_events: Pause) -> None:
    """Takes over the phases that a worker reports, and what follows from them."""
    if progress_events.HasField("resume_time"):
        resumed(job, progress_events)
    elif job.HasField("pause"):
        job.pause.MergeFrom(progress_events)


def resumed(job: Job, progress_events: Pause) -> None:
    """Closes the pause that the attempt went on from; a restart after a failure closes none."""
    for pause in (job.pause, *job.past_pauses[-1:]):  # the next pause may have been asked for already
        left = pause.HasField("release_time") and pause.HasField("resume_request_time")
        if left and not pause.HasField("resume_time"):
            pause.MergeFrom(progress_events)
            idle = pause.resume_time.ToDatetime() - pause.release_time.ToDatetime()
            pause.saved_gpu_seconds = max(idle, timedelta()).total_seconds() * job.spec.gpu_count
            return
