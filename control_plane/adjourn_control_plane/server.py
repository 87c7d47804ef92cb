"""The gRPC server: services, health, reflection, limits; and how it goes away."""

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Final, Self

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from adjourn.channel import SERVER_OPTIONS
from adjourn.objects import ObjectStore
from adjourn.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from adjourn_control_plane.api.agents import AgentService
from adjourn_control_plane.api.boundaries import PATIENCE, Boundaries
from adjourn_control_plane.api.checkpoints import CheckpointService
from adjourn_control_plane.api.errors import Errors
from adjourn_control_plane.api.event_watch import EventWatch
from adjourn_control_plane.api.jobs import JobService
from adjourn_control_plane.api.logs import Logs
from adjourn_control_plane.api.reads import Reads
from adjourn_control_plane.api.watch import Watch
from adjourn_control_plane.api.workers import WorkerService
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobStore
from adjourn_control_plane.store.notifier import Notifier

log = structlog.get_logger()

GRACE_SECONDS: Final = 5.0
SERVICES: Final = (
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
    checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"].full_name,
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name,
    agent_service_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name,
)


class AddressTaken(OSError):
    """The address cannot be listened at."""


def try_address(address: str) -> None:
    """Raises AddressTaken with the system's reason; grpc would tell it in lines of its own on stderr only."""
    host, _, port = address.rpartition(":")
    try:
        for family, _, _, _, place in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM):
            socket.create_server(place, family=family).close()
    except OSError as error:
        raise AddressTaken(f"cannot listen at {address}: {error.strerror}") from None


class Server:
    """Serves while entered; leaving drains: health off, long streams ended, calls given a grace, then closed."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        objects: ObjectStore,
        updater: JobUpdater,
        notifier: Notifier,
        *,
        patience: float = PATIENCE,
    ) -> None:
        """`patience`: seconds that the answer to a pause waits at most for the epoch at which it will be."""
        self.notifier = notifier
        self.health = health_aio.HealthServicer()
        self.server = grpc.aio.server(interceptors=[Errors()], options=SERVER_OPTIONS)
        boundaries = Boundaries(store, notifier, patience)
        watch, logs, price = Watch(store, notifier), Logs(store, objects, notifier), settings.gpu_hour_price
        events = EventWatch(store, notifier)
        jobs = JobService(store, updater, objects, watch, events, boundaries, logs, gpu_hour_price=price)
        job_service_pb2_grpc.add_JobServiceServicer_to_server(jobs, self.server)
        checkpoints = CheckpointService(store, updater, Reads(objects))
        checkpoint_service_pb2_grpc.add_CheckpointServiceServicer_to_server(checkpoints, self.server)
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(store, updater), self.server)
        self.agents = AgentService(store, updater, notifier, settings)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(self.agents, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        names = (*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)
        try_address(settings.listen)
        self.port = self.server.add_insecure_port(settings.listen)

    async def __aenter__(self) -> Self:
        await self.server.start()
        for name in ("", *SERVICES):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log.info("draining")
        await self.health.enter_graceful_shutdown()
        self.notifier.close()
        await self.server.stop(GRACE_SECONDS)
        with contextlib.suppress(TimeoutError):  # gRPC does not wait for a handler whose caller has left
            async with asyncio.timeout(GRACE_SECONDS):
                await self.agents.idle.wait()
