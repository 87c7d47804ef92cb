"""The agent: holds what the control plane hands out, has it carried out, and says how it stands.

Its process may be killed at any moment: what it held is in the journal, training runs under the launcher, and its
successor goes on where it was.
"""

import asyncio
import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog

from adjourn import __version__
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.objects import ObjectStore
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken, Report, SynchronizeRequest, SynchronizeResponse
from adjourn.v1.worker_pb2 import Worker
from adjourn_worker.attempt.events import Measured, Ordered, WorkerStopping
from adjourn_worker.attempt.runner import AttemptRunner
from adjourn_worker.host.gpus import Gpus, Meter
from adjourn_worker.host.notify import NotifySocket
from adjourn_worker.journal import Journal
from adjourn_worker.launcher.client import LauncherClient
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.settings import OnTerm, Settings
from adjourn_worker.storage.tasks import StorageTasks
from adjourn_worker.sync import Stream

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LOOK_SECONDS: Final = 0.5
"""How often to look at training without being rung for."""
LOOK_GAP: Final = 0.01
"""Least seconds between two looks, however often it is rung."""
REPORTS_AT_ONCE: Final = 256
"""Reports in one message; the others follow as these are acknowledged. All of a long outage might be too large."""
STOP_SECONDS: Final = 3.0
"""How long a stopping worker waits for its training to end, for what is nearly durable, and to be heard."""

Key = tuple[str, int, str]


def key(job: str, token: FencingToken) -> Key:
    return job, token.attempt, token.nonce


class Agent:
    """One worker's agent."""

    def __init__(
        self,
        settings: Settings,
        paths: WorkerPaths,
        journal: Journal,
        launcher: LauncherClient,
        objects: ObjectStore,
        gpus: Gpus,
    ) -> None:
        self.settings = settings
        self.paths = paths
        self.journal = journal
        self.launcher = launcher
        self.storage = StorageTasks(objects, paths, settings.threads)
        self.worker = Worker(
            name=f"workers/{settings.worker}",
            devices=gpus.inventory(),
            cpu_slots=settings.cpu_slots,
            labels=settings.labels,
            agent_version=__version__,
        )
        self.gpus = gpus
        self.environment = gpus.environment()
        self.session_id = str(uuid4())
        self.stream = Stream(settings.control_plane, self.build_request, self.on_response)
        self.runners: dict[Key, AttemptRunner] = {}
        self.tasks: dict[Key, asyncio.Task[None]] = {}
        self.reports: list[Report] = []
        """Not yet acknowledged, oldest first."""
        self.journal_lock = asyncio.Lock()
        self.draining = False
        self.group: asyncio.TaskGroup

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then leaves as the settings say; raises Superseded, JournalDamaged."""
        self.reports = self.journal.reports()
        found = self.journal.held()
        await self.end_unknown({held.directory for held in found})
        self.paths.collect_garbage([self.paths.attempt(held.assignment.job, held.assignment.token) for held in found])
        async with NotifySocket(self.paths.notify_socket) as notify_socket, asyncio.TaskGroup() as self.group:
            for held in found:
                self.hold(self.holder(held))
            service = [
                self.group.create_task(self.stream.run()),
                self.group.create_task(self.launcher.keep()),
                self.group.create_task(self.poll(notify_socket)),
                self.group.create_task(self.sample()),
            ]
            log.info("agent_started", worker=self.worker.name, session=self.session_id, held=len(found))
            await stop.wait()
            if self.settings.on_term is OnTerm.STOP:
                await self.stop_all()
            for task in (*service, *self.tasks.values()):
                task.cancel()
        if self.settings.on_term is OnTerm.STOP:
            await self.launcher.shutdown()
            if all(holder.over for holder in self.runners.values()):  # else snapshots wait there for our successor
                self.paths.remove_volatile()
        log.info("agent_ended", worker=self.worker.name)

    async def end_unknown(self, known: Collection[str]) -> None:
        """Ends training that no assignment in the journal accounts for: someone has removed the journal."""
        unknown = [process for process in await self.launcher.processes() if process.directory not in known]
        for process in unknown:
            log.warning("unknown_ended", directory=process.directory, pid=process.pid)
            await self.launcher.kill(Path(process.directory))
        if unknown:
            await self.launcher.processes()  # answered once their ends are recorded: nobody writes there any more

    def build_request(self) -> SynchronizeRequest:
        """Returns the worker's whole state."""
        self.worker.environment.clear()
        self.worker.environment.update(self.environment | self.launcher.software)
        return SynchronizeRequest(
            worker=self.worker,
            session_id=self.session_id,
            assignments=[holder.status for holder in self.runners.values()],
            draining=self.draining,
            reports=self.reports[:REPORTS_AT_ONCE],
        )

    async def on_response(self, response: SynchronizeResponse) -> None:
        """Takes on what is new, passes on what has changed, forgets what is over and no longer asked for."""
        if self.reports and self.reports[0].sequence <= response.acknowledged_report:
            await asyncio.to_thread(self.journal.acknowledge, response.acknowledged_report)
            self.reports = [report for report in self.reports if report.sequence > response.acknowledged_report]
            if self.reports:
                self.stream.changed.set()
        wanted = {key(assignment.job, assignment.token) for assignment in response.assignments}
        for assignment in response.assignments:
            holder = self.runners.get(key(assignment.job, assignment.token))
            if holder is None:
                await self.take_on(assignment)
            elif assignment.generation > holder.status.observed_generation:
                holder.inbox.put_nowait(Ordered(assignment=assignment))
        for name, holder in list(self.runners.items()):
            if name not in wanted and holder.over and self.tasks[name].done() and not self.unheard(name):
                await self.forget(name)

    def unheard(self, name: Key) -> bool:
        """Returns whether a report of the assignment is not yet acknowledged."""
        return any(key(report.job, report.token) == name for report in self.reports)

    async def take_on(self, assignment: Assignment) -> None:
        if self.draining:
            return  # the control plane hears of it, and places the job elsewhere
        directory = self.paths.attempt(assignment.job, assignment.token)
        log_file = self.paths.log(assignment.job, assignment.token)
        holder = self.holder(HeldAssignment(assignment=assignment, directory=str(directory)))
        await holder.begin(assignment, f"{log_file} on {self.worker.name}")
        self.hold(holder)

    def holder(self, held: HeldAssignment) -> AttemptRunner:
        return AttemptRunner(
            held,
            journal=self.journal,
            turn=self.journal_lock,
            launcher=self.launcher,
            storage=self.storage,
            log_bytes=self.settings.log_bytes,
            tell=self.note,
        )

    def hold(self, holder: AttemptRunner) -> None:
        name = key(holder.held.assignment.job, holder.held.assignment.token)
        self.runners[name] = holder
        task = self.tasks[name] = self.group.create_task(holder.run())
        task.add_done_callback(lambda _: self.stream.changed.set())  # it may be forgotten now: have us told so
        self.stream.changed.set()

    def note(self, reports: Sequence[Report]) -> None:
        """Has news said soon."""
        self.reports.extend(reports)
        self.stream.changed.set()

    async def forget(self, name: Key) -> None:
        """Lets go of an assignment that is over and put away."""
        del self.tasks[name]
        assignment = self.runners.pop(name).held.assignment
        await asyncio.to_thread(self.journal.forget, assignment.job, assignment.token)

    async def poll(self, notify_socket: NotifySocket) -> None:
        """Has each holder look at its training process when it rings, and twice a second."""
        while True:
            await notify_socket.wait(LOOK_SECONDS)
            for holder in self.runners.values():
                if holder.alive:
                    holder.wake()
            await asyncio.sleep(LOOK_GAP)

    async def sample(self) -> None:
        """Samples what each training process uses, once an interval."""
        meters: dict[Key, Meter] = {}
        while True:
            await asyncio.sleep(self.stream.interval)
            busy = {name: holder for name, holder in self.runners.items() if holder.alive}
            meters = {name: meters.get(name) or Meter(self.gpus) for name in busy}
            for name, holder in busy.items():
                pid, uuids = holder.held.process.pid, holder.held.assignment.device_uuids
                usage = await asyncio.to_thread(meters[name].sample, pid, uuids)
                holder.inbox.put_nowait(Measured(progress=None, usage=usage))

    async def stop_all(self) -> None:
        """Ends what runs and waits until it is put away and the control plane has heard of it, for a little while."""
        self.draining = True
        self.stream.changed.set()
        for holder in self.runners.values():
            holder.inbox.put_nowait(WorkerStopping())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while not all(task.done() for task in self.tasks.values()) or (  # noqa: ASYNC110  # many conditions
                    self.reports and self.stream.connected
                ):
                    await asyncio.sleep(0.02)  # holders and stream change, for a short while
