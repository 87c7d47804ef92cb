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
    Drop,
    Ended,
    Event,
    Instruct,
    Instruction,
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
    Told,
    WorkerStopping,
)
from adjourn_worker.attempt.transition import OVER, Draft, Outcome, order


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
    draft = Draft(held, now)
    if assignment.target == Assignment.STOP:
        draft.finish(AssignmentStatus.STOPPED)
    return outcome(draft)


def recover(held: HeldAssignment) -> tuple[Instruction, ...]:
    """Returns what an agent must do (again) for an assignment that is in its journal."""
    if held.status.phase in OVER:
        return ()
    if not held.HasField("process"):
        return (Prepare(),)
    again: list[Instruction] = [Drop(snapshot=snapshot) for snapshot in held.dropped]
    if not held.HasField("exit"):
        again.append(Kill() if held.assignment.target == Assignment.STOP else Instruct(order=order(held)))
    if held.snapshots:
        again.append(Persist(snapshot=held.snapshots[0]))
    return tuple(again)


def handle(held: HeldAssignment, event: Event, now: datetime) -> Outcome:
    """Returns what `event` comes to; after the end, nothing does any more."""
    draft = Draft(held, now)
    if not draft.over:
        HANDLERS[type(event)](draft, event)
    return outcome(draft)


def outcome(draft: Draft) -> Outcome:
    return Outcome(held=draft.held, instructions=tuple(draft.instructions), reports=tuple(draft.reports))


def ordered(draft: Draft, event: Ordered) -> None:
    held, assignment = draft.held, event.assignment
    if assignment.generation <= draft.status.observed_generation:
        return
    draft.status.observed_generation = assignment.generation
    held.assignment.generation = assignment.generation
    held.assignment.target = assignment.target
    held.assignment.pause_mode = assignment.pause_mode
    if assignment.target == Assignment.STOP:
        if draft.alive:
            draft.do(Kill())
        else:
            draft.finish(AssignmentStatus.STOPPED)
    elif draft.alive:
        draft.do(Instruct(order=draft.order))
        show_target(draft)


def show_target(draft: Draft) -> None:
    """Lets the phase of a training process say where it is heading."""
    if draft.status.phase in (AssignmentStatus.RUNNING, AssignmentStatus.PAUSING):
        pausing = draft.held.assignment.target == Assignment.PAUSE
        draft.status.phase = AssignmentStatus.PAUSING if pausing else AssignmentStatus.RUNNING


def prepared(draft: Draft, _event: Prepared) -> None:
    if not draft.held.HasField("process"):
        draft.do(Launch(order=draft.order))


def cannot_go_on(draft: Draft, event: CannotGoOn) -> None:
    draft.finish(AssignmentStatus.FAILED, failure=event.failure)


def launched(draft: Draft, event: Launched) -> None:
    draft.held.process.CopyFrom(event.process)


def told(draft: Draft, event: Told) -> None:
    held, word = draft.held, event.event
    held.events_offset = event.offset
    if word.HasField("progress"):
        draft.show(word.progress)
    match word.WhichOneof("event"):
        case "began":
            draft.status.phase = AssignmentStatus.RUNNING
            show_target(draft)
            if held.assignment.HasField("restore"):
                resumed = Pause(resume_time=word.time, verdict=word.began.verdict)
                draft.report().pause.CopyFrom(resumed)
        case "epoch":
            draft.report().epoch.CopyFrom(word.epoch)
            draft.reports[-1].epoch.attempt = draft.status.token.attempt
        case "snapshot":
            queue(draft, word.snapshot)
        case "paused" | "finished" | "failed" if not held.last_word.HasField("failed"):
            held.last_word.CopyFrom(word)
        case _:
            pass  # progress alone, news of a later version, or a pause whose snapshot has already turned out lost


def queue(draft: Draft, snapshot: Snapshot) -> None:
    """Lines a snapshot up: the first is being persisted, and of those that wait only the newest is worth it."""
    waiting = draft.held.snapshots
    draft.reuse(snapshot.directory)
    if len(waiting) > 1:
        draft.drop(waiting.pop())
    waiting.append(snapshot)
    if len(waiting) == 1:
        draft.do(Persist(snapshot=snapshot))


def measured(draft: Draft, event: Measured) -> None:
    if event.progress is not None:
        draft.show(event.progress)
    if event.usage is not None:
        draft.held.usage.CopyFrom(event.usage)


def ended(draft: Draft, event: Ended) -> None:
    held = draft.held
    if held.HasField("exit"):
        return
    held.exit.CopyFrom(event.exit or ProcessExit(code=0))
    del draft.status.held_device_uuids[:]
    word = held.last_word.WhichOneof("event")
    if held.assignment.target == Assignment.STOP:
        draft.finish(AssignmentStatus.STOPPED)
        return
    if word is None:
        held.last_word.failed.CopyFrom(unexplained(event.exit))
    if word == "paused":
        pause = Pause(boundary_time=held.last_word.paused.boundary_time, snapshot_time=held.last_word.time)
        if held.HasField("usage"):
            pause.usage.CopyFrom(held.usage)
        if event.exit is not None:
            pause.release_time.CopyFrom(event.exit.time)
        else:
            pause.release_time.FromDatetime(draft.now)
        draft.report().pause.CopyFrom(pause)
    if held.snapshots:
        draft.status.phase = AssignmentStatus.PERSISTING
    else:
        conclude(draft)


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


def conclude(draft: Draft) -> None:
    """Ends the assignment as training said it would."""
    word = draft.held.last_word
    match word.WhichOneof("event"):
        case "paused":
            draft.finish(AssignmentStatus.PAUSED)
        case "finished":
            draft.finish(AssignmentStatus.SUCCEEDED)
        case _:
            stopped = word.failed.reason == reasons.WORKER_STOPPED
            phase = AssignmentStatus.STOPPED if stopped else AssignmentStatus.FAILED
            draft.finish(phase, failure=word.failed)


def advanced(draft: Draft, event: Advanced) -> None:
    if draft.status.phase == AssignmentStatus.PERSISTING:
        draft.status.persisted_fraction = event.fraction


def persisted(draft: Draft, event: Persisted) -> None:
    draft.held.persisted.CopyFrom(event.checkpoint)
    draft.report().checkpoint.CopyFrom(event.checkpoint)
    go_on(draft)


def persist_failed(draft: Draft, event: PersistFailed) -> None:
    held = draft.held
    if held.snapshots and held.snapshots[0].last and not held.last_word.HasField("failed"):
        held.last_word.failed.CopyFrom(event.failure)
    go_on(draft)


def go_on(draft: Draft) -> None:
    """Gives the first snapshot's slot back and turns to the next, or to the end."""
    waiting = draft.held.snapshots
    if waiting:
        draft.drop(waiting.pop(0))
    if waiting:
        draft.do(Persist(snapshot=waiting[0]))
    elif draft.held.HasField("exit"):
        conclude(draft)


def worker_stopping(draft: Draft, _event: WorkerStopping) -> None:
    """Ends what runs; what is on its way to storage stays, for the worker's next start."""
    if draft.alive:
        draft.do(Kill())
    elif draft.status.phase == AssignmentStatus.STARTING:
        failure = Failure(reason=reasons.WORKER_STOPPED, message="the worker was stopped with all it runs")
        draft.finish(AssignmentStatus.STOPPED, failure=failure)


HANDLERS: Final[Mapping[type[Event], Callable[[Draft, Any], None]]] = {
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
    WorkerStopping: worker_stopping,
}
