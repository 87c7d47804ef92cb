"""PURE. What a job becomes when it is placed and when its worker tells how it went."""

from collections.abc import Sequence
from datetime import timedelta

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import PastFailure
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Job, Pause, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import estimates, pauses
from adjourn_control_plane.job.events import (
    Adopted,
    Began,
    EpochEnded,
    Failed,
    Finished,
    FoundRunning,
    Lost,
    Observed,
    PausePhase,
    Placed,
    Registered,
    Rested,
    Stopped,
)
from adjourn_control_plane.job.retries import may_restart
from adjourn_control_plane.job.transition import Transition


def placed(transition: Transition, event: Placed) -> None:
    record, job = transition.record, transition.job
    token = FencingToken(attempt=record.token.attempt + 1, nonce=event.nonce, job_uid=job.uid)
    occupy(transition, token, event.worker, event.device_uuids)
    record.generation, record.observed_generation, record.applied_report = 0, 0, 0
    record.began = False
    if job.pause.HasField("resume_request_time") and not job.pause.HasField("resume_time"):
        job.pause.to_worker = event.worker
    wanted = bool(job.holds)
    record.pause_mode = PauseMode.EPOCH if wanted else PauseMode.PAUSE_MODE_UNSPECIFIED
    transition.set_target(Assignment.PAUSE if wanted else Assignment.RUN)
    transition.set_state(Job.PAUSING if wanted else Job.STARTING, JobEvent.PLACED, worker=event.worker)


def occupy(transition: Transition, token: FencingToken, worker: str, devices: Sequence[str]) -> None:
    record = transition.record
    record.token.CopyFrom(token)
    record.job.attempt, record.job.worker, record.released = token.attempt, worker, False
    del record.device_uuids[:]
    record.device_uuids.extend(devices)


def observed(transition: Transition, event: Observed) -> None:
    record, job = transition.record, transition.job
    record.observed_generation = max(record.observed_generation, event.generation)
    if event.progress is not None:
        job.progress.CopyFrom(event.progress)
        estimate(transition)


def estimate(transition: Transition) -> None:
    left = estimates.remaining(transition.record)
    if left is not None:
        transition.job.progress.remaining_duration.FromTimedelta(left)


def began(transition: Transition, _event: Began) -> None:
    if transition.record.began:
        return
    transition.record.began = True
    if not transition.job.HasField("start_time"):
        transition.job.start_time.FromDatetime(transition.now)
    if transition.job.state == Job.STARTING:
        transition.set_state(Job.RUNNING, JobEvent.BEGAN)


def epoch_ended(transition: Transition, event: EpochEnded) -> None:
    transition.epochs.append(event.metrics)
    estimates.count_epoch(transition.record, event.metrics)
    estimate(transition)


def registered(transition: Transition, event: Registered) -> None:
    record = transition.record
    checkpoint = Checkpoint()
    checkpoint.CopyFrom(event.checkpoint)
    checkpoint.create_time.FromDatetime(transition.now)
    release_latest(transition)
    retain(transition, checkpoint, Checkpoint.LATEST)
    record.checkpoint.CopyFrom(checkpoint)
    record.job.latest_checkpoint = checkpoint.name
    transition.record_event(JobEvent.CHECKPOINT_REGISTERED, checkpoint=checkpoint.name)


def release_latest(transition: Transition) -> None:
    """Notes on the newest checkpoint so far that it no longer is."""
    past = transition.record.checkpoint
    if past.name:
        kept = [why for why in past.retained_for if why != Checkpoint.LATEST]
        del past.retained_for[:]
        past.retained_for.extend(kept)
        transition.checkpoints.append(Checkpoint.FromString(past.SerializeToString()))


def retain(transition: Transition, checkpoint: Checkpoint, why: Checkpoint.Retention.ValueType) -> None:
    """Notes one more reason to keep a checkpoint."""
    if checkpoint.name and why not in checkpoint.retained_for:
        checkpoint.retained_for.append(why)
        transition.checkpoints.append(Checkpoint.FromString(checkpoint.SerializeToString()))


def pause_phase(transition: Transition, event: PausePhase) -> None:
    pauses.merge(transition.job, event.pause)
    if event.pause.HasField("release_time"):
        transition.record.released = True


def rested(transition: Transition, event: Rested) -> None:
    if not_registered(transition, event.checkpoint):
        return
    transition.unassign()
    rewind_to_checkpoint(transition)
    if transition.job.state == Job.CANCELLING:
        transition.set_state(Job.CANCELLED, JobEvent.CANCELLED)
    elif transition.job.state == Job.PAUSING and transition.job.holds:
        enter_paused(transition, JobEvent.PAUSED)
    else:
        pauses.overtaken(transition.job, transition.record.checkpoint)
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, "nothing keeps it from running")


def enter_paused(transition: Transition, kind: JobEvent.Type.ValueType, message: str = "") -> None:
    """Lets the job rest on its newest checkpoint."""
    pauses.rest(transition.job, transition.record.checkpoint, transition.now)
    retain(transition, transition.record.checkpoint, Checkpoint.PAUSE)
    transition.set_state(Job.PAUSED, kind, message)


def finished(transition: Transition, event: Finished) -> None:
    record, job = transition.record, transition.job
    if job.spec.total_epochs and not_registered(transition, event.checkpoint):
        return
    if job.spec.total_epochs:
        rewind_to_checkpoint(transition)
    overtaken = job.state in (Job.PAUSING, Job.CANCELLING)
    if job.state == Job.PAUSING:
        job.pause.note = "the run finished first"
    del job.holds[:]
    transition.unassign()
    job.ClearField("failure")
    job.progress.ClearField("remaining_duration")
    retain(transition, record.checkpoint, Checkpoint.FINAL)
    transition.set_state(
        Job.SUCCEEDED, JobEvent.SUCCEEDED, "before what was asked could take effect" if overtaken else ""
    )


def not_registered(transition: Transition, checkpoint: str) -> bool:
    """Ends the attempt if it rests on anything but the newest registered checkpoint: a pause never lies."""
    if checkpoint and checkpoint == transition.record.checkpoint.name:
        return False
    message = f"the attempt rests on {checkpoint or 'no checkpoint'}, which is not the registered one"
    end_attempt(transition, Failure(reason=reasons.CHECKPOINT_NOT_REGISTERED, message=message), counts=True)
    return True


def stopped(transition: Transition, event: Stopped) -> None:
    end_attempt(transition, event.failure, counts=False)


def failed(transition: Transition, event: Failed) -> None:
    end_attempt(transition, event.failure, counts=True)


def lost(transition: Transition, event: Lost) -> None:
    if transition.job.state == Job.PAUSING:
        transition.job.pause.cause = Pause.WORKER_LOST
    # An attempt that its worker never acknowledged has cost nobody anything.
    end_attempt(transition, event.failure, counts=transition.record.observed_generation > 0)


def end_attempt(transition: Transition, failure: Failure | None, *, counts: bool) -> None:
    """Ends an attempt that neither rested nor finished, and decides what is next."""
    record, job = transition.record, transition.job
    pausing = job.state == Job.PAUSING
    cancelling = job.state == Job.CANCELLING
    transition.unassign()
    why = failure or Failure()
    if failure is not None:
        job.failure.CopyFrom(failure)
        job.failure.attempt = job.attempt
        job.failure.time.FromDatetime(transition.now)
    if cancelling:
        transition.set_state(Job.CANCELLED, JobEvent.CANCELLED)
        return
    if counts and not may_restart(record, job.failure):
        del job.holds[:]
        if pausing:
            job.pause.note = "the job failed first"
        transition.set_state(Job.FAILED, JobEvent.FAILED, why.message, reason=why.reason)
        return
    if counts:
        job.restart_count += 1
        record.past_failure.CopyFrom(PastFailure(failure=job.failure, step=job.progress.step))
    rewind_progress(transition)
    if pausing and job.holds and record.checkpoint.name:
        enter_paused(
            transition, JobEvent.PAUSED, "with an older checkpoint: the attempt ended on its way to the boundary"
        )
    else:
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, why.message, reason=why.reason)


def rewind_progress(transition: Transition) -> None:
    """Takes progress back to what is durable, and says how much training time that costs."""
    job, checkpoint = transition.job, transition.record.checkpoint
    lost_time = job.progress.active_duration.ToTimedelta() - checkpoint.active_duration.ToTimedelta()
    if job.state == Job.PAUSING:
        job.pause.lost_duration.FromTimedelta(max(lost_time, timedelta()))
    rewind_to_checkpoint(transition)


def rewind_to_checkpoint(transition: Transition) -> None:
    """Sets progress to that of the newest checkpoint: the last report may be of a time before it, or after."""
    progress, checkpoint = transition.job.progress, transition.record.checkpoint
    progress.epoch, progress.step, progress.epoch_step = checkpoint.epoch, checkpoint.step, 0
    progress.active_duration.CopyFrom(checkpoint.active_duration)
    estimate(transition)


def found_running(transition: Transition, event: FoundRunning) -> None:
    record, job = transition.record, transition.job
    occupy(transition, record.token, event.actor, event.device_uuids)
    record.generation = max(record.generation, event.generation)
    job.pause.ClearField("pause_time")
    record.pause_mode = PauseMode.EPOCH
    transition.set_target(Assignment.PAUSE)
    transition.set_state(Job.PAUSING, JobEvent.ADOPTED, "a worker trains what should be at rest")


def adopted(transition: Transition, event: Adopted) -> None:
    record, job = transition.record, transition.job
    occupy(transition, event.token, event.worker, event.device_uuids)
    record.generation = record.observed_generation = event.generation
    record.applied_report = 0
    record.began = True
    message = "a worker runs a later attempt than was known: the store is older than the worker"
    if job.state == Job.CANCELLING:
        transition.set_target(Assignment.STOP)
        transition.record_event(JobEvent.ADOPTED, message)
    elif job.holds:
        job.pause.ClearField("pause_time")
        record.pause_mode = PauseMode.EPOCH
        transition.set_target(Assignment.PAUSE)
        transition.set_state(Job.PAUSING, JobEvent.ADOPTED, message)
    else:
        transition.set_target(Assignment.RUN)
        transition.set_state(Job.RUNNING, JobEvent.ADOPTED, message)
