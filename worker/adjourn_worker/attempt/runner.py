"""One assignment on this worker: feeds events to its machine, journals the outcome, and carries out the effects.

Events are handled one at a time. The outcome of each is journaled, reports included, before its effects are carried
out. Fetching, persisting and waiting for GPUs take long and run in the background.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import structlog
from google.protobuf.message import DecodeError

from adjourn import failpoints, reasons, snapshots
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot
from adjourn.next_boundary import NextBoundary
from adjourn.pulse import Pulse
from adjourn.shared_files import BoundaryFile, Control, ProgressPage, PulseFile
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, ConditionChange, Report
from adjourn.v1.job_pb2 import Condition, Failure
from adjourn.v1.usage_pb2 import GpuSample
from adjourn_worker import messages
from adjourn_worker.attempt import files, machine, stacks
from adjourn_worker.attempt.events import (
    Advanced,
    BoundaryFound,
    CannotGoOn,
    ConditionChanged,
    ConfirmRelease,
    Drop,
    Effect,
    Ended,
    Event,
    EventRead,
    FoundHanging,
    FoundSuspended,
    GpusReleased,
    Kill,
    Launch,
    Launched,
    Measured,
    MovedOn,
    PauseByItself,
    Persist,
    Persisted,
    PersistFailed,
    Prepare,
    Prepared,
    Reached,
    SetDesired,
    StillHanging,
    WriteStacks,
)
from adjourn_worker.attempt.pace import Pace, Watch
from adjourn_worker.attempt.transition import OVER, Outcome
from adjourn_worker.data.fetching import DataTasks
from adjourn_worker.data.waiting import Waiting
from adjourn_worker.host.gpus import Gpus, memory_in_use, unreleased
from adjourn_worker.host.kernel import order_memory
from adjourn_worker.journal import Journal
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.client import LauncherClient, LauncherFailed, LaunchRefused
from adjourn_worker.storage.tasks import StorageTasks, Unusable

log: structlog.stdlib.BoundLogger = structlog.get_logger()

UNJOURNALED: Final = (Measured, Advanced, BoundaryFound)
"""Events that come again, to another agent too, need no disk."""
RELEASE_SECONDS: Final = 60.0
"""How long the GPUs of an ended process are waited for; then they are quarantined."""
RELEASE_SHOWN_SECONDS: Final = 2.0
"""How long they are waited for before the job shows it."""
RELEASE_POLL_SECONDS: Final = 0.1
GIB: Final = 1 << 30
PERSIST_AGAIN_SECONDS: Final = 10.0
"""Between attempts at persisting a snapshot that fails for a reason which may pass."""
FILES_AGAIN_SECONDS: Final = 1.0
"""The same, at reading or writing the files of an attempt."""

DECIDING_SECONDS: Final = 0.005
DECIDING_LOOKS: Final = 10
"""How often, and how many times at once, to look at training that decides just now whether it pauses. It takes
microseconds, unless the process is stopped, or is gone."""

LOOK_SECONDS: Final = 5.0
"""Most that the time between two looks at the pulse counts. If it was longer, the agent was stopped, the machine
suspended or too busy for both."""

SUSPENDED_SECONDS: Final = 1.0
"""How long a training process is stopped before it is told: what is killed is stopped first, for a moment."""

P = ParamSpec("P")
T = TypeVar("T")


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
        data: DataTasks,
        gpus: Gpus,
        steady: asyncio.Event,
        pace: Pace,
        on_change: Callable[[Sequence[Report]], None],
    ) -> None:
        self.held = held
        self.held.status.ClearField("pause_epoch")  # the journal has it only by chance; it is found out anew
        self.journal = journal
        self.journal_lock = journal_lock
        """Held while journaling: a report that is sent after a newer one would be acknowledged without being read."""
        self.launcher = launcher
        self.storage = storage
        self.data = data
        self.fetching: set[Path] = set()
        """Requests for data that are being answered."""
        self.gpus = gpus
        self.steady = steady
        """Set while the control plane is known to mean what it has said; nothing is launched otherwise."""
        self.pauses_by_itself = held.HasField("pausing_by_itself")
        """Training was told to pause by this agent or one before it; the control plane was not heard since."""
        self.held_still = False
        """The training process is stopped by a signal, until the control plane has said what is meant for it."""
        self.may_go = True
        """That was said since the process was stopped; what is in the inbox may be from before."""
        self.pace = pace
        self.watch = new_watch(held)
        self.looked_at: float | None = None
        """By the clock of the event loop, which does not count a suspended machine."""
        self.suspended_since: float | None = None
        """Since when the training process is seen stopped by a signal that is not ours, by the same clock."""
        self.on_change = on_change
        """Called after every change, with the reports that it brought."""
        self.inbox: asyncio.Queue[Event | None] = asyncio.Queue()
        """None: read the attempt's files."""
        self.woken = False
        self.background: set[asyncio.Task[None]] = set()
        self.waiting = Waiting(held, self.on_condition, time.monotonic)
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

    async def begin(self, given: Assignment) -> None:
        """Journals a new assignment; `run` then does what there is to do, as for one that is found in the journal."""
        await self.commit(machine.take_on(given, self.held.directory, datetime.now(UTC)))

    def wake(self) -> None:
        """Has the attempt's files read soon: once, however often it is asked for meanwhile."""
        if not self.woken:
            self.woken = True
            self.inbox.put_nowait(None)

    async def run(self) -> None:
        """Works until the assignment is over; continues first what the journal says is unfinished."""
        try:
            await self.find_process()
            if self.alive and process_tree.held(self.held.process):
                self.hold_still()  # by an agent that did not live to let it go
                self.log.info("found_held_still")
            for effect in machine.recover(self.held):
                await self.carry_out(effect)
            self.wake()
            while not self.over:
                event = await self.inbox.get()
                if event is None:
                    self.woken = False
                    await self.poll()
                else:
                    await self.handle(event)
        finally:
            await self.cancel_background()
        await self.storage.clean_up(self.held)

    def hold_still(self) -> None:
        """Notes that the training process is stopped: what lets it go has yet to come, whatever was said before."""
        self.held_still = True
        self.may_go = self.pauses_by_itself = False

    def let_go(self) -> None:
        """Lets a process that was held still go on, unless it is to be stopped: that ends it as it is.

        Not in a thread: an agent that falls asleep in here would hold the process still and let it go at once.
        """
        if self.held_still and self.may_go and self.held.assignment.target != Assignment.STOP:
            self.held_still = False
            process_tree.let_go([self.held.process])
            self.log.info("let_go")

    async def find_process(self) -> None:
        """Adopts a process that was launched by an agent which died before it could journal that."""
        if self.over or self.held.HasField("process"):
            return
        try:
            process = await self.patiently(files.read_process, self.directory)
        except files.AttemptDamaged as error:
            await self.abandon(error)
        else:
            if process is not None:
                await self.handle(Launched(process=process))

    async def cancel_background(self) -> None:
        for task in self.background:
            task.cancel()
        await asyncio.gather(*self.background, return_exceptions=True)

    async def handle(self, event: Event) -> None:
        """Handles one event: journals state and reports, then carries out the effects."""
        if self.over:
            return
        outcome = machine.handle(self.held, event, datetime.now(UTC))
        if isinstance(event, UNJOURNALED):
            self.held = outcome.held
            self.on_change(())
        else:
            await self.commit(outcome)
        if isinstance(event, PauseByItself | Reached):
            self.let_go()

    async def commit(self, outcome: Outcome) -> None:
        async with self.journal_lock:
            fitting = [self.fitting(report) for report in outcome.reports]
            failpoints.hit("worker.before-journal")
            reports = await self.journal.run(self.journal.record, outcome.held, fitting)
            failpoints.hit("worker.after-journal")
            phase = self.status.phase
            self.held = outcome.held
            self.on_change(reports)
        if self.status.phase != phase or outcome.reports:
            self.log.info("assignment", phase=AssignmentStatus.Phase.Name(self.status.phase), reports=len(reports))
        if self.over:
            await self.cancel_background()
        for effect in outcome.effects:
            await self.carry_out(effect)

    def fitting(self, report: Report) -> Report:
        """Returns a report that fits into a message: one too large would keep all others from being sent."""
        fitting = messages.cut(report)
        if fitting is not report:
            sizes = {"bytes": report.ByteSize(), "cut_to": fitting.ByteSize()}
            self.log.warning("report_cut", report=report.WhichOneof("report"), **sizes)
        return fitting

    async def poll(self) -> None:
        """Reads the progress, the events and the exit of the training process."""
        if not self.alive:
            return
        try:
            ended = await self.patiently(files.read_exit, self.directory)
            exit_lost = ended is None and await self.exit_lost()
            await self.measure()
            await self.look_for_requests()
            await self.look_for_boundary()
            while batch := await self.patiently(files.read_events, self.directory, self.held.events_offset):
                for event, offset in batch:
                    await self.handle(EventRead(event=event, offset=offset))
                    if event.HasField("began"):
                        await self.storage.restored(self.held)
            if ended is not None or exit_lost:
                failpoints.hit("worker.exited-before-journal")
                await self.handle(Ended(exit=ended))
            else:
                await self.look_for_hang()
        except files.AttemptDamaged as error:
            await self.abandon(error)
        except (LauncherFailed, LaunchRefused) as error:
            self.log.warning("cannot_poll", error=str(error))  # the next wake tries again

    async def exit_lost(self) -> bool:
        """Tells whether the training process is gone and nobody saw it end."""
        try:
            return await self.launcher.exit_lost(self.held.process)
        except OSError as error:
            self.log.warning("files_unusable", error=str(error))
            return False  # the next wake asks again

    async def patiently(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Works with files of the attempt in a thread, again and again while the system is short of something.

        That is no reason to end an attempt: training goes on meanwhile.
        """
        while True:
            try:
                return await asyncio.to_thread(work, *arguments, **named)
            except OSError as error:
                if error.errno not in files.PASSING:
                    raise
                self.log.warning("files_unusable", error=str(error), trying_again_in=FILES_AGAIN_SECONDS)
            await asyncio.sleep(FILES_AGAIN_SECONDS)

    async def measure(self) -> None:
        """Reads the progress of the training process."""
        progress = None
        with (
            contextlib.suppress(OSError, DecodeError),  # events have the same at each epoch
            contextlib.closing(ProgressPage(self.directory / "progress")) as page,
        ):
            progress = page.read()
        if progress is not None and progress != self.status.progress:
            await self.handle(Measured(progress=progress, usage=None))

    async def look_for_requests(self) -> None:
        """Has data brought that training asks for."""
        for request in await self.patiently(files.open_requests, self.directory):
            if request not in self.fetching:
                self.fetching.add(request)
                self.start_aside(self.fetch_data(request))
        if not self.fetching:
            self.waiting.end()

    async def fetch_data(self, request: Path) -> None:
        try:
            await self.data.answer(request, self.waiting.hear)
        finally:
            self.fetching.discard(request)

    async def look_for_boundary(self) -> None:
        """Finds out where training pauses, if the control plane wants it to and has been seen to."""
        if not machine.names_its_epoch(self.held.assignment):
            return
        for _ in range(DECIDING_LOOKS):
            boundary = self.boundary()
            if boundary is None or not boundary.deciding:
                break
            await asyncio.sleep(DECIDING_SECONDS)
        if boundary is not None and not boundary.deciding and boundary.epoch != self.status.pause_epoch:
            await self.handle(BoundaryFound(epoch=boundary.epoch))

    async def look_for_hang(self) -> None:
        """Finds out whether training gets on, and whether it has hung for too long."""
        now = asyncio.get_running_loop().time()
        suspended = not self.held_still and process_tree.held(self.held.process)  # not in a thread, as in `let_go`
        looked_at = now if self.looked_at is None or self.held_still or suspended else self.looked_at
        passed = min(now - looked_at, LOOK_SECONDS)
        self.looked_at = now
        self.watch = self.watch.looked(self.pulse(), passed)
        if suspended or machine.is_suspended(self.held):
            await self.look_at_suspended(now, suspended=suspended)
            return
        self.suspended_since = None
        hang = self.watch.hang(self.pace)
        known = machine.is_hanging(self.held)
        if hang is None:
            if known and self.watch.moved:
                await self.handle(MovedOn())
        elif not known:
            self.watch = self.watch.found_hanging()
            await self.handle(FoundHanging(message=str(hang)))
        elif hang.silence > hang.limit + self.pace.grace_seconds and machine.hang_ends_attempt(self.held):
            await self.handle(StillHanging(message=str(hang)))

    def pulse(self) -> Pulse | None:
        return read_pulse(self.directory / "pulse")

    def boundary(self) -> NextBoundary | None:
        return read_boundary(self.directory / "boundary")

    async def look_at_suspended(self, now: float, *, suspended: bool) -> None:
        """Tells of a training process that somebody else has stopped, and when it goes on."""
        if not suspended:
            self.suspended_since = None
            await self.handle(MovedOn())
            return
        self.suspended_since = self.suspended_since or now
        if now - self.suspended_since > SUSPENDED_SECONDS and not machine.is_suspended(self.held):
            pid = self.held.process.pid
            message = (
                f"the training process, pid {pid}, was stopped by a signal from outside; SIGCONT continues it. It does"
                " not count as hanging, and a pause waits for it"
            )
            await self.handle(FoundSuspended(message=message))

    async def abandon(self, error: Exception) -> None:
        """Ends an attempt whose files are of no use any more: training code can write there too."""
        await self.launcher.kill(self.directory)
        await self.launcher.processes()  # answered once its end is recorded: nobody writes there any more
        failure = Failure(reason=reasons.PROCESS_ENDED, message=f"its files cannot be used any more: {error}")
        await self.handle(CannotGoOn(failure=failure))

    async def carry_out(self, effect: Effect) -> None:
        match effect:
            case Prepare():
                self.start(self.prepare, cannot_prepare)
            case Launch(desired=desired):
                await self.launch(desired)
            case SetDesired(desired=desired):
                await self.write_desired(desired)
            case Kill():
                await self.launcher.kill(self.directory)
            case WriteStacks(why=why):
                self.start_aside(self.write_stacks(why))
            case ConfirmRelease(before=before):
                self.start(partial(self.confirm_release, before), cannot_confirm)
            case Persist(snapshot=snapshot, again=again):
                self.start(partial(self.persist, snapshot, PERSIST_AGAIN_SECONDS if again else 0), cannot_persist)
            case Drop(snapshot=snapshot):
                await asyncio.to_thread(drop, snapshot)
            case _:
                raise AssertionError(effect)

    def start(self, work: Callable[[], Awaitable[Event]], failed: Callable[[Exception], Event]) -> None:
        """Runs work in the background. It always ends in an event, also by a fault of ours: the machine waits for it.

        `failed` returns the event for an error.
        """

        async def run() -> None:
            try:
                event = await work()
            except Unusable as error:
                self.log.warning("work_failed", error=str(error))
                event = failed(error)
            except Exception as error:
                self.log.exception("work_failed")
                event = failed(error)
            self.inbox.put_nowait(event)

        self.start_aside(run())

    def start_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def write_stacks(self, why: str) -> None:
        try:
            pids = await asyncio.to_thread(stacks.ask, self.held.process, self.directory, why)
            self.log.warning("training_hangs", why=why, stacks_of=pids)
        except OSError as error:
            self.log.warning("training_hangs", why=why, stacks_not_written=str(error))

    async def prepare(self) -> Event:
        await self.storage.prepare(self.held, self.on_condition)
        await self.steady.wait()
        return Prepared(gpus=tuple(await self.sample_gpus()))

    async def launch(self, desired: DesiredState) -> None:
        await self.write_desired(desired)
        if self.over:
            return
        try:
            process = await self.launcher.launch(self.directory, self.held.assignment.token.nonce)
            failpoints.hit("worker.launched-before-journal")
        except (LauncherFailed, LaunchRefused) as error:
            exhausted = self.storage.disk.exhausted()
            if exhausted:
                self.storage.disk.refused()
            failure = Failure(reason=reasons.NO_SPACE if exhausted else reasons.LAUNCH_FAILED, message=str(error))
            await self.handle(CannotGoOn(failure=failure))
        except (files.AttemptDamaged, OSError) as error:
            await self.abandon(error)
        else:
            await self.handle(Launched(process=process))
            if self.alive and not self.steady.is_set():
                self.hold_still()
                await asyncio.to_thread(process_tree.hold, [process])

    async def write_desired(self, desired: DesiredState) -> None:
        try:
            await self.patiently(write_control, self.directory / "control", desired)
        except OSError as error:
            await self.abandon(error)
        else:
            await self.look_for_boundary()

    async def sample_gpus(self) -> list[GpuSample]:
        return await asyncio.to_thread(self.gpus.sample, self.held.assignment.device_uuids, ())

    async def confirm_release(self, before: Sequence[GpuSample]) -> Event:
        """Waits until the memory of the GPUs is back at its level before the launch; quarantines those that keep it."""
        loop = asyncio.get_running_loop()
        began, shown = loop.time(), False
        while held := unreleased(before, now := await self.sample_gpus()):
            waited = loop.time() - began
            if waited > RELEASE_SECONDS:
                self.gpus.quarantine(held)
                break
            if waited > RELEASE_SHOWN_SECONDS and not shown:
                shown = True
                self.on_condition(ConditionChange(condition=unreleased_condition(held, now)))
            await asyncio.sleep(RELEASE_POLL_SECONDS)
        return GpusReleased(time=datetime.now(UTC), memory_bytes=memory_in_use(now))

    def on_condition(self, change: ConditionChange) -> None:
        """Has a condition of the job reported; for work that runs beside."""
        self.inbox.put_nowait(ConditionChanged(change=change))

    async def persist(self, snapshot: Snapshot, wait_seconds: float) -> Event:
        def advance(fraction: float) -> None:
            self.inbox.put_nowait(Advanced(fraction=fraction))

        await asyncio.sleep(wait_seconds)
        made = await self.storage.persist(self.held, snapshot, advance, self.on_condition, self.trains_on)
        return Persisted(checkpoint=made)

    def trains_on(self) -> bool:
        """Returns whether training goes on and nobody waits for a snapshot: neither a pause, nor one taken since."""
        wanted = self.held.assignment.target == Assignment.RUN and not self.held.HasField("pausing_by_itself")
        return self.alive and wanted and len(self.held.snapshots) < 2


def new_watch(held: HeldAssignment) -> Watch:
    """Returns the watch over the training process of an assignment."""
    assignment = held.assignment
    given = assignment.spec.HasField("hang_timeout")
    timeout = assignment.spec.hang_timeout.ToTimedelta().total_seconds() if given else None
    return Watch(makes_steps=assignment.restore.step > 0, timeout=timeout)


def read_pulse(path: Path) -> Pulse | None:
    """Returns None where there is none: an older version trains there, or it has just begun."""
    if not path.exists():
        return None
    with contextlib.suppress(OSError), contextlib.closing(PulseFile(path)) as file:
        return file.read()
    return None


def read_boundary(path: Path) -> NextBoundary | None:
    """Returns None where there is none: an older version trains there, or it has just begun."""
    if not path.exists():
        return None
    with contextlib.suppress(OSError), contextlib.closing(BoundaryFile(path)) as file:
        return file.read()
    return None


def write_control(path: Path, desired: DesiredState) -> None:
    """Writes what training should do. What is read in file `boundary` from then on is true of it: `next_boundary`."""
    with contextlib.closing(Control(path)) as control:
        control.write(desired)
    if desired.target == Assignment.PAUSE:
        order_memory()


def cannot_prepare(error: Exception) -> Event:
    return CannotGoOn(failure=failure_of(error, reasons.LAUNCH_FAILED))


def cannot_persist(error: Exception) -> Event:
    return PersistFailed(failure=failure_of(error, reasons.SNAPSHOT_FAILED), lost=isinstance(error, Unusable))


def cannot_confirm(_error: Exception) -> Event:
    return GpusReleased(time=datetime.now(UTC), memory_bytes=None)


def failure_of(error: Exception, reason: str) -> Failure:
    """Returns the failure for an error; `reason` is that of one which nobody has foreseen."""
    if isinstance(error, Unusable):
        return error.failure
    return Failure(reason=reason, message=f"{type(error).__name__}: {error}")


def unreleased_condition(levels: Mapping[str, int], now: Sequence[GpuSample]) -> Condition:
    used = {sample.uuid: sample.memory_used_bytes for sample in now if sample.HasField("memory_used_bytes")}
    listed = [
        f"{f'{used[uuid] / GIB:.1f} GiB' if uuid in used else 'an unknown number of bytes (NVML does not answer)'}"
        f" on {uuid} (released: at most {level / GIB:.1f} GiB)"
        for uuid, level in levels.items()
    ]
    message = f"the training process is gone, and its GPUs are not known to be free; in use: {', '.join(listed)}"
    return Condition(type=Condition.GPUS_NOT_RELEASED, reason=reasons.GPU_MEMORY_IN_USE, message=message)


def drop(snapshot: Snapshot) -> None:
    """Gives a snapshot's slot back, unless training has put another there: then it was given back before."""
    directory = Path(snapshot.directory)
    try:
        there = snapshots.read_state(directory).progress.get("report_time")
    except snapshots.SnapshotInvalid:
        there = None  # damaged, hence not a new one
    if there in (None, snapshot.progress.report_time.ToJsonString()):
        (directory / snapshots.IN_USE).unlink(missing_ok=True)
