"""The only way in which a job changes: read, decide, commit; after a conflict, again."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import structlog
from google.protobuf.message import Message

from adjourn import errors, failpoints
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import FencingToken, Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import machine, pauses, releases, reports, retention
from adjourn_control_plane.job.events import CheckpointDamaged, Event
from adjourn_control_plane.job.transition import Decision
from adjourn_control_plane.store.interface import (
    Allocation,
    Change,
    Conflict,
    Fence,
    Fenced,
    JobName,
    JobStore,
    Request,
    RequestSeen,
    Stored,
)

log = structlog.get_logger()

ATTEMPTS: Final = 100
"""Conflicts before a call gives up. Each means that another change was made in between, so as many callers of one job
all come to their turn."""

CHECKPOINTS_AT_ONCE: Final = 100
"""Checkpoints read at a time in search of one that is whole."""

Decide = Callable[[JobRecord], Decision | None]


def now() -> datetime:
    return datetime.now(UTC)


def to_public(record: JobRecord) -> Job:
    """Returns the job as callers see it."""
    job = Job()
    job.CopyFrom(record.job)
    job.etag = str(record.revision)
    pauses.count_savings(record, job, now())
    return job


def copy_args(source: Job, answer: Job) -> None:
    """Puts the args of a job into an answer about it."""
    if source.spec.HasField("args"):
        answer.spec.args.CopyFrom(source.spec.args)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a caller sends beside what it asks for."""

    request_id: str = ""
    digest: str = ""
    etag: str = ""

    @classmethod
    def of(cls, request: Message, *, request_id: str, etag: str = "") -> "Call":
        """Returns the call for a request; another request with the same id has another digest."""
        kind = type(request).DESCRIPTOR.full_name.encode()
        body = request.SerializeToString(deterministic=True)
        return cls(request_id=request_id, digest=hashlib.sha256(kind + b"\0" + body).hexdigest(), etag=etag)

    def answered_by(self, answer: Job) -> Request:
        """Returns what is stored to answer a repeat: see `JobUpdater.first_answer`."""
        small = Job()
        small.CopyFrom(answer)
        small.spec.ClearField("args")
        return Request(id=self.request_id, digest=self.digest, answer=small)


class JobUpdater:
    """Applies events to the jobs in a store."""

    def __init__(self, store: JobStore) -> None:
        self.store = store

    async def request(self, job: JobName, event: Event, call: Call) -> Job:
        """Applies what a caller asked for, and returns the job as it then is.

        Raises NotFoundError, StaleEtagError, RequestIdReusedError, ContentionError, or a PreconditionError.
        """
        if (answer := await self.answered(call)) is not None:
            return answer

        def decide(record: JobRecord) -> Decision | None:
            self.check_etag(record, call)
            decision = machine.decide(record, event, now())
            if decision is None and call.request_id:
                return Decision(record=record)  # the answer is stored, so that a retry has no effect either
            return decision

        try:
            changed = await self.change(job, decide, call=call)
        except RequestSeen as seen:
            return await self.first_answer(call, seen)
        except (errors.NotFoundError, errors.StaleEtagError, errors.PreconditionError):
            if (answer := await self.answered(call)) is not None:
                return answer  # the first try was still under way, and is what changed the job
            raise
        failpoints.hit("control-plane.before-reply")
        return to_public(changed)

    async def answered(self, call: Call) -> Job | None:
        """Returns the first answer to a repeated request; None if the request is new."""
        remembered = await self.store.answered(call.request_id) if call.request_id else None
        return await self.first_answer(call, RequestSeen(*remembered)) if remembered else None

    async def first_answer(self, call: Call, seen: RequestSeen) -> Job:
        """Returns the first answer to a repeated request. Raises RequestIdReusedError if the request is another.

        Answers are stored without `spec.args`, which may be large and never change: the job still has them. If it was
        deleted since, the answer comes without.
        """
        if seen.digest != call.digest:
            raise errors.RequestIdReusedError(
                f"request_id {call.request_id} was used for another request; use a new one",
                request_id=call.request_id,
            )
        stored = await self.store.get(JobName(seen.answer.name)) if seen.answer.name else None
        if stored is not None and stored.record.job.uid == seen.answer.uid:
            copy_args(stored.record.job, seen.answer)
        return seen.answer

    async def settle(self, call: Call, answer: Job) -> Job:
        """Has repeats of a request get an answer that says more than the one that its change was stored with.

        Returns the answer that they get: what the first of them was answered stays.
        """
        kept = await self.store.settle(call.request_id, call.answered_by(answer).answer) if call.request_id else None
        if kept is None:
            return answer
        copy_args(answer, kept)
        return kept

    async def apply(
        self,
        job: JobName,
        event: Event,
        *,
        token: FencingToken | None = None,
        allocation: Allocation | None = None,
        fence: Fence | None = None,
    ) -> JobRecord:
        """Applies something that happened.

        `token`: of the attempt that it happened to; if the job has another by now, nothing is changed. `allocation`: of
        the worker, which must not have changed since. `fence`: the stream that told of it.

        Raises NotFoundError if the job is gone, Conflict if the allocation changed, Fenced if another stream speaks for
        the worker by now.
        """

        def decide(record: JobRecord) -> Decision | None:
            return None if token is not None and token != record.token else machine.decide(record, event, now())

        return await self.change(job, decide, allocation=allocation, fence=fence)

    async def report(self, report: Report, worker: str, *, instance: str = "", fence: Fence | None = None) -> None:
        """Applies a report once, if it comes from the job's own attempt. Raises Fenced as `apply` does.

        `instance`: of the worker's agent. Another than the one that had the attempt has a copy of its journal.
        """
        event = reports.event_of_report(report, worker)

        async def prepare() -> None:
            nonlocal event
            if isinstance(event, CheckpointDamaged):
                event = await self.with_alternatives(JobName(report.job), event)

        def decide(record: JobRecord) -> Decision | None:
            left = releases.unconfirmed(record, report.token)
            foreign = left is not None and not releases.is_of(left, worker, instance)
            if report.token != record.token or foreign:
                log.warning("report_refused", job=report.job, attempt=report.token.attempt, worker=worker)
                return None
            if report.sequence <= record.applied_report:
                return None
            decision = machine.decide(record, event, now()) if event else None
            if decision is not None:
                decision.record.applied_report = report.sequence
            return decision

        try:
            await self.change(JobName(report.job), decide, prepare=prepare, fence=fence)
        except errors.NotFoundError:
            log.warning("report_of_unknown_job", job=report.job, worker=worker)

    async def with_alternatives(self, job: JobName, event: CheckpointDamaged) -> CheckpointDamaged:
        """Returns the event with the checkpoints that the job could go on from: read after the record.

        If one of them is retired meanwhile, the commit is a conflict.
        """
        newest: Checkpoint | None = None
        before: int | None = None
        while page := await self.store.checkpoints(job, size=CHECKPOINTS_AT_ONCE, before=before):
            newest = newest or page[0][1]
            for _, checkpoint in page:
                if not checkpoint.damage and checkpoint.name != event.checkpoint:
                    return replace(event, sound=checkpoint, newest=newest)
            before = page[-1][0]
        return replace(event, newest=newest)

    async def review(self, job: JobName) -> None:
        """Retires what nothing keeps of a job's checkpoints. Raises ContentionError."""
        for _ in range(ATTEMPTS):
            stored = await self.store.get(job)
            if stored is None:
                return
            found = retention.reviewed(stored.record, await self.all_checkpoints(job), now())
            if found is None:
                return
            decision, review = found
            change = self.to_commit(stored, decision, None, None, None)
            try:
                await self.store.commit(replace(change, retired=[each.name for each in review.retired]))
            except Conflict:
                continue
            self.tell(stored.record, decision)
            return
        raise errors.ContentionError(f"{job} keeps changing; try again", job=job)

    async def all_checkpoints(self, job: JobName) -> list[tuple[int, Checkpoint]]:
        """Returns a job's registered checkpoints, newest first."""
        found: list[tuple[int, Checkpoint]] = []
        while page := await self.store.checkpoints(
            job, size=CHECKPOINTS_AT_ONCE, before=found[-1][0] if found else None
        ):
            found += page
        return found

    async def change_checkpoint(
        self, job: JobName, checkpoint: str, decide: Callable[[JobRecord, Checkpoint], Decision | None]
    ) -> tuple[JobRecord, Checkpoint]:
        """Changes a job on account of one of its checkpoints; returns the record as it then is, and the checkpoint.

        The record is read first, so a checkpoint that is gone by the time of the commit makes it a conflict. Raises
        NotFoundError, ContentionError, and what `decide` raises.
        """
        for _ in range(ATTEMPTS):
            stored = await self.store.get(job)
            found = await self.store.checkpoint(job, checkpoint)
            if stored is None or found is None:
                raise errors.NotFoundError(f"there is no {checkpoint}", checkpoint=checkpoint)
            decision = decide(stored.record, found)
            if decision is None:
                return stored.record, found
            try:
                await self.store.commit(replace(self.to_commit(stored, decision, None, None, None), review=True))
            except Conflict:
                continue
            self.tell(stored.record, decision)
            return decision.record, found
        raise errors.ContentionError(f"{job} keeps changing; try again", job=job)

    async def delete(self, job: JobName, call: Call) -> None:
        """Deletes a job that has ended; its objects are purged later. Raises as `request`, and JobNotFinishedError."""
        for _ in range(ATTEMPTS):
            stored = await self.store.get(job)
            if stored is None:
                if await self.answered(call) is not None:
                    return  # the first try was still under way
                raise errors.NotFoundError(f"there is no {job}", job=job)
            self.check_etag(stored.record, call)
            if stored.record.job.state not in machine.ENDED:
                state = Job.State.Name(stored.record.job.state)
                raise errors.JobNotFinishedError(
                    f"{job} is {state}; cancel it before deleting it",
                    job=job,
                    state=state,
                    allowed_states=", ".join(sorted(map(Job.State.Name, machine.ENDED))),
                )
            request = call.answered_by(Job()) if call.request_id else None
            try:
                await self.store.commit(Change(job=job, expected=stored.version, record=None, request=request))
            except Conflict:
                continue
            except RequestSeen as seen:
                await self.first_answer(call, seen)
            log.info("job_deleted", job=job)
            return
        raise errors.ContentionError(f"{job} keeps changing; try again", job=job)

    def check_etag(self, record: JobRecord, call: Call) -> None:
        if call.etag and call.etag != str(record.revision):
            name = record.job.name
            raise errors.StaleEtagError(
                f"{name} has changed since etag {call.etag}; get it and decide again", job=name, etag=call.etag
            )

    async def change(
        self,
        job: JobName,
        decide: Decide,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
        call: Call | None = None,
        allocation: Allocation | None = None,
        fence: Fence | None = None,
    ) -> JobRecord:
        """Reads, decides and commits until no other change comes in between; returns the record as it then is.

        `prepare` reads what `decide` needs beside the record, each time anew.
        """
        for _ in range(ATTEMPTS):
            stored = await self.store.get(job)
            if stored is None:
                raise errors.NotFoundError(f"there is no {job}", job=job)
            if prepare is not None:
                await prepare()
            decision = decide(stored.record)
            if decision is None:
                return stored.record
            try:
                await self.store.commit(self.to_commit(stored, decision, call, allocation, fence))
            except Fenced:
                raise
            except Conflict:
                if allocation is not None:
                    raise
                continue
            self.tell(stored.record, decision)
            return decision.record
        raise errors.ContentionError(f"{job} keeps changing; try again", job=job)

    def to_commit(
        self,
        stored: Stored,
        decision: Decision,
        call: Call | None,
        allocation: Allocation | None,
        fence: Fence | None,
    ) -> Change:
        request = None
        if call is not None and call.request_id:
            request = call.answered_by(to_public(decision.record))
        return Change(
            job=JobName(stored.record.job.name),
            expected=stored.version,
            record=decision.record,
            events=decision.events,
            epochs=decision.epochs,
            checkpoints=decision.checkpoints,
            request=request,
            allocation=allocation,
            fence=fence,
        )

    def tell(self, before: JobRecord, decision: Decision) -> None:
        for event in decision.events:
            log.info(
                JobEvent.Type.Name(event.type).lower(),
                job=before.job.name,
                attempt=event.attempt,
                was=Job.State.Name(before.job.state),
                state=Job.State.Name(event.state),
                actor=event.actor,
                message=event.message,
            )
