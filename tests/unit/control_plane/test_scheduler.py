"""Which queued jobs are handed to which workers. A test runs each pass by hand."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report
from adjourn.v1.job_pb2 import EPOCH, Failure, Job, Pause
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet import scheduler as scheduling
from adjourn_control_plane.job.events import PauseRequested
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import WorkerName
from tests.harness.controllers import Controllers
from tests.harness.job_life import A, B
from tests.harness.memory_store import MemoryStore


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
    assert await plane.store.heartbeat(Worker(name="workers/c", cpu_slots=1), lost)
    await plane.scheduler.place()
    assert await plane.where(job) == ["workers/c"]


async def test_two_replicas_at_once_sell_each_slot_once(memory_store: MemoryStore) -> None:
    planes = [Controllers(memory_store) for _ in range(3)]
    names = [await planes[0].create(f"j{i}") for i in range(8)]
    for worker in (A, B):
        await planes[0].worker(worker, cpu_slots=2)
    for _ in range(3):
        await asyncio.gather(*(plane.scheduler.place() for plane in planes))
    placed = [worker for worker in await planes[0].where(*names) if worker]
    assert sorted(placed) == [A, A, B, B]


async def test_a_failed_job_waits_before_its_next_attempt(plane: Controllers, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    record = await plane.record(job)
    failed = Exit(phase=AssignmentStatus.FAILED, failure=Failure(reason=reasons.PROCESS_KILLED))
    await plane.updater.report(Report(sequence=1, job=job, token=record.token, exit=failed), A)
    await plane.scheduler.place()
    assert (await plane.record(job)).job.state == Job.QUEUED
    later = datetime.now(UTC) + timedelta(seconds=2)

    monkeypatch.setattr(scheduling, "datetime", SimpleNamespace(now=lambda _: later))
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
