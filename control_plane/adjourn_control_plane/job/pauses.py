"""PURE. The record of one cycle of pause and resume. It is filled in as its phases are reached.

Worker and control plane each have a clock. What a worker reports (boundary, snapshot, release) is kept as it is, for
display. What is computed, `saved_gpu_seconds`, comes from the control plane's clock alone.

A pause has one mode, the earliest that was asked for: EPOCH, then STEP, then LATEST. In mode LATEST the worker kills
the training process as soon as it knows. So once it has acknowledged that, training has left.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Pause, PauseMode, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import estimates
from adjourn_control_plane.job.transition import Transition

CANCELLED: Final = "cancelled before it came to rest"
"""Note of a pause whose job was cancelled on its way to the boundary."""
KEPT: Final = 100
"""Earlier pauses that are kept in the job."""


def request(record: JobRecord, *, mode: PauseMode.ValueType, actor: str, reason: str, now: datetime) -> None:
    """Opens the record of a new pause. The one before it moves to the past."""
    job = record.job
    archive(job)
    pause = Pause(cause=Pause.HELD, mode=mode or PauseMode.EPOCH, actor=actor, reason=reason, from_worker=job.worker)
    pause.request_time.FromDatetime(now)
    job.pause.CopyFrom(pause)
    record.ClearField("pause_release_time")
    if job.worker:
        predict(record, now)


def predict(record: JobRecord, now: datetime) -> None:
    """Says when the pause will be or, in mode LATEST, what it will cost."""
    pause = record.job.pause
    for field in ("predicted_boundary_time", "predicted_release_time", "boundary_epoch"):
        pause.ClearField(field)
    if pause.mode == PauseMode.LATEST:
        forecast(record)
        return
    boundary = estimates.to_step(record) if pause.mode == PauseMode.STEP else estimates.to_boundary(record, now=now)
    if boundary is None:
        return
    pause.predicted_boundary_time.FromDatetime(now + boundary)
    release = estimates.to_release(record)
    if release is not None:
        pause.predicted_release_time.FromDatetime(now + boundary + release)


def hasten(transition: Transition, mode: PauseMode.ValueType) -> bool:
    """Makes a pause earlier that has not been reached; returns whether `mode` is earlier than what was asked for."""
    record, job = transition.record, transition.job
    if job.state == Job.PAUSED or mode <= (job.pause.mode or PauseMode.EPOCH):
        return False
    if job.worker and has_left(record):
        return False
    transition.revised = True
    job.pause.mode = mode
    if job.worker:  # else it waits for a worker, and is told there
        record.pause_mode = mode
        transition.set_target(Assignment.PAUSE)
        predict(record, transition.now)
    return True


def has_left(record: JobRecord) -> bool:
    """Returns whether the training process of a pausing job is gone, or its worker is known to kill it."""
    told = record.observed_generation >= record.generation
    return record.released or (record.target == Assignment.PAUSE and record.pause_mode == PauseMode.LATEST and told)


def next_mode(record: JobRecord) -> PauseMode.ValueType:
    """Returns where an attempt is to be interrupted that is to bring about the pause of a job."""
    mode = record.job.pause.mode or PauseMode.EPOCH
    return mode if record.checkpoint.name else min(mode, PauseMode.STEP)  # nothing is there to rest on


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Training that is given up."""

    duration: timedelta
    steps: int


def loss(reached: Progress | Checkpoint, kept: Checkpoint) -> Loss:
    """Returns what is given up of training that had come so far, if it goes on from `kept`."""
    duration = reached.active_duration.ToTimedelta() - kept.active_duration.ToTimedelta()
    return Loss(duration=max(duration, timedelta()), steps=max(reached.step - kept.step, 0))


def tell_loss(pause: Pause, lost: Loss) -> None:
    pause.lost_duration.FromTimedelta(lost.duration)
    pause.lost_steps = lost.steps


def nothing_lost(pause: Pause) -> None:
    for field in ("lost_duration", "lost_steps"):
        pause.ClearField(field)


def forecast(record: JobRecord) -> None:
    """Says on a pause in mode LATEST what it gives up, by what is known now; nothing, once training has paused."""
    pause = record.job.pause
    if pause.mode == PauseMode.LATEST and not pause.HasField("boundary_time"):
        tell_loss(pause, loss(record.job.progress, record.checkpoint))


def came_to_rest(record: JobRecord) -> None:
    """Says on a pause what it gave up, as its attempt has ended with the newest checkpoint."""
    lost = loss(record.job.progress, record.checkpoint)
    if lost.steps:
        tell_loss(record.job.pause, lost)
    elif record.job.pause.mode == PauseMode.LATEST:
        nothing_lost(record.job.pause)


def named(record: JobRecord, epoch: int, now: datetime) -> None:
    """Notes at which epoch the pause will be; 0: that is not known any more.

    When that will be is predicted anew: a boundary may have been passed since the last report before the request.
    """
    pause = record.job.pause
    pause.boundary_epoch = epoch
    boundary = estimates.to_boundary(record, epoch, now) if epoch else None
    if boundary is None:
        return
    if pause.HasField("predicted_release_time"):
        later = now + boundary - pause.predicted_boundary_time.ToDatetime(now.tzinfo)
        pause.predicted_release_time.FromDatetime(pause.predicted_release_time.ToDatetime(now.tzinfo) + later)
    pause.predicted_boundary_time.FromDatetime(now + boundary)


def archive(job: Job) -> None:
    """Moves the last pause, if there was one, to the past."""
    if job.HasField("pause"):
        job.past_pauses.append(job.pause)
        del job.past_pauses[:-KEPT]
        job.ClearField("pause")


def phase_reached(record: JobRecord, phase: Pause, worker: str, now: datetime) -> None:
    """Takes over a phase of the pause that `worker` was asked for. Of another pause it would tell something untrue."""
    pause = record.job.pause
    if not record.job.HasField("pause") or pause.from_worker != worker:
        return
    if record.job.state in (Job.CANCELLING, Job.CANCELLED) and pause.note != CANCELLED:
        return  # it leaves because of the cancel, and the pause is an earlier one
    if pause.HasField("resume_time"):
        return  # the worker has paused by itself, and the pause is an earlier one, which has ended
    pause.MergeFrom(phase)
    estimates.note_errors(pause)
    if phase.HasField("boundary_time") and pause.mode == PauseMode.LATEST:
        nothing_lost(pause)  # it had come there before it was to be killed
    if phase.HasField("release_time") and not record.HasField("pause_release_time"):
        record.pause_release_time.FromDatetime(now)


def rest(record: JobRecord, now: datetime) -> None:
    """Notes that the job is at rest, on its newest checkpoint if it has one."""
    pause = record.job.pause
    pause.pause_time.FromDatetime(now)
    unknown = any(entry.token == record.token for entry in record.unconfirmed_releases)
    if pause.from_worker and not unknown:  # a job that was paused in the queue released nothing
        if not pause.HasField("release_time"):
            pause.release_time.FromDatetime(now)
        if not record.HasField("pause_release_time"):
            record.pause_release_time.FromDatetime(now)
    rest_on(pause, record.checkpoint)


def left_behind_is_gone(record: JobRecord, worker: str, now: datetime) -> None:
    """Notes that the process is gone that a pause had left behind on a worker out of reach.

    With several attempts on one instance of the worker nobody knows which of them the pause left behind: it waits for
    all. So it does for those of an agent that was too old to tell its instance.
    """
    job = record.job
    left = {entry.instance for entry in record.unconfirmed_releases if entry.worker == worker}
    for pause in (*job.past_pauses, job.pause):
        if pause.from_worker != worker or not pause.HasField("pause_time") or pause.HasField("release_time"):
            continue
        if left & {pause.from_instance, ""} or (left and not pause.from_instance):
            continue
        pause.release_time.FromDatetime(now)
        if pause.request_time == job.pause.request_time:
            record.pause_release_time.FromDatetime(now)
        if record.HasField("resumption") and record.resumption.request_time == pause.request_time:
            record.resumption.release_time.FromDatetime(now)


def rest_on(pause: Pause, checkpoint: Checkpoint) -> None:
    """Notes the checkpoint that the pause rests on."""
    pause.checkpoint, pause.epoch, pause.step = checkpoint.name, checkpoint.epoch, checkpoint.step
    pause.checkpoint_size_bytes = checkpoint.size_bytes
    pause.checkpoint_uploaded_bytes = checkpoint.uploaded_bytes
    pause.checkpoint_verified = bool(checkpoint.name) and not checkpoint.damage


def reopen(record: JobRecord, worker: str) -> None:
    """Notes that the job does not rest after all: `worker` still has it, and goes on to the boundary."""
    pause = record.job.pause
    # A time that the worker has not reported: an operator's word, or `rest` had filled it in.
    if not record.released or pause.release_time == pause.pause_time:
        pause.ClearField("release_time")
        record.ClearField("pause_release_time")
    nothing_lost(pause)
    rest_on(pause, Checkpoint())
    for field in ("pause_time", "note", "from_instance", "boundary_error", "release_error"):
        pause.ClearField(field)
    pause.ClearField("boundary_epoch")  # of a job that was pausing by another attempt
    pause.cause, pause.from_worker = Pause.HELD, worker


def take_back(transition: Transition, kind: JobEvent.Type.ValueType, note: str) -> None:
    """Has the job train on where it is: it has not left its worker yet, as far as is known."""
    transition.set_target(Assignment.RUN)
    transition.job.pause.note = note
    transition.set_state(Job.RUNNING if transition.record.began else Job.STARTING, kind, note)


def drained(record: JobRecord, now: datetime) -> None:
    """Notes that a job which was drained has left, with its checkpoint, and waits to go on elsewhere."""
    rest(record, now)
    record.job.pause.resume_request_time.FromDatetime(now)


def handed_on(record: JobRecord, worker: str) -> None:
    """Notes that another attempt, at `worker`, is to bring about the pause: the one before was lost on its way."""
    record.job.pause.from_worker = worker
    for field in ("boundary_time", "snapshot_time", "release_time", "from_instance", "boundary_error", "release_error"):
        record.job.pause.ClearField(field)
    record.ClearField("pause_release_time")


def resumed_after_training_left(record: JobRecord) -> None:
    """Notes that training had left, with a checkpoint, before it heard that the pause was taken back."""
    pause = record.job.pause
    if is_to_go_on(pause):
        rest_on(pause, record.checkpoint)
        pause.note = "resumed after training had left"


def is_to_go_on(pause: Pause) -> bool:
    """Returns whether a resume was asked for that has not led to a step yet."""
    return pause.HasField("resume_request_time") and not pause.HasField("resume_time")


def begin_resumption(record: JobRecord) -> None:
    """Notes which pause the attempt that is handed out ends with its first step, if any."""
    job = record.job
    if record.began:  # the attempt before it has ended that pause
        record.ClearField("resumption")
    left = job.pause.HasField("release_time") or job.pause.HasField("pause_time")
    if left and is_to_go_on(job.pause):
        record.resumption.request_time.CopyFrom(job.pause.request_time)
        record.resumption.ClearField("release_time")
        if record.HasField("pause_release_time"):
            record.resumption.release_time.CopyFrom(record.pause_release_time)
        job.pause.to_worker = job.worker


def first_step(record: JobRecord, now: datetime) -> None:
    """Closes the pause that the running attempt was handed out to end. Another attempt's first step closes none."""
    pause = resumed_pause(record)
    if pause is None or pause.HasField("resume_time"):
        return
    pause.resume_time.FromDatetime(now)
    if record.resumption.HasField("release_time"):
        save(record.job, pause, record.resumption.release_time, now)


def count_savings(record: JobRecord, job: Job, now: datetime) -> None:
    """Says on the last pause of `job`, which is shown, what it has saved so far; of one that is over that is known."""
    if record.HasField("pause_release_time") and not job.pause.HasField("resume_time"):
        ended = job.end_time.ToDatetime(now.tzinfo) if job.HasField("end_time") else now
        save(job, job.pause, record.pause_release_time, ended)


def save(job: Job, pause: Pause, since: Timestamp, until: datetime) -> None:
    """Says what a pause saved whose GPUs were free from `since` to `until`."""
    idle = until - since.ToDatetime(until.tzinfo)
    pause.saved_gpu_seconds = max(idle, timedelta()).total_seconds() * job.spec.gpu_count
    if job.HasField("gpu_hour_price") and pause.saved_gpu_seconds:
        pause.saved_cost.currency = job.gpu_hour_price.currency
        pause.saved_cost.amount = job.gpu_hour_price.amount * pause.saved_gpu_seconds / 3600


def verdict(record: JobRecord, resumed: Pause) -> None:
    """Notes what comparing the restored state came to. Without anything to restore nothing was compared."""
    pause = resumed_pause(record)
    if pause is not None and record.restored_checkpoint:
        pause.verdict = resumed.verdict
        del pause.verdict_reasons[:]
        pause.verdict_reasons.extend(resumed.verdict_reasons)


def resumed_pause(record: JobRecord) -> Pause | None:
    """Returns the pause that the running attempt ends; the next one may have been asked for already."""
    if not record.HasField("resumption"):
        return None
    wanted: Timestamp = record.resumption.request_time
    pauses = [record.job.pause, *reversed(record.job.past_pauses)]
    return next((pause for pause in pauses if pause.request_time == wanted), None)
