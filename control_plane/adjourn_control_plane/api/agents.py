"""AgentService: accepts the agents' streams."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import structlog

from adjourn import errors
from adjourn.v1 import agent_service_pb2_grpc
from adjourn.v1.agent_service_pb2 import SynchronizeRequest, SynchronizeResponse
from adjourn_control_plane.api import validation
from adjourn_control_plane.fleet.session import AgentSession
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobStore
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()

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
        """Set while no stream is open or being closed."""
        self.idle.set()

    async def Synchronize(
        self, requests: AsyncIterator[SynchronizeRequest], context: Context
    ) -> AsyncIterator[SynchronizeResponse]:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        invalid = validation.name("worker.name", first.worker.name, "workers")
        if not first.session_id:
            invalid["session_id"] = "must be given: a UUID of the agent process"
        if invalid:
            raise errors.InvalidRequestError(invalid)
        session = AgentSession(first, self.store, self.updater, self.notifier, self.settings)
        with self.counted():
            log.info("agent_connected", worker=session.worker, session=session.session, peer=context.peer())
            try:
                async with contextlib.aclosing(session.run(first, requests)) as responses:
                    async for response in responses:
                        yield response
            finally:
                log.info("agent_disconnected", worker=session.worker, session=session.session)

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
