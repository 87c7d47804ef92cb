"""A whole system whose every connection can fail and whose every process can be killed, stopped and started again."""

import asyncio
import secrets
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from adjourn import failpoints
from adjourn.local import process_cleanup, s3_url, seaweed, services, valkey
from adjourn.local.managed_process import POLL_SECONDS, Program
from adjourn.local.ports import HOST, free_ports
from adjourn.local.supervisor import ProcessSupervisor, together
from adjourn.objects import S3Settings
from tests.harness.fault_proxy import FaultProxies, Link, server_of, through
from tests.harness.process_guard import guarded

VALKEY: Final = valkey.NAME
S3: Final = seaweed.NAME
CLIENTS: Final = "clients"
READY_SECONDS: Final = 90.0


@dataclass(kw_only=True)
class Cluster:
    """Valkey, S3, control planes and workers; a context manager. Whoever ends is started again, unless it is `down`.

    Processes are named `valkey`, `s3`, `control-plane-1`..., `worker-1`...
    Links are named `clients` and after who connects: `worker-1` (to the control planes), `worker-1/s3`,
    `control-plane-1/redis`, `control-plane-1/s3`. A worker and a client are led to any control plane that serves.
    """

    directory: Path
    control_planes: int = 1
    workers: int = 1
    slots: int = 1
    """Jobs at a time on each worker."""
    on_term: str = "leave"
    """What SIGTERM of an agent does to its training."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of control planes and agents."""

    def __post_init__(self) -> None:
        self.proxies = FaultProxies()
        self.redis_url = ""
        """Of Valkey itself."""
        self.s3: S3Settings
        """Of the S3 server itself."""
        self.logs = self.directory / "logs"
        self._supervisor = ProcessSupervisor(lambda _: None)
        self._exits = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where clients reach a control plane."""
        return self.link(CLIENTS).address

    def link(self, name: str) -> Link:
        return self.proxies.links[name]

    def process(self, name: str) -> psutil.Process:
        """Returns a process that runs; raises psutil.NoSuchProcess."""
        pid = self._supervisor.processes[name].pid
        if pid is None:
            raise psutil.NoSuchProcess(0, name)
        return psutil.Process(pid)

    def runs(self, name: str) -> bool:
        return self._supervisor.processes[name].pid is not None

    def kill(self, name: str) -> None:
        """Sends SIGKILL; it is started again within a second."""
        if watched := self._supervisor._watched.get(name):
            watched.ends = 0
        self.process(name).kill()

    def down(self, name: str) -> None:
        """Sends SIGKILL, and leaves it so until `up`. An agent's launcher and trainings stay."""
        self._supervisor.release(name)
        if self.runs(name):
            self.kill(name)

    def terminate(self, name: str) -> None:
        """Sends SIGTERM; it stays down, once it has ended, until `up`."""
        self._supervisor.release(name)
        self.process(name).terminate()

    def up(self, name: str) -> None:
        """Starts what is down; does not wait until it is ready."""
        self._supervisor.revive(name)

    def suspend(self, name: str) -> None:
        self.process(name).send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self.process(name).send_signal(signal.SIGCONT)

    async def kill_worker(self, name: str) -> list[int]:
        """Kills a worker whole: agent, launcher, trainings. It stays down until `up`; returns the process ids."""
        self._supervisor.release(name)
        return await process_cleanup.kill(self.directory, name, self.worker_directory(name))

    def arm(self, name: str, failpoint: str, action: str = "kill") -> None:
        """Has a control plane, or a worker's agent, launcher or training, fail once at a failpoint.

        It goes for whichever of these processes comes there first, also for one that runs already.
        """
        assert failpoint in failpoints.NAMES, failpoint
        directory = self._failpoints(name)
        (directory / f"{failpoint}.hit").unlink(missing_ok=True)
        (directory / f"{failpoint}.new").write_text(action)
        (directory / f"{failpoint}.new").rename(directory / failpoint)
        self._supervisor._watched[name].ends = 0  # it is started again soon, however often it is killed

    def was_hit(self, name: str, failpoint: str) -> bool:
        return (self._failpoints(name) / f"{failpoint}.hit").exists()

    def disarm(self) -> None:
        """Takes back what was armed and not hit."""
        for path in (self.directory / "failpoints").glob("*/*"):
            path.unlink(missing_ok=True)

    def _failpoints(self, name: str) -> Path:
        directory = self.directory / "failpoints" / name
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def worker_directory(self, name: str) -> Path:
        return self.directory / "workers" / name

    async def ready(self, *names: str) -> None:
        """Waits until these processes (none named: all) are ready, also while they are being started again."""
        processes = self._supervisor.processes
        async with asyncio.timeout(READY_SECONDS):
            for name in names or processes:
                while not (self.runs(name) and await processes[name].program.ready()):  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(POLL_SECONDS)

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            self._exits.enter_context(guarded(self.directory))
            self._exits.enter_context(self.proxies)
            self._exits.push_async_callback(self._end)
            watch = asyncio.create_task(self._supervisor.watch())
            self._exits.callback(watch.cancel)
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _end(self) -> None:
        processes = self._supervisor.processes
        agents = {name for name in processes if name.startswith("worker-")}
        for names in (agents, processes.keys() - agents - {S3, VALKEY}, {S3, VALKEY}):
            await self._supervisor.stop(names, asyncio.Event())
        await process_cleanup.end(self.directory)

    async def _start(self) -> None:
        servers = self._servers()
        addresses = [f"{HOST}:{port}" for port in free_ports(self.control_planes)]
        self.proxies.link(CLIENTS, *addresses)
        planes = [self._control_plane(f"control-plane-{n}", at) for n, at in enumerate(addresses, 1)]
        agents = [self._agent(f"worker-{n}", addresses) for n in range(1, self.workers + 1)]
        # Agents load torch meanwhile.
        await together(self._start_in_turn(servers, planes), *map(self._supervisor.start, agents))

    async def _start_in_turn(self, *ranks: list[Program]) -> None:
        for programs in ranks:
            await together(*map(self._supervisor.start, programs))

    def _servers(self) -> list[Program]:
        port, *ports = free_ports(1 + seaweed.PORT_COUNT)
        marker = process_cleanup.marker(self.directory)
        password = secrets.token_urlsafe(24)
        self.redis_url = valkey.url(port=port, password=password)
        self.s3 = seaweed.access_to(ports=ports, access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(30))
        return [
            valkey.program(
                directory=self.directory / VALKEY, logs=self.logs, port=port, password=password, environment=marker
            ),
            seaweed.program(
                directory=self.directory / S3, logs=self.logs, ports=ports, access=self.s3, environment=marker
            ),
        ]

    def _control_plane(self, name: str, address: str) -> Program:
        redis = self.proxies.link(f"{name}/redis", server_of(self.redis_url))
        environment = {**self._shared(name), "ADJOURN_REDIS_URL": through(self.redis_url, redis)}
        program = services.control_plane(
            directory=self.directory, logs=self.logs, address=address, environment=environment
        )
        return replace(program, name=name, log=self.logs / f"{name}.log")

    def _agent(self, name: str, control_planes: list[str]) -> Program:
        return services.agent(
            name=name,
            directory=self.worker_directory(name),
            logs=self.logs,
            address=self.proxies.link(name, *control_planes).address,
            environment={
                **self._shared(name),
                "ADJOURN_THREADS": "1",
                "ADJOURN_GPUS": f"{int(name.rpartition('-')[2]) - 1}/{self.workers}",
                "ADJOURN_CPU_SLOTS": str(self.slots),
                "ADJOURN_ON_TERM": self.on_term,
            },
        )

    def _shared(self, name: str) -> dict[str, str]:
        s3 = self.proxies.link(f"{name}/s3", server_of(self.s3.endpoint), http=True)
        access = replace(self.s3, endpoint=through(self.s3.endpoint, s3))
        return {
            **process_cleanup.marker(self.directory),
            **s3_url.environment(access),
            failpoints.VARIABLE: str(self._failpoints(name)),
            **self.environment,
        }
