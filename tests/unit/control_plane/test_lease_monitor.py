"""Workers that fall silent lose their jobs. A test runs each round by hand."""

from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from adjourn import errors, reasons
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet import lease_monitor as monitoring
from adjourn_control_plane.fleet import rounds
from adjourn_control_plane.job.events import Observed, Placed
from adjourn_control_plane.store.interface import Allocation, Session, WorkerName
from tests.harness.controllers import Controllers
from tests.harness.job_life import A, B
from tests.harness.memory_store import MemoryStore

Silence = Callable[[float], Awaitable[None]]


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def plane(memory_store: MemoryStore) -> Controllers:
    return Controllers(memory_store)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    return clock


@pytest.fixture
async def silence(plane: Controllers, clock: Clock) -> Silence:
    """Lets time pass, with a round of the lease monitor every second. The first one was before any worker came."""
    await plane.monitor.expire()

    async def pass_by(seconds: float) -> None:
        for _ in range(int(seconds)):
            clock.seconds += 1
            await plane.monitor.expire()

    return pass_by


async def test_a_silent_worker_is_lost_and_its_jobs_go_elsewhere(plane: Controllers, silence: Silence) -> None:
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    await plane.store.detach(WorkerName(A), stream)
    await silence(15)
    assert await plane.where(job) == [A], "not yet"
    await silence(2)
    record = await plane.record(job)
    assert (record.job.state, record.job.failure.reason) == (Job.QUEUED, reasons.WORKER_LOST)
    await plane.worker(B, cpu_slots=1)
    await plane.scheduler.place()
    assert ((await plane.record(job)).job.attempt, *await plane.where(job)) == (2, B)


async def test_a_worker_that_speaks_is_kept(plane: Controllers, silence: Silence) -> None:
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    for _ in range(5):
        await silence(10)
        await plane.store.heartbeat(Worker(name=A, cpu_slots=1), stream)
    assert await plane.where(job) == [A]


async def test_an_outage_of_the_store_loses_nobody(plane: Controllers, silence: Silence, clock: Clock) -> None:
    job = await plane.create("j")
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    await silence(14)
    plane.store.available = False
    with capture_logs() as logs:
        await rounds.attempt("lease_monitor", plane.monitor.expire)
    assert [entry["event"] for entry in logs] == ["controller_waits"]
    plane.store.available = True
    await silence(14)
    assert await plane.where(job) == [A]


async def test_an_outage_of_the_objects_keeps_nobody_from_being_lost(plane: Controllers, silence: Silence) -> None:
    job = await plane.create("j")
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()

    async def unreachable() -> None:
        raise errors.ObjectStoreUnavailableError("no answer")

    for _ in range(5):
        await silence(4)
        await rounds.attempt("collector", unreachable)
    assert await plane.where(job) == [""]


async def test_a_replica_that_takes_back_late_does_not_hit_the_next_attempt(memory_store: MemoryStore) -> None:
    """Two replicas see the same loss; one has placed the job again before the other gets to it."""
    first, second = Controllers(memory_store), Controllers(memory_store)
    job = await first.create("j", max_restarts=1)
    await first.worker(A, cpu_slots=1)
    await first.scheduler.place()
    token = (await first.record(job)).token
    await first.updater.apply(job, Observed(actor=A, generation=1), token=token)
    await first.loses(A)

    class Late(MemoryStore):
        async def allocation(self, worker: WorkerName) -> Allocation:
            seen = await memory_store.allocation(worker)
            await first.monitor.take_back(worker)
            await first.worker(B, cpu_slots=1)
            await first.updater.apply(job, Placed(actor="p", worker=B, device_uuids=(), nonce="n"))
            return seen

    second.monitor.store = Late()
    await second.monitor.take_back(WorkerName(A))
    record = await first.record(job)
    assert (record.job.state, record.job.worker, record.job.restart_count) == (Job.STARTING, B, 1)


class Counting(MemoryStore):
    """Counts the allocations and sessions that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def allocation(self, worker: WorkerName) -> Allocation:
        self.reads += 1
        return await super().allocation(worker)

    async def live_sessions(self) -> list[Session]:
        found = await super().live_sessions()
        self.reads += len(found)
        return found


async def test_ten_thousand_dead_workers_cost_a_round_nothing(clock: Clock) -> None:
    """The rounds grew with every name that was ever lost, until no lease ended any more (C9)."""
    store = Counting()
    plane = Controllers(store)
    await plane.monitor.expire()
    for number in range(10_000):
        name = WorkerName(f"workers/pod-{number}")
        await plane.worker(name)
        await plane.loses(name)
    job = await plane.create("j")
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    store.reads = 0
    for _ in range(16):
        clock.seconds += 1
        await plane.monitor.expire()
    assert await plane.where(job) == [""], "the lease ends all the same"
    assert store.reads <= 16 + 1


async def test_a_slow_round_does_not_keep_leases_from_ending(plane: Controllers, clock: Clock) -> None:
    """Taking back takes longer than half a lease, each time; the monitor's pulse goes on meanwhile (C9)."""
    await plane.monitor.expire()
    job = await plane.create("j")
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    for _ in range(3):
        await plane.monitor.expire()
        for _ in range(9):
            clock.seconds += 1
            await plane.monitor.pulse()
    assert await plane.where(job) == [""]


async def test_a_job_that_is_deleted_meanwhile_keeps_no_other_from_being_taken_back(memory_store: MemoryStore) -> None:
    plane = Controllers(memory_store)
    first, second = await plane.create("a"), await plane.create("b")
    await plane.worker(A, cpu_slots=2)
    await plane.scheduler.place()

    class Stale(MemoryStore):
        async def allocation(self, worker: WorkerName) -> Allocation:
            """Answers with what was so before one of the jobs was deleted."""
            seen = await memory_store.allocation(worker)
            await plane.delete(first)
            return seen

    plane.monitor.store = Stale()
    await plane.monitor.take_back(WorkerName(A))
    assert (await plane.record(second)).job.state == Job.QUEUED


async def test_a_worker_that_came_back_in_time_keeps_its_jobs(plane: Controllers) -> None:
    """It was lost and is heard from again before the round gets to it."""
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    await plane.loses(A)
    await plane.store.heartbeat(Worker(name=A, cpu_slots=1), stream)
    await plane.monitor.take_back(WorkerName(A))
    assert await plane.where(job) == [A]
