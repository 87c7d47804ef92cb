"""PURE. The machine of one assignment: `handle(held, event, now)` returns the new state, reports and effects.

What the agent knows of an assignment is a HeldAssignment. Events come from the control plane (another target), from the
training process (through its file `events`), from the launcher (an exit) and from the agent's own work (prepared,
launched, persisted). The new state and its reports are journaled together before any effect is carried out. Every
effect may be carried out again: the next agent calls `recover` and continues.

An attempt ends in this order: the process exits, its GPUs are free, the last snapshot is durable, the exit is reported.
So whoever reads the exit finds the checkpoint registered. GPUs are held until NVML shows that their memory is free; the
phase PERSISTING without held GPUs tells the control plane that it may give them to another job.

What happens to snapshots that cannot be saved:

- Training could not take one (`snapshot_failed`): it goes on, and the job has the condition SNAPSHOT_FAILING until the
  next snapshot. A pause stays pending, and a finished run waits: the training process does not end without a snapshot.
- Storage is away, or refuses: the agent tries for as long as it takes (condition STORAGE_FAILING).
- Persisting fails for another reason, and a newer snapshot will come: this one is dropped. The job has the condition
  SNAPSHOT_FAILING with the reason PERSIST_FAILED until one has been persisted.
- The same with the last snapshot of the attempt: it is tried again until it works. A run that has finished is not
  trained again, and a pause not given up, because of a fault that may pass.
- Its manifest's key has other content (FENCED): somebody else acts under our token. The process is killed and nothing
  more of it is made durable.
- The last snapshot is gone or damaged: the attempt ends as FAILED, also if its process is still about to say that it
  has paused or finished, since nothing of that exists. The control plane restarts it from its latest checkpoint. If the
  attempt had failed for another reason already, that reason is reported.

A worker that is out of contact, or drains, has training pause at its next boundary by itself. That ends as any pause:
with the target still RUN, the exit says PAUSED, and the control plane decides how the job goes on. If the control plane
is heard before the boundary, its own target counts again, and training goes on as if nothing had been.

Training that hangs (`pace.py`) has the condition HANGING until it gets on. If its job restarts by policy, or is to
pause, it is killed after a grace and the attempt ends as FAILED, once the snapshots that it took before are durable.
What has said that it paused or finished, and then hangs at its end, is killed and has paused or finished.

A training process that somebody else has stopped by a signal does not hang: it can go on at once. It has the condition
HANGING with the reason PROCESS_SUSPENDED until it does, whatever the policy, and a pause waits for it.

A pause in mode LATEST gives up what is not saved: the process is killed at once, whatever it does, and the attempt
ends as PAUSED once the snapshots that it took before are durable: on the newest of them, or on the checkpoint that it
began with. What it had said before it was killed counts: that it paused, finished or failed. Without any checkpoint the
attempt ends as STOPPED. It cannot be taken back, and an agent that takes over goes on with it.
"""

import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from adjourn import reasons
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, ProcessExit, Snapshot
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.job_pb2 import Condition, Failure, JobSpec, Pause, PauseMode
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn_worker.attempt.events import (
    Advanced,
    AssignmentChanged,
    BoundaryFound,
    CannotGoOn,
    ConditionChanged,
    ConfirmRelease,
    Drop,
    Effect,
    Ended,
    Event,
    EventRead,
    FoundHanging,
    FoundSuspended,
    GpusReleased,
    Kill,
    Launch,
    Launched,
    Measured,
    MovedOn,
    PauseByItself,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    Reached,
    SetDesired,
    StillHanging,
    WorkerStopping,
    WriteStacks,
)
from adjourn_worker.attempt.transition import OVER, Outcome, Transition, desired_state

KEPT_SAMPLES: Final = 8
"""Samples of what an attempt uses that are kept until it is known which one was the last before the boundary."""


def take_on(assignment: Assignment, directory: str, now: datetime) -> Outcome:
    """Returns the first state of a new assignment; `recover` returns what to do for it."""
    held = HeldAssignment(assignment=assignment, directory=directory)
    held.status.job = assignment.job
    held.status.token.CopyFrom(assignment.token)
    held.status.observed_generation = assignment.generation
    held.status.phase = AssignmentStatus.STARTING
    held.status.held_device_uuids.extend(assignment.device_uuids)
    transition = Transition(held, now)
    if assignment.target == Assignment.STOP:
        transition.finish(AssignmentStatus.STOPPED)
    elif is_to_give_up(assignment):
        give_up(transition)
    return outcome(transition)


def recover(held: HeldAssignment) -> tuple[Effect, ...]:
    """Returns what an agent must do (again) for an assignment that is in its journal."""
    if held.status.phase in OVER:
        return ()
    if not held.HasField("process"):
        return (Prepare(),)
    again: list[Effect] = [Drop(snapshot=snapshot) for snapshot in held.dropped]
    if not held.HasField("exit"):
        stop = held.assignment.target == Assignment.STOP or is_to_end(held)
        again.append(Kill() if stop else SetDesired(desired=desired_state(held)))
    elif held.status.held_device_uuids:
        again.append(ConfirmRelease(before=tuple(held.gpus_before)))
    if held.snapshots:
        again.append(Persist(snapshot=held.snapshots[0]))
    return tuple(again)


def handle(held: HeldAssignment, event: Event, now: datetime) -> Outcome:
    """Returns what follows from `event`; nothing does once the assignment is over."""
    transition = Transition(held, now)
    if not transition.over:
        HANDLERS[type(event)](transition, event)
    return outcome(transition)


def outcome(transition: Transition) -> Outcome:
    return Outcome(held=transition.held, effects=tuple(transition.effects), reports=tuple(transition.reports))


def assignment_changed(transition: Transition, event: AssignmentChanged) -> None:
    held, assignment = transition.held, event.assignment
    if assignment.generation <= transition.status.observed_generation:
        return
    transition.status.observed_generation = assignment.generation
    held.assignment.generation = assignment.generation
    held.assignment.target = assignment.target
    held.assignment.pause_mode = assignment.pause_mode
    if assignment.target == Assignment.STOP:
        if transition.alive:
            transition.do(Kill())
        elif not held.HasField("exit") or not transition.holds_gpus:  # else it stops once its GPUs are free
            transition.finish(AssignmentStatus.STOPPED)
        return
    if is_to_give_up(held.assignment):
        give_up(transition)
    if transition.alive:
        transition.status.ClearField("pause_epoch")  # is found out anew
        transition.do(SetDesired(desired=transition.desired))
        show_target(transition)


def is_to_give_up(assignment: Assignment) -> bool:
    return assignment.target == Assignment.PAUSE and assignment.pause_mode == PauseMode.LATEST


def give_up(transition: Transition) -> None:
    """Ends an attempt at the newest snapshot that it has; what has ended already goes on to its end."""
    held = transition.held
    if not held.HasField("exit"):
        held.given_up = True
    if transition.alive:
        transition.do(Kill())
    elif not held.HasField("exit"):  # nothing was launched
        rest_on_newest(transition)


def rest_on_newest(transition: Transition) -> None:
    """Ends the assignment on the newest checkpoint of its job, if there is one."""
    held = transition.held
    kept = held.persisted.name or held.assignment.restore.name
    transition.finish(AssignmentStatus.PAUSED if kept else AssignmentStatus.STOPPED)


def show_target(transition: Transition) -> None:
    """Makes the phase of a training process tell where it is heading."""
    if transition.status.phase in (AssignmentStatus.RUNNING, AssignmentStatus.PAUSING):
        pausing = transition.desired.target == Assignment.PAUSE
        transition.status.phase = AssignmentStatus.PAUSING if pausing else AssignmentStatus.RUNNING


def boundary_found(transition: Transition, event: BoundaryFound) -> None:
    """Notes where the pause that the control plane asked for will be, unless training code has garbled its file."""
    assignment = transition.held.assignment
    if transition.alive and names_its_epoch(assignment) and event.epoch <= assignment.spec.total_epochs:
        transition.status.pause_epoch = event.epoch


def names_its_epoch(assignment: Assignment) -> bool:
    """Returns whether it can be known in advance where training pauses: nobody knows its next step."""
    at_epoch = assignment.pause_mode in (PauseMode.PAUSE_MODE_UNSPECIFIED, PauseMode.EPOCH)
    return assignment.target == Assignment.PAUSE and at_epoch


def prepared(transition: Transition, event: Prepared) -> None:
    held = transition.held
    if not held.HasField("process"):
        del held.gpus_before[:]
        held.gpus_before.extend(event.gpus)
        transition.do(Launch(desired=transition.desired))


def cannot_go_on(transition: Transition, event: CannotGoOn) -> None:
    held = transition.held
    if not held.HasField("process"):
        transition.finish(AssignmentStatus.FAILED, failure=event.failure)
        return
    transition.drop_snapshots()
    held.final_event.failed.CopyFrom(event.failure)
    if not held.HasField("exit"):
        held.exit.SetInParent()
        release_gpus(transition, transition.now)
    elif not transition.holds_gpus:
        conclude(transition)


def launched(transition: Transition, event: Launched) -> None:
    transition.held.process.CopyFrom(event.process)


def event_read(transition: Transition, event: EventRead) -> None:
    held, written = transition.held, event.event
    held.events_offset = event.offset
    if written.HasField("progress"):
        transition.update_progress(written.progress)
    match written.WhichOneof("event"):
        case "began":
            transition.status.phase = AssignmentStatus.RUNNING
            show_target(transition)
            if held.assignment.HasField("restore"):
                resumed = Pause(resume_time=written.time, verdict=written.began.verdict)
                resumed.verdict_reasons.extend(written.began.verdict_reasons)
                transition.report().pause.CopyFrom(resumed)
        case "epoch":
            transition.report().epoch.CopyFrom(written.epoch)
            transition.reports[-1].epoch.attempt = transition.status.token.attempt
        case "snapshot":
            if failing_reason(held) != reasons.PERSIST_FAILED:
                transition.end_condition(Condition.SNAPSHOT_FAILING)
            if is_fenced(held):
                transition.drop(written.snapshot)
            else:
                queue(transition, written.snapshot)
        case "snapshot_failed":
            failed = written.snapshot_failed
            transition.begin_condition(
                Condition(
                    type=Condition.SNAPSHOT_FAILING, reason=failed.reason, message=failed.message, time=written.time
                )
            )
        case "paused" | "finished" | "failed" if not held.final_event.HasField("failed"):
            held.final_event.CopyFrom(written)
        case _:
            pass  # progress alone, an event of a later version, or a pause whose snapshot has turned out lost


def failing_reason(held: HeldAssignment) -> str:
    """Returns the reason why snapshots fail; empty if they do not."""
    return next((each.reason for each in held.conditions if each.type == Condition.SNAPSHOT_FAILING), "")


def queue(transition: Transition, snapshot: Snapshot) -> None:
    """Adds a snapshot: the first is being persisted, and of those that wait only the newest is kept."""
    waiting = transition.held.snapshots
    transition.reuse(snapshot.directory)
    if len(waiting) > 1:
        transition.drop(waiting.pop())
    waiting.append(snapshot)
    if len(waiting) == 1:
        transition.do(Persist(snapshot=snapshot))


def measured(transition: Transition, event: Measured) -> None:
    if event.progress is not None:
        transition.update_progress(event.progress)
    if event.usage is not None:
        samples = [*transition.held.usages, event.usage]
        if len(samples) > KEPT_SAMPLES:
            samples = samples[::-2][::-1]  # the newest stays, and of those before it every second one
        del transition.held.usages[:]
        transition.held.usages.extend(samples)


def ended(transition: Transition, event: Ended) -> None:
    held = transition.held
    if held.HasField("exit"):
        return
    held.exit.CopyFrom(event.exit or ProcessExit(code=0))
    if held.final_event.WhichOneof("event") is None and not held.given_up:
        held.final_event.failed.CopyFrom(unexplained(event.exit, spoke=held.events_offset > 0))
    release_gpus(transition, event.exit.time.ToDatetime(UTC) if event.exit else transition.now)


def release_gpus(transition: Transition, time: datetime) -> None:
    """Has the release of the GPUs of an ended process confirmed; without GPUs there is nothing to wait for."""
    held = transition.held
    if held.final_event.HasField("failed"):
        transition.status.ClearField("pause_epoch")  # it did not come there
    gpus = held.usages[-1].gpus if held.usages else ()
    if gpus and all(gpu.HasField("memory_used_bytes") for gpu in gpus):
        held.gpu_memory_bytes = sum(gpu.memory_used_bytes for gpu in gpus)
    if transition.holds_gpus:
        transition.do(ConfirmRelease(before=tuple(held.gpus_before)))
    else:
        released(transition, time, None)


def gpus_released(transition: Transition, event: GpusReleased) -> None:
    if transition.holds_gpus and transition.held.HasField("exit"):
        released(transition, event.time, event.memory_bytes)


def released(transition: Transition, time: datetime, gpu_memory_bytes: int | None) -> None:
    """Lets go of the GPUs of an ended process; what is left is to make its snapshots durable."""
    held = transition.held
    del transition.status.held_device_uuids[:]
    transition.end_condition(Condition.GPUS_NOT_RELEASED)
    if held.assignment.target == Assignment.STOP:
        transition.finish(AssignmentStatus.STOPPED)
        return
    final = held.final_event.WhichOneof("event")
    if final is None or (final == "paused" and not paused_by_itself(held)):
        pause = Pause()
        if final is not None:
            pause.boundary_time.CopyFrom(held.final_event.paused.boundary_time)
            pause.snapshot_time.CopyFrom(held.final_event.time)
        if (usage := last_usage(held, pause)) is not None:
            pause.usage.CopyFrom(usage)
        pause.release_time.FromDatetime(time)
        if gpu_memory_bytes is not None and held.HasField("gpu_memory_bytes"):
            pause.released_gpu_memory_bytes = held.gpu_memory_bytes - gpu_memory_bytes
        transition.report().pause.CopyFrom(pause)
    elif held.assignment.target == Assignment.PAUSE and held.final_event.HasField("failed"):
        # It ended on its way to the boundary: the pause may rest on an older checkpoint.
        transition.report().pause.release_time.FromDatetime(time)
    if held.snapshots:
        transition.status.phase = AssignmentStatus.PERSISTING
    else:
        conclude(transition)


def last_usage(held: HeldAssignment, pause: Pause) -> ResourceSample | None:
    """Returns the last sample before the boundary of a pause: after it, what is used is the snapshot's."""
    samples = list(held.usages)
    if pause.HasField("boundary_time"):
        reached = pause.boundary_time.ToNanoseconds()
        samples = [sample for sample in samples if sample.time.ToNanoseconds() <= reached]
    return samples[-1] if samples else None


def unexplained(how: ProcessExit | None, *, spoke: bool) -> Failure:
    """Returns the failure of a process that did not say why it ended; `spoke`: it has told of something before."""
    if how is None:
        return Failure(reason=reasons.PROCESS_LOST, message="the training process is gone, and nobody saw it end")
    if how.killed:
        return Failure(reason=reasons.WORKER_STOPPED, message="the worker was stopped with all it runs")
    if how.out_of_memory:
        message = "ended by SIGKILL, just when the kernel's out-of-memory killer was at work in its control group"
        return Failure(reason=reasons.OUT_OF_MEMORY, message=message)
    if how.code < 0:
        return Failure(reason=reasons.PROCESS_KILLED, message=f"ended by {signal_name(-how.code)}")
    if how.no_room and not spoke:
        return Failure(reason=reasons.NO_SPACE, message="the disk had no room for what the training process writes")
    return Failure(reason=reasons.PROCESS_ENDED, message=f"left with exit code {how.code} without saying why")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def conclude(transition: Transition) -> None:
    """Ends the assignment as the training process said that it ended."""
    held, final = transition.held, transition.held.final_event
    match final.WhichOneof("event"):
        case "paused":
            why = held.pausing_by_itself if paused_by_itself(held) else None
            transition.finish(AssignmentStatus.PAUSED, failure=why)
        case "finished":
            transition.finish(AssignmentStatus.SUCCEEDED)
        case None:  # it was killed in mode LATEST
            rest_on_newest(transition)
        case _:
            stopped = final.failed.reason == reasons.WORKER_STOPPED
            phase = AssignmentStatus.STOPPED if stopped else AssignmentStatus.FAILED
            transition.finish(phase, failure=final.failed)


def advanced(transition: Transition, event: Advanced) -> None:
    if transition.status.phase == AssignmentStatus.PERSISTING:
        transition.status.persisted_fraction = event.fraction


def persisted(transition: Transition, event: Persisted) -> None:
    transition.held.persisted.CopyFrom(event.checkpoint)
    transition.report().checkpoint.CopyFrom(event.checkpoint)
    if failing_reason(transition.held) == reasons.PERSIST_FAILED:
        transition.end_condition(Condition.SNAPSHOT_FAILING)
    next_snapshot(transition)


def is_fenced(held: HeldAssignment) -> bool:
    """Returns whether somebody else was found to act under the attempt's token."""
    return bool(held.final_event.failed.reason == reasons.FENCED)


def is_to_end(held: HeldAssignment) -> bool:
    """Returns whether the machine has decided that the training process is killed: it may not have been done yet."""
    return held.given_up or held.final_event.failed.reason in (reasons.FENCED, reasons.TRAINING_HANGS)


def persist_failed(transition: Transition, event: PersistFailed) -> None:
    held = transition.held
    if not held.snapshots:
        return
    if event.failure.reason == reasons.FENCED:
        fence_off(transition, event.failure)
        return
    snapshot = held.snapshots[0]
    wanted = snapshot.last or (held.given_up and len(held.snapshots) == 1)
    if not (snapshot.last and event.lost):
        message = f"{event.failure.reason}: {event.failure.message}"
        transition.begin_condition(
            Condition(type=Condition.SNAPSHOT_FAILING, reason=reasons.PERSIST_FAILED, message=message)
        )
    if wanted and not event.lost:
        transition.do(Persist(snapshot=snapshot, again=True))
        return
    if snapshot.last and not held.final_event.HasField("failed"):
        held.final_event.failed.CopyFrom(event.failure)
    next_snapshot(transition)


def fence_off(transition: Transition, failure: Failure) -> None:
    """Ends an attempt that is not alone under its token; of what is not durable yet nothing may become so."""
    held = transition.held
    transition.drop_snapshots()
    held.final_event.failed.CopyFrom(failure)
    if transition.alive:
        transition.do(Kill())
    elif not transition.holds_gpus:
        conclude(transition)


def next_snapshot(transition: Transition) -> None:
    """Gives the first snapshot's slot back and turns to the next, or to the end."""
    held = transition.held
    if held.snapshots:
        transition.drop(held.snapshots.pop(0))
    if held.snapshots:
        transition.do(Persist(snapshot=held.snapshots[0]))
    elif held.HasField("exit") and not transition.holds_gpus:
        conclude(transition)


def condition_changed(transition: Transition, event: ConditionChanged) -> None:
    if event.change.ended:
        transition.end_condition(event.change.condition.type)
    else:
        transition.begin_condition(event.change.condition)


def pause_by_itself(transition: Transition, event: PauseByItself) -> None:
    if not transition.held.HasField("pausing_by_itself"):
        transition.held.pausing_by_itself.CopyFrom(event.why)
        show_desired(transition)


def reached(transition: Transition, _event: Reached) -> None:
    held = transition.held
    if held.HasField("pausing_by_itself") and held.final_event.WhichOneof("event") != "paused":  # else it is why
        held.ClearField("pausing_by_itself")
        show_desired(transition)


def show_desired(transition: Transition) -> None:
    """Tells the training process of a change that is not the control plane's."""
    if transition.alive and transition.held.assignment.target == Assignment.RUN:
        transition.do(SetDesired(desired=transition.desired))
        show_target(transition)


def paused_by_itself(held: HeldAssignment) -> bool:
    """Tells whether training that has paused did so though nobody had asked for it."""
    return held.HasField("pausing_by_itself") and held.assignment.target == Assignment.RUN


def is_hanging(held: HeldAssignment, reason: str = reasons.TRAINING_HANGS) -> bool:
    return any((each.type, each.reason) == (Condition.HANGING, reason) for each in held.conditions)


def is_suspended(held: HeldAssignment) -> bool:
    """Returns whether the training process was found stopped by somebody else's signal."""
    return is_hanging(held, reasons.PROCESS_SUSPENDED)


def hang_ends_attempt(held: HeldAssignment) -> bool:
    """Returns whether training that hangs is killed. A pause is somebody's order: it does not wait for a hang."""
    said = held.final_event.WhichOneof("event") is not None
    pausing = desired_state(held).target == Assignment.PAUSE
    return said or pausing or held.assignment.spec.hang_policy != JobSpec.REPORT


def found_hanging(transition: Transition, event: FoundHanging) -> None:
    if transition.alive:
        condition = Condition(type=Condition.HANGING, reason=reasons.TRAINING_HANGS, message=event.message)
        transition.begin_condition(condition)
        transition.do(WriteStacks(why=event.message))


def found_suspended(transition: Transition, event: FoundSuspended) -> None:
    if transition.alive:
        condition = Condition(type=Condition.HANGING, reason=reasons.PROCESS_SUSPENDED, message=event.message)
        transition.begin_condition(condition)


def moved_on(transition: Transition, _event: MovedOn) -> None:
    transition.end_condition(Condition.HANGING)


def still_hanging(transition: Transition, event: StillHanging) -> None:
    held = transition.held
    if not transition.alive or not hang_ends_attempt(held):
        return
    if held.final_event.WhichOneof("event") is None and not held.given_up:
        held.final_event.failed.CopyFrom(Failure(reason=reasons.TRAINING_HANGS, message=event.message))
    transition.do(Kill())


def worker_stopping(transition: Transition, _event: WorkerStopping) -> None:
    """Ends what runs. Snapshots that are not durable stay, for the worker's next start."""
    if transition.alive:
        transition.do(Kill())
    elif not transition.held.HasField("process"):
        failure = Failure(reason=reasons.WORKER_STOPPED, message="the worker was stopped with all it runs")
        transition.finish(AssignmentStatus.STOPPED, failure=failure)


HANDLERS: Final[Mapping[type[Event], Callable[[Transition, Any], None]]] = {
    AssignmentChanged: assignment_changed,
    Prepared: prepared,
    CannotGoOn: cannot_go_on,
    Launched: launched,
    EventRead: event_read,
    Measured: measured,
    BoundaryFound: boundary_found,
    Ended: ended,
    GpusReleased: gpus_released,
    Advanced: advanced,
    Persisted: persisted,
    PersistFailed: persist_failed,
    ConditionChanged: condition_changed,
    PauseByItself: pause_by_itself,
    Reached: reached,
    FoundHanging: found_hanging,
    FoundSuspended: found_suspended,
    MovedOn: moved_on,
    StillHanging: still_hanging,
    WorkerStopping: worker_stopping,
}
