"""PURE. How an attempt ends, and what the job becomes then."""

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import PastFailure
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Job, Pause, PauseMode, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import estimates, pauses, retries
from adjourn_control_plane.job.transition import Transition


def end_attempt(transition: Transition, failure: Failure | None, *, counts: bool) -> None:
    """Ends an attempt that neither rested nor finished, and decides what is next. `counts`: it costs a restart."""
    record, job = transition.record, transition.job
    pausing = job.state == Job.PAUSING
    cancelling = job.state == Job.CANCELLING
    saving = record.target == Assignment.PAUSE
    transition.unassign()
    why = failure or Failure()
    if failure is not None:
        set_failure(transition, failure)
    if cancelling:
        enter_cancelled(transition, saved=False if saving else None)
        return
    rests = pausing and bool(job.holds) and bool(record.checkpoint.name)
    if rests and (why.reason == reasons.TRAINING_HANGS or record.pause_mode == PauseMode.LATEST):
        counts = False  # nothing is started again, and the pause is what was asked for
    if counts and not retries.may_restart(record, job.failure):
        if pausing:
            job.pause.note = "the job failed first"
        fail(transition, why)
        return
    if counts:
        count_restart(transition)
    rewind_progress(transition)
    if rests:
        told = f": {why.reason}, {why.message}" if why.reason else ""
        enter_paused(transition, f"with an older checkpoint: the attempt ended on its way to the boundary{told}")
    else:
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, why.message, reason=why.reason)


def fail(transition: Transition, why: Failure) -> None:
    """Ends the job: no attempt could do better. Nothing keeps it any more."""
    del transition.job.holds[:]
    transition.set_state(Job.FAILED, JobEvent.FAILED, why.message, reason=why.reason)


def set_failure(transition: Transition, failure: Failure) -> None:
    """Notes why the attempt ended."""
    transition.job.failure.CopyFrom(failure)
    transition.job.failure.attempt = transition.job.attempt
    transition.job.failure.time.FromDatetime(transition.now)


def count_restart(transition: Transition) -> None:
    """Takes a restart from the budget, and remembers what for."""
    record, job = transition.record, transition.job
    times = retries.times_in_a_row(record, job.failure)
    job.restart_count += 1
    record.epochs_since_restart = 0
    record.past_failure.CopyFrom(PastFailure(failure=job.failure, step=job.progress.step, times=times))


def rewind_progress(transition: Transition) -> None:
    """Sets progress back to what is durable, and says how much training time that costs a pause."""
    job = transition.job
    if job.state == Job.PAUSING:
        pauses.tell_loss(job.pause, pauses.loss(job.progress, transition.record.checkpoint))
    rewind_to_checkpoint(transition)


def rewind_to_checkpoint(transition: Transition) -> None:
    """Sets progress to that of the newest checkpoint. The last report may be from before it or from after."""
    progress, checkpoint = transition.job.progress, transition.record.checkpoint
    progress.epoch, progress.step, progress.epoch_step = checkpoint.epoch, checkpoint.step, checkpoint.epoch_step
    progress.active_duration.CopyFrom(checkpoint.active_duration)
    if checkpoint.HasField("progress") or not checkpoint.name:
        show_again(progress, checkpoint.progress)
    transition.record.ClearField("progress_time")
    estimates.update_remaining(transition.record)


def show_again(progress: Progress, then: Progress) -> None:
    """Shows what training showed of itself `then`: what it has shown since is of work that was given up."""
    for field in ("loss", "metrics", "best"):
        progress.ClearField(field)
    progress.metrics.update(then.metrics)
    if then.HasField("loss"):
        progress.loss = then.loss
    if then.HasField("best"):
        progress.best.CopyFrom(then.best)
    progress.not_finite_steps = then.not_finite_steps


def enter_paused(transition: Transition, message: str = "") -> None:
    """Lets the job rest on its newest checkpoint."""
    pauses.rest(transition.record, transition.now)
    retain(transition, transition.record.checkpoint, Checkpoint.PAUSE)
    transition.set_state(Job.PAUSED, JobEvent.PAUSED, message)


def enter_cancelled(transition: Transition, *, saved: bool | None) -> None:
    """Stops the job for good. `saved`: whether the last checkpoint that was asked for came about; None: none was."""
    checkpoint = transition.record.checkpoint
    if saved is None:
        transition.set_state(Job.CANCELLED, JobEvent.CANCELLED)
        return
    retain(transition, checkpoint, Checkpoint.FINAL)
    rests = f"with its checkpoint of {position(checkpoint)}" if checkpoint.name else "without a checkpoint"
    why = "" if saved else ": the attempt ended on its way to the boundary"
    details = {"checkpoint": checkpoint.name} if checkpoint.name else {}
    transition.set_state(Job.CANCELLED, JobEvent.CANCELLED, rests + why, **details)


def position(checkpoint: Checkpoint) -> str:
    """Returns where in the run a checkpoint was taken, in words."""
    amid = f", step {checkpoint.step}" if checkpoint.epoch_step else ""
    return f"epoch {checkpoint.epoch}{amid}"


def given_up(pause: Pause) -> str:
    """Returns what a pause has cost, in words; empty: nothing."""
    if not pause.lost_steps:
        return ""
    seconds = pause.lost_duration.ToTimedelta().total_seconds()
    return f"{pause.lost_steps} steps, {seconds:.0f} s of training are given up"


def is_registered(transition: Transition, checkpoint: str) -> bool:
    """Returns whether a checkpoint is the newest registered one. On another no job may rest: a pause never lies."""
    return bool(checkpoint) and checkpoint == transition.record.checkpoint.name


def end_unregistered(transition: Transition, checkpoint: str) -> None:
    """Ends an attempt that rests on a checkpoint which was not registered."""
    message = f"the attempt rests on {checkpoint or 'no checkpoint'}, which is not the registered one"
    end_attempt(transition, Failure(reason=reasons.CHECKPOINT_NOT_REGISTERED, message=message), counts=True)


def release(transition: Transition, *reasons_to_keep: Checkpoint.Retention.ValueType) -> None:
    """Removes reasons to keep the checkpoint that has been the newest so far."""
    past = transition.record.checkpoint
    if past.name:
        kept = [why for why in past.retained_for if why not in reasons_to_keep]
        del past.retained_for[:]
        past.retained_for.extend(kept)
        transition.checkpoints.append(Checkpoint.FromString(past.SerializeToString()))


def retain(transition: Transition, checkpoint: Checkpoint, why: Checkpoint.Retention.ValueType) -> None:
    """Adds a reason to keep a checkpoint."""
    if checkpoint.name and why not in checkpoint.retained_for:
        checkpoint.retained_for.append(why)
        transition.checkpoints.append(Checkpoint.FromString(checkpoint.SerializeToString()))
