"""What happens without anybody asking: placing, taking back, purging. Each round is run by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from adjourn import errors, reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.objects import S3Settings
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.job_pb2 import EPOCH, Failure, Job, JobSpec, Pause
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn_control_plane.fleet import upkeep as keeping
from adjourn_control_plane.fleet.upkeep import Upkeep
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.events import Observed, PauseRequested, Placed
from adjourn_control_plane.job.updater import Call, JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Allocation, Change, JobName, JobUid, WorkerName
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.job_life import A, B
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore

Silence = Callable[[float], Awaitable[None]]
SETTINGS = Settings(
    redis_url="redis://none", s3=S3Settings(endpoint="http://none", bucket="b", access_key="k", secret_key="s")
)


class Clock:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


class Plane:
    """A replica's upkeep, on a store that may be shared."""

    def __init__(self, store: MemoryStore, objects: MemoryObjects | None = None) -> None:
        self.store = store
        self.updater = JobUpdater(store)
        self.objects = objects or MemoryObjects()
        self.upkeep = Upkeep(store, self.updater, self.objects, Notifier(store), SETTINGS)

    async def create(self, name: str, **spec: Any) -> JobName:
        job = Job(name=f"jobs/{name}", spec=JobSpec(entry_point="m:f", **spec))
        decision = machine.create(job, uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
        await self.store.commit(Change(job=JobName(job.name), expected=0, record=decision.record))
        return JobName(job.name)

    async def worker(self, name: str, *, cpu_slots: int = 0, gpus: int = 0) -> str:
        """Connects a worker; returns its stream."""
        devices = [Device(uuid=f"{name}-{index}", index=index) for index in range(gpus)]
        stream = uuid4().hex
        await self.store.attach(Worker(name=name, cpu_slots=cpu_slots, devices=devices), "session", stream)
        return stream

    async def record(self, job: JobName) -> JobRecord:
        stored = await self.store.get(job)
        assert stored
        return stored.record

    async def manifest(self, job: JobName) -> str:
        """Returns the key of a manifest of the job."""
        return f"checkpoints/{(await self.record(job)).job.uid}/manifests/1"

    async def saves(self, job: JobName) -> str:
        key = await self.manifest(job)
        await self.objects.put(key, b"x")
        return key

    async def delete(self, job: JobName) -> None:
        stored = await self.store.get(job)
        assert stored
        await self.store.commit(Change(job=job, expected=stored.version, record=None))

    async def where(self, *names: JobName) -> list[str]:
        return [(await self.record(name)).job.worker for name in names]


@pytest.fixture
def plane(memory_store: MemoryStore) -> Plane:
    return Plane(memory_store)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keeping, "time", clock)
    return clock


@pytest.fixture
def silence(plane: Plane, clock: Clock) -> Silence:
    """Lets time pass, with a round of lease expiry every second."""

    async def pass_by(seconds: float) -> None:
        for _ in range(int(seconds)):
            clock.seconds += 1
            await plane.upkeep.expire()

    return pass_by


async def test_oldest_first_and_what_fits_nowhere_holds_up_none(plane: Plane) -> None:
    names = [await plane.create("big", gpu_count=8), *[await plane.create(f"j{i}") for i in range(3)]]
    await plane.worker(A, cpu_slots=2)
    await plane.upkeep.place()
    assert await plane.where(*names) == ["", A, A, ""]


async def test_gpus_are_handed_out_once_and_by_index(plane: Plane) -> None:
    names = [await plane.create(f"j{i}", gpu_count=2) for i in range(3)]
    await plane.worker(A, gpus=5)
    await plane.upkeep.place()
    records = [await plane.record(name) for name in names]
    assert [list(record.device_uuids) for record in records] == [[f"{A}-0", f"{A}-1"], [f"{A}-2", f"{A}-3"], []]


async def test_only_connected_workers_that_take_work_are_given_any(plane: Plane) -> None:
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.store.detach(WorkerName(A), stream)
    draining = await plane.worker(B, cpu_slots=1)
    lost = await plane.worker("workers/c", cpu_slots=1)
    session = await plane.store.session(WorkerName("workers/c"))
    assert session
    await plane.store.mark_lost(WorkerName("workers/c"), session.heartbeat)
    await plane.store.detach(WorkerName(B), draining)
    await plane.upkeep.place()
    assert await plane.where(job) == [""]
    assert await plane.store.heartbeat(Worker(name="workers/c", cpu_slots=1), lost)
    await plane.upkeep.place()
    assert await plane.where(job) == ["workers/c"]


async def test_two_replicas_at_once_sell_each_slot_once(memory_store: MemoryStore) -> None:
    planes = [Plane(memory_store) for _ in range(3)]
    names = [await planes[0].create(f"j{i}") for i in range(8)]
    for worker in (A, B):
        await planes[0].worker(worker, cpu_slots=2)
    for _ in range(3):
        await asyncio.gather(*(plane.upkeep.place() for plane in planes))
    placed = [worker for worker in await planes[0].where(*names) if worker]
    assert sorted(placed) == [A, A, B, B]


async def test_a_failed_job_waits_before_it_is_placed_again(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.upkeep.place()
    record = await plane.record(job)
    failed = Exit(phase=AssignmentStatus.FAILED, failure=Failure(reason=reasons.PROCESS_KILLED))
    await plane.updater.report(Report(sequence=1, job=job, token=record.token, exit=failed), A)
    await plane.upkeep.place()
    assert (await plane.record(job)).job.state == Job.QUEUED
    later = datetime.now(UTC) + timedelta(seconds=2)

    monkeypatch.setattr(keeping, "datetime", SimpleNamespace(now=lambda _: later))
    await plane.upkeep.place()
    assert (await plane.record(job)).job.attempt == 2


async def test_a_silent_worker_is_lost_after_a_lease_and_its_jobs_go_elsewhere(plane: Plane, silence: Silence) -> None:
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.upkeep.place()
    await plane.store.detach(WorkerName(A), stream)
    await silence(15)
    assert await plane.where(job) == [A], "not yet"
    await silence(2)
    record = await plane.record(job)
    assert (record.job.state, record.job.failure.reason) == (Job.QUEUED, reasons.WORKER_LOST)
    await plane.worker(B, cpu_slots=1)
    await plane.upkeep.place()
    assert ((await plane.record(job)).job.attempt, *await plane.where(job)) == (2, B)


async def test_a_worker_that_speaks_is_kept(plane: Plane, silence: Silence) -> None:
    job = await plane.create("j")
    stream = await plane.worker(A, cpu_slots=1)
    await plane.upkeep.place()
    for _ in range(5):
        await silence(10)
        await plane.store.heartbeat(Worker(name=A, cpu_slots=1), stream)
    assert await plane.where(job) == [A]


async def test_an_outage_of_the_store_loses_nobody(plane: Plane, silence: Silence, clock: Clock) -> None:
    job = await plane.create("j")
    await plane.worker(A, cpu_slots=1)
    await plane.upkeep.place()
    await silence(14)
    plane.store.available = False
    with capture_logs() as logs:
        await plane.upkeep.attempt("leases", plane.upkeep.expire)
    assert [entry["event"] for entry in logs] == ["upkeep_waits"]
    plane.store.available = True
    await silence(14)
    assert await plane.where(job) == [A]


async def test_an_outage_of_the_objects_keeps_nobody_from_being_lost(plane: Plane, silence: Silence) -> None:
    job = await plane.create("j")
    await plane.worker(A, cpu_slots=1)
    await plane.upkeep.place()

    async def unreachable() -> None:
        raise errors.ObjectStoreUnavailableError("no answer")

    for _ in range(5):
        await silence(4)
        await plane.upkeep.attempt("purge", unreachable)
    assert await plane.where(job) == [""]


async def test_a_replica_that_takes_back_late_does_not_hit_the_next_attempt(memory_store: MemoryStore) -> None:
    """Two replicas see the same loss; one has placed the job again before the other gets to it."""
    first, second = Plane(memory_store), Plane(memory_store)
    job = await first.create("j", max_restarts=1)
    await first.worker(A, cpu_slots=1)
    await first.upkeep.place()
    token = (await first.record(job)).token
    await first.updater.apply(job, Observed(actor=A, generation=1), token=token)

    class Late(MemoryStore):
        async def allocation(self, worker: WorkerName) -> Allocation:
            seen = await memory_store.allocation(worker)
            await first.upkeep.take_back(worker)
            await first.worker(B, cpu_slots=1)
            await first.updater.apply(job, Placed(actor="p", worker=B, device_uuids=(), nonce="n"))
            return seen

    second.upkeep.store = Late()
    await second.upkeep.take_back(WorkerName(A))
    record = await first.record(job)
    assert (record.job.state, record.job.worker, record.job.restart_count) == (Job.STARTING, B, 1)


async def test_a_slot_that_was_released_is_given_to_the_next_job_while_the_checkpoint_travels(plane: Plane) -> None:
    first, second = await plane.create("a", total_epochs=2), await plane.create("b")
    await plane.worker(A, cpu_slots=1)
    await plane.upkeep.place()
    assert await plane.where(first, second) == [A, ""]
    released = Pause()
    released.release_time.GetCurrentTime()
    await plane.updater.request(first, PauseRequested(actor="bob", mode=EPOCH, reason=""), Call())
    token = (await plane.record(first)).token
    await plane.updater.report(Report(sequence=1, job=first, token=token, pause=released), A)
    await plane.upkeep.place()
    assert await plane.where(first, second) == [A, A]


async def test_objects_of_deleted_jobs_are_removed_and_only_they(plane: Plane) -> None:
    deleted, neighbour = await plane.create("j"), await plane.create("j2")
    await plane.saves(deleted)
    kept = await plane.saves(neighbour)
    await plane.delete(deleted)
    await plane.upkeep.purge()
    assert list(plane.objects.contents) == [kept]
    assert await plane.store.tombstones() == []


async def test_a_replica_that_purges_late_leaves_the_next_job_of_the_name_alone(memory_store: MemoryStore) -> None:
    """Two replicas purge the same job; between the two its name is taken again, and the new job saves (C2)."""
    objects = MemoryObjects()
    first, second = Plane(memory_store, objects), Plane(memory_store, objects)
    job = await first.create("j")
    await first.saves(job)
    await first.delete(job)

    class Slow(MemoryStore):
        async def tombstones(self) -> list[JobUid]:
            """Lists what is to be purged; everything else happens before it is purged."""
            seen = await memory_store.tombstones()
            await first.upkeep.purge()
            await first.saves(await first.create("j"))
            return seen

        async def remove_tombstone(self, uid: JobUid) -> None:
            await memory_store.remove_tombstone(uid)

    second.upkeep.store = Slow()
    await second.upkeep.purge()
    assert list(objects.contents) == [await first.manifest(job)]
    assert await memory_store.tombstones() == []


async def test_a_fault_in_one_round_is_told_and_the_next_round_comes(plane: Plane) -> None:
    async def broken() -> None:
        raise RuntimeError("broken")

    with capture_logs() as logs:
        await plane.upkeep.attempt("placement", broken)
    assert [(entry["event"], entry["loop"]) for entry in logs] == [("upkeep_failed", "placement")]


async def test_the_loops_run_until_cancelled_and_placement_follows_hints(plane: Plane) -> None:
    await plane.worker(A, cpu_slots=1)
    notifications = asyncio.create_task(plane.upkeep.notifier.run())
    loops = asyncio.create_task(plane.upkeep.run())
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
