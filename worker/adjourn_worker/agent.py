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
from adjourn_worker.attempt.runner import Holder
from adjourn_worker.host.gpus import Gpus, Meter
from adjourn_worker.host.notify import Doorbell
from adjourn_worker.journal import Journal
from adjourn_worker.launcher.client import Supervisor
from adjourn_worker.paths import Places
from adjourn_worker.settings import OnTerm, Settings
from adjourn_worker.storage.tasks import Chores
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
        places: Places,
        journal: Journal,
        supervisor: Supervisor,
        objects: ObjectStore,
        gpus: Gpus,
    ) -> None:
        self.settings = settings
        self.places = places
        self.journal = journal
        self.supervisor = supervisor
        self.chores = Chores(objects, places, settings.threads)
        self.worker = Worker(
            name=f"workers/{settings.worker}",
            devices=gpus.inventory(),
            cpu_slots=settings.cpu_slots,
            labels=settings.labels,
            agent_version=__version__,
        )
        self.gpus = gpus
        self.session_id = str(uuid4())
        self.stream = Stream(settings.control_plane, self.say, self.hear)
        self.holders: dict[Key, Holder] = {}
        self.tasks: dict[Key, asyncio.Task[None]] = {}
        self.reports: list[Report] = []
        """Not yet acknowledged, oldest first."""
        self.turn = asyncio.Lock()
        self.draining = False
        self.group: asyncio.TaskGroup

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then leaves as the settings say; raises Superseded, JournalDamaged."""
        self.reports = self.journal.reports()
        found = self.journal.held()
        await self.end_unknown({held.directory for held in found})
        self.places.tidy([self.places.attempt(held.assignment.job, held.assignment.token) for held in found])
        async with Doorbell(self.places.doorbell) as doorbell, asyncio.TaskGroup() as self.group:
            for held in found:
                self.hold(self.holder(held))
            service = [
                self.group.create_task(self.stream.run()),
                self.group.create_task(self.supervisor.keep()),
                self.group.create_task(self.look(doorbell)),
                self.group.create_task(self.sample()),
            ]
            log.info("agent_started", worker=self.worker.name, session=self.session_id, held=len(found))
            await stop.wait()
            if self.settings.on_term is OnTerm.STOP:
                await self.stop_all()
            for task in (*service, *self.tasks.values()):
                task.cancel()
        if self.settings.on_term is OnTerm.STOP:
            await self.supervisor.shutdown()
            if all(holder.over for holder in self.holders.values()):  # else snapshots wait there for our successor
                self.places.remove_volatile()
        log.info("agent_ended", worker=self.worker.name)

    async def end_unknown(self, known: Collection[str]) -> None:
        """Ends training that no assignment in the journal accounts for: someone has removed the journal."""
        unknown = [process for process in await self.supervisor.processes() if process.directory not in known]
        for process in unknown:
            log.warning("unknown_ended", directory=process.directory, pid=process.pid)
            await self.supervisor.kill(Path(process.directory))
        if unknown:
            await self.supervisor.processes()  # answered once their ends are recorded: nobody writes there any more

    def say(self) -> SynchronizeRequest:
        """Returns the worker's whole state."""
        return SynchronizeRequest(
            worker=self.worker,
            session_id=self.session_id,
            assignments=[holder.status for holder in self.holders.values()],
            draining=self.draining,
            reports=self.reports[:REPORTS_AT_ONCE],
        )

    async def hear(self, response: SynchronizeResponse) -> None:
        """Takes on what is new, passes on what has changed, forgets what is over and no longer asked for."""
        if self.reports and self.reports[0].sequence <= response.acknowledged_report:
            await asyncio.to_thread(self.journal.acknowledge, response.acknowledged_report)
            self.reports = [report for report in self.reports if report.sequence > response.acknowledged_report]
            if self.reports:
                self.stream.changed.set()
        wanted = {key(assignment.job, assignment.token) for assignment in response.assignments}
        for assignment in response.assignments:
            holder = self.holders.get(key(assignment.job, assignment.token))
            if holder is None:
                await self.take_on(assignment)
            elif assignment.generation > holder.status.observed_generation:
                holder.inbox.put_nowait(Ordered(assignment=assignment))
        for name, holder in list(self.holders.items()):
            if name not in wanted and holder.over and self.tasks[name].done() and not self.unheard(name):
                await self.forget(name)

    def unheard(self, name: Key) -> bool:
        """Returns whether a report of the assignment is not yet acknowledged."""
        return any(key(report.job, report.token) == name for report in self.reports)

    async def take_on(self, assignment: Assignment) -> None:
        if self.draining:
            return  # the control plane hears of it, and places the job elsewhere
        directory = self.places.attempt(assignment.job, assignment.token)
        log_file = self.places.log(assignment.job, assignment.token.attempt)
        holder = self.holder(HeldAssignment(assignment=assignment, directory=str(directory)))
        await holder.begin(assignment, f"{log_file} on {self.worker.name}")
        self.hold(holder)

    def holder(self, held: HeldAssignment) -> Holder:
        return Holder(
            held,
            journal=self.journal,
            turn=self.turn,
            supervisor=self.supervisor,
            chores=self.chores,
            tell=self.note,
        )

    def hold(self, holder: Holder) -> None:
        name = key(holder.held.assignment.job, holder.held.assignment.token)
        self.holders[name] = holder
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
        assignment = self.holders.pop(name).held.assignment
        await asyncio.to_thread(self.journal.forget, assignment.job, assignment.token)

    async def look(self, doorbell: Doorbell) -> None:
        """Has each holder look at its training process when it rings, and twice a second."""
        while True:
            await doorbell.wait(LOOK_SECONDS)
            for holder in self.holders.values():
                if holder.alive:
                    holder.nudge()
            await asyncio.sleep(LOOK_GAP)

    async def sample(self) -> None:
        """Samples what each training process uses, once an interval."""
        meters: dict[Key, Meter] = {}
        while True:
            await asyncio.sleep(self.stream.interval)
            busy = {name: holder for name, holder in self.holders.items() if holder.alive}
            meters = {name: meters.get(name) or Meter(self.gpus) for name in busy}
            for name, holder in busy.items():
                pid, uuids = holder.held.process.pid, holder.held.assignment.device_uuids
                usage = await asyncio.to_thread(meters[name].sample, pid, uuids)
                holder.inbox.put_nowait(Measured(progress=None, usage=usage))

    async def stop_all(self) -> None:
        """Ends what runs and waits until it is put away and the control plane has heard of it, for a little while."""
        self.draining = True
        self.stream.changed.set()
        for holder in self.holders.values():
            holder.inbox.put_nowait(WorkerStopping())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while not all(task.done() for task in self.tasks.values()) or (  # noqa: ASYNC110  # many conditions
                    self.reports and self.stream.connected
                ):
                    await asyncio.sleep(0.02)  # holders and stream change, for a short while
