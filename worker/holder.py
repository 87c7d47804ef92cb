"""One assignment on this worker: feeds its machine with what happens, and carries out what the machine says.

Events are worked in one at a time. What each comes to is journaled, reports included, before anything is done about
it; fetching and persisting take long and run beside.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import structlog

from adjourn import reasons
from adjourn.mailbox import Control, ProgressBoard
from adjourn.orders import Order
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Report
from adjourn.v1.job_pb2 import Failure
from adjourn.v1.trainer_pb2 import HeldAssignment, Snapshot
from worker import assignment, attempts
from worker.chores import Chores, Unusable
from worker.drafts import OVER, Outcome
from worker.journal import Journal
from worker.launching import LauncherFailed
from worker.supervisor import LaunchRefused, Supervisor
from worker.words import (
    Advanced,
    CannotGoOn,
    Drop,
    Ended,
    Event,
    Instruct,
    Instruction,
    Kill,
    Launch,
    Launched,
    Measured,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    Told,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger()

UNJOURNALED: Final = (Measured, Advanced)
"""What is told anew all the time needs no disk."""


class Holder:
    """Holds one assignment from its beginning to its end."""

    def __init__(
        self,
        held: HeldAssignment,
        *,
        journal: Journal,
        supervisor: Supervisor,
        chores: Chores,
        tell: Callable[[Sequence[Report]], None],
    ) -> None:
        self.held = held
        self.journal = journal
        self.supervisor = supervisor
        self.chores = chores
        self.tell = tell
        """Called after every change, with the reports that it brought."""
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        """None: look at the attempt's files."""
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
        return self.held.HasField("process") and not self.held.HasField("exit")

    @property
    def directory(self) -> Path:
        return Path(self.held.directory)

    async def begin(self, given: Assignment) -> None:
        """Takes a new assignment on; `run` then does what there is to do, as for one that is found in the journal."""
        await self.settle(assignment.take_on(given, self.held.directory, datetime.now(UTC)))

    async def run(self) -> None:
        """Works until cancelled; what the journal says is unfinished is gone on with first."""
        try:
            for instruction in assignment.recover(self.held):
                await self.carry_out(instruction)
            while True:
                await self.look()
                event = await self.inbox.get()
                if event is not None:
                    await self.take_in(event)
        finally:
            await self.drop_work()

    async def drop_work(self) -> None:
        for task in self.beside:
            task.cancel()
        await asyncio.gather(*self.beside, return_exceptions=True)

    async def take_in(self, event: Event) -> None:
        """Works one event in: state and reports to the journal, then the instructions."""
        if self.over:
            return
        outcome = assignment.handle(self.held, event, datetime.now(UTC))
        if isinstance(event, UNJOURNALED):
            self.held = outcome.held
            self.tell(())
        else:
            await self.settle(outcome)

    async def settle(self, outcome: Outcome) -> None:
        reports = await asyncio.to_thread(self.journal.record, outcome.held, outcome.reports)
        phase = self.status.phase
        self.held = outcome.held
        if self.status.phase != phase or outcome.reports:
            self.log.info("assignment", phase=AssignmentStatus.Phase.Name(self.status.phase), reports=len(reports))
        self.tell(reports)
        if self.over:
            await self.drop_work()
        for instruction in outcome.instructions:
            await self.carry_out(instruction)

    async def look(self) -> None:
        """Takes in what the training process wrote, and its end."""
        if not self.alive:
            return
        try:
            ended = await asyncio.to_thread(attempts.read_exit, self.directory)
            unseen = ended is None and await self.supervisor.unseen(self.held.process)
            while batch := await asyncio.to_thread(attempts.read_events, self.directory, self.held.events_offset):
                for event, offset in batch:
                    await self.take_in(Told(event=event, offset=offset))
            if ended is not None or unseen:
                await self.take_in(Ended(exit=ended))
        except attempts.AttemptDamaged as error:
            await self.supervisor.kill(self.directory)
            failure = Failure(reason=reasons.PROCESS_ENDED, message=f"its files cannot be read any more: {error}")
            await self.take_in(CannotGoOn(failure=failure))
        except (LauncherFailed, LaunchRefused) as error:
            self.log.warning("cannot_look", error=str(error))  # and is looked again, in a second

    def measure(self) -> None:
        """Reads the progress that the training process shows."""
        board = ProgressBoard(self.directory / "progress")
        try:
            progress = board.read()
        finally:
            board.close()
        if progress is not None and progress != self.status.progress:
            self.inbox.put_nowait(Measured(progress=progress, usage=None))

    async def carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Prepare():
                self.start(self.prepare())
            case Launch(order=order):
                await self.launch(order)
            case Instruct(order=order):
                self.instruct(order)
            case Kill():
                await self.supervisor.kill(self.directory)
            case Persist(snapshot=snapshot):
                self.start(self.persist(snapshot))
            case Drop(snapshot=snapshot):
                (Path(snapshot.directory) / "taken").unlink(missing_ok=True)
            case _:
                raise AssertionError(instruction)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs work beside; a fault in it ends the agent, loudly, rather than the assignment, quietly."""
        task = asyncio.create_task(work)
        self.beside.add(task)
        task.add_done_callback(self.beside.discard)

    async def prepare(self) -> None:
        try:
            await self.chores.prepare(self.held)
        except Unusable as error:
            await self.inbox.put(CannotGoOn(failure=error.failure))
        else:
            await self.inbox.put(Prepared())

    async def launch(self, order: Order) -> None:
        self.instruct(order)
        try:
            process = await self.supervisor.launch(self.directory, self.held.assignment.token.nonce)
        except (LauncherFailed, LaunchRefused) as error:
            failure = Failure(reason=reasons.LAUNCH_FAILED, message=str(error))
            await self.take_in(CannotGoOn(failure=failure))
        else:
            await self.take_in(Launched(process=process))

    def instruct(self, order: Order) -> None:
        with contextlib.closing(Control(self.directory / "control")) as control:
            control.write(order)

    async def persist(self, snapshot: Snapshot) -> None:
        def advance(fraction: float) -> None:
            self.inbox.put_nowait(Advanced(fraction=fraction))

        try:
            checkpoint = await self.chores.persist(self.held, snapshot, advance)
        except Unusable as error:
            await self.inbox.put(PersistFailed(failure=error.failure))
        else:
            await self.inbox.put(Persisted(checkpoint=checkpoint))
