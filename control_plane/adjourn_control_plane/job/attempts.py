"""PURE. What a job becomes when it is placed and when its worker tells how it goes.

While `JobRecord.lost_attempt` is set, the attempt of the record's token counts as lost and no other has been handed
out. What is reported of it then is as true as before, only late: see `lost_attempts.py`.
"""

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Job, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import (
    anomalies,
    drains,
    ends,
    estimates,
    lost_attempts,
    milestones,
    pauses,
    releases,
    retention,
    retries,
)
from adjourn_control_plane.job.events import (
    Began,
    ConditionChanged,
    EpochEnded,
    Failed,
    Finished,
    MemoryNearlyFull,
    Observed,
    PausePhase,
    Placed,
    Registered,
    Rested,
    Stopped,
    Unplaced,
)
from adjourn_control_plane.job.transition import WORKER_CONDITIONS, Transition


def placed(transition: Transition, event: Placed) -> None:
    record, job = transition.record, transition.job
    token = FencingToken(attempt=record.token.attempt + 1, nonce=event.nonce, job_uid=job.uid)
    transition.assign(token, event.worker, event.device_uuids, event.instance)
    for field in ("lost_attempt", "progress_time"):
        record.ClearField(field)
    record.generation, record.observed_generation, record.applied_report = 0, 0, 0
    record.restored_checkpoint = record.checkpoint.name
    pauses.begin_resumption(record)
    record.began = False
    wanted = bool(job.holds)
    if wanted:
        pauses.handed_on(record, event.worker)
    record.pause_mode = pauses.next_mode(record) if wanted else PauseMode.PAUSE_MODE_UNSPECIFIED
    transition.set_target(Assignment.PAUSE if wanted else Assignment.RUN)
    transition.set_state(Job.PAUSING if wanted else Job.STARTING, JobEvent.PLACED, worker=event.worker)


def unplaced(transition: Transition, event: Unplaced) -> None:
    known = next((each for each in transition.job.conditions if each.type == Condition.UNPLACED), Condition())
    if known.reason != event.reason:  # a new message alone is not worth a commit for every queued job
        transition.begin_condition(Condition.UNPLACED, event.reason, event.message)


def observed(transition: Transition, event: Observed) -> None:
    record, job = transition.record, transition.job
    record.observed_generation = max(record.observed_generation, event.generation)
    if event.progress is not None:
        for found in anomalies.look_at_steps(record, job.progress, event.progress):
            transition.record_event(found.kind, found.message, **found.details)
        job.progress.CopyFrom(event.progress)
        record.progress_time.FromDatetime(transition.now - event.progress_age)
        estimates.update_remaining(transition.record)
        if job.state == Job.PAUSING:
            pauses.forecast(record)
    if event.persisted_fraction is not None and job.state == Job.PAUSING:
        job.pause.persisted_fraction = event.persisted_fraction
    if event.boundary_epoch is not None and job.state == Job.PAUSING and event.generation == record.generation:
        pauses.named(record, event.boundary_epoch, transition.now)
    record.released |= event.released


def began(transition: Transition, _event: Began) -> None:
    if transition.record.began:
        return
    transition.record.began = True
    if not transition.job.HasField("start_time"):
        transition.job.start_time.FromDatetime(transition.now)
    pauses.first_step(transition.record, transition.now)
    restored(transition)
    if transition.job.state == Job.STARTING:
        transition.set_state(Job.RUNNING, JobEvent.BEGAN)


def restored(transition: Transition) -> None:
    """Notes that the newest checkpoint was restored, every hash of it verified: if it was damaged, it was mended."""
    checkpoint = transition.record.checkpoint
    if checkpoint.damage and transition.record.restored_checkpoint == checkpoint.name:
        checkpoint.damage = ""
        transition.checkpoints.append(Checkpoint.FromString(checkpoint.SerializeToString()))


def epoch_ended(transition: Transition, event: EpochEnded) -> None:
    if lost_attempts.is_unknown(transition):
        return
    record, metrics = transition.record, event.metrics
    transition.epochs.append(metrics)
    estimates.count_epoch(record, metrics)
    estimates.update_remaining(record)
    if percent := milestones.reached(record, metrics.epoch):
        message = f"{percent} % of its epochs are trained"
        transition.record_event(JobEvent.MILESTONE_REACHED, message, percent=str(percent), epoch=str(metrics.epoch))
    for found in anomalies.look(record, metrics):
        transition.record_event(found.kind, found.message, **found.details)


def memory_nearly_full(transition: Transition, event: MemoryNearlyFull) -> None:
    record, gpu = transition.record, event.gpu
    if record.memory_told_attempt == record.token.attempt:
        return
    record.memory_told_attempt = record.token.attempt
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    message = f"{100 * used // total} % of the memory of GPU {gpu.index} are in use"
    details = {"gpu": str(gpu.index), "used_bytes": str(used), "total_bytes": str(total)}
    transition.record_event(JobEvent.GPU_MEMORY_NEARLY_FULL, message, **details, action=anomalies.MEMORY_HELPS)


def registered(transition: Transition, event: Registered) -> None:
    if lost_attempts.is_unknown(transition):
        return
    record, job = transition.record, transition.job
    before = Checkpoint()
    before.CopyFrom(record.checkpoint)
    checkpoint = Checkpoint()
    checkpoint.CopyFrom(event.checkpoint)
    checkpoint.create_time.FromDatetime(transition.now)
    # A pause that is at rest goes over to the newer checkpoint; one that was resumed needs the older one no more.
    ends.release(transition, Checkpoint.LATEST, Checkpoint.FINAL, Checkpoint.PAUSE)
    ends.retain(transition, checkpoint, Checkpoint.LATEST)
    record.checkpoint.CopyFrom(checkpoint)
    retention.count_best(record, checkpoint)
    job.latest_checkpoint = checkpoint.name
    transition.record_event(JobEvent.CHECKPOINT_REGISTERED, checkpoint=checkpoint.name)
    count_durable_epochs(transition, checkpoint.epoch, before.epoch)
    if not job.worker:
        lost_attempts.registered_late(transition, before)
    elif job.state == Job.PAUSING:
        pauses.forecast(record)


def count_durable_epochs(transition: Transition, epoch: int, before: int) -> None:
    """Renews the restart budget of a job that gets on: no epoch counts twice, even if it has to be done again."""
    record, job = transition.record, transition.job
    furthest = max(record.furthest_epoch, before)
    record.furthest_epoch = max(furthest, epoch)
    record.epochs_since_restart += record.furthest_epoch - furthest
    if job.restart_count and record.epochs_since_restart >= retries.HEALTHY_EPOCHS:
        job.restart_count = 0
        record.ClearField("past_failure")


def pause_phase(transition: Transition, event: PausePhase) -> None:
    if lost_attempts.is_unknown(transition):
        return
    record = transition.record
    if event.pause.HasField("resume_time"):
        pauses.first_step(record, transition.now)
        pauses.verdict(record, event.pause)
        return
    pauses.phase_reached(record, event.pause, event.actor, transition.now)
    if event.pause.HasField("release_time"):
        record.released = True
        releases.confirm(transition, record.token)


def condition_changed(transition: Transition, event: ConditionChanged) -> None:
    changed = event.condition
    if changed.type not in WORKER_CONDITIONS:
        return  # the control plane's own; or of a kind that this version would never end
    if not transition.job.worker:
        lost_attempts.condition_changed_late(transition, event)
    elif event.ended:
        transition.end_condition(changed.type)
    else:
        transition.begin_condition(changed.type, changed.reason, changed.message)


def rested(transition: Transition, event: Rested) -> None:
    record, job = transition.record, transition.job
    if not job.worker:
        lost_attempts.rested_late(transition, event)
        return
    if not ends.is_registered(transition, event.checkpoint):
        ends.end_unregistered(transition, event.checkpoint)
        return
    saving = record.target == Assignment.PAUSE
    transition.unassign()
    if job.state == Job.PAUSING or (pauses.is_to_go_on(job.pause) and not job.pause.HasField("pause_time")):
        pauses.came_to_rest(record)
    ends.rewind_to_checkpoint(transition)
    if job.state == Job.CANCELLING:
        ends.enter_cancelled(transition, saved=True if saving else None)
    elif job.state == Job.PAUSING and job.holds:
        ends.enter_paused(transition, ends.given_up(job.pause))
    elif drains.under_way(job):
        pauses.drained(record, transition.now)
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, "its worker is drained; it goes on elsewhere")
    elif event.failure is None:
        pauses.resumed_after_training_left(record)
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, "nothing keeps it from running")
    else:  # the worker paused it by itself
        why = event.failure
        transition.set_state(Job.QUEUED, JobEvent.REQUEUED, why.message, reason=why.reason)


def finished(transition: Transition, event: Finished) -> None:
    record, job = transition.record, transition.job
    registered = not job.spec.total_epochs or ends.is_registered(transition, event.checkpoint)
    if not job.worker:
        releases.confirm(transition, record.token)
    if job.state == Job.CANCELLED:
        lost_attempts.ended_late(transition, event.checkpoint)
        return
    if not job.worker and not (registered and lost_attempts.take_back_loss(transition)):
        lost_attempts.forget(transition)
        return
    if not registered:
        ends.end_unregistered(transition, event.checkpoint)
        return
    if job.spec.total_epochs:
        ends.rewind_to_checkpoint(transition)
    overtaken = bool(job.holds) or job.state in (Job.CANCELLING, Job.PAUSING)
    if job.holds or job.state == Job.PAUSING:
        job.pause.note = "the run finished first"
    del job.holds[:]
    transition.unassign()
    job.ClearField("failure")
    estimates.forget_remaining(job)
    ends.retain(transition, record.checkpoint, Checkpoint.FINAL)
    transition.set_state(
        Job.SUCCEEDED, JobEvent.SUCCEEDED, "before what was asked could take effect" if overtaken else ""
    )


def stopped(transition: Transition, event: Stopped) -> None:
    if transition.job.worker:
        ends.end_attempt(transition, event.failure, counts=False)
    else:
        lost_attempts.stopped_late(transition, event)


def failed(transition: Transition, event: Failed) -> None:
    if not transition.job.worker:
        lost_attempts.failed_late(transition, event)
        return
    ends.end_attempt(transition, event.failure, counts=retries.costs_a_restart(event.failure))
    if event.failure.reason == reasons.ENVIRONMENT_DIFFERS and transition.job.state == Job.QUEUED:
        transition.begin_condition(Condition.UNPLACED, reasons.NO_EQUAL_ENVIRONMENT, event.failure.message)
