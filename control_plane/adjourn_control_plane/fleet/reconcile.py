"""PURE. What a worker holds against what it should hold: what follows for the jobs, and what the worker is told.

Both sides speak in whole states. `reconcile` tells what is so by now, `told` what happened before (a report), `missing`
what the worker has no more; in this order, so that an end finds the last progress. `respond` says what the worker
should have. Absent and live: left alone. Absent and finished: forgotten.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit, FencingToken, Report
from adjourn.v1.job_pb2 import Failure, Job
from adjourn_control_plane.job.events import (
    Adopted,
    Began,
    EpochEnded,
    Event,
    Failed,
    Finished,
    FoundRunning,
    Lost,
    Observed,
    PausePhase,
    Registered,
    Rested,
    Stopped,
)
from adjourn_control_plane.job.machine import ENDED, HELD

OVER: Final = frozenset(
    {AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED}
)
"""Phases after which the worker does nothing more for the assignment."""
TokenKey: TypeAlias = tuple[int, str, str]
"""A fencing token, to look things up by."""
UNDER_WAY: Final = frozenset({AssignmentStatus.RUNNING, AssignmentStatus.PAUSING, AssignmentStatus.PERSISTING})
"""Phases that come after the first step."""


def event_of_report(report: Report, worker: str) -> Event | None:
    """Returns the event that a report tells of; None for a kind that this version does not know."""
    match report.WhichOneof("report"):
        case "epoch":
            return EpochEnded(actor=worker, metrics=report.epoch)
        case "checkpoint":
            return Registered(actor=worker, checkpoint=report.checkpoint)
        case "pause":
            return PausePhase(actor=worker, pause=report.pause)
        case "exit":
            return ended(report.exit, worker)
        case _:
            return None


def ended(how: Exit, worker: str) -> Event:
    """Returns the event for the end of an attempt."""
    failure = how.failure if how.HasField("failure") else None
    if how.phase == AssignmentStatus.PAUSED:
        return Rested(actor=worker, checkpoint=how.checkpoint)
    if how.phase == AssignmentStatus.SUCCEEDED:
        return Finished(actor=worker, checkpoint=how.checkpoint)
    if how.phase == AssignmentStatus.STOPPED:
        return Stopped(actor=worker, failure=failure)
    return Failed(actor=worker, failure=failure or Failure(reason=reasons.PROCESS_ENDED, message="no reason given"))


def reconcile(
    worker: str,
    held: Sequence[JobRecord],
    reported: Sequence[AssignmentStatus],
    others: Mapping[str, JobRecord],
) -> list[tuple[str, Event]]:
    """Returns the events, by job, that follow from what a worker holds.

    `held`: the jobs that it should hold. `others`: the records, by name, of further jobs that it reports.
    """
    events: list[tuple[str, Event]] = []
    mine = {record.job.name: record for record in held}
    by_token = by_attempt(reported)
    for record in held:
        status = by_token.get((record.job.name, token_key(record.token)))
        if status is not None:
            events.extend((record.job.name, event) for event in progress_events(worker, record, status))
    for status in reported:
        known = mine.get(status.job) or others.get(status.job)
        if known is not None:
            events.extend((status.job, event) for event in drift(worker, known, status))
    return events


def lost_attempts(
    worker: str, held: Sequence[JobRecord], reported: Sequence[AssignmentStatus]
) -> list[tuple[str, Event]]:
    """Returns the end of each attempt that a worker had, and has no more."""
    failure = Failure(reason=reasons.ATTEMPT_UNKNOWN, message=f"{worker} knows nothing of the attempt any more")
    known = by_attempt(reported)
    return [
        (record.job.name, Lost(actor=worker, failure=failure))
        for record in held
        if record.observed_generation and (record.job.name, token_key(record.token)) not in known
    ]


def by_attempt(reported: Sequence[AssignmentStatus]) -> dict[tuple[str, TokenKey], AssignmentStatus]:
    return {(status.job, token_key(status.token)): status for status in reported}


def token_key(token: FencingToken) -> TokenKey:
    return token.attempt, token.nonce, token.job_uid


def progress_events(worker: str, record: JobRecord, status: AssignmentStatus) -> Iterable[Event]:
    """Yields what the status of the job's own attempt tells that the record does not have."""
    progress = status.progress if status.HasField("progress") else None
    fresh = progress is not None and progress.report_time != record.job.progress.report_time
    if status.observed_generation > record.observed_generation or fresh:
        yield Observed(actor=worker, generation=status.observed_generation, progress=progress if fresh else None)
    if not record.began and status.phase in UNDER_WAY:
        yield Began(actor=worker)


def drift(worker: str, record: JobRecord, status: AssignmentStatus) -> Iterable[Event]:
    """Yields what must be put right because the worker knows better than the record."""
    if status.phase in OVER or record.job.state in ENDED:
        return
    if status.token.job_uid == record.job.uid and status.token.attempt > record.token.attempt:
        yield Adopted(
            actor=worker,
            token=status.token,
            worker=worker,
            device_uuids=tuple(status.held_device_uuids),
            generation=status.observed_generation,
        )
    elif status.token == record.token and record.job.state == Job.PAUSED:
        yield FoundRunning(
            actor=worker,
            device_uuids=tuple(status.held_device_uuids),
            generation=status.observed_generation,
        )


def desired_assignments(
    held: Sequence[JobRecord], reported: Sequence[AssignmentStatus], others: Mapping[str, JobRecord]
) -> list[Assignment]:
    """Returns every assignment meant for a worker: the jobs it holds, and a stop for what it should not run."""
    assignments = [assignment(record) for record in held if record.job.state in HELD]
    current = {(each.job, token_key(each.token)) for each in assignments}
    mine = {record.job.name: record for record in held}
    for status in reported:
        known = mine.get(status.job) or others.get(status.job)
        if known is None or status.phase in OVER or (status.job, token_key(status.token)) in current:
            continue  # unknown and live: an orphan, left alone; over: forgotten
        assignments.append(stop(status))
    return assignments


def assignment(record: JobRecord) -> Assignment:
    """Returns the assignment that a record stands for."""
    checkpoint = record.checkpoint if record.checkpoint.name else None
    return Assignment(
        job=record.job.name,
        token=record.token,
        generation=record.generation,
        target=record.target,
        pause_mode=record.pause_mode,
        spec=record.job.spec,
        restore=checkpoint,
        base=checkpoint,
        device_uuids=record.device_uuids,
        allow_inexact=record.allow_inexact,
    )


def stop(status: AssignmentStatus) -> Assignment:
    """Returns the order to end an attempt that is not, or no longer, the job's."""
    return Assignment(
        job=status.job,
        token=status.token,
        generation=status.observed_generation + 1,
        target=Assignment.STOP,
    )
