"""PURE. What a job becomes when its attempt is lost, and when it turns out later what the attempt did.

An attempt is lost when its worker is silent for a lease, or cannot say what became of it. The job is then QUEUED,
PAUSED or FAILED, and keeps the attempt's token until another is handed out. Until then the attempt has not been
replaced, and whatever it did out of reach counts:

- A checkpoint is registered. A pause goes over to it and corrects what it says was lost.
- An end in good order is the end of the attempt. The loss costs nothing then.
- A live attempt is adopted: the job goes on where it is, with the budget it had before the loss.

`JobRecord.lost_attempt` is set for as long as this may happen.
"""

from datetime import timedelta

from adjourn.internal.v1.record_pb2 import JobRecord, LostAttempt
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Job, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import drains, ends, pauses, releases, retries
from adjourn_control_plane.job.events import Adopted, ConditionChanged, Failed, Lost, Rested, Stopped
from adjourn_control_plane.job.transition import WORKER_CONDITIONS, Transition

BACK = "its worker was out of reach, and has told what the attempt came to"


def lost(transition: Transition, event: Lost) -> None:
    record, job = transition.record, transition.job
    # An attempt that its worker never acknowledged has cost nobody anything.
    counts = record.observed_generation > 0
    before = LostAttempt(restart_count=job.restart_count, holds=job.holds)
    before.conditions.extend(each for each in job.conditions if each.type in WORKER_CONDITIONS)
    if job.HasField("failure"):
        before.failure.CopyFrom(job.failure)
    if record.HasField("past_failure"):
        before.past_failure.CopyFrom(record.past_failure)
    before.drained = drains.under_way(job) and not job.holds
    if job.state == Job.PAUSING:
        job.pause.cause = Pause.WORKER_LOST
    epochs = record.epochs_since_restart
    if event.out_of_reach:
        releases.doubt(transition, event.instance)
    saving = record.target == Assignment.PAUSE
    ends.end_attempt(transition, event.failure, counts=counts)
    before.epochs_since_restart = epochs - record.epochs_since_restart
    if job.state == Job.CANCELLED and not saving:
        return
    if job.state != Job.FAILED:
        del before.holds[:]
    record.lost_attempt.CopyFrom(before)


def is_unknown(transition: Transition) -> bool:
    """Returns whether nothing more can be learned of the record's attempt: it has ended and was not lost."""
    return not transition.job.worker and not transition.record.HasField("lost_attempt")


def forget(transition: Transition) -> None:
    """Notes that the attempt has ended: nothing more is learned of it. What its loss has cost stays."""
    transition.record.ClearField("lost_attempt")


def take_back_loss(transition: Transition) -> bool:
    """Takes back what the loss has cost. Returns False if there is no lost attempt."""
    record, job = transition.record, transition.job
    if not record.HasField("lost_attempt"):
        return False
    before = LostAttempt()
    before.CopyFrom(record.lost_attempt)
    record.ClearField("lost_attempt")
    job.restart_count = min(job.restart_count, before.restart_count)
    record.epochs_since_restart += before.epochs_since_restart
    record.ClearField("past_failure")
    if before.HasField("past_failure"):
        record.past_failure.CopyFrom(before.past_failure)
    job.ClearField("failure")
    if before.HasField("failure"):
        job.failure.CopyFrom(before.failure)
    if job.state == Job.FAILED:
        job.holds.extend(before.holds)
        if job.holds:
            job.pause.ClearField("note")
    return True


def renew_budget(transition: Transition) -> None:
    """Notes that a caller has given the job a fresh budget since its attempt was lost."""
    record = transition.record
    if record.HasField("lost_attempt"):
        del record.lost_attempt.holds[:]
        for field in ("restart_count", "past_failure", "epochs_since_restart", "drained"):
            record.lost_attempt.ClearField(field)


def registered_late(transition: Transition, before: Checkpoint) -> None:
    """Lets the job go on from, or rest on, what its lost attempt made durable. `before`: the checkpoint until then."""
    record, job = transition.record, transition.job
    if job.state in (Job.FAILED, Job.CANCELLED):
        if record.checkpoint.step > job.progress.step:  # a job that ended shows how far it got
            ends.rewind_to_checkpoint(transition)
        if job.state == Job.CANCELLED:
            ends.retain(transition, record.checkpoint, Checkpoint.FINAL)
        return
    if job.pause.HasField("lost_duration") and job.holds:
        gained = pauses.loss(record.checkpoint, before)
        duration = max(job.pause.lost_duration.ToTimedelta() - gained.duration, timedelta())
        steps = max(job.pause.lost_steps - gained.steps, 0)
        pauses.tell_loss(job.pause, pauses.Loss(duration=duration, steps=steps))
    ends.rewind_to_checkpoint(transition)
    if job.state == Job.PAUSED:
        pauses.rest_on(job.pause, record.checkpoint)
        ends.retain(transition, record.checkpoint, Checkpoint.PAUSE)
    elif job.holds:  # the pause had to wait for a first checkpoint
        ends.enter_paused(transition, BACK)


def condition_changed_late(transition: Transition, event: ConditionChanged) -> None:
    """Keeps what the worker says for the case that the attempt is adopted: it is said only once."""
    if is_unknown(transition):
        return
    lost_attempt = transition.record.lost_attempt
    kept = [each for each in lost_attempt.conditions if each.type != event.condition.type]
    if not event.ended:
        condition = Condition()
        condition.CopyFrom(event.condition)
        condition.time.FromDatetime(transition.now)
        kept.append(condition)
    del lost_attempt.conditions[:]
    lost_attempt.conditions.extend(kept)


def ended_late(transition: Transition, checkpoint: str) -> None:
    """Says that the last checkpoint of a cancelled job came about, if it did. What was cancelled stays so."""
    if not ends.is_registered(transition, checkpoint) or not take_back_loss(transition):
        forget(transition)
        return
    ends.rewind_to_checkpoint(transition)
    transition.revised = True
    place = ends.position(transition.record.checkpoint)
    transition.record_event(JobEvent.CANCELLED, f"with its checkpoint of {place}: {BACK}", checkpoint=checkpoint)


def rested_late(transition: Transition, event: Rested) -> None:
    record, job = transition.record, transition.job
    releases.confirm(transition, record.token)
    if job.state == Job.CANCELLED:
        ended_late(transition, event.checkpoint)
        return
    registered = ends.is_registered(transition, event.checkpoint)
    drained = was_drained(record)
    if not registered or not take_back_loss(transition):
        forget(transition)
        return
    if job.state == Job.PAUSED or job.holds:
        job.pause.cause = Pause.HELD
        if not job.pause.lost_steps:  # else it was ended in mode LATEST
            pauses.nothing_lost(job.pause)
    elif drained:
        job.pause.cause = Pause.DRAINED
        pauses.nothing_lost(job.pause)
        job.pause.ClearField("note")
        pauses.drained(record, transition.now)
    if job.state == Job.PAUSED:
        transition.record_event(JobEvent.PAUSED, BACK)
        return
    ends.rewind_to_checkpoint(transition)
    if job.holds:
        ends.enter_paused(transition, BACK)
    else:
        if not drained:
            pauses.resumed_after_training_left(record)
        requeue(transition)


def was_drained(record: JobRecord) -> bool:
    """Returns whether the attempt was lost on its way to a boundary that only a drain had sent it to."""
    return record.lost_attempt.drained and record.job.pause.cause == Pause.WORKER_LOST


def stopped_late(transition: Transition, event: Stopped) -> None:
    releases.confirm(transition, transition.record.token)
    if event.failure is None or transition.job.state == Job.CANCELLED:  # as we asked, for the loss stands
        forget(transition)
        return
    if not take_back_loss(transition):
        return
    ends.set_failure(transition, event.failure)
    rest_or_requeue(transition)


def failed_late(transition: Transition, event: Failed) -> None:
    """Lets the failure take the place of the loss: together they cost one restart."""
    record, job = transition.record, transition.job
    releases.confirm(transition, record.token)
    if is_unknown(transition):
        return
    if job.state == Job.CANCELLED:
        forget(transition)
        return
    counts = retries.costs_a_restart(event.failure)
    if job.state == Job.FAILED and counts:
        forget(transition)
        ends.set_failure(transition, event.failure)
        return
    take_back_loss(transition)
    if job.state == Job.FAILED:
        ends.set_failure(transition, event.failure)
        rest_or_requeue(transition)
        return
    if job.state == Job.PAUSED:  # stays so; if the failure comes again, it comes after the resume
        ends.set_failure(transition, event.failure)
        if counts and retries.may_restart(record, event.failure):
            ends.count_restart(transition)
    else:
        ends.end_attempt(transition, event.failure, counts=counts)
    record.ClearField("past_failure")  # the step it failed at was never reported


def rest_or_requeue(transition: Transition) -> None:
    """Gives a FAILED job what it would have become, had its attempt not been lost first."""
    record, job = transition.record, transition.job
    if job.state != Job.FAILED:
        return
    ends.rewind_to_checkpoint(transition)
    if job.holds and record.checkpoint.name:
        ends.enter_paused(transition, BACK)
    else:
        requeue(transition)


def requeue(transition: Transition) -> None:
    """Queues a FAILED job; one that is in the queue keeps its place and its time."""
    if transition.job.state == Job.FAILED:
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, BACK)


def adopted(transition: Transition, event: Adopted) -> None:
    record, job = transition.record, transition.job
    conditions = list(record.lost_attempt.conditions)
    drained = was_drained(record)
    later = event.token != record.token
    if later:
        message = "a worker runs a later attempt than was known: the store is older than the worker"
        record.generation, record.applied_report = 0, 0
        record.ClearField("lost_attempt")
    elif take_back_loss(transition):
        message = "its worker is back, and still has the attempt"
    else:
        return
    releases.drop(transition, event.token, message)
    saving = record.target == Assignment.PAUSE
    transition.unassign()
    instance = "" if later else record.last_instance
    transition.assign(event.token, event.worker, event.device_uuids, instance)
    record.released = event.released
    record.generation = max(record.generation, event.generation)
    record.observed_generation = event.generation
    if later:
        pauses.begin_resumption(record)
        record.began = False  # if it has, its next status says so
    else:
        for condition in conditions:
            transition.begin_condition(condition.type, condition.reason, condition.message)
    if job.state == Job.CANCELLING:
        transition.set_target(Assignment.PAUSE if saving else Assignment.STOP)
        transition.record_event(JobEvent.ADOPTED, message)
    elif job.holds:
        pauses.reopen(record, event.worker)
        record.pause_mode = pauses.next_mode(record)
        transition.set_target(Assignment.PAUSE)
        transition.set_state(Job.PAUSING, JobEvent.ADOPTED, message)
    elif drained and not later:  # is taken back if the order was, meanwhile
        pauses.reopen(record, event.worker)
        job.pause.cause = Pause.DRAINED
        record.pause_mode = pauses.next_mode(record)
        transition.set_target(Assignment.PAUSE)
        transition.set_state(Job.PAUSING, JobEvent.ADOPTED, message)
    else:
        if pauses.is_to_go_on(job.pause) and not later and not record.released:
            pauses.reopen(record, event.worker)
            job.pause.note = "resumed before the boundary"
        transition.set_target(Assignment.RUN)
        transition.set_state(Job.RUNNING if record.began else Job.STARTING, JobEvent.ADOPTED, message)
