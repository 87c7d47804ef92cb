"""The agent: runs the attempts that the control plane assigns to its worker, and reports how they go.

Its process may be killed at any moment. The assignments it held are in the journal and training runs under the
launcher, so the next agent continues from there.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog

from adjourn import __version__, reasons
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.kept_snapshots import KEPT
from adjourn.objects import STORAGE_ERRORS, ObjectStore, S3Objects
from adjourn.v1.agent_service_pb2 import (
    Assignment,
    FencingToken,
    Report,
    SeriesPart,
    SynchronizeRequest,
    SynchronizeResponse,
)
from adjourn.v1.job_pb2 import Condition, Failure
from adjourn.v1.worker_pb2 import Worker
from adjourn_worker.attempt.events import AssignmentChanged, Measured, PauseByItself, Reached, WorkerStopping
from adjourn_worker.attempt.runner import AttemptRunner
from adjourn_worker.attempt.unsent import Unsent
from adjourn_worker.contact import DEFAULT_LEASE, Contact
from adjourn_worker.data.cache import DataCache
from adjourn_worker.data.fetching import DataTasks
from adjourn_worker.host.disk import Disk
from adjourn_worker.host.gpus import Gpus, Meter
from adjourn_worker.host.kernel import boot_seconds
from adjourn_worker.host.notify import NotifySocket
from adjourn_worker.journal import Journal, JournalUnwritable, LastContact
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.client import LauncherClient, pip_environment
from adjourn_worker.messages import aged, fitting_statuses, next_reports
from adjourn_worker.paths import WorkerPaths, remove
from adjourn_worker.settings import OnTerm, Settings
from adjourn_worker.storage.background import Background
from adjourn_worker.storage.log_uploads import LogUploads
from adjourn_worker.storage.tasks import StorageTasks
from adjourn_worker.storage.venvs import VenvMaker, Venvs
from adjourn_worker.sync import NameTaken, Stream

log: structlog.stdlib.BoundLogger = structlog.get_logger()

POLL_SECONDS: Final = 0.5
"""How often the files of attempts are read without a notification."""
POLL_GAP: Final = 0.01
"""Least seconds between two readings, however many notifications there are."""
DISK_SECONDS: Final = 2.0
"""How often to look whether the disk has room."""
ORPHAN_SECONDS: Final = 600.0
"""How often to look whether jobs were deleted of which snapshots are kept: one request each."""
GPU_SECONDS: Final = 5.0
"""How often to find out which GPUs can be offered."""
WATCH_SECONDS: Final = 0.25
"""How often the agent finds out whether it slept, and whether it is out of contact."""
DRAIN_POLL_SECONDS: Final = 0.1
ASK_SHARE: Final = 1 / 3
"""Share of a lease that a draining worker gives the control plane to have its jobs pause, before it does so itself."""
STOP_SECONDS: Final = 3.0
"""How long a stopping worker waits for training to end, for snapshots, and for its reports to be acknowledged."""

LOGS_SECONDS: Final = 3.0
"""How long it waits then for the logs of what has ended to be stored."""

STREAM_BITS: Final = 20
"""Of the number of a stream: it counts those of one process. Above are the lives of agents, in Unix seconds or more."""

Key = tuple[str, str, int, str]


def key(job: str, token: FencingToken) -> Key:
    return job, token.job_uid, token.attempt, token.nonce


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
        background: ObjectStore | None = None,
        data_objects: S3Objects | None = None,
    ) -> None:
        """`background`: `objects`, with threads that give way to training; None: there is no such.

        `data_objects`: of the server that jobs' data is read from; None: there is no S3 for them.
        """
        self.settings = settings
        self.paths = paths
        self.journal = journal
        self.launcher = launcher
        disk = Disk(paths.data, settings.disk_reserve_bytes)
        behind = Background(background, self.training) if background is not None else None
        self.storage = StorageTasks(
            objects, paths, settings.threads, settings.kept, disk, settings.output_bytes, behind, self.maker()
        )
        cache = DataCache(
            paths.cached_data,
            paths.attempts,
            limit=settings.kept.data_bytes,
            reserve=settings.disk_reserve_bytes,
        )
        self.data = DataTasks(cache, settings.data_access, data_objects)
        self.logs = LogUploads(objects=objects, paths=paths, limit=settings.log_bytes)
        self.worker = Worker(
            name=f"workers/{settings.worker}",
            cpu_slots=settings.cpu_slots,
            labels=settings.labels,
            agent_version=__version__,
            instance=paths.instance,
            installs_requirements=settings.venvs is not Venvs.OFF,
        )
        self.gpus = gpus
        self.environment = gpus.environment()
        self.conditions: list[Condition] = []
        """Of the worker."""
        self.session_id = str(uuid4())
        self.contact = Contact(boot_seconds(), patience=settings.out_of_contact_leases)
        self.steady = asyncio.Event()
        """Set while the control plane is known to mean what it has said."""
        self.stream = Stream(
            settings.control_plane, self.build_request, self.on_response, self.on_name_taken, lease=DEFAULT_LEASE
        )
        self.runners: dict[Key, AttemptRunner] = {}
        self.tasks: dict[Key, asyncio.Task[None]] = {}
        self.unsent: dict[Key, Unsent] = {}
        """Figures of the attempts, for the series of their jobs."""
        self.reports: list[Report] = []
        """Not yet acknowledged, oldest first."""
        self.journal_lock = asyncio.Lock()
        self.draining = False
        self.taking_on = False
        """An assignment is being journaled: it is not among the runners yet."""
        self.out_of_contact = False
        self.steady_since = 0.0
        self.group: asyncio.TaskGroup

    def maker(self) -> VenvMaker | None:
        """Returns what makes environments with what jobs require; None: they have to do with the worker's own."""
        if self.settings.venvs is Venvs.OFF:
            return None
        maker = VenvMaker(
            self.paths.venvs,
            self.paths.attempts,
            pip_environment(os.environ, self.paths),
            kind=self.settings.venvs,
            limit=self.settings.kept.venv_bytes,
        )
        maker.open()
        return maker

    async def run(self, stop: asyncio.Event, at_once: asyncio.Event | None = None) -> None:
        """Works until `stop` is set, then ends as the settings say; `at_once` ends a drain before its grace is over.

        Raises Superseded, NameTaken, JournalDamaged, JournalUnwritable, LauncherFailed.
        """
        await self.number_streams()
        await self.recall_contact()
        self.reports = await self.journal.run(self.journal.reports)
        found = await self.journal.run(self.journal.held)
        await self.end_unknown({held.directory for held in found})
        self.paths.collect_garbage([self.paths.attempt(held.assignment.job, held.assignment.token) for held in found])
        await self.data.open()
        try:
            await self.work(found, stop, at_once or asyncio.Event())
        except* NameTaken:
            await self.leave_nothing()
            raise
        if self.settings.on_term is not OnTerm.LEAVE:
            await self.leave_nothing()
        log.info("agent_ended", worker=self.worker.name)

    async def work(self, found: Sequence[HeldAssignment], stop: asyncio.Event, at_once: asyncio.Event) -> None:
        """Goes on with what was found in the journal, and works as `run` does."""
        async with NotifySocket(self.paths.notify_socket) as notifications, asyncio.TaskGroup() as self.group:
            for held in found:
                self.storage.adopt(held)
                self.start(self.runner(held))
            self.logs.recover()
            service = [
                self.group.create_task(self.watch()),
                self.group.create_task(self.stream.run()),
                self.group.create_task(self.note_contact()),
                self.group.create_task(self.launcher.keep()),
                self.group.create_task(self.poll(notifications)),
                self.group.create_task(self.sample()),
                self.group.create_task(self.refresh_gpus()),
                self.group.create_task(self.watch_disk()),
                self.group.create_task(self.drop_orphans()),
                self.group.create_task(self.logs.run()),
            ]
            log.info("agent_started", worker=self.worker.name, session=self.session_id, held=len(found))
            await stop.wait()
            if self.settings.on_term is OnTerm.DRAIN:
                await self.drain(at_once)
            if self.settings.on_term is not OnTerm.LEAVE:
                await self.stop_all()
                await self.logs.settle(LOGS_SECONDS)
            for task in (*service, *self.tasks.values()):
                task.cancel()

    async def leave_nothing(self) -> None:
        """Ends the launcher, and removes what is of no use to a next agent."""
        await self.launcher.shutdown()
        if all(runner.over for runner in self.runners.values()):  # else snapshots wait there
            self.paths.remove_volatile()

    async def end_unknown(self, known: Collection[str]) -> None:
        """Ends training that no assignment in the journal accounts for: someone has removed the journal."""
        unknown = [process for process in await self.launcher.processes() if process.directory not in known]
        for process in unknown:
            log.warning("unknown_ended", directory=process.directory, pid=process.pid)
            await self.launcher.kill(Path(process.directory))
        if unknown:
            await self.launcher.processes()  # answered once their ends are recorded: nobody writes there any more

    async def number_streams(self) -> None:
        """Has this process number its streams above those of all agents before it on this data directory.

        The clock counts where the journal is lost, or cannot be written.
        """
        now = int(time.time())
        try:
            life = await asyncio.to_thread(self.journal.begin_life, now)
        except JournalUnwritable as error:
            log.warning("life_not_noted", error=str(error))
            life = now
        self.stream.number = life << STREAM_BITS

    async def recall_contact(self) -> None:
        """Goes on from when an agent before this one last heard the control plane, and from the lease that it told."""
        last = await self.journal.run(self.journal.last_contact)
        if last is not None:
            heard = last.heard if last.boot_id == process_tree.boot_id() else None
            self.contact = Contact(boot_seconds(), patience=self.contact.patience, lease=last.lease, heard=heard)
            self.stream.lease = last.lease

    async def note_contact(self) -> None:
        """Journals when the control plane was heard, once a lease: an agent after this one has to know."""
        await self.steady.wait()
        boot_id, noted = process_tree.boot_id(), 0.0
        while True:
            contact = self.contact
            if contact.heard > noted:
                noted = contact.heard
                last = LastContact(boot_id=boot_id, heard=noted, lease=contact.lease)
                try:
                    await self.journal.run(self.journal.note_contact, last)
                except JournalUnwritable as error:  # nothing is decided by it: no reason to give the worker up
                    log.warning("contact_not_noted", error=str(error))
            await asyncio.sleep(contact.lease)

    async def watch(self) -> None:
        """Looks again and again."""
        while True:
            self.look()
            await asyncio.sleep(min(WATCH_SECONDS, self.contact.lease / 8))

    def look(self) -> None:
        """Finds out whether the agent slept, and whether it is out of contact."""
        self.woke()
        was_out, self.out_of_contact = self.out_of_contact, self.contact.is_out(boot_seconds())
        if not self.out_of_contact:
            return
        if not was_out:
            self.steady.clear()
            log.warning("out_of_contact", leases=self.contact.patience, lease_seconds=self.contact.lease)
        self.pause_by_itself(
            reasons.WORKER_OUT_OF_CONTACT,
            f"{self.worker.name} had not heard the control plane for {self.contact.patience} leases, "
            "and paused at the next boundary",
            held_still=True,
        )

    def woke(self) -> bool:
        """Holds all training still if the agent has just woken from a sleep in which its lease ran out.

        Somebody else may train its jobs by now. It is let go once a stream that is opened now has told what is meant.
        """
        if not self.contact.slept(boot_seconds()):
            return False
        self.steady.clear()
        training = [runner for runner in self.runners.values() if runner.alive]
        process_tree.hold(runner.held.process for runner in training)
        for runner in training:
            runner.hold_still()
        self.stream.reopen()
        log.warning(
            "slept", seconds=self.contact.asleep_seconds, lease_seconds=self.contact.lease, held_still=len(training)
        )
        return True

    def pause_by_itself(self, reason: str, message: str, *, held_still: bool) -> None:
        """Has everything that trains pause at its next boundary, whatever the control plane has said.

        `held_still`: also what waits for the control plane to say what is meant for it.
        """
        for runner in self.runners.values():
            if not runner.over and not runner.pauses_by_itself and (held_still or not runner.held_still):
                runner.pauses_by_itself = runner.may_go = True
                runner.inbox.put_nowait(PauseByItself(why=Failure(reason=reason, message=message)))

    def on_name_taken(self, message: str) -> None:
        """Raises NameTaken unless this agent holds something: then it is the one that came back, and waits."""
        if not self.runners and not self.reports:
            raise NameTaken(
                f"{message}. This agent has the data directory {self.paths.data} (instance {self.worker.instance}): "
                "give it another ADJOURN_WORKER, or the other's data directory once that agent has ended"
            )
        self.steady.clear()
        log.error("name_taken", error=message, data=str(self.paths.data), held=len(self.runners))

    def build_request(self) -> SynchronizeRequest:
        """Returns the worker's whole state, but no more reports than fit into a message."""
        del self.worker.devices[:]
        self.worker.devices.extend(self.gpus.devices())
        del self.worker.conditions[:]
        self.worker.conditions.extend(self.conditions)
        self.worker.environment.clear()
        self.worker.environment.update(self.environment | self.launcher.software)
        now = datetime.now(UTC)
        return SynchronizeRequest(
            worker=self.worker,
            session_id=self.session_id,
            stream=self.stream.number,
            assignments=fitting_statuses(aged(runner.status, now) for runner in self.runners.values()),
            draining=self.draining,
            reports=next_reports(self.reports),
            series=self.next_series() if self.stream.connected else (),
        )

    def next_series(self) -> list[SeriesPart]:
        """Returns the figures that are to be sent now; they are not sent again."""
        now, found = boot_seconds(), []
        for name, runner in self.runners.items():
            has_left = not runner.alive
            self.unsent[name].add_progress(runner.status.progress, now, at_once=has_left)
            found.append(self.unsent[name].take(now, at_once=has_left))
        return [part for part in found if part is not None]

    async def on_response(self, response: SynchronizeResponse) -> None:
        """Starts new assignments, passes changed ones on, and forgets those that are over and not desired any more."""
        if self.woke():
            return  # it was sent before the sleep
        sleeps, now = self.contact.sleeps, boot_seconds()
        self.contact.respond(now, self.stream.lease)
        if self.reports and self.reports[0].sequence <= response.acknowledged_report:
            await self.journal.run(self.journal.acknowledge, response.acknowledged_report)
            self.reports = [report for report in self.reports if report.sequence > response.acknowledged_report]
            if self.reports:
                self.stream.changed.set()
        self.logs.follow(response.followed_job_uids)
        desired = {key(assignment.job, assignment.token) for assignment in response.assignments}
        for assignment in response.assignments:
            runner = self.runners.get(key(assignment.job, assignment.token))
            if runner is None:
                await self.take_on(assignment)
            elif assignment.generation > runner.status.observed_generation:
                runner.inbox.put_nowait(AssignmentChanged(assignment=assignment))
        for name, runner in list(self.runners.items()):
            if name not in desired and runner.over and self.tasks[name].done() and not self.has_reports(name):
                await self.forget(name)
        self.woke()
        if self.contact.sleeps == sleeps:
            self.reached(desired)

    def reached(self, named: Collection[Key]) -> None:
        """Lets what waited for the control plane go on as that has said.

        What a response does not name waits for one that does, or for a lease: whether it was given to another worker is
        being found out.
        """
        if not self.steady.is_set():
            self.steady.set()
            self.steady_since = boot_seconds()
        waited = boot_seconds() - self.steady_since
        for name, runner in self.runners.items():
            waits = runner.held_still or (runner.pauses_by_itself and not self.draining)  # a drain has it pause still
            if waits and (name in named or waited > self.contact.lease):
                # A drain has it go on only to pause: with Reached it might pass a boundary in between.
                runner.pauses_by_itself, runner.may_go = self.draining, True
                runner.inbox.put_nowait(PauseByItself(why=self.why_it_drains) if self.draining else Reached())

    def has_reports(self, name: Key) -> bool:
        """Returns whether a report of the assignment is not yet acknowledged."""
        return any(key(report.job, report.token) == name for report in self.reports)

    async def take_on(self, assignment: Assignment) -> None:
        if not assignment.HasField("spec") and assignment.target != Assignment.STOP:
            # An answer to a message from before it was forgotten; the next one has the spec.
            log.info("assignment_without_spec", job=assignment.job, attempt=assignment.token.attempt)
            return
        directory = self.paths.attempt(assignment.job, assignment.token)
        runner = self.runner(HeldAssignment(assignment=assignment, directory=str(directory)))
        self.taking_on = True
        await runner.begin(assignment)
        if self.draining:  # it was placed before that was known: told of at once, its job goes on elsewhere
            await runner.handle(WorkerStopping())
        self.start(runner)
        self.taking_on = False

    def runner(self, held: HeldAssignment) -> AttemptRunner:
        return AttemptRunner(
            held,
            journal=self.journal,
            journal_lock=self.journal_lock,
            launcher=self.launcher,
            storage=self.storage,
            data=self.data,
            gpus=self.gpus,
            steady=self.steady,
            pace=self.settings.pace,
            on_change=self.on_change,
        )

    def training(self) -> list[int]:
        """Returns the pids of all training processes."""
        return [runner.held.process.pid for runner in self.runners.values() if runner.alive]

    def start(self, runner: AttemptRunner) -> None:
        name = key(runner.held.assignment.job, runner.held.assignment.token)
        self.runners[name], self.unsent[name] = runner, Unsent(runner.status.job, runner.status.token)
        self.logs.take(runner.held)
        task = self.tasks[name] = self.group.create_task(self.attend(runner))
        task.add_done_callback(lambda _: self.stream.changed.set())  # the answer to that shows whether to forget it
        self.stream.changed.set()

    async def attend(self, runner: AttemptRunner) -> None:
        """Sees to an attempt until it is over and cleaned up; its log may follow later."""
        await runner.run()
        await self.data.make_room()
        self.logs.end(runner.directory.name, launched=runner.held.HasField("process"))

    def on_change(self, reports: Sequence[Report]) -> None:
        """Has a change, and the reports that it brought, sent soon."""
        self.reports.extend(reports)
        self.stream.changed.set()

    async def forget(self, name: Key) -> None:
        """Forgets an assignment that is over and cleaned up."""
        del self.tasks[name]
        del self.unsent[name]
        assignment = self.runners.pop(name).held.assignment
        await self.journal.run(self.journal.forget, assignment.job, assignment.token)

    async def poll(self, notifications: NotifySocket) -> None:
        """Has each runner read its attempt's files when there is a notification, and twice a second."""
        while True:
            await notifications.wait(POLL_SECONDS)
            for runner in self.runners.values():
                if runner.alive:
                    runner.wake()
            await asyncio.sleep(POLL_GAP)

    async def sample(self) -> None:
        """Samples what each training process uses, once an interval. The newest sample is the attempt's."""
        meters: dict[Key, Meter] = {}
        while True:
            await asyncio.sleep(self.stream.interval)
            busy = {name: runner for name, runner in self.runners.items() if runner.alive}
            meters = {name: meters.get(name) or Meter(self.gpus) for name in busy}
            for name, runner in busy.items():
                pid, uuids = runner.held.process.pid, runner.held.assignment.device_uuids
                usage = await asyncio.to_thread(meters[name].sample, pid, uuids)
                if usage is None:
                    continue
                usage.attempt = runner.status.token.attempt
                runner.inbox.put_nowait(Measured(progress=None, usage=usage))
                if name in self.unsent:
                    self.unsent[name].add_sample(usage, boot_seconds())
                    self.unsent[name].add_progress(runner.status.progress, boot_seconds())

    async def refresh_gpus(self) -> None:
        """Finds out, again and again, which GPUs can be offered."""
        while True:
            before = self.gpus.devices()
            await asyncio.to_thread(self.gpus.refresh)
            if self.gpus.devices() != before:
                self.stream.changed.set()
            await asyncio.sleep(GPU_SECONDS)

    async def drain(self, at_once: asyncio.Event) -> None:
        """Has all training pause at its boundary and waits until that is saved and reported, for the grace at most.

        The control plane is to order it, so that the job says where it is. It has a part of a lease to do so.
        """
        self.draining = True
        self.stream.changed.set()
        log.info("draining", held=len(self.runners), grace_seconds=self.settings.drain_grace)
        for runner in self.runners.values():
            if not runner.held.HasField("process"):
                runner.inbox.put_nowait(WorkerStopping())  # it has nothing to save
        began = boot_seconds()
        while not (at_once.is_set() or self.is_saved() or boot_seconds() - began > self.settings.drain_grace):
            if not self.stream.connected or boot_seconds() - began > ASK_SHARE * self.contact.lease:
                self.pause_by_itself(self.why_it_drains.reason, self.why_it_drains.message, held_still=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_POLL_SECONDS):
                    await at_once.wait()

    @property
    def why_it_drains(self) -> Failure:
        message = f"{self.worker.name} ends, and paused at the next boundary"
        return Failure(reason=reasons.WORKER_STOPPED, message=message)

    def is_saved(self) -> bool:
        """Tells whether all attempts are over and cleaned up, the control plane knows how, and their logs are stored.

        A machine that goes away takes its journal and its logs with it: what has not been told by then is lost. Storage
        that fails holds up nobody for the sake of a log.
        """
        return self.is_empty() and not self.reports and self.logs.settled

    def is_empty(self) -> bool:
        """Tells whether all attempts are over and cleaned up, and the control plane, if it is there, knows how."""
        cleaned_up = not self.taking_on and all(task.done() for task in self.tasks.values())
        return cleaned_up and not (self.reports and self.stream.connected)

    async def watch_disk(self) -> None:
        """Finds out, again and again, whether the disk has room for another attempt."""
        while True:
            condition = await asyncio.to_thread(self.storage.disk.condition)
            if condition is not None:
                await asyncio.to_thread(remove, self.paths.disk_snapshots / KEPT)  # the next look finds the room
                await self.data.make_room(2 * self.settings.disk_reserve_bytes)
                await self.storage.make_room()
            found = [condition] if condition is not None else []
            if found != self.conditions:
                log.warning("disk_full" if found else "disk_has_room", worker=self.worker.name)
                self.conditions = found
                self.stream.changed.set()
            await asyncio.sleep(DISK_SECONDS)

    async def drop_orphans(self) -> None:
        """Removes, again and again, what is kept for jobs that were deleted meanwhile."""
        while True:
            await asyncio.sleep(ORPHAN_SECONDS)
            try:
                await self.storage.drop_orphans()
            except (*STORAGE_ERRORS, OSError) as error:
                log.warning("orphans_not_looked_for", error=str(error))

    async def stop_all(self) -> None:
        """Ends all training; waits a little until it is cleaned up and the control plane has its reports."""
        self.draining = True
        self.stream.changed.set()
        for runner in self.runners.values():
            runner.inbox.put_nowait(WorkerStopping())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while not self.is_empty():  # noqa: ASYNC110  # many conditions
                    await asyncio.sleep(0.02)  # runners and stream change, for a short while
