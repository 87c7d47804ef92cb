"""A whole stack of real processes with a proxy on every link, and what befalls it."""

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from adjourn import failpoints
from adjourn.local import process_cleanup, s3_url, seaweed, services, valkey
from adjourn.local.ports import HOST, free_ports
from adjourn.local.supervisor import ProcessSupervisor, together
from adjourn.objects import S3Settings
from tests.chaos import processes
from tests.chaos.schedule import (
    CONTROL_PLANES,
    LEASE_SECONDS,
    LINKS,
    OUT_OF_CONTACT_LEASES,
    WORKERS,
    Action,
    Fault,
    Part,
)
from tests.chaos.timeline import Timeline
from tests.harness.fault_proxy import FaultProxies, Link, Way, through
from tests.harness.small_disk import SmallDisk

SLOTS: Final = 2
"""Jobs at a time on each worker."""
SYNC_SECONDS: Final = 0.5
ON_TERM: Final = ("leave", "stop", "drain")
"""What SIGTERM of each agent does to its training."""
DRAIN_GRACE_SECONDS: Final = 10.0
ROOMY_MEGABYTES: Final = 1024
"""Of a worker's disk that is not full: twice what it keeps free before it takes a job, and some more."""
SILENCING: Final = frozenset({Part.AGENT, Part.MACHINE, Part.WORKER_LINK, Part.DISK})
"""Faults that may keep a worker from being heard, as no agent starts on a full disk; an outage of a control plane,
Valkey or S3 is no reason."""
RETURN_SECONDS: Final = 20.0
"""From the end of such a fault: until its worker is heard, or its loss has been told."""
CANNOT_SERVE: Final = '"event": "cannot_serve"'
"""What a control plane says that ends because Valkey or S3 are out of reach at its start; it is then started again."""
NO_ROOM: Final = ("disk is full", "No space left on device")
"""What an agent says that ends because its disk is full at its start; it is then started again."""
WAYS: Final[Mapping[Action, tuple[Way, ...]]] = {
    Action.CUT: (Way.TO_SERVER, Way.TO_CLIENT),
    Action.CUT_SENDING: (Way.TO_SERVER,),
    Action.CUT_HEARING: (Way.TO_CLIENT,),
}
OBJECT_FAULTS: Final = {
    Action.ANSWER_503: "answer",
    Action.LOSE_ANSWERS: "cut reply",
    Action.REPEAT: "repeat",
}
"""What each is called by the proxy."""


@dataclass(kw_only=True)
class Cluster:
    """Valkey, an S3 server, control planes, workers. An async context manager that ends every process of it."""

    directory: Path
    timeline: Timeline
    disks: Mapping[int, SmallDisk]
    """Of each worker, by its number; empty: none of ours."""
    replicas: list[str] = field(default_factory=list, init=False)
    """Addresses of the control planes themselves, without a proxy."""
    _held: ExitStack = field(default_factory=ExitStack, init=False)
    _touched: dict[int, float] = field(default_factory=dict, init=False)
    """When the newest fault that may silence a worker is over, or was, by its number; by time.monotonic()."""
    _terminated: set[str] = field(default_factory=set, init=False)
    """Programs that were told to end, and may take their time."""
    _ongoing: dict[tuple[Part, int], asyncio.Task[None]] = field(default_factory=dict, init=False)

    @property
    def workers(self) -> Path:
        return worker_directory(self.directory, 1).parent

    @property
    def failpoints(self) -> Path:
        """Where a file arms a failpoint."""
        return self.directory / "failpoints"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    def worker(self, number: int) -> Path:
        """Returns the data directory of a worker."""
        return worker_directory(self.directory, number)

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.failpoints.mkdir()
        self._proxies = self._held.enter_context(FaultProxies())
        self._supervisor = ProcessSupervisor(self._ended_unasked)
        self._watch = asyncio.create_task(self._supervisor.watch())
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

    async def _start(self) -> None:
        valkey_port, *free = free_ports(1 + seaweed.PORT_COUNT + CONTROL_PLANES)
        s3_ports, own_ports = free[: seaweed.PORT_COUNT], free[seaweed.PORT_COUNT :]
        password, marker = secrets.token_urlsafe(24), process_cleanup.marker(self.directory)
        ours = {**marker, failpoints.VARIABLE: str(self.failpoints)}
        self.s3 = seaweed.access_to(
            ports=s3_ports, access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(30)
        )
        logs = self.logs
        await together(
            self._supervisor.start(
                valkey.program(
                    directory=self.directory / "valkey",
                    logs=logs,
                    port=valkey_port,
                    password=password,
                    environment=marker,
                )
            ),
            self._supervisor.start(
                seaweed.program(
                    directory=self.directory / "s3", logs=logs, ports=s3_ports, access=self.s3, environment=marker
                )
            ),
        )
        redis = valkey.url(port=valkey_port, password=password)
        self.replicas = [f"{HOST}:{port}" for port in own_ports]
        control_planes = []
        for number, address in enumerate(self.replicas, start=1):
            store = self._link(Part.VALKEY_LINK, number, f"{HOST}:{valkey_port}")
            program = services.control_plane(
                directory=self.directory,
                logs=logs,
                address=address,
                environment={
                    **ours,
                    **s3_url.environment(self._objects_through(Part.CONTROL_PLANE_S3_LINK, number)),
                    "ADJOURN_REDIS_URL": through(redis, store),
                    "ADJOURN_SYNC_INTERVAL": f"{SYNC_SECONDS:g}",
                    "ADJOURN_LEASE_DURATION": f"{LEASE_SECONDS:g}",
                },
            )
            name = control_plane(number)
            control_planes.append(replace(program, name=name, log=logs / f"{name}.log"))
        agents = [
            services.agent(
                name=f"worker-{number}",
                directory=self.worker(number),
                logs=logs,
                address=self._link(Part.WORKER_LINK, number, *self.replicas).address,
                environment={
                    **ours,
                    **s3_url.environment(self._objects_through(Part.WORKER_S3_LINK, number)),
                    "ADJOURN_CPU_SLOTS": str(SLOTS),
                    "ADJOURN_THREADS": "1",
                    "ADJOURN_ON_TERM": ON_TERM[number - 1],
                    "ADJOURN_DRAIN_GRACE": f"{DRAIN_GRACE_SECONDS:g}",
                    "ADJOURN_OUT_OF_CONTACT_LEASES": str(OUT_OF_CONTACT_LEASES),
                },
            )
            for number in range(1, WORKERS + 1)
        ]
        await together(*map(self._supervisor.start, (*control_planes, *agents)))

    def _link(self, part: Part, number: int, *servers: str, http: bool = False) -> Link:
        return self._proxies.link(f"{part} {number}", *servers, http=http)

    def _objects_through(self, part: Part, number: int) -> S3Settings:
        link = self._link(part, number, self.s3.endpoint.removeprefix("http://"), http=True)
        return replace(self.s3, endpoint=f"http://{link.address}")

    def _ended_unasked(self, line: str) -> None:
        """Takes what the supervisor tells of a process that ended although no fault was to end it."""
        name = line.split(maxsplit=1)[0]
        program = self._supervisor.processes.get(name)
        last = program.last_line() if program else ""
        if "starts again" not in line:
            self.timeline.write("process", line=line)
        elif name in self._terminated:
            self._terminated.remove(name)
        elif self._died_at_failpoint(name):
            self.timeline.write("process", line=line)
        elif CANNOT_SERVE in last:
            self.timeline.counts["starts of a control plane whose servers were out of reach"] += 1
            self.timeline.write("process", line=line, last=last)
        elif any(words in last for words in NO_ROOM):
            self.timeline.counts["starts of an agent whose disk was full"] += 1
            self.timeline.write("process", line=line, last=last)
        else:
            self.timeline.find("a process ended that nobody had touched", process=line, last=last)

    def _died_at_failpoint(self, name: str) -> bool:
        """Returns whether a failpoint of the program was hit since this was last asked."""
        hits = list(self.failpoints.glob(f"{name.rpartition('-')[0]}.*.hit"))
        for hit in hits:
            self.timeline.counts["failpoints that a process came to"] += 1
            hit.unlink()
        return bool(hits)

    def inject(self, fault: Fault) -> bool:
        """Begins a fault and undoes it after its time; returns whether there was something that it could befall."""
        place = (fault.part, fault.number)
        if place in self._ongoing:
            return False
        if fault.part is Part.DISK and fault.number not in self.disks:
            return False
        signalled = fault.part not in LINKS and fault.part not in (Part.FAILPOINT, Part.DISK)
        found = self._processes(fault.part, fault.number) if signalled else []
        if signalled and not found:
            return False
        for number in self._silenced(fault):
            until = time.monotonic() + fault.seconds + RETURN_SECONDS
            self._touched[number] = max(self._touched.get(number, 0.0), until)
        task = asyncio.create_task(self._befall(fault, found))
        self._ongoing[place] = task
        task.add_done_callback(lambda _: self._ongoing.pop(place))
        return True

    def _silenced(self, fault: Fault) -> Iterable[int]:
        if fault.part is Part.FAILPOINT and fault.place.startswith("worker."):
            return range(1, WORKERS + 1)  # whichever comes there
        return [fault.number] if fault.part in SILENCING else []

    def may_be_silent(self, worker: str) -> bool:
        """Returns whether a fault may be why `workers/{worker}` is not heard."""
        return time.monotonic() < self._touched.get(int(worker.rpartition("-")[2]), 0.0)

    async def heal(self) -> None:
        """Undoes every fault now."""
        tasks = list(self._ongoing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _befall(self, fault: Fault, found: list[psutil.Process]) -> None:
        if fault.part is Part.FAILPOINT:
            held: AbstractContextManager[None] = self._armed(fault)
        elif fault.part is Part.DISK:
            held = self._filled(self.disks[fault.number])
        else:
            held = self._linked(fault) if fault.part in LINKS else self._signalled(fault, found)
        with held:
            await asyncio.sleep(fault.seconds)
        self.timeline.write("undone", fault=str(fault))

    @contextmanager
    def _armed(self, fault: Fault) -> Iterator[None]:
        file = self.failpoints / fault.place
        fresh = file.with_name(f"{fault.place}.fresh")
        fresh.write_text("kill" if fault.action is Action.KILL_AT else f"sleep={fault.seconds:.1f}")
        fresh.rename(file)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            hit = file.with_name(f"{fault.place}.hit")
            # The end of a program that the supervisor starts again is told, and then the hit is looked for.
            told = fault.action is Action.KILL_AT and fault.place.startswith(("control-plane.", "worker."))
            if hit.exists() and not told:
                self.timeline.counts["failpoints that a process came to"] += 1
                hit.unlink()

    @contextmanager
    def _filled(self, disk: SmallDisk) -> Iterator[None]:
        disk.fill()
        try:
            yield
        finally:
            disk.resize(megabytes=ROOMY_MEGABYTES)

    @contextmanager
    def _linked(self, fault: Fault) -> Iterator[None]:
        link = self._proxies.links[f"{fault.part} {fault.number}"]
        match fault.action:
            case Action.RESET:
                link.reset()
            case Action.REFUSE:
                link.refuse()
            case Action.SLOW:
                link.slow(delay=0.3)
            case Action.CUT | Action.CUT_SENDING | Action.CUT_HEARING:
                link.black_hole(*WAYS[fault.action])
            case _:
                link.befall(OBJECT_FAULTS[fault.action], share=0.5)
        try:
            yield
        finally:
            link.heal()

    @contextmanager
    def _signalled(self, fault: Fault, found: list[psutil.Process]) -> Iterator[None]:
        match fault.action:
            case Action.STOP:
                send(signal.SIGSTOP, found)
                try:
                    yield
                finally:
                    send(signal.SIGCONT, found)
            case Action.KILL | Action.TERMINATE:
                name = supervised(fault)
                if name:
                    self._supervisor.release(name)
                if fault.action is Action.TERMINATE:
                    self._terminated.add(name)
                send(signal.SIGKILL if fault.action is Action.KILL else signal.SIGTERM, found)
                try:
                    yield
                finally:
                    if name:
                        self._supervisor.revive(name)
            case _:
                raise ValueError(fault)

    def _processes(self, part: Part, number: int) -> list[psutil.Process]:
        match part:
            case Part.TRAINING:
                return processes_of(self.live_pids(number)[:1])
            case Part.LAUNCHER:
                return list(processes.launchers(self.worker(number)))
            case Part.MACHINE:
                launched = processes.launchers(self.worker(number))
                return [*self._supervised(f"worker-{number}"), *launched, *processes_of(self.live_pids(number))]
            case Part.AGENT:
                return self._supervised(f"worker-{number}")
            case Part.CONTROL_PLANE:
                return self._supervised(control_plane(number))
            case Part.VALKEY:
                return self._supervised(valkey.NAME)
            case Part.S3:
                return self._supervised(seaweed.NAME)
            case _:
                raise ValueError(part)

    def _supervised(self, name: str) -> list[psutil.Process]:
        pid = self._supervisor.processes[name].pid
        return processes_of([pid] if pid else [])

    def live_pids(self, number: int) -> list[int]:
        """Returns the training processes of a worker, in a stable order."""
        live = processes.live_trainings(self.workers)
        mine = [each for each in live if each.worker == f"worker-{number}"]
        return [each.pid for each in sorted(mine, key=lambda each: (each.attempt, each.pid))]

    async def _stop(self) -> None:
        try:
            await self.heal()
            self._watch.cancel()
            for name in self._supervisor.processes:
                self._supervisor.release(name)
            await process_cleanup.end(self.directory)
            for managed in self._supervisor.processes.values():
                if managed.process:
                    managed.process.wait()
        finally:
            self._held.close()


def worker_directory(directory: Path, number: int) -> Path:
    return directory / "workers" / f"worker-{number}"


def control_plane(number: int) -> str:
    return f"{services.CONTROL_PLANE}-{number}"


def supervised(fault: Fault) -> str:
    """Returns the name of the program that does not start again until the fault is undone; empty: none."""
    match fault.part:
        case Part.AGENT | Part.MACHINE:
            return f"worker-{fault.number}"
        case Part.CONTROL_PLANE:
            return control_plane(fault.number)
        case Part.VALKEY:
            return valkey.NAME
        case Part.S3:
            return seaweed.NAME
        case _:
            return ""


def processes_of(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def send(number: signal.Signals, found: Iterable[psutil.Process]) -> None:
    """Sends a signal to those that still live; psutil knows a process from another that has its id."""
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@asynccontextmanager
async def background(*tasks: "asyncio.Task[None]") -> AsyncIterator[None]:
    """Runs tasks while the body runs; an error of one of them is raised."""
    body = asyncio.current_task()
    assert body
    failed: list[BaseException] = []

    def ended(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            failed.append(error)
            body.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
