"""PURE. The machine of one assignment: `handle(held, event, now)` returns what it becomes, and what is to be done.

Theory of operation. What the agent knows of an assignment is a HeldAssignment. Events come from the control plane (an
order, or its absence), from the training process (by way of its `events` file), from the launcher (an end) and from
the agent's own work (prepared, launched, persisted). The new state and its reports are journaled together before any
instruction is carried out; every instruction may be carried out again, so a successor of the agent calls `recover` and
goes on.

The process ends first, the checkpoint becomes durable afterwards, the exit is reported last. So whoever hears of the
exit finds the checkpoint registered.
"""

import signal
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from adjourn import reasons
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, ProcessExit, Snapshot
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.job_pb2 import Failure, Pause
from adjourn_worker.attempt.events import (
    Advanced,
    CannotGoOn,
    ConditionChanged,
    Drop,
    Effect,
    Ended,
    Event,
    Kill,
    Launch,
    Launched,
    Measured,
    Ordered,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    SetDesired,
    Told,
    WorkerStopping,
)
from adjourn_worker.attempt.transition import OVER, Outcome, Transition, order


def take_on(assignment: Assignment, directory: str, log: str, now: datetime) -> Outcome:
    """Returns the beginning of a new assignment; `recover` says what to do for it.

    `log` tells people where to find the log.
    """
    held = HeldAssignment(assignment=assignment, directory=directory, log=log)
    held.status.job = assignment.job
    held.status.token.CopyFrom(assignment.token)
    held.status.observed_generation = assignment.generation
    held.status.phase = AssignmentStatus.STARTING
    held.status.held_device_uuids.extend(assignment.device_uuids)
    transition = Transition(held, now)
    if assignment.target == Assignment.STOP:
        transition.finish(AssignmentStatus.STOPPED)
    return outcome(transition)


def recover(held: HeldAssignment) -> tuple[Effect, ...]:
    """Returns what an agent must do (again) for an assignment that is in its journal."""
    if held.status.phase in OVER:
        return ()
    if not held.HasField("process"):
        return (Prepare(),)
    again: list[Effect] = [Drop(snapshot=snapshot) for snapshot in held.dropped]
    if not held.HasField("exit"):
        again.append(Kill() if held.assignment.target == Assignment.STOP else SetDesired(order=order(held)))
    if held.snapshots:
        again.append(Persist(snapshot=held.snapshots[0]))
    return tuple(again)


def handle(held: HeldAssignment, event: Event, now: datetime) -> Outcome:
    """Returns what `event` comes to; after the end, nothing does any more."""
    transition = Transition(held, now)
    if not transition.over:
        HANDLERS[type(event)](transition, event)
    return outcome(transition)


def outcome(transition: Transition) -> Outcome:
    return Outcome(held=transition.held, instructions=tuple(transition.instructions), reports=tuple(transition.reports))


def ordered(transition: Transition, event: Ordered) -> None:
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
        else:
            transition.finish(AssignmentStatus.STOPPED)
    elif transition.alive:
        transition.do(SetDesired(order=transition.order))
        show_target(transition)


def show_target(transition: Transition) -> None:
    """Lets the phase of a training process say where it is heading."""
    if transition.status.phase in (AssignmentStatus.RUNNING, AssignmentStatus.PAUSING):
        pausing = transition.held.assignment.target == Assignment.PAUSE
        transition.status.phase = AssignmentStatus.PAUSING if pausing else AssignmentStatus.RUNNING


def prepared(transition: Transition, _event: Prepared) -> None:
    if not transition.held.HasField("process"):
        transition.do(Launch(order=transition.order))


def cannot_go_on(transition: Transition, event: CannotGoOn) -> None:
    transition.finish(AssignmentStatus.FAILED, failure=event.failure)


def launched(transition: Transition, event: Launched) -> None:
    transition.held.process.CopyFrom(event.process)


def told(transition: Transition, event: Told) -> None:
    held, word = transition.held, event.event
    held.events_offset = event.offset
    if word.HasField("progress"):
        transition.show(word.progress)
    match word.WhichOneof("event"):
        case "began":
            transition.status.phase = AssignmentStatus.RUNNING
            show_target(transition)
            if held.assignment.HasField("restore"):
                resumed = Pause(resume_time=word.time, verdict=word.began.verdict)
                transition.report().pause.CopyFrom(resumed)
        case "epoch":
            transition.report().epoch.CopyFrom(word.epoch)
            transition.reports[-1].epoch.attempt = transition.status.token.attempt
        case "snapshot":
            queue(transition, word.snapshot)
        case "paused" | "finished" | "failed" if not held.final_event.HasField("failed"):
            held.final_event.CopyFrom(word)
        case _:
            pass  # progress alone, news of a later version, or a pause whose snapshot has already turned out lost


def queue(transition: Transition, snapshot: Snapshot) -> None:
    """Lines a snapshot up: the first is being persisted, and of those that wait only the newest is worth it."""
    waiting = transition.held.snapshots
    transition.reuse(snapshot.directory)
    if len(waiting) > 1:
        transition.drop(waiting.pop())
    waiting.append(snapshot)
    if len(waiting) == 1:
        transition.do(Persist(snapshot=snapshot))


def measured(transition: Transition, event: Measured) -> None:
    if event.progress is not None:
        transition.show(event.progress)
    if event.usage is not None:
        transition.held.usage.CopyFrom(event.usage)


def ended(transition: Transition, event: Ended) -> None:
    held = transition.held
    if held.HasField("exit"):
        return
    held.exit.CopyFrom(event.exit or ProcessExit(code=0))
    del transition.status.held_device_uuids[:]
    word = held.final_event.WhichOneof("event")
    if held.assignment.target == Assignment.STOP:
        transition.finish(AssignmentStatus.STOPPED)
        return
    if word is None:
        held.final_event.failed.CopyFrom(unexplained(event.exit))
    if word == "paused":
        pause = Pause(boundary_time=held.final_event.paused.boundary_time, snapshot_time=held.final_event.time)
        if held.HasField("usage"):
            pause.usage.CopyFrom(held.usage)
        if event.exit is not None:
            pause.release_time.CopyFrom(event.exit.time)
        else:
            pause.release_time.FromDatetime(transition.now)
        transition.report().pause.CopyFrom(pause)
    if held.snapshots:
        transition.status.phase = AssignmentStatus.PERSISTING
    else:
        conclude(transition)


def unexplained(how: ProcessExit | None) -> Failure:
    """Returns the failure of a process that did not say why it ended."""
    if how is None:
        return Failure(reason=reasons.PROCESS_LOST, message="the training process is gone, and nobody saw it end")
    if how.killed:
        return Failure(reason=reasons.WORKER_STOPPED, message="the worker was stopped with all it runs")
    if how.code < 0:
        return Failure(reason=reasons.PROCESS_KILLED, message=f"ended by {signal_name(-how.code)}")
    return Failure(reason=reasons.PROCESS_ENDED, message=f"left with exit code {how.code} without saying why")


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def conclude(transition: Transition) -> None:
    """Ends the assignment as training said it would."""
    word = transition.held.final_event
    match word.WhichOneof("event"):
        case "paused":
            transition.finish(AssignmentStatus.PAUSED)
        case "finished":
            transition.finish(AssignmentStatus.SUCCEEDED)
        case _:
            stopped = word.failed.reason == reasons.WORKER_STOPPED
            phase = AssignmentStatus.STOPPED if stopped else AssignmentStatus.FAILED
            transition.finish(phase, failure=word.failed)


def advanced(transition: Transition, event: Advanced) -> None:
    if transition.status.phase == AssignmentStatus.PERSISTING:
        transition.status.persisted_fraction = event.fraction


def persisted(transition: Transition, event: Persisted) -> None:
    transition.held.persisted.CopyFrom(event.checkpoint)
    transition.report().checkpoint.CopyFrom(event.checkpoint)
    go_on(transition)


def persist_failed(transition: Transition, event: PersistFailed) -> None:
    held = transition.held
    if held.snapshots and held.snapshots[0].last and not held.final_event.HasField("failed"):
        held.final_event.failed.CopyFrom(event.failure)
    go_on(transition)


def go_on(transition: Transition) -> None:
    """Gives the first snapshot's slot back and turns to the next, or to the end."""
    waiting = transition.held.snapshots
    if waiting:
        transition.drop(waiting.pop(0))
    if waiting:
        transition.do(Persist(snapshot=waiting[0]))
    elif transition.held.HasField("exit"):
        conclude(transition)


def condition_changed(transition: Transition, event: ConditionChanged) -> None:
    """Reports a condition when it begins, when its reason changes, and when it ends."""
    told, condition = transition.held.conditions, event.change.condition
    before = [each for each in told if each.type == condition.type]
    others = [each for each in told if each.type != condition.type]
    if event.change.ended and not before:
        return
    if not event.change.ended and before and before[0].reason == condition.reason:
        return
    del told[:]
    told.extend(others if event.change.ended else [*others, condition])
    transition.report().condition.CopyFrom(event.change)


def worker_stopping(transition: Transition, _event: WorkerStopping) -> None:
    """Ends what runs; what is on its way to storage stays, for the worker's next start."""
    if transition.alive:
        transition.do(Kill())
    elif transition.status.phase == AssignmentStatus.STARTING:
        failure = Failure(reason=reasons.WORKER_STOPPED, message="the worker was stopped with all it runs")
        transition.finish(AssignmentStatus.STOPPED, failure=failure)


HANDLERS: Final[Mapping[type[Event], Callable[[Transition, Any], None]]] = {
    Ordered: ordered,
    Prepared: prepared,
    CannotGoOn: cannot_go_on,
    Launched: launched,
    Told: told,
    Measured: measured,
    Ended: ended,
    Advanced: advanced,
    Persisted: persisted,
    PersistFailed: persist_failed,
    ConditionChanged: condition_changed,
    WorkerStopping: worker_stopping,
}
