"""AgentService.Synchronize: one reader and one writer a stream; decisions are made elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import grpc
import structlog

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1 import agent_service_pb2_grpc
from adjourn.v1.agent_service_pb2 import AssignmentStatus, FencingToken, SynchronizeRequest, SynchronizeResponse
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.aio import end
from adjourn_control_plane.api import validation
from adjourn_control_plane.fleet import reconcile
from adjourn_control_plane.job.events import Event
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobName, JobStore, WorkerName
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()

Requests = AsyncIterator[SynchronizeRequest]
Context = grpc.aio.ServicerContext[Any, Any]


class AgentService(agent_service_pb2_grpc.AgentServiceServicer):
    """Holds the streams of the agents that this replica serves."""

    def __init__(self, store: JobStore, updater: JobUpdater, notifier: Notifier, settings: Settings) -> None:
        self.store = store
        self.updater = updater
        self.notifier = notifier
        self.settings = settings
        self.streams = 0
        self.idle = asyncio.Event()
        """Set while no stream is open, or being put away."""
        self.idle.set()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.streams += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.streams -= 1
            if not self.streams:
                self.idle.set()

    async def Synchronize(self, requests: Requests, context: Context) -> AsyncIterator[SynchronizeResponse]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        bad = validation.name("worker.name", first.worker.name, "workers")
        if not first.session_id:
            bad["session_id"] = "must be given: a UUID of the agent process"
        if bad:
            raise errors.InvalidRequestError(bad)
        stream = Stream(self, first)
        with self.counted(), self.notifier.subscription(stream.worker) as subscription:
            await self.store.attach(stream.described(first), first.session_id, stream.id)
            log.info("agent_connected", worker=stream.worker, session=first.session_id, peer=context.peer())
            reader = asyncio.create_task(stream.read(first, requests, subscription))
            try:
                async for response in stream.responses(reader, subscription):
                    yield response
            finally:
                await end(reader)
                await asyncio.shield(self.store.detach(stream.worker, stream.id))
                log.info("agent_disconnected", worker=stream.worker, session=first.session_id)
                self.notifier.notify("")


class Stream:
    """One agent's stream."""

    def __init__(self, service: AgentService, first: SynchronizeRequest) -> None:
        self.service = service
        self.id = uuid4().hex
        self.session = first.session_id
        self.worker = WorkerName(first.worker.name)
        self.reported: list[AssignmentStatus] = []
        self.acknowledged = 0
        self.orphans: set[str] = set()

    def described(self, request: SynchronizeRequest) -> Worker:
        """Returns the worker as it describes itself, and whether it wants new work."""
        worker = Worker()
        worker.CopyFrom(request.worker)
        worker.draining = request.draining
        return worker

    async def read(self, first: SynchronizeRequest, requests: Requests, subscription: asyncio.Event) -> None:
        """Takes in what the agent says, message by message, until its end of the stream closes."""
        await self.handle(first)
        subscription.set()
        async for request in requests:
            if not await self.service.store.heartbeat(self.described(request), self.id):
                await self.superseded()
            await self.handle(request)
            subscription.set()

    async def handle(self, request: SynchronizeRequest) -> None:
        """Applies what is so by now, then what happened before, then what the worker has no more."""
        self.reported = list(request.assignments)
        held = await self.held()
        others = await self.others(held)
        tokens = {record.job.name: record.token for record in (*held, *others.values())}
        await self.apply(reconcile.reconcile(self.worker, held, self.reported, others), tokens)
        for report in request.reports:
            await self.service.updater.report(report, self.worker)
            self.acknowledged = max(self.acknowledged, report.sequence)
        await self.apply(reconcile.lost_attempts(self.worker, held, self.reported), tokens)

    async def apply(self, events: Iterable[tuple[str, Event]], tokens: Mapping[str, FencingToken]) -> None:
        """Applies events to the attempts that they were concluded from; elsewhere nothing comes of them."""
        for job, event in events:
            with contextlib.suppress(errors.NotFoundError):  # deleted meanwhile: nothing to keep in step
                await self.service.updater.apply(JobName(job), event, token=tokens[job])

    async def held(self) -> list[JobRecord]:
        allocation = await self.service.store.allocation(self.worker)
        return [stored.record for stored in allocation.jobs]

    async def others(self, held: list[JobRecord]) -> Mapping[str, JobRecord]:
        """Returns the records of jobs that the worker reports and should not hold."""
        mine = {record.job.name for record in held}
        found: dict[str, JobRecord] = {}
        for status in self.reported:
            if status.job in mine or status.job in found:
                continue
            stored = await self.service.store.get(JobName(status.job))
            if stored is not None:
                found[status.job] = stored.record
            elif status.phase not in reconcile.OVER and status.job not in self.orphans:
                self.orphans.add(status.job)
                log.warning("orphan_left_alone", worker=self.worker, job=status.job, attempt=status.token.attempt)
        return found

    async def responses(
        self, reader: asyncio.Task[None], subscription: asyncio.Event
    ) -> AsyncIterator[SynchronizeResponse]:
        """Yields what the worker should have: after each of its messages, each change, and every interval."""
        interval = self.service.settings.sync_interval
        reader.add_done_callback(lambda _: subscription.set())
        while True:
            await self.service.notifier.wait(subscription, interval.total_seconds())
            if reader.done():
                reader.result()  # raises what ended it
                return
            session = await self.service.store.session(self.worker)
            if session is None or session.stream != self.id:
                await self.superseded()
            held = await self.held()
            response = SynchronizeResponse(
                assignments=reconcile.desired_assignments(held, self.reported, await self.others(held)),
                acknowledged_report=self.acknowledged,
            )
            response.sync_interval.FromTimedelta(interval)
            response.lease_duration.FromTimedelta(self.service.settings.lease_duration)
            yield response

    async def superseded(self) -> None:
        """Ends the stream: another agent speaks now, or this one over a newer stream, or the store has forgotten it."""
        session = await self.service.store.session(self.worker)
        if session is None or session.session == self.session:
            raise errors.ShuttingDownError(f"{self.worker} no longer speaks over this stream; open a new one")
        raise errors.SessionSupersededError(
            f"another agent speaks for {self.worker} now; is its name used twice?", worker=self.worker
        )
