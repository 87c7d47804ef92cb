"""One agent's stream: hears what the worker has, says what it should have. Decisions are made in `reconcile`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from typing import Final, NoReturn
from uuid import uuid4

import structlog

from adjourn import errors
from adjourn.channel import MAX_MESSAGE_BYTES
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import (
    Assignment,
    AssignmentStatus,
    FencingToken,
    SynchronizeRequest,
    SynchronizeResponse,
)
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.aio import end
from adjourn_control_plane.fleet import reconcile
from adjourn_control_plane.job.events import Adopted, Event, ReleaseConfirmed
from adjourn_control_plane.job.updater import ATTEMPTS, JobUpdater, now
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import (
    Conflict,
    Fence,
    Fenced,
    JobName,
    JobStore,
    JobUid,
    Session,
    Unconfirmed,
    WorkerName,
)
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()

Requests = AsyncIterator[SynchronizeRequest]

RESPONSE_BYTES: Final = MAX_MESSAGE_BYTES // 2
"""Size of the assignments in a response. What does not fit follows once the worker holds what did."""


class AgentSession:
    """A stream of Synchronize."""

    def __init__(
        self,
        first: SynchronizeRequest,
        store: JobStore,
        updater: JobUpdater,
        notifier: Notifier,
        settings: Settings,
    ) -> None:
        self.store = store
        self.updater = updater
        self.notifier = notifier
        self.settings = settings
        self.id = uuid4().hex
        """Names the stream: of all streams of a worker, the one that attached last speaks for it."""
        self.session = first.session_id
        """Names the agent's process."""
        self.worker = WorkerName(first.worker.name)
        self.fence = Fence(worker=self.worker, stream=self.id)
        """Goes with everything that this stream writes: once another speaks for the worker, nothing is written."""
        self.changed = asyncio.Event()
        """Set when there may be something to say."""
        self.reported: list[AssignmentStatus] = []
        self.acknowledged = 0
        self.instance = first.worker.instance
        """Names the agent's data directory."""
        self.desired: list[Assignment] = []
        """What the worker was told last that it should have."""
        self.left_over: set[reconcile.AttemptKey] = set()
        """Attempts that it has and that are of no job it should have: their GPUs are offered to nobody."""
        self.orphans: set[JobUid] = set()
        """Uids of the jobs that it has attempts of, and that nobody knows."""
        self.unconfirmed: Sequence[Unconfirmed] = ()
        self.unconfirmed_at = -1
        """Attempts that may live there unheard of; version of the worker's allocation at which they were read."""
        self.responses_sent = 0
        self.on_the_way: dict[reconcile.AttemptKey, int] = {}
        """Attempts that it may not have received yet, and the sequence of the newest response that hands them to it."""

    async def run(self, first: SynchronizeRequest, requests: Requests) -> AsyncGenerator[SynchronizeResponse, None]:
        """Speaks for the worker until either end closes the stream, or another stream takes over."""
        with self.notifier.subscription(self.worker) as self.changed:
            try:
                attached = await self.store.attach(
                    self.described(first), first.session_id, self.id, opened=first.stream
                )
            except Fenced:  # this replica was stopped: what it heard is from before a newer stream
                await self.superseded()
            if not attached:
                await self.name_taken()
            reader = asyncio.create_task(self.read(first, requests))
            try:
                async for response in self.responses(reader):
                    yield response
            finally:
                await end(reader)
                await asyncio.shield(self.store.detach(self.worker, self.id))
                self.notifier.notify("")

    def described(self, request: SynchronizeRequest) -> Worker:
        """Returns the worker as it describes itself, and whether it wants new work."""
        worker = Worker()
        worker.CopyFrom(request.worker)
        worker.draining = request.draining
        kept_busy = {
            uuid
            for status in request.assignments
            if (status.job, reconcile.token_key(status.token)) in self.left_over
            for uuid in status.held_device_uuids
        }
        for device in worker.devices:
            device.quarantined |= device.uuid in kept_busy
        return worker

    async def read(self, first: SynchronizeRequest, requests: Requests) -> None:
        """Handles the agent's messages, one after the other, until the agent closes its end of the stream."""
        await self.handle(first)
        await self.heartbeat(first)  # it is known what the worker holds: it may be given more
        async for request in requests:
            await self.heartbeat(request)
            await self.handle(request)

    async def heartbeat(self, request: SynchronizeRequest) -> None:
        if not await self.store.heartbeat(self.described(request), self.id):
            await self.superseded()

    async def handle(self, request: SynchronizeRequest) -> None:
        """Applies a message; raises as `superseded` if another stream speaks for the worker by now."""
        listening = asyncio.create_task(self.listen(request))
        try:
            await self.apply_message(request)
        except Fenced:
            await self.superseded()
        finally:
            await end(listening)
        self.changed.set()

    async def listen(self, request: SynchronizeRequest) -> None:
        """Notes that the worker is being listened to, for as long as that takes: it is not its silence."""
        while True:
            await asyncio.sleep(self.settings.sync_interval.total_seconds())
            with contextlib.suppress(errors.StoreUnavailableError):  # whoever applies the message finds out too
                await self.store.heartbeat(self.described(request), self.id, ready=False)
            self.changed.set()  # some of its reports may be acknowledged

    async def apply_message(self, request: SynchronizeRequest) -> None:
        """Applies what is so by now, then what happened before, then what the worker has no more.

        What a worker does not hold is gone only if it answers a response of this stream. What it said before may be
        from before the attempt was handed out: this replica was held up, and others have spoken for the worker since.
        """
        is_current = request.acknowledged_response > 0
        earlier, self.reported = self.reported, list(request.assignments)
        held = await self.allocated()
        others = await self.others(held)
        await self.classify(held, others)
        tokens = {record.job.name: record.token for record in (*held, *others.values())}
        self.on_the_way = {
            attempt: sequence
            for attempt, sequence in self.on_the_way.items()
            if sequence > request.acknowledged_response
        }
        gone = reconcile.confirmed_releases(
            self.worker, self.instance, self.unconfirmed, self.reported, on_the_way=self.on_the_way.keys()
        )
        await self.apply(gone if is_current else (), tokens)
        events = reconcile.reconcile(self.worker, held, self.reported, others, instance=self.instance, earlier=earlier)
        await self.apply(events, tokens)
        series = reconcile.own_series((*held, *others.values()), request.series, now())
        for part in series:
            await self.store.add_series(part, self.fence)
        for report in request.reports:
            if report.sequence > self.acknowledged:  # it is repeated in each message until the agent hears that
                await self.updater.report(report, self.worker, instance=self.instance, fence=self.fence)
                self.acknowledged = report.sequence
        await self.apply(reconcile.memory_events(self.worker, held, series), tokens)
        pending = bool(request.reports)
        lost = reconcile.lost_attempts(self.worker, held, self.reported, reports_pending=pending)
        await self.apply(lost if is_current else (), tokens)

    async def apply(self, events: Iterable[tuple[str, Event]], tokens: Mapping[str, FencingToken]) -> None:
        """Applies events, each only if its job still has the attempt that the event was concluded from."""
        for job, event in events:
            with contextlib.suppress(errors.NotFoundError):  # deleted meanwhile: nothing to keep in step
                if isinstance(event, Adopted):
                    await self.adopt(JobName(job), event, tokens[job])
                elif isinstance(event, ReleaseConfirmed):  # names its attempt, which need not be the job's any more
                    await self.updater.apply(JobName(job), event, fence=self.fence)
                else:
                    await self.updater.apply(JobName(job), event, token=tokens[job], fence=self.fence)

    async def adopt(self, job: JobName, event: Adopted, known: FencingToken) -> None:
        """Lets a job take over an attempt, unless the scheduler has just given its GPUs away. `known`: its token.

        What comes in between is looked at anew: by the worker's next message, the job may have another attempt.
        """
        for _ in range(ATTEMPTS):
            allocation = await self.store.allocation(self.worker)
            taken = reconcile.taken_devices(stored.record for stored in allocation.jobs)
            if event.token == known and not taken.isdisjoint(event.device_uuids):
                return  # the next response orders it to stop
            try:
                await self.updater.apply(job, event, token=known, allocation=allocation, fence=self.fence)
            except Fenced:
                raise
            except Conflict:
                continue
            self.left_over.discard((job, reconcile.token_key(event.token)))
            return
        log.info("adoption_overtaken", job=job, worker=self.worker)  # the worker's next message decides

    async def allocated(self) -> list[JobRecord]:
        """Returns the jobs that the worker holds; reads what may live there unheard of, if that may have changed."""
        allocation = await self.store.allocation(self.worker)
        if self.unconfirmed_at != allocation.version:
            self.unconfirmed = await self.store.unconfirmed(self.worker)
            self.unconfirmed_at = allocation.version
        return [stored.record for stored in allocation.jobs]

    async def others(self, held: list[JobRecord]) -> Mapping[str, JobRecord]:
        """Returns the records of jobs that the worker reports and should not hold."""
        mine = {record.job.name for record in held}
        found: dict[str, JobRecord] = {}
        for status in self.reported:
            if status.job in mine or status.job in found:
                continue
            stored = await self.store.get(JobName(status.job))
            if stored is not None:
                found[status.job] = stored.record
        return found

    async def classify(self, held: Sequence[JobRecord], others: Mapping[str, JobRecord]) -> set[JobUid]:
        """Returns the uids of deleted jobs of which the worker has attempts; notes what else is not its own."""
        own = {(record.job.name, reconcile.token_key(record.token)) for record in held}
        self.left_over = reconcile.by_attempt(self.reported).keys() - own
        unknown = {JobUid(uid) for uid in reconcile.strangers(held, self.reported, others)}
        deleted = await self.store.deleted(sorted(unknown)) if unknown else set()
        for uid in deleted:
            await self.store.add_tombstone(uid)  # the attempt may have saved since the job's objects were purged
        for status in self.reported:
            uid = JobUid(status.token.job_uid)
            if uid in unknown - deleted and uid not in self.orphans and status.phase not in reconcile.OVER:
                log.warning("orphan_paused", worker=self.worker, job=status.job, uid=uid, attempt=status.token.attempt)
        self.orphans = unknown - deleted
        return deleted

    async def responses(self, reader: asyncio.Task[None]) -> AsyncGenerator[SynchronizeResponse, None]:
        """Yields what the worker should have: after each of its messages, each change, and every interval."""
        interval = self.settings.sync_interval
        reader.add_done_callback(lambda _: self.changed.set())
        while True:
            await self.notifier.wait(self.changed, interval.total_seconds())
            if reader.done():
                reader.result()  # raises what ended it
                return
            session = await self.store.session(self.worker)
            if session is None or session.stream != self.id:
                await self.superseded()
            held = await self.drained(session)
            others = await self.others(held)
            self.desired = reconcile.desired_assignments(
                held,
                self.reported,
                others,
                worker=self.worker,
                instance=self.instance,
                deleted=await self.classify(held, others),
                earlier=self.desired,
            )
            response = SynchronizeResponse(
                assignments=reconcile.that_fit(self.desired, RESPONSE_BYTES),
                acknowledged_report=self.acknowledged,
                sequence=self.responses_sent + 1,
            )
            uids = [JobUid(record.job.uid) for record in held]
            response.followed_job_uids.extend(sorted(await self.store.followed(uids)))
            self.responses_sent = response.sequence
            for each in response.assignments:
                if each.HasField("spec"):
                    self.on_the_way[each.job, reconcile.token_key(each.token)] = response.sequence
            response.sync_interval.FromTimedelta(interval)
            response.lease_duration.FromTimedelta(self.settings.lease_duration)
            yield response

    async def drained(self, session: Session) -> list[JobRecord]:
        """Sends the worker's jobs to their boundary if it is to become empty, or takes that back; returns them."""
        held = await self.allocated()
        draining = session.worker.draining
        events = reconcile.drain_events(self.worker, held, drain=session.drain, draining=draining)
        if not events:
            return held
        try:
            await self.apply(events, {record.job.name: record.token for record in held})
        except Fenced:
            await self.superseded()
        return await self.allocated()

    async def name_taken(self) -> NoReturn:
        """Refuses an agent whose worker's name another one has: nothing was handed to it, nothing taken from it."""
        other = await self.store.session(self.worker)
        if other is None or other.lost:
            raise errors.ShuttingDownError(
                f"the jobs of {self.worker} are being taken from the agent before; try again"
            )
        raise errors.WorkerNameTakenError(
            f"{self.worker} is the name of an agent with another data directory, and that one's lease is not over; "
            "give one of them another name, or end it",
            worker=self.worker,
        )

    async def superseded(self) -> NoReturn:
        """Ends the stream: another agent speaks now, or this one over a newer stream, or the store has forgotten it."""
        session = await self.store.session(self.worker)
        if session is None or session.session == self.session:
            raise errors.ShuttingDownError(f"{self.worker} no longer speaks over this stream; open a new one")
        raise errors.SessionSupersededError(
            f"another agent speaks for {self.worker} now; is its name used twice?", worker=self.worker
        )
