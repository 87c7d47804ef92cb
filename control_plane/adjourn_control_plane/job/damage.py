"""PURE. What a job becomes when the checkpoint that an attempt was to restore turns out damaged.

The checkpoint is marked, and the job goes on from the newest one that is not. That is never silent: an event says what
it costs, and so does the pause that rested on the damaged one. It costs no restart. It ends, since each time one more
is marked: without one that is left the job has FAILED, as beginning anew is nothing that may happen unasked.
"""

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import attempts, ends, lost_attempts, pauses, releases
from adjourn_control_plane.job.events import CheckpointDamaged, Failed
from adjourn_control_plane.job.transition import Transition


def checkpoint_damaged(transition: Transition, event: CheckpointDamaged) -> None:
    if not transition.job.worker:
        releases.confirm(transition, transition.record.token)
    if lost_attempts.is_unknown(transition):
        return
    if event.checkpoint != transition.record.checkpoint.name:
        # The attempt is from a newer store than this one: the record's checkpoint is another, and may be whole.
        attempts.failed(transition, Failed(actor=event.actor, failure=event.failure))
    elif event.sound is None:
        give_up(transition, event)
    elif transition.job.worker:
        lost = fall_back(transition, event, event.sound)
        ends.end_attempt(transition, event.failure, counts=False)
        tell_pauses(transition.record, lost, event.checkpoint)
    else:
        fall_back_late(transition, event, event.sound)


def fall_back(transition: Transition, event: CheckpointDamaged, sound: Checkpoint) -> pauses.Loss:
    """Puts the newest sound checkpoint in the damaged one's place; returns the training that is lost with it."""
    record, job = transition.record, transition.job
    damaged = mark(transition, event)
    lost = pauses.loss(damaged, sound)
    record.checkpoint.CopyFrom(sound)
    ends.retain(transition, record.checkpoint, Checkpoint.LATEST)
    job.latest_checkpoint = sound.name
    ends.rewind_to_checkpoint(transition)
    epochs, seconds = damaged.epoch - sound.epoch, lost.duration.total_seconds()
    transition.record_event(
        JobEvent.FELL_BACK,
        f"{event.failure.message}. The job goes on from {sound.name}, after {ends.position(sound)}: {epochs}"
        f" epochs, {lost.steps} steps, {seconds:.0f} s of training are done again",
        damaged=damaged.name,
        checkpoint=sound.name,
        epochs=str(epochs),
        steps=str(lost.steps),
        seconds=f"{seconds:.3f}",
    )
    return lost


def mark(transition: Transition, event: CheckpointDamaged) -> Checkpoint:
    """Notes on the newest checkpoint what is wrong with it; returns it. Nothing keeps it any more."""
    record = transition.record
    record.checkpoint.damage = event.failure.message
    ends.release(transition, *record.checkpoint.retained_for)
    damaged = Checkpoint()
    damaged.CopyFrom(record.checkpoint)
    return damaged


def fall_back_late(transition: Transition, event: CheckpointDamaged, sound: Checkpoint) -> None:
    """The attempt had counted as lost before it told: the damage takes the place of the loss."""
    record, job = transition.record, transition.job
    lost = fall_back(transition, event, sound)
    lost_attempts.take_back_loss(transition)
    ends.set_failure(transition, event.failure)
    if job.state == Job.PAUSED:
        pauses.rest_on(job.pause, record.checkpoint)
        ends.retain(transition, record.checkpoint, Checkpoint.PAUSE)
    lost_attempts.rest_or_requeue(transition)
    tell_pauses(record, lost, event.checkpoint)


def give_up(transition: Transition, event: CheckpointDamaged) -> None:
    """Ends the job: none of its checkpoints is known to be whole. A resume tries the newest one again."""
    record, job = transition.record, transition.job
    failure = Failure()
    failure.CopyFrom(event.failure)
    failure.message += (
        ". No other checkpoint of the job is known to be whole, and it does not begin anew by itself: put the objects"
        " back and resume it, which tries the newest checkpoint again; or create a new job"
    )
    mark(transition, event)
    if event.newest is not None and event.newest.name != record.checkpoint.name:
        record.checkpoint.CopyFrom(event.newest)
    ends.retain(transition, record.checkpoint, Checkpoint.LATEST)
    job.latest_checkpoint = record.checkpoint.name
    lost_attempts.take_back_loss(transition)
    if job.worker:
        transition.unassign()
    ends.set_failure(transition, failure)
    if job.state == Job.CANCELLING:
        transition.set_state(Job.CANCELLED, JobEvent.CANCELLED)
        return
    if job.state in (Job.PAUSING, Job.PAUSED):
        job.pause.note = "the job failed first: " + failure.message
    if job.state == Job.FAILED:
        del job.holds[:]
        transition.record_event(JobEvent.FAILED, failure.message, reason=failure.reason)
    else:
        ends.fail(transition, failure)


def tell_pauses(record: JobRecord, lost: pauses.Loss, was: str) -> None:
    """Says on the pause that was to be resumed, and on one that is there now, what became of its checkpoint `was`."""
    resumed = pauses.resumed_pause(record)
    concerned = [resumed] if resumed is not None and not resumed.HasField("resume_time") else []
    here = record.job.pause
    if record.job.state == Job.PAUSED and all(pause.request_time != here.request_time for pause in concerned):
        concerned.append(here)
    for pause in concerned:
        pauses.rest_on(pause, record.checkpoint)
        place = ends.position(record.checkpoint)
        pause.note = f"{was} is damaged; in its place {record.checkpoint.name}, after {place}"
        before = pauses.Loss(duration=pause.lost_duration.ToTimedelta(), steps=pause.lost_steps)
        pauses.tell_loss(pause, pauses.Loss(duration=before.duration + lost.duration, steps=before.steps + lost.steps))
