"""The stack: starts its processes in order, watches them, and stops them in order."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from adjourn.local import process_cleanup, s3_url, seaweed, services, valkey
from adjourn.local.data_directory import DataDirectory, StackSettings
from adjourn.local.managed_process import Program
from adjourn.local.ports import HOST, claim, free_ports, is_free
from adjourn.local.supervisor import ProcessSupervisor, together
from adjourn.objects import S3Settings

DEFAULT_PORT: Final = 7400
DEFAULT_WEB_PORT: Final = 7480
NAMESPACE: Final = "adjourn"


def unfailing(report: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a report that ends nothing if what it is written to is gone: the processes are still to be ended."""

    def tell(text: str) -> None:
        with suppress(OSError, SystemExit):  # rich makes the second of a pipe that nobody reads
            report(text)

    return tell


class PortTakenError(Exception):
    """The requested port is in use."""

    def __init__(self, port: int, option: str = "") -> None:
        choice = f", or choose another {option}" if option else ""
        super().__init__(f"port {port} of {HOST} is taken; stop what listens there{choice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """The ports at which clients of the systems that Adjourn grew from expect them."""

    heimdall: int = 8001
    peft_studio: int = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a stack."""

    data: Path
    workers: int = 2
    port: int | None = None
    """Port of the control plane; None: DEFAULT_PORT if it is free, else any other."""
    web: bool = False
    """A gateway runs too: HTTP, and the page."""
    web_port: int | None = None
    """Port of the gateway; None: DEFAULT_WEB_PORT if it is free, else any other."""
    origins: Origins | None = None
    """The gateway serves the interfaces of Heimdall and PEFT Studio too; None: it does not."""
    threads: int | None = None
    """Threads of one training process; None: the cores divided by the workers. Fixed at the first start."""
    redis: str | None = None
    """URL of an external server, `redis://[:password@]host:port/0`; None: the embedded one."""
    s3: S3Settings | None = None
    """An external server; None: the embedded one."""
    sync_interval: float | None = None
    """Longest time between two messages of an agent, in seconds; None: the control plane's default."""
    lease_duration: float | None = None
    """Silence after which a worker counts as lost, in seconds; None: the control plane's default."""

    def timing(self) -> dict[str, str]:
        """Returns the control plane's variables for the intervals that are set."""
        chosen = {"ADJOURN_SYNC_INTERVAL": self.sync_interval, "ADJOURN_LEASE_DURATION": self.lease_duration}
        return {name: f"{seconds:g}" for name, seconds in chosen.items() if seconds is not None}


class Stack:
    """A running stack, as an async context manager that ends every process of the stack.

    Entering raises ProgramError (something did not start), MissingServerError, DirectoryInUseError,
    DirectoryDamagedError, PortTakenError.
    Cancelling it while it stops sends SIGKILL at once.
    """

    def __init__(self, options: Options, *, report: Callable[[str], None]) -> None:
        self.options = options
        self.report = unfailing(report)
        """Called with one line of text for each thing that happens."""
        self.directory = DataDirectory(options.data)
        self.address = ""
        """Address of the control plane, host:port."""
        self.web = ""
        """Address of the gateway, host:port; empty: there is none."""
        self.redis = options.redis or ""
        """URL of the server that keeps the jobs."""
        self.s3 = options.s3
        """The server that keeps checkpoints."""
        self.workers = [f"worker-{number}" for number in range(1, options.workers + 1)]
        self._supervisor = ProcessSupervisor(self.report)
        self._watch: asyncio.Task[None] | None = None
        self._held = ExitStack()

    async def __aenter__(self) -> Self:
        self._held.enter_context(self.directory.held())
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def places(self) -> dict[str, str]:
        """Returns the addresses of the servers, without credentials."""
        redis = self.redis.rpartition("@")[2].removeprefix("redis://")
        return {"redis": redis, "s3": f"{self.s3.endpoint}/{self.s3.bucket}" if self.s3 else ""}

    async def serve(self) -> None:
        """Waits until cancelled, or until the supervisor fails."""
        assert self._watch
        await asyncio.shield(self._watch)

    async def kill(self, worker: str) -> list[int]:
        """Sends SIGKILL to every process of a worker and keeps the worker down; returns the process ids."""
        self._supervisor.release(worker)
        return await process_cleanup.kill(self.directory.path, worker, self._worker_directory(worker))

    def revive(self, worker: str) -> None:
        """Starts a killed worker again; does not wait until it is ready."""
        self._supervisor.revive(worker)

    async def _start(self) -> None:
        if count := await process_cleanup.end(self.directory.path):
            self.report(f"ended {count} processes that an earlier stack had left behind")
        self.address = f"{HOST}:{self._port('--port', self.options.port, DEFAULT_PORT)}"
        if self.options.web:
            self.web = f"{HOST}:{self._port('--web-port', self.options.web_port, DEFAULT_WEB_PORT)}"
        settings = self.directory.settings(threads=self._threads(), ports=1 + seaweed.PORT_COUNT, usable=self._claimed)
        self._watch = asyncio.create_task(self._supervisor.watch())
        servers = self._servers(settings)
        assert self.s3
        marker = process_cleanup.marker(self.directory.path)
        shared = {**marker, **s3_url.environment(self.s3)}
        control_plane = services.control_plane(
            directory=self.directory.path,
            logs=self.directory.logs,
            address=self.address,
            environment={
                **shared,
                **self.options.timing(),
                **services.passed_on(os.environ, services.OF_CONTROL_PLANE),
                "ADJOURN_REDIS_URL": self.redis,
                "ADJOURN_NAMESPACE": NAMESPACE,
            },
        )
        agents = [
            services.agent(
                name=name,
                directory=self._worker_directory(name),
                logs=self.directory.logs,
                address=self.address,
                environment={
                    **shared,
                    **services.passed_on(os.environ, services.OF_WORKERS),
                    "ADJOURN_THREADS": str(settings.threads),
                    "ADJOURN_GPUS": f"{number}/{len(self.workers)}",
                },
            )
            for number, name in enumerate(self.workers)
        ]
        gateways = [
            services.web(
                directory=self.directory.path,
                logs=self.directory.logs,
                listen=listen,
                address=self.address,
                environment={
                    **marker,
                    **services.passed_on(os.environ, services.OF_GATEWAY),
                    **self._origins(),
                },
            )
            for listen in ([self.web] if self.web else [])
        ]
        # Agents load torch while all else starts, and connect when the control plane listens.
        await together(self._start_in_turn(servers, (control_plane, *gateways)), *map(self._supervisor.start, agents))

    async def _start_in_turn(self, *ranks: Sequence[Program]) -> None:
        """Starts those of a rank together, once those before it are ready."""
        for programs in ranks:
            await together(*map(self._supervisor.start, programs))

    def _servers(self, settings: StackSettings) -> list[Program]:
        """Notes how to reach the servers; returns those that are not external."""
        port, *ports = settings.ports
        marker = process_cleanup.marker(self.directory.path)
        self.redis = self.options.redis or valkey.url(port=port, password=settings.redis_password)
        self.s3 = self.options.s3 or seaweed.access_to(
            ports=ports, access_key=settings.s3_access_key, secret_key=settings.s3_secret_key
        )
        programs = []
        if not self.options.redis:
            programs.append(
                valkey.program(
                    directory=self.directory.path / "valkey",
                    logs=self.directory.logs,
                    port=port,
                    password=settings.redis_password,
                    environment=marker,
                )
            )
        if not self.options.s3:
            programs.append(
                seaweed.program(
                    directory=self.directory.path / "s3",
                    logs=self.directory.logs,
                    ports=ports,
                    access=self.s3,
                    environment=marker,
                )
            )
        return programs

    def _worker_directory(self, worker: str) -> Path:
        return self.directory.path / "workers" / worker

    def _origins(self) -> Mapping[str, str]:
        """Returns the gateway's settings for the origins' interfaces; raises PortTakenError."""
        origins = self.options.origins
        if origins is None:
            return {}
        for port in (origins.heimdall, origins.peft_studio):
            if not self._claimed(port):
                raise PortTakenError(port)
        return {
            "ADJOURN_HEIMDALL_LISTEN": f"{HOST}:{origins.heimdall}",
            "ADJOURN_PEFT_STUDIO_LISTEN": f"{HOST}:{origins.peft_studio}",
        }

    def _port(self, option: str, wanted: int | None, usual: int) -> int:
        """Returns the port that an option wants, else the usual one, else any that is free; raises PortTakenError."""
        if wanted is not None:
            if not self._claimed(wanted):
                raise PortTakenError(wanted, option)
            return wanted
        if self._claimed(usual):
            return usual
        (port,) = free_ports(1, self._claimed)
        self.report(f"port {usual} is taken, perhaps by another stack, so this one is at {port}")
        return port

    def _claimed(self, port: int) -> bool:
        """Returns whether a port is free and now this stack's."""
        claimed = claim(port)
        if claimed is None:
            return False
        if not is_free(port):
            claimed.close()
            return False
        self._held.enter_context(claimed)
        return True

    def _threads(self) -> int:
        # Not os.cpu_count(): a container may have fewer.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.options.threads or max(1, cores // max(1, self.options.workers))

    async def _stop(self) -> None:
        """Ends every process. A cancellation meanwhile skips the grace, not the end."""
        self.report("stopping")
        hurry = asyncio.Event()
        stopping = asyncio.create_task(self._end(hurry))
        try:
            while not stopping.done():
                try:
                    await asyncio.shield(stopping)
                except asyncio.CancelledError:
                    hurry.set()
            stopping.result()
        finally:
            self._held.close()
        if hurry.is_set():
            raise asyncio.CancelledError

    async def _end(self, hurry: asyncio.Event) -> None:
        if self._watch:
            self._watch.cancel()
        # In this order each can still send its last messages to the next.
        for names in ({*self.workers, services.WEB}, {services.CONTROL_PLANE}, {seaweed.NAME}, {valkey.NAME}):
            await self._supervisor.stop(names, hurry)
        await process_cleanup.end(self.directory.path, hurry=hurry)
