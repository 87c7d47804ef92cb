"""The stack as a whole: started in order, watched, stopped in order."""

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from adjourn.local import access, leftovers, seaweed, services, valkey
from adjourn.local.directory import Directory, Settings
from adjourn.local.ports import HOST, free_ports, is_free
from adjourn.local.supervision import LauncherClient, together
from adjourn.objects import S3Settings

DEFAULT_PORT: Final = 7400
NAMESPACE: Final = "adjourn"


class PortTakenError(Exception):
    """The port that was asked for is in use."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} of {HOST} is taken; stop what listens there, or choose another --port")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a stack consists of."""

    data: Path
    workers: int = 2
    port: int | None = None
    """Of the control plane; None: DEFAULT_PORT if it is free, else another."""
    threads: int | None = None
    """Of one training process; None: the cores, shared among the workers. Fixed at the first start."""
    redis: str | None = None
    """An external server instead of ours, `redis://[:password@]host:port/0`."""
    s3: S3Settings | None = None
    """An external server instead of ours."""
    sync_interval: float | None = None
    """Seconds between what agents say; None: as the control plane chooses."""
    lease_duration: float | None = None
    """Seconds of silence after which a worker is taken for lost; None: as the control plane chooses."""

    def timing(self) -> dict[str, str]:
        """Returns the settings of the control plane that were chosen here."""
        chosen = {"ADJOURN_SYNC_INTERVAL": self.sync_interval, "ADJOURN_LEASE_DURATION": self.lease_duration}
        return {name: f"{seconds:g}" for name, seconds in chosen.items() if seconds is not None}


class Stack:
    """A running stack, as an async context manager; leaving it ends every process of it.

    Raises ChildError (something did not start), DirectoryInUseError, PortTakenError. Cancelled while it stops, it
    stops at once.
    """

    def __init__(self, options: Options, *, report: Callable[[str], None]) -> None:
        self.options = options
        self.report = report
        """Told what happens, in a line of text."""
        self.directory = Directory(options.data)
        self.address = ""
        """Of the control plane, host:port."""
        self.redis = options.redis or ""
        """Where the control plane keeps jobs."""
        self.s3 = options.s3
        """Where checkpoints are."""
        self.workers = [f"worker-{number}" for number in range(1, options.workers + 1)]
        self._supervisor = LauncherClient(report)
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
        """Returns where the servers are, without credentials."""
        redis = self.redis.rpartition("@")[2].removeprefix("redis://")
        return {"redis": redis, "s3": f"{self.s3.endpoint}/{self.s3.bucket}" if self.s3 else ""}

    async def serve(self) -> None:
        """Waits; until cancelled, or until watching over the processes fails."""
        assert self._watch
        await asyncio.shield(self._watch)

    async def kill(self, worker: str) -> list[int]:
        """Ends a worker with SIGKILL, agent, launcher and training, and keeps it down; returns the process ids."""
        self._supervisor.release(worker)
        return await leftovers.kill(self.directory.path, worker, self._worker_directory(worker))

    def revive(self, worker: str) -> None:
        """Lets a worker that was killed come back; does not wait for it."""
        self._supervisor.revive(worker)

    async def _start(self) -> None:
        if count := await leftovers.end(self.directory.path):
            self.report(f"ended {count} processes that an earlier stack had left behind")
        self.address = f"{HOST}:{self._port()}"
        settings = self.directory.settings(threads=self._threads(), ports=1 + seaweed.PORT_COUNT)
        self._watch = asyncio.create_task(self._supervisor.watch())
        self.redis, self.s3 = await self._start_servers(settings)
        marker = {leftovers.MARKER: str(self.directory.path)}
        shared = {**marker, **access.environment(self.s3)}
        control_plane = services.control_plane(
            directory=self.directory.path,
            logs=self.directory.logs,
            address=self.address,
            environment={
                **shared,
                **self.options.timing(),
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
                    "ADJOURN_THREADS": str(settings.threads),
                    "ADJOURN_GPUS": f"{number}/{len(self.workers)}",
                },
            )
            for number, name in enumerate(self.workers)
        ]
        # Agents connect as soon as there is something to connect to; meanwhile they load torch.
        await together(*map(self._supervisor.start, (control_plane, *agents)))

    async def _start_servers(self, settings: Settings) -> tuple[str, S3Settings]:
        """Starts what is not external; returns how to reach them."""
        port, *ports = settings.ports
        marker = {leftovers.MARKER: str(self.directory.path)}
        redis = self.options.redis or valkey.url(port=port, password=settings.redis_password)
        s3 = self.options.s3 or seaweed.access_to(
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
                    access=s3,
                    environment=marker,
                )
            )
        await together(*map(self._supervisor.start, programs))
        return redis, s3

    def _worker_directory(self, worker: str) -> Path:
        return self.directory.path / "workers" / worker

    def _port(self) -> int:
        if self.options.port is not None:
            if not is_free(self.options.port):
                raise PortTakenError(self.options.port)
            return self.options.port
        return DEFAULT_PORT if is_free(DEFAULT_PORT) else free_ports(1)[0]

    def _threads(self) -> int:
        # Not os.cpu_count(): a container may have fewer.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.options.threads or max(1, cores // max(1, self.options.workers))

    async def _stop(self) -> None:
        """Ends everything, whatever happens meanwhile; being cancelled takes the grace away."""
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
        # Agents first: they have something to say to the control plane, which has something to store.
        for names in (set(self.workers), {services.CONTROL_PLANE}, {seaweed.NAME}, {valkey.NAME}):
            await self._supervisor.stop(names, hurry)
        await leftovers.end(self.directory.path, hurry=hurry)
