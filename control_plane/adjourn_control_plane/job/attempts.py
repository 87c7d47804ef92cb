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
from adjourn_control_plane.job.transition import Draft


def placed(draft: Draft, event: Placed) -> None:
    record, job = draft.record, draft.job
    token = FencingToken(attempt=record.token.attempt + 1, nonce=event.nonce)
    occupy(draft, token, event.worker, event.device_uuids)
    record.generation, record.observed_generation, record.applied_report = 0, 0, 0
    record.began = False
    if job.pause.HasField("resume_request_time") and not job.pause.HasField("resume_time"):
        job.pause.to_worker = event.worker
    wanted = bool(job.holds)
    record.pause_mode = PauseMode.EPOCH if wanted else PauseMode.PAUSE_MODE_UNSPECIFIED
    draft.aim(Assignment.PAUSE if wanted else Assignment.RUN)
    draft.enter(Job.PAUSING if wanted else Job.STARTING, JobEvent.PLACED, worker=event.worker)


def occupy(draft: Draft, token: FencingToken, worker: str, devices: Sequence[str]) -> None:
    record = draft.record
    record.token.CopyFrom(token)
    record.job.attempt, record.job.worker, record.released = token.attempt, worker, False
    del record.device_uuids[:]
    record.device_uuids.extend(devices)


def observed(draft: Draft, event: Observed) -> None:
    record, job = draft.record, draft.job
    record.observed_generation = max(record.observed_generation, event.generation)
    if event.progress is not None:
        job.progress.CopyFrom(event.progress)
        estimate(draft)


def estimate(draft: Draft) -> None:
    left = estimates.remaining(draft.record)
    if left is not None:
        draft.job.progress.remaining_duration.FromTimedelta(left)


def began(draft: Draft, _event: Began) -> None:
    if draft.record.began:
        return
    draft.record.began = True
    if not draft.job.HasField("start_time"):
        draft.job.start_time.FromDatetime(draft.now)
    if draft.job.state == Job.STARTING:
        draft.enter(Job.RUNNING, JobEvent.BEGAN)


def epoch_ended(draft: Draft, event: EpochEnded) -> None:
    draft.epochs.append(event.metrics)
    estimates.count_epoch(draft.record, event.metrics)
    estimate(draft)


def registered(draft: Draft, event: Registered) -> None:
    record = draft.record
    checkpoint = Checkpoint()
    checkpoint.CopyFrom(event.checkpoint)
    checkpoint.create_time.FromDatetime(draft.now)
    supersede(draft)
    keep(draft, checkpoint, Checkpoint.LATEST)
    record.checkpoint.CopyFrom(checkpoint)
    record.job.latest_checkpoint = checkpoint.name
    draft.note(JobEvent.CHECKPOINT_REGISTERED, checkpoint=checkpoint.name)


def supersede(draft: Draft) -> None:
    """Notes on the newest checkpoint so far that it no longer is."""
    past = draft.record.checkpoint
    if past.name:
        kept = [why for why in past.retained_for if why != Checkpoint.LATEST]
        del past.retained_for[:]
        past.retained_for.extend(kept)
        draft.checkpoints.append(Checkpoint.FromString(past.SerializeToString()))


def keep(draft: Draft, checkpoint: Checkpoint, why: Checkpoint.Retention.ValueType) -> None:
    """Notes one more reason to keep a checkpoint."""
    if checkpoint.name and why not in checkpoint.retained_for:
        checkpoint.retained_for.append(why)
        draft.checkpoints.append(Checkpoint.FromString(checkpoint.SerializeToString()))


def pause_phase(draft: Draft, event: PausePhase) -> None:
    pauses.merge(draft.job, event.pause)
    if event.pause.HasField("release_time"):
        draft.record.released = True


def rested(draft: Draft, event: Rested) -> None:
    if not_registered(draft, event.checkpoint):
        return
    draft.leave()
    stand(draft)
    if draft.job.state == Job.CANCELLING:
        draft.enter(Job.CANCELLED, JobEvent.CANCELLED)
    elif draft.job.state == Job.PAUSING and draft.job.holds:
        settle(draft, JobEvent.PAUSED)
    else:
        pauses.overtaken(draft.job, draft.record.checkpoint)
        draft.enter(Job.QUEUED, JobEvent.REQUEUED, "nothing keeps it from running")


def settle(draft: Draft, kind: JobEvent.Type.ValueType, message: str = "") -> None:
    """Lets the job rest on its newest checkpoint."""
    pauses.rest(draft.job, draft.record.checkpoint, draft.now)
    keep(draft, draft.record.checkpoint, Checkpoint.PAUSE)
    draft.enter(Job.PAUSED, kind, message)


def finished(draft: Draft, event: Finished) -> None:
    record, job = draft.record, draft.job
    if job.spec.total_epochs and not_registered(draft, event.checkpoint):
        return
    if job.spec.total_epochs:
        stand(draft)
    overtaken = job.state in (Job.PAUSING, Job.CANCELLING)
    if job.state == Job.PAUSING:
        job.pause.note = "the run finished first"
    del job.holds[:]
    draft.leave()
    job.ClearField("failure")
    job.progress.ClearField("remaining_duration")
    keep(draft, record.checkpoint, Checkpoint.FINAL)
    draft.enter(Job.SUCCEEDED, JobEvent.SUCCEEDED, "before what was asked could take effect" if overtaken else "")


def not_registered(draft: Draft, checkpoint: str) -> bool:
    """Ends the attempt if it rests on anything but the newest registered checkpoint: a pause never lies."""
    if checkpoint and checkpoint == draft.record.checkpoint.name:
        return False
    message = f"the attempt rests on {checkpoint or 'no checkpoint'}, which is not the registered one"
    go_on(draft, Failure(reason=reasons.CHECKPOINT_NOT_REGISTERED, message=message), counts=True)
    return True


def stopped(draft: Draft, event: Stopped) -> None:
    go_on(draft, event.failure, counts=False)


def failed(draft: Draft, event: Failed) -> None:
    go_on(draft, event.failure, counts=True)


def lost(draft: Draft, event: Lost) -> None:
    if draft.job.state == Job.PAUSING:
        draft.job.pause.cause = Pause.WORKER_LOST
    # An attempt that its worker never acknowledged has cost nobody anything.
    go_on(draft, event.failure, counts=draft.record.observed_generation > 0)


def go_on(draft: Draft, failure: Failure | None, *, counts: bool) -> None:
    """Ends an attempt that neither rested nor finished, and decides what is next."""
    record, job = draft.record, draft.job
    pausing = job.state == Job.PAUSING
    cancelling = job.state == Job.CANCELLING
    draft.leave()
    why = failure or Failure()
    if failure is not None:
        job.failure.CopyFrom(failure)
        job.failure.attempt = job.attempt
        job.failure.time.FromDatetime(draft.now)
    if cancelling:
        draft.enter(Job.CANCELLED, JobEvent.CANCELLED)
        return
    if counts and not may_restart(record, job.failure):
        del job.holds[:]
        if pausing:
            job.pause.note = "the job failed first"
        draft.enter(Job.FAILED, JobEvent.FAILED, why.message, reason=why.reason)
        return
    if counts:
        job.restart_count += 1
        record.past_failure.CopyFrom(PastFailure(failure=job.failure, step=job.progress.step))
    fall_back(draft)
    if pausing and job.holds and record.checkpoint.name:
        settle(draft, JobEvent.PAUSED, "with an older checkpoint: the attempt ended on its way to the boundary")
    else:
        draft.enter(Job.QUEUED, JobEvent.REQUEUED, why.message, reason=why.reason)


def fall_back(draft: Draft) -> None:
    """Takes progress back to what is durable, and says how much training time that costs."""
    job, checkpoint = draft.job, draft.record.checkpoint
    lost_time = job.progress.active_duration.ToTimedelta() - checkpoint.active_duration.ToTimedelta()
    if job.state == Job.PAUSING:
        job.pause.lost_duration.FromTimedelta(max(lost_time, timedelta()))
    stand(draft)


def stand(draft: Draft) -> None:
    """Sets progress to that of the newest checkpoint: the last report may be of a time before it, or after."""
    progress, checkpoint = draft.job.progress, draft.record.checkpoint
    progress.epoch, progress.step, progress.epoch_step = checkpoint.epoch, checkpoint.step, 0
    progress.active_duration.CopyFrom(checkpoint.active_duration)
    estimate(draft)


def found_running(draft: Draft, event: FoundRunning) -> None:
    record, job = draft.record, draft.job
    occupy(draft, record.token, event.actor, event.device_uuids)
    record.generation = max(record.generation, event.generation)
    job.pause.ClearField("pause_time")
    record.pause_mode = PauseMode.EPOCH
    draft.aim(Assignment.PAUSE)
    draft.enter(Job.PAUSING, JobEvent.ADOPTED, "a worker trains what should be at rest")


def adopted(draft: Draft, event: Adopted) -> None:
    record, job = draft.record, draft.job
    occupy(draft, event.token, event.worker, event.device_uuids)
    record.generation = record.observed_generation = event.generation
    record.applied_report = 0
    record.began = True
    message = "a worker runs a later attempt than was known: the store is older than the worker"
    if job.state == Job.CANCELLING:
        draft.aim(Assignment.STOP)
        draft.note(JobEvent.ADOPTED, message)
    elif job.holds:
        job.pause.ClearField("pause_time")
        record.pause_mode = PauseMode.EPOCH
        draft.aim(Assignment.PAUSE)
        draft.enter(Job.PAUSING, JobEvent.ADOPTED, message)
    else:
        draft.aim(Assignment.RUN)
        draft.enter(Job.RUNNING, JobEvent.ADOPTED, message)
