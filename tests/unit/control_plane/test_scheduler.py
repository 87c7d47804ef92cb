"""Which queued jobs are handed to which workers. A test runs each pass by hand."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, Condition, Failure, Job, Pause, Progress
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.aio import end
from adjourn_control_plane.fleet import placement
from adjourn_control_plane.fleet import scheduler as scheduling
from adjourn_control_plane.job.events import Observed, PauseRequested, ResumeRequested
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import Allocation, Change, JobName, Session, Stored, WorkerName
from tests.harness.controllers import Controllers
from tests.harness.job_life import A, B
from tests.harness.memory_store import MemoryStore


class Clock:
    """The scheduler's clocks, which the test moves."""

    def __init__(self) -> None:
        self.began = datetime.now(UTC)
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self, _: object) -> datetime:
        return self.began + timedelta(seconds=self.seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(scheduling, "clock", clock.monotonic)
    monkeypatch.setattr(scheduling, "datetime", clock)
    return clock


@pytest.fixture
def plane(memory_store: MemoryStore) -> Controllers:
    return Controllers(memory_store)


async def test_oldest_first_and_what_fits_nowhere_holds_up_none(plane: Controllers) -> None:
    names = [await plane.create("big", gpu_count=8), *[await plane.create(f"j{i}") for i in range(3)]]
    await plane.worker(A, cpu_slots=2)
    await plane.scheduler.place()
    assert await plane.where(*names) == ["", A, A, ""]


async def test_gpus_are_handed_out_once_and_by_index(plane: Controllers) -> None:
    names = [await plane.create(f"j{i}", gpu_count=2) for i in range(3)]
    await plane.worker(A, gpus=5)
    await plane.scheduler.place()
    records = [await plane.record(name) for name in names]
    assert [list(record.device_uuids) for record in records] == [[f"{A}-0", f"{A}-1"], [f"{A}-2", f"{A}-3"], []]


async def test_only_connected_workers_that_take_work_are_given_any(plane: Controllers) -> None:
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.store.detach(WorkerName(A), stream)
    draining = await plane.worker(B, cpu_slots=1)
    lost = await plane.worker("workers/c", cpu_slots=1)
    session = await plane.store.session(WorkerName("workers/c"))
    assert session
    await plane.store.mark_lost(WorkerName("workers/c"), session.heartbeat)
    await plane.store.detach(WorkerName(B), draining)
    await plane.scheduler.place()
    assert await plane.where(job) == [""]
    for _ in range(2):  # with the first it says what it has
        await plane.scheduler.place()
        assert await plane.where(job) == [""]
        assert await plane.store.heartbeat(Worker(name="workers/c", cpu_slots=1), lost)
    await plane.scheduler.place()
    assert await plane.where(job) == ["workers/c"]


async def test_a_worker_whose_disk_is_full_gets_nothing_new_until_it_has_room(memory_store: MemoryStore) -> None:
    plane = Controllers(memory_store)
    running = await plane.create("running")
    stream = await plane.worker(A, cpu_slots=2)
    await plane.scheduler.place()
    job = await plane.create("j")
    full = Worker(name=A, cpu_slots=2, conditions=[Condition(type=Condition.DISK_FULL, reason=reasons.NO_SPACE)])
    assert await plane.store.heartbeat(full, stream)
    await plane.scheduler.place()
    assert await plane.where(running, job) == [A, ""]
    stored = await plane.store.get(job)
    assert stored
    assert [condition.reason for condition in stored.record.job.conditions] == [reasons.NO_SPACE]
    assert await plane.store.heartbeat(Worker(name=A, cpu_slots=2), stream)
    await plane.scheduler.place()
    assert await plane.where(running, job) == [A, A]


async def test_two_replicas_at_once_sell_each_slot_once(memory_store: MemoryStore) -> None:
    planes = [Controllers(memory_store) for _ in range(3)]
    names = [await planes[0].create(f"j{i}") for i in range(8)]
    for worker in (A, B):
        await planes[0].worker(worker, cpu_slots=2)
    for _ in range(3):
        await asyncio.gather(*(plane.scheduler.place() for plane in planes))
    placed = [worker for worker in await planes[0].where(*names) if worker]
    assert sorted(placed) == [A, A, B, B]


async def test_a_failed_job_waits_before_its_next_attempt(plane: Controllers, clock: Clock) -> None:
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    record = await plane.record(job)
    failed = Exit(phase=AssignmentStatus.FAILED, failure=Failure(reason=reasons.PROCESS_KILLED))
    await plane.updater.report(Report(sequence=1, job=job, token=record.token, exit=failed), A)
    await plane.scheduler.place()
    assert (await plane.record(job)).job.state == Job.QUEUED
    clock.seconds += 2
    await plane.scheduler.place()
    assert (await plane.record(job)).job.attempt == 2


async def test_a_released_slot_is_given_away_while_the_checkpoint_is_uploaded(
    plane: Controllers,
) -> None:
    first, second = await plane.create("a", total_epochs=2), await plane.create("b")
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    assert await plane.where(first, second) == [A, ""]
    released = Pause()
    released.release_time.GetCurrentTime()
    await plane.updater.request(first, PauseRequested(actor="bob", mode=EPOCH, reason=""), Call())
    token = (await plane.record(first)).token
    await plane.updater.report(Report(sequence=1, job=first, token=token, pause=released), A)
    await plane.scheduler.place()
    assert await plane.where(first, second) == [A, A]


async def test_a_paused_job_returns_to_the_instance_of_a_worker_where_it_left_off(plane: Controllers) -> None:
    job = await plane.create("j", total_epochs=5)
    await plane.worker(B, cpu_slots=1, instance="b1")
    await plane.scheduler.place()
    await plane.worker(A, cpu_slots=9, instance="a1")

    async def pauses(worker: str, epoch: int) -> None:
        await plane.updater.request(job, PauseRequested(actor="ann", mode=EPOCH, reason=""), Call())
        token = (await plane.record(job)).token
        name = f"{job}/checkpoints/{epoch}"
        saved = Checkpoint(name=name, attempt=token.attempt, epoch=epoch, environment={"torch": "2.13.0"})
        await plane.updater.report(Report(sequence=1, job=job, token=token, checkpoint=saved), worker)
        rested = Exit(phase=AssignmentStatus.PAUSED, checkpoint=name)
        await plane.updater.report(Report(sequence=2, job=job, token=token, exit=rested), worker)

    async def resumed() -> list[str]:
        await plane.updater.request(job, ResumeRequested(actor="ann", allow_inexact=True), Call())
        await plane.scheduler.place()
        return await plane.where(job)

    await pauses(B, 1)
    assert await resumed() == [B]
    await pauses(B, 2)
    await plane.loses(B)
    await plane.worker(B, cpu_slots=1, instance="b2")
    assert await resumed() == [A], "another machine has the name of B"


async def test_the_loops_run_until_cancelled_and_placement_follows_hints(plane: Controllers) -> None:
    await plane.worker(A, cpu_slots=1)
    notifications = asyncio.create_task(plane.notifier.run())
    loops = asyncio.create_task(plane.scheduler.run())
    job = await plane.create("j")
    found: list[str] = []

    async def look() -> None:
        while found != [A]:
            found[:] = await plane.where(job)

    await asyncio.wait_for(look(), 10)
    loops.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loops
    await plane.store.aclose()
    await notifications


async def why(plane: Controllers, job: JobName) -> str:
    """Returns the reason of a job's UNPLACED condition; empty: it has none."""
    conditions = (await plane.record(job)).job.conditions
    return next((each.reason for each in conditions if each.type == Condition.UNPLACED), "")


async def test_each_queued_job_says_why_it_is_not_placed(plane: Controllers) -> None:
    small, large, zoned = [
        await plane.create("small"),
        await plane.create("large", gpu_count=8),
        await plane.create("zoned", worker_selector={"zone": "x"}),
    ]
    await plane.scheduler.place()
    assert [await why(plane, job) for job in (small, large, zoned)] == [reasons.NO_WORKER] * 3
    await plane.worker(A, gpus=1)
    await plane.scheduler.place()
    assert [await why(plane, job) for job in (small, large, zoned)] == [reasons.NO_MATCHING_WORKER] * 3
    await plane.worker(B, cpu_slots=1, labels={"zone": "x"})
    await plane.scheduler.place()
    assert await plane.where(small, large, zoned) == [B, "", ""]
    assert await why(plane, small) == "", "it is placed"
    assert [await why(plane, job) for job in (large, zoned)] == [reasons.NO_MATCHING_WORKER, reasons.NO_CAPACITY]


async def with_checkpoint(plane: Controllers, name: str, **environment: str) -> JobName:
    """Creates a queued job that goes on from a checkpoint of an environment."""
    job = await plane.create(name)
    stored = await plane.store.get(job)
    assert stored
    stored.record.checkpoint.name = f"{job}/checkpoints/1"
    stored.record.checkpoint.environment.update(environment)
    await plane.store.commit(Change(job=job, expected=stored.version, record=stored.record))
    return job


async def test_a_job_waits_for_a_worker_with_the_environment_of_its_checkpoint(plane: Controllers) -> None:
    """A mixed fleet: on another CPU the run would be another one (C6)."""
    job = await with_checkpoint(plane, "j", device="cpu", cpu="Xeon", torch="2.13.0")
    await plane.worker(A, cpu_slots=1, environment={"cpu": "Epyc", "torch": "2.13.0"})
    await plane.scheduler.place()
    assert await plane.where(job) == [""]
    assert await why(plane, job) == reasons.NO_EQUAL_ENVIRONMENT
    assert "cpu was Xeon, is Epyc" in (await plane.record(job)).job.conditions[0].message
    await plane.worker(B, cpu_slots=1, environment={"cpu": "Xeon", "torch": "2.13.0"})
    await plane.scheduler.place()
    assert await plane.where(job) == [B]


@pytest.mark.usefixtures("clock")
async def test_a_failed_job_says_until_when_it_waits(plane: Controllers) -> None:
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    failed = Exit(phase=AssignmentStatus.FAILED, failure=Failure(reason=reasons.PROCESS_KILLED))
    token = (await plane.record(job)).token
    await plane.updater.report(Report(sequence=1, job=job, token=token, exit=failed), A)
    await plane.scheduler.place()
    assert await why(plane, job) == reasons.RESTART_DELAY
    assert "not before" in (await plane.record(job)).job.conditions[0].message


async def test_a_pass_writes_some_conditions_and_each_only_once(plane: Controllers) -> None:
    for number in range(250):
        await plane.create(f"j{number}")
    replicas = [plane.scheduler, Controllers(plane.store).scheduler]
    start = await plane.store.latest_token()
    await replicas[0].place()
    assert len(await plane.store.changes(start, size=1000)) == scheduling.CONDITIONS_A_PASS
    assert replicas[0].patience() == 0, "the others follow soon"
    for _ in range(4):
        for scheduler in replicas:
            await scheduler.place()
    assert len(await plane.store.changes(start, size=1000)) == 250
    assert replicas[0].patience() > 0


class Counting(MemoryStore):
    """Counts the records and allocations that are read, and the passes."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs, self.allocations, self.passes = 0, 0, 0

    async def get(self, job: JobName) -> Stored | None:
        self.jobs += 1
        return await super().get(job)

    async def queued(self) -> AsyncGenerator[list[Stored], None]:
        async for page in super().queued():
            self.jobs += len(page)
            yield page

    async def allocation(self, worker: WorkerName) -> Allocation:
        self.allocations += 1
        return await super().allocation(worker)

    async def live_sessions(self) -> list[Session]:
        self.passes += 1
        return await super().live_sessions()


@pytest.mark.usefixtures("clock")
async def test_progress_of_running_jobs_makes_no_pass() -> None:
    """Each commit of any job made each replica read the whole queue and every worker (section 5.1)."""
    store = Counting()
    plane = Controllers(store)
    running = await plane.create("running")
    for number in range(50):
        await plane.create(f"j{number}")
    await plane.worker(A, cpu_slots=1)
    for _ in range(2):
        await plane.scheduler.look()
    assert await plane.where(running) == [A]
    store.jobs = store.allocations = store.passes = 0
    for step in range(1, 21):
        progress = Progress(step=step)
        progress.report_time.FromSeconds(step)
        await plane.updater.apply(running, Observed(actor=A, generation=1, progress=progress))
        await plane.scheduler.look()
    assert (store.jobs - 20, store.allocations, store.passes) == (0, 0, 0), "20 were read to be changed"
    await plane.create("new")
    await plane.scheduler.look()
    assert (store.jobs - 20, store.allocations, store.passes) == (2, 0, 1), "read, and its condition written"


async def test_others_run_within_a_pass(plane: Controllers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing let others run while jobs were looked at that fit nowhere: no heartbeat was taken in (C10)."""
    ticks = 0
    looks: Counter[int] = Counter()

    def counted(work: Any) -> Any:
        def look(*args: Any) -> Any:
            looks[ticks] += 1
            return work(*args)

        return look

    monkeypatch.setattr(placement, "choose", counted(placement.choose))
    monkeypatch.setattr(placement, "match", counted(placement.match))
    for number in range(600):
        await plane.create(f"j{number}", worker_selector={"rack": str(number)})
    await plane.worker(A, gpus=1)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    for _ in range(2):
        await plane.scheduler.place()
    await end(ticking)
    assert looks.total() > 1200, "each job is of a class of its own"
    assert max(looks.values()) <= scheduling.CLASSES_AT_ONCE


async def test_a_view_that_fell_behind_is_read_anew() -> None:
    plane = Controllers(MemoryStore(changes_kept=10))
    await plane.create("first")
    await plane.scheduler.place()
    jobs = [await plane.create(f"j{number}") for number in range(30)]
    await plane.worker(A, cpu_slots=40)
    await plane.scheduler.place()
    assert set(await plane.where(*jobs)) == {A}


async def test_an_outage_in_the_middle_loses_no_job_from_the_view() -> None:
    class Failing(MemoryStore):
        reads = 0

        async def get(self, job: JobName) -> Stored | None:
            self.reads += 1
            if self.reads == 2:
                raise errors.StoreUnavailableError("gone")
            return await super().get(job)

    plane = Controllers(Failing())
    await plane.scheduler.place()
    jobs = [await plane.create(f"j{number}") for number in range(3)]
    await plane.worker(A, cpu_slots=3)
    with pytest.raises(errors.StoreUnavailableError):
        await plane.scheduler.place()
    assert plane.scheduler.patience() == scheduling.OUTAGE_SECONDS, "soon, and not at once again and again"
    await plane.scheduler.place()
    assert await plane.where(*jobs) == [A, A, A]


async def test_an_outage_while_conditions_are_left_is_not_met_with_haste(plane: Controllers) -> None:
    for number in range(scheduling.CONDITIONS_A_PASS + 1):
        await plane.create(f"j{number}")
    await plane.scheduler.place()
    assert plane.scheduler.patience() == 0
    plane.store.available = False
    with pytest.raises(errors.StoreUnavailableError):
        await plane.scheduler.assign()
    assert plane.scheduler.patience() > 0
