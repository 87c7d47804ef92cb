"""One assignment on this worker: feeds its machine with what happens, and carries out what the machine says.

Events are worked in one at a time. What each comes to is journaled, reports included, before anything is done about
it; fetching and persisting take long and run beside.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from adjourn import reasons, snapshots
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot
from adjourn.shared_files import Control, ProgressPage
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, ConditionChange, Report
from adjourn.v1.job_pb2 import Failure
from adjourn_worker import messages
from adjourn_worker.attempt import files, machine, training_log
from adjourn_worker.attempt.events import (
    Advanced,
    CannotGoOn,
    ConditionChanged,
    Drop,
    Effect,
    Ended,
    Event,
    Kill,
    Launch,
    Launched,
    Measured,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    SetDesired,
    Told,
)
from adjourn_worker.attempt.transition import OVER, Outcome
from adjourn_worker.journal import Journal
from adjourn_worker.launcher.client import LauncherClient, LauncherFailed, LaunchRefused
from adjourn_worker.storage.tasks import StorageTasks, Unusable

log: structlog.stdlib.BoundLogger = structlog.get_logger()

UNJOURNALED: Final = (Measured, Advanced)
"""What is told anew all the time needs no disk."""


class AttemptRunner:
    """Holds one assignment from its beginning to its end."""

    def __init__(
        self,
        held: HeldAssignment,
        *,
        journal: Journal,
        journal_lock: asyncio.Lock,
        launcher: LauncherClient,
        storage: StorageTasks,
        log_bytes: int,
        on_change: Callable[[Sequence[Report]], None],
    ) -> None:
        self.held = held
        self.journal = journal
        self.journal_lock = journal_lock
        """Held while journaling: a report that is sent after a newer one would be acknowledged without being read."""
        self.launcher = launcher
        self.storage = storage
        self.log_bytes = log_bytes
        self.on_change = on_change
        """Called after every change, with the reports that it brought."""
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        """None: look at the attempt's files."""
        self.woken = False
        self.beside: set[asyncio.Task[None]] = set()
        self.log = log.bind(job=held.assignment.job, attempt=held.assignment.token.attempt)

    @property
    def status(self) -> AssignmentStatus:
        return self.held.status

    @property
    def over(self) -> bool:
        return self.status.phase in OVER

    @property
    def alive(self) -> bool:
        """A process was started and has not ended, as far as known."""
        return self.held.HasField("process") and not self.held.HasField("exit") and not self.over

    @property
    def directory(self) -> Path:
        return Path(self.held.directory)

    async def begin(self, given: Assignment, log_place: str) -> None:
        """Takes a new assignment on; `run` then does what there is to do, as for one that is found in the journal."""
        await self.settle(machine.take_on(given, self.held.directory, log_place, datetime.now(UTC)))

    def wake(self) -> None:
        """Has the attempt's files looked at soon: once, however often it is asked for meanwhile."""
        if not self.woken:
            self.woken = True
            self.inbox.put_nowait(None)

    async def run(self) -> None:
        """Works until the assignment is over; what the journal says is unfinished is gone on with first."""
        try:
            await self.find_process()
            for instruction in machine.recover(self.held):
                await self.carry_out(instruction)
            self.wake()
            while not self.over:
                event = await self.inbox.get()
                if event is None:
                    self.woken = False
                    await self.poll()
                else:
                    await self.handle(event)
        finally:
            await self.drop_work()
        await self.storage.clean_up(self.held)

    async def find_process(self) -> None:
        """Takes in a process that was launched by an agent which died before it could journal that."""
        if self.over or self.held.HasField("process"):
            return
        try:
            process = await asyncio.to_thread(files.read_process, self.directory)
        except files.AttemptDamaged as error:
            await self.give_up(error)
        else:
            if process is not None:
                await self.handle(Launched(process=process))

    async def drop_work(self) -> None:
        for task in self.beside:
            task.cancel()
        await asyncio.gather(*self.beside, return_exceptions=True)

    async def handle(self, event: Event) -> None:
        """Works one event in: state and reports to the journal, then the instructions."""
        if self.over:
            return
        outcome = machine.handle(self.held, event, datetime.now(UTC))
        if isinstance(event, UNJOURNALED):
            self.held = outcome.held
            self.on_change(())
        else:
            await self.settle(outcome)

    async def settle(self, outcome: Outcome) -> None:
        async with self.journal_lock:
            fitting = [self.fitting(report) for report in outcome.reports]
            reports = await self.journal.run(self.journal.record, outcome.held, fitting)
            phase = self.status.phase
            self.held = outcome.held
            self.on_change(reports)
        if self.status.phase != phase or outcome.reports:
            self.log.info("assignment", phase=AssignmentStatus.Phase.Name(self.status.phase), reports=len(reports))
        if self.over:
            await self.drop_work()
        for instruction in outcome.instructions:
            await self.carry_out(instruction)

    def fitting(self, report: Report) -> Report:
        """Returns a report that fits into a message: one too large would keep all others from being sent."""
        fitting = messages.cut(report)
        if fitting is not report:
            sizes = {"bytes": report.ByteSize(), "cut_to": fitting.ByteSize()}
            self.log.warning("report_cut", report=report.WhichOneof("report"), **sizes)
        return fitting

    async def poll(self) -> None:
        """Takes in what the training process shows and wrote, and its end."""
        if not self.alive:
            return
        try:
            ended = await asyncio.to_thread(files.read_exit, self.directory)
            exit_lost = ended is None and await self.launcher.exit_lost(self.held.process)
            await self.measure()
            while batch := await asyncio.to_thread(files.read_events, self.directory, self.held.events_offset):
                for event, offset in batch:
                    await self.handle(Told(event=event, offset=offset))
            if ended is not None or exit_lost:
                await asyncio.to_thread(training_log.compact, self.directory / files.LOG, self.log_bytes)
                await self.handle(Ended(exit=ended))
        except files.AttemptDamaged as error:
            await self.give_up(error)
        except (LauncherFailed, LaunchRefused) as error:
            self.log.warning("cannot_look", error=str(error))  # and is looked again at the next nudge

    async def measure(self) -> None:
        """Takes in the progress that the training process shows."""
        progress = None
        with (
            contextlib.suppress(OSError, DecodeError),  # then it is not shown; events tell the same at each epoch
            contextlib.closing(ProgressPage(self.directory / "progress")) as board,
        ):
            progress = board.read()
        if progress is not None and progress != self.status.progress:
            await self.handle(Measured(progress=progress, usage=None))

    async def give_up(self, error: Exception) -> None:
        """Ends an attempt whose files are of no use any more: training code can write there too."""
        await self.launcher.kill(self.directory)
        await self.launcher.processes()  # answered once its end is recorded: nobody writes there any more
        failure = Failure(reason=reasons.PROCESS_ENDED, message=f"its files cannot be used any more: {error}")
        await self.handle(CannotGoOn(failure=failure))

    async def carry_out(self, instruction: Effect) -> None:
        match instruction:
            case Prepare():
                self.start(self.prepare, CannotGoOn, reasons.LAUNCH_FAILED)
            case Launch(order=order):
                await self.launch(order)
            case SetDesired(order=order):
                await self.instruct(order)
            case Kill():
                await self.launcher.kill(self.directory)
            case Persist(snapshot=snapshot):
                self.start(lambda: self.persist(snapshot), PersistFailed, reasons.SNAPSHOT_FAILED)
            case Drop(snapshot=snapshot):
                await asyncio.to_thread(drop, snapshot)
            case _:
                raise AssertionError(instruction)

    def start(
        self, work: Callable[[], Awaitable[Event]], failed: type[CannotGoOn] | type[PersistFailed], reason: str
    ) -> None:
        """Runs work beside. It always comes to an event, also by a fault of ours: else all would wait for it for ever.

        `failed` is the event for a failure, `reason` that of a failure which nobody has foreseen.
        """

        async def run() -> None:
            try:
                event = await work()
            except Unusable as error:
                self.log.warning("work_failed", error=str(error))
                event = failed(failure=error.failure)
            except Exception as error:
                self.log.exception("work_failed")
                event = failed(failure=Failure(reason=reason, message=f"{type(error).__name__}: {error}"))
            self.inbox.put_nowait(event)

        task = asyncio.create_task(run())
        self.beside.add(task)
        task.add_done_callback(self.beside.discard)

    async def prepare(self) -> Event:
        await self.storage.prepare(self.held, self.on_condition)
        return Prepared()

    async def launch(self, order: DesiredState) -> None:
        await self.instruct(order)
        if self.over:
            return
        try:
            process = await self.launcher.launch(self.directory, self.held.assignment.token.nonce)
        except (LauncherFailed, LaunchRefused) as error:
            failure = Failure(reason=reasons.LAUNCH_FAILED, message=str(error))
            await self.handle(CannotGoOn(failure=failure))
        else:
            await self.handle(Launched(process=process))

    async def instruct(self, order: DesiredState) -> None:
        try:
            with contextlib.closing(Control(self.directory / "control")) as control:
                control.write(order)
        except OSError as error:
            await self.give_up(error)

    def on_condition(self, change: ConditionChange) -> None:
        """Has a condition of the job reported; for work that runs beside."""
        self.inbox.put_nowait(ConditionChanged(change=change))

    async def persist(self, snapshot: Snapshot) -> Event:
        def advance(fraction: float) -> None:
            self.inbox.put_nowait(Advanced(fraction=fraction))

        return Persisted(checkpoint=await self.storage.persist(self.held, snapshot, advance, self.on_condition))


def drop(snapshot: Snapshot) -> None:
    """Gives a snapshot's slot back, unless training has put another there: then it was given back before."""
    directory = Path(snapshot.directory)
    try:
        there = snapshots.read_state(directory).progress.get("report_time")
    except snapshots.SnapshotInvalid:
        there = None  # damaged, hence not a new one
    if there in (None, snapshot.progress.report_time.ToJsonString()):
        (directory / snapshots.IN_USE).unlink(missing_ok=True)
