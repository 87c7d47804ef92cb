"""PURE. What a job becomes when a caller asks for a pause, a resume, a cancel or an update."""

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Hold, Job, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import drains, ends, estimates, lost_attempts, pauses
from adjourn_control_plane.job.ends import enter_paused, rewind_to_checkpoint
from adjourn_control_plane.job.events import (
    CancelRequested,
    PauseRequested,
    Requested,
    ResumeRequested,
    UpdateRequested,
)
from adjourn_control_plane.job.transition import Transition

REFUSALS: Final[Mapping[Job.State.ValueType, type[errors.PreconditionError]]] = {
    Job.CANCELLING: errors.JobCancellingError,
    Job.CANCELLED: errors.JobFinishedError,
    Job.SUCCEEDED: errors.JobFinishedError,
    Job.FAILED: errors.JobFinishedError,
}
"""Error for a request that a state does not allow. The other states refuse only to resume: JobNotPausedError."""


RESUMABLE: Final = (Job.PAUSING, Job.PAUSED, Job.CANCELLED, Job.FAILED)
"""States in which a job can be resumed; the last two only with a checkpoint."""


def refuse(
    record: JobRecord,
    event: Requested,
    allowed: Sequence[Job.State.ValueType],
) -> NoReturn:
    """Raises the error for what may not be asked for in this state."""
    state = record.job.state
    if isinstance(event, ResumeRequested):  # QUEUED, STARTING and RUNNING take a repeated one only
        allowed = RESUMABLE
    kind = REFUSALS.get(state, errors.JobNotPausedError)
    names = ", ".join(Job.State.Name(each) for each in sorted(set(allowed)))
    raise kind(
        f"{record.job.name} is {Job.State.Name(state)}; {event.verb} needs one of: {names}",
        job=record.job.name,
        state=Job.State.Name(state),
        allowed_states=names,
    )


ADDED: Final[Mapping[Hold.Kind.ValueType, JobEvent.Type.ValueType]] = {
    Hold.USER: JobEvent.PAUSE_REQUESTED,
    Hold.OPERATOR: JobEvent.HELD,
}
"""What the history says when a hold is added, by its kind."""
REMOVED: Final[Mapping[Hold.Kind.ValueType, JobEvent.Type.ValueType]] = {
    Hold.USER: JobEvent.RESUME_REQUESTED,
    Hold.OPERATOR: JobEvent.HOLD_REMOVED,
}
"""What the history says when a hold is removed, by its kind."""


def pause_requested(transition: Transition, event: PauseRequested) -> None:
    """Adds a hold. A job that pauses or rests already has one pause, however many hold it; that may become earlier."""
    record, job = transition.record, transition.job
    refuse_without_epochs(job, "pause at")
    mode = event.mode or PauseMode.EPOCH
    if mode == PauseMode.LATEST:
        refuse_without_checkpoint(record)
    details = {"mode": PauseMode.Name(mode)} if mode != PauseMode.EPOCH else {}
    if job.holds or job.state in (Job.PAUSED, Job.PAUSING):
        earlier = pauses.hasten(transition, mode)
        if not transition.held(event.kind):
            transition.hold(event.kind, event.reason)
            if job.state == Job.PAUSING:  # was resumed after training had left
                job.pause.ClearField("resume_request_time")
        elif not earlier:
            return
        transition.record_event(ADDED[event.kind], event.reason, **(details if earlier else {}))
        return
    transition.hold(event.kind, event.reason)
    pauses.request(record, mode=mode, actor=event.actor, reason=event.reason, now=transition.now)
    if job.state == Job.QUEUED:
        transition.record_event(ADDED[event.kind], event.reason)
        unconfirmed = bool(record.unconfirmed_releases)
        enter_paused(transition, "nothing is known to run" if unconfirmed else "nothing was running")
        return
    record.pause_mode = mode
    transition.set_target(Assignment.PAUSE)
    transition.set_state(Job.PAUSING, ADDED[event.kind], event.reason, **details)


def refuse_without_checkpoint(record: JobRecord) -> None:
    """Raises NoCheckpointError if a job would have nothing to rest on, were its work given up now."""
    job = record.job
    works = job.worker and not pauses.has_left(record)
    waits_for_a_first_one = job.state == Job.QUEUED and job.holds
    if not record.checkpoint.name and (works or waits_for_a_first_one):
        raise errors.NoCheckpointError(
            f"{job.name} has no checkpoint yet that it could rest on; pause it in mode STEP or EPOCH, or cancel it",
            job=job.name,
            state=Job.State.Name(job.state),
        )


def refuse_without_epochs(job: Job, purpose: str) -> None:
    """Raises JobNotPausableError for a task without epochs."""
    if job.spec.total_epochs == 0:
        raise errors.JobNotPausableError(
            f"{job.name} has no epochs, hence no boundary to {purpose}; it can be cancelled",
            job=job.name,
            state=Job.State.Name(job.state),
        )


def resume_requested(transition: Transition, event: ResumeRequested) -> None:
    """Removes a hold; the USER's also of a job that has ended, which starts again."""
    record, job = transition.record, transition.job
    if job.state in (Job.CANCELLED, Job.FAILED):
        if event.kind != Hold.USER:
            refuse(record, event, RESUMABLE)
        restart(transition, event)
        return
    if not transition.unhold(event.kind):
        if job.state in (Job.QUEUED, Job.STARTING) and not pauses.is_to_go_on(job.pause):
            refuse(record, event, RESUMABLE)
        return  # asked already, kept by holds that are not the caller's, or drained: it goes on by itself
    if event.kind == Hold.USER:
        record.allow_inexact = event.allow_inexact
    removed = REMOVED[event.kind]
    if job.holds or drains.under_way(job):
        transition.record_event(removed)
        return
    job.pause.resume_request_time.FromDatetime(transition.now)
    if job.state == Job.PAUSED:
        transition.set_state(Job.QUEUED, removed)
    elif job.state == Job.PAUSING and not pauses.has_left(record):
        latest = record.pause_mode == PauseMode.LATEST
        note = "resumed before its worker knew of it" if latest else "resumed before the boundary"
        pauses.take_back(transition, removed, note)
    else:
        transition.record_event(removed)


def restart(transition: Transition, event: ResumeRequested) -> None:
    """Queues a job that had ended, from its newest checkpoint and with a fresh budget."""
    record, job = transition.record, transition.job
    if not record.checkpoint.name:
        raise errors.NoCheckpointError(
            f"{job.name} ended before it had a checkpoint; create a new job instead",
            job=job.name,
            state=Job.State.Name(job.state),
        )
    job.restart_count, record.epochs_since_restart = 0, 0
    record.ClearField("past_failure")
    lost_attempts.renew_budget(transition)
    record.allow_inexact = event.allow_inexact
    rewind_to_checkpoint(transition)
    transition.set_state(Job.QUEUED, JobEvent.RESUME_REQUESTED)


def cancel_requested(transition: Transition, event: CancelRequested) -> None:
    """Stops a job for good."""
    record, job = transition.record, transition.job
    if job.state == Job.CANCELLED:
        return
    if job.state == Job.CANCELLING:
        cancel_sooner(transition, event)
        return
    if event.save_checkpoint:
        refuse_without_epochs(job, "save at")
    details = {"save_checkpoint": saved_when(event)} if event.save_checkpoint else {}
    del job.holds[:]
    if job.state == Job.PAUSING:
        job.pause.note = pauses.CANCELLED
    if not job.worker:
        if event.save_checkpoint:
            ends.retain(transition, record.checkpoint, Checkpoint.FINAL)
        else:
            lost_attempts.forget(transition)  # a worker that comes back with it is told to stop it
        transition.set_state(Job.CANCELLED, JobEvent.CANCELLED, event.reason)
        return
    if not event.save_checkpoint:
        transition.set_target(Assignment.STOP)
    elif record.target != Assignment.PAUSE or saves_sooner(record, event):
        record.pause_mode = event.mode or PauseMode.EPOCH
        transition.set_target(Assignment.PAUSE)
    transition.set_state(Job.CANCELLING, JobEvent.CANCEL_REQUESTED, event.reason, **details)


def cancel_sooner(transition: Transition, event: CancelRequested) -> None:
    """Lets a cancel that saves become one that saves sooner, or not at all; never the other way round."""
    record = transition.record
    if record.target != Assignment.PAUSE:
        return
    if not event.save_checkpoint:
        transition.set_target(Assignment.STOP)
        transition.record_event(JobEvent.CANCEL_REQUESTED, event.reason, save_checkpoint="no longer")
    elif saves_sooner(record, event):
        record.pause_mode = event.mode
        transition.set_target(Assignment.PAUSE)
        transition.record_event(JobEvent.CANCEL_REQUESTED, event.reason, save_checkpoint=saved_when(event))


def saves_sooner(record: JobRecord, event: CancelRequested) -> bool:
    return event.mode > (record.pause_mode or PauseMode.EPOCH) and not pauses.has_left(record)


def saved_when(event: CancelRequested) -> str:
    return "after the running step" if event.mode == PauseMode.STEP else "at the next boundary"


LABELS: Final = "labels"
MAX_RESTARTS: Final = "spec.max_restarts"
TOTAL_EPOCHS: Final = "spec.total_epochs"
UPDATABLE: Final = (LABELS, MAX_RESTARTS, TOTAL_EPOCHS)
"""Paths of a Job that UpdateJob may change."""
LIVE: Final = (Job.QUEUED, Job.STARTING, Job.RUNNING, Job.PAUSING, Job.PAUSED)
"""States in which the spec of a job still matters."""


def update_requested(transition: Transition, event: UpdateRequested) -> None:
    """Changes labels in any state; the spec of a job that has not ended.

    Raises JobFinishedError, JobCancellingError, JobHeldByWorkerError, and InvalidRequestError for fewer epochs.
    """
    record, job = transition.record, transition.job
    if set(event.fields) - {LABELS} and job.state not in LIVE:
        refuse(record, event, LIVE)
    details = {}
    if LABELS in event.fields and dict(job.labels) != dict(event.job.labels):
        job.ClearField("labels")
        job.labels.update(event.job.labels)
        details[LABELS] = ", ".join(f"{key}={job.labels[key]}" for key in sorted(job.labels))
    if MAX_RESTARTS in event.fields and limit(job) != limit(event.job):
        job.spec.ClearField("max_restarts")
        if event.job.spec.HasField("max_restarts"):
            job.spec.max_restarts = event.job.spec.max_restarts
        details[MAX_RESTARTS] = str(limit(job)) if limit(job) is not None else "default"
    if TOTAL_EPOCHS in event.fields and job.spec.total_epochs != event.job.spec.total_epochs:
        extend(transition, event.job.spec.total_epochs)
        details[TOTAL_EPOCHS] = str(job.spec.total_epochs)
    if details:
        transition.revised = True
        transition.record_event(JobEvent.UPDATED, **details)


def limit(job: Job) -> int | None:
    return job.spec.max_restarts if job.spec.HasField("max_restarts") else None


def extend(transition: Transition, total_epochs: int) -> None:
    """Raises the number of epochs. A process learns it when it starts: one that may still train would end too early."""
    job = transition.job
    if job.spec.total_epochs == 0:
        raise errors.InvalidRequestError({f"job.{TOTAL_EPOCHS}": f"{job.name} is a task without epochs; stays 0"})
    if total_epochs < job.spec.total_epochs:
        raise errors.InvalidRequestError(
            {f"job.{TOTAL_EPOCHS}": f"can only grow: is {job.spec.total_epochs}, would be {total_epochs}"}
        )
    if job.worker or transition.record.HasField("lost_attempt"):
        where = f"on {job.worker}" if job.worker else "on a worker that is out of reach"
        raise errors.JobHeldByWorkerError(
            f"{job.name} may train {where}, in an attempt that began with {job.spec.total_epochs} epochs and would end "
            "there; pause it while it trains, change it, resume it",
            job=job.name,
            state=Job.State.Name(job.state),
            allowed_states="QUEUED, PAUSED",
        )
    job.spec.total_epochs = total_epochs
    estimates.update_remaining(transition.record)
