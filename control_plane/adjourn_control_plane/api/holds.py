"""HoldJobs and ReleaseJobs: which jobs match, and what becomes of each."""

import asyncio
from collections.abc import Iterable
from typing import Final

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Hold, Job
from adjourn.v1.job_service_pb2 import HoldJobsRequest, HoldOutcome, ReleaseJobsRequest
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.events import PauseRequested, ResumeRequested
from adjourn_control_plane.job.transition import Decision
from adjourn_control_plane.job.updater import JobUpdater, now
from adjourn_control_plane.store.interface import JobName, JobStore

MOST_JOBS: Final = 5000
"""Jobs that one call may select. More are refused before anything is done."""
PAGE: Final = 500
AT_ONCE: Final = 16
"""Jobs that one call changes at a time."""
NOT_ENDED: Final = [state for state in Job.State.values() if state and state not in machine.ENDED]

Selection = HoldJobsRequest | ReleaseJobsRequest
Ask = PauseRequested | ResumeRequested


class Holds:
    """Adds the OPERATOR hold to many jobs, or removes it."""

    def __init__(self, store: JobStore, updater: JobUpdater, *, most: int = MOST_JOBS) -> None:
        self.store = store
        self.updater = updater
        self.most = most

    async def ask(self, request: Selection, event: Ask) -> list[HoldOutcome]:
        """Returns what became of each job that matches, by name; with `dry_run`, what would.

        Once the store does not answer for one, nothing is begun with those that are left, and each says so.

        Raises InvalidRequestError if more match than one call may change, StoreUnavailableError if nobody knows which.
        """
        jobs = await self.selected(request)
        apply = self.would_be if request.dry_run else self.becomes
        limit = asyncio.Semaphore(AT_ONCE)
        away: errors.StoreUnavailableError | None = None

        async def one(job: JobName) -> HoldOutcome | None:
            nonlocal away
            async with limit:
                if away is not None:
                    return not_reached(job, away)
                try:
                    return await apply(job, event)
                except errors.StoreUnavailableError as error:
                    away = error
                    return not_reached(job, error)

        found = await asyncio.gather(*map(one, sorted(jobs)))
        return [outcome for outcome in found if outcome is not None]

    async def selected(self, request: Selection) -> Iterable[JobName]:
        """Returns the jobs that a request means: those that it names, else those that have not ended."""
        if request.names and not request.labels:
            return self.few(set(map(JobName, request.names)))
        found: set[JobName] = set()
        before = None
        while True:
            page, before = await self.store.page(
                states=NOT_ENDED, labels=dict(request.labels), size=PAGE, before=before
            )
            names = {JobName(stored.record.job.name) for stored in page}
            found |= names & set(request.names) if request.names else names
            self.few(found)
            if before is None:
                return found

    def few(self, jobs: set[JobName]) -> set[JobName]:
        if len(jobs) > self.most:
            why = f"more than {self.most} jobs match, the limit of a call; nothing was done: select fewer"
            raise errors.InvalidRequestError({"labels": why})
        return jobs

    async def would_be(self, job: JobName, event: Ask) -> HoldOutcome | None:
        stored = await self.store.get(job)
        return decided(stored.record, event)[0] if stored is not None else missing(job)

    async def becomes(self, job: JobName, event: Ask) -> HoldOutcome | None:
        outcome: HoldOutcome | None = None

        def decide(record: JobRecord) -> Decision | None:
            nonlocal outcome
            outcome, decision = decided(record, event)
            return decision

        try:
            await self.updater.change(job, decide)
        except errors.NotFoundError:
            return missing(job)
        except errors.ContentionError as error:
            return HoldOutcome(job=job, reason=error.reason, message=error.message)
        except errors.StoreUnavailableError as error:
            if outcome is None or not outcome.changed:
                raise
            why = f"nobody knows whether this was done, repeat the request; {error.message}"
            return HoldOutcome(job=job, unknown=True, reason=error.reason, message=why)
        return outcome


def decided(record: JobRecord, event: Ask) -> tuple[HoldOutcome | None, Decision | None]:
    """Returns what becomes of a job, and what has to be stored; None, if a hold to be removed is not there."""
    job = record.job
    if isinstance(event, ResumeRequested) and all(hold.kind != Hold.OPERATOR for hold in job.holds):
        return None, None
    try:
        decision = machine.decide(record, event, now())
    except errors.PreconditionError as error:
        return HoldOutcome(job=job.name, state=job.state, reason=error.reason, message=error.message), None
    after = decision.record.job if decision is not None else job
    return HoldOutcome(job=job.name, state=after.state, changed=decision is not None), decision


def missing(job: JobName) -> HoldOutcome:
    return HoldOutcome(job=job, reason=errors.NotFoundError.reason, message=f"there is no {job}")


def not_reached(job: JobName, error: errors.StoreUnavailableError) -> HoldOutcome:
    return HoldOutcome(job=job, reason=error.reason, message=f"nothing was done, repeat the request; {error.message}")
