"""Which stream speaks for a worker, and whether it is heard from."""

import asyncio
import time
from datetime import timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.v1.worker_pb2 import Device, Drain, Worker
from adjourn_control_plane.store import redis
from adjourn_control_plane.store.interface import Conflict, Fenced, JobName, JobStore, Session, WorkerName
from tests.harness.store_records import change, created, deletion, there

NAME = WorkerName("workers/w")


@pytest.fixture
def worker() -> Worker:
    return Worker(name=NAME, devices=[Device(uuid="GPU-1", memory_bytes=8 << 30)], cpu_slots=2, labels={"zone": "a"})


async def current(store: JobStore) -> Session:
    session = await store.session(NAME)
    assert session is not None
    return session


async def test_attached_worker_is_known(store: JobStore, worker: Worker) -> None:
    assert await store.session(NAME) is None
    assert await store.sessions() == []
    began = time.time_ns()
    await store.attach(worker, "session-1", "stream-1")
    session = await current(store)
    assert session.worker == worker
    assert (session.session, session.stream) == ("session-1", "stream-1")
    assert not session.lost
    assert abs(session.report_time_ns - began) < 60_000_000_000
    assert await store.sessions() == [session]


async def test_a_worker_is_connected_when_what_it_said_first_has_been_taken_in(store: JobStore, worker: Worker) -> None:
    """It may say that it still has a job. The scheduler must not give away its place before."""
    await store.attach(worker, "session-1", "stream-1")
    assert not (await current(store)).connected
    await store.heartbeat(worker, "stream-1")
    assert (await current(store)).connected
    await store.mark_lost(NAME, (await current(store)).heartbeat)
    await store.heartbeat(worker, "stream-1")
    back = await current(store)
    assert (back.lost, back.connected) == (False, False)
    await store.heartbeat(worker, "stream-1", ready=False)
    assert not (await current(store)).connected
    assert (await current(store)).heartbeat > back.heartbeat
    await store.heartbeat(worker, "stream-1")
    await store.heartbeat(worker, "stream-1", ready=False)
    assert (await current(store)).connected


async def test_what_is_derived_is_not_kept(store: JobStore, worker: Worker) -> None:
    to_public = Worker(state=Worker.DRAINING, jobs=["jobs/a"], report_time=Timestamp(seconds=1))
    to_public.MergeFrom(worker)
    await store.attach(to_public, "session-1", "stream-1")
    assert (await current(store)).worker == worker
    await store.heartbeat(to_public, "stream-1")
    assert (await current(store)).worker == worker
    assert to_public.jobs == ["jobs/a"]


async def test_beat_grows_and_brings_the_description(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    before = await current(store)
    worker.devices[0].quarantined = True
    assert await store.heartbeat(worker, "stream-1")
    after = await current(store)
    assert after.heartbeat > before.heartbeat
    assert after.report_time_ns >= before.report_time_ns
    assert after.worker.devices[0].quarantined


async def test_newest_stream_alone_speaks(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    await store.attach(worker, "session-2", "stream-2")
    taken = await current(store)
    worker.cpu_slots = 9
    assert not await store.heartbeat(worker, "stream-1")
    await store.detach(NAME, "stream-1")
    assert await current(store) == taken
    assert await store.heartbeat(worker, "stream-2")
    await store.detach(NAME, "stream-2")
    left = await current(store)
    assert not left.connected
    assert (left.session, left.stream) == ("session-2", "stream-2")


async def test_stream_that_was_taken_over_does_not_come_back(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    await store.attach(worker, "session-2", "stream-2")
    await store.attach(worker, "session-1", "stream-1")  # the repeat of a call whose answer was lost
    assert (await current(store)).stream == "stream-2"


async def test_a_stream_that_comes_late_takes_over_nothing(store: JobStore) -> None:
    """The replica that it was opened at was stopped, and goes on after the agent has opened another elsewhere."""
    worker, other = Worker(name=NAME, instance="i"), Worker(name=NAME, instance="k")
    await store.attach(worker, "session-1", "stream-1", opened=1)
    await store.attach(worker, "session-2", "stream-4", opened=1 << 51)
    before = await current(store)
    for session in ("session-1", "session-2", "of a process that never came through"):
        with pytest.raises(Fenced):
            await store.attach(worker, session, f"late stream of {session}", opened=(1 << 51) - 1)
    assert await current(store) == before
    assert await store.attach(worker, "session-2", "stream-4", opened=1 << 51), "the repeat of a lost answer"
    await store.mark_lost(NAME, before.heartbeat)
    assert await store.attach(other, "session-3", "stream-5", opened=1), "each instance counts for itself"
    assert await store.attach(other, "session-3", "stream-6"), "too old to number them"
    await store.mark_lost(NAME, (await current(store)).heartbeat)
    with pytest.raises(Fenced):
        await store.attach(worker, "session-1", "stream-7", opened=7)
    assert await store.attach(worker, "session-2", "stream-8", opened=(1 << 51) + 1), "it lived out of reach meanwhile"


async def test_of_many_streams_one_speaks(store: JobStore, worker: Worker) -> None:
    streams = [f"stream-{i}" for i in range(10)]
    await asyncio.gather(*(store.attach(worker, "session", stream) for stream in streams))
    answers = [await store.heartbeat(worker, stream) for stream in streams]
    assert answers.count(True) == 1
    assert streams[answers.index(True)] == (await current(store)).stream


async def test_unknown_worker_is_told_to_attach(store: JobStore, worker: Worker) -> None:
    assert not await store.heartbeat(worker, "stream-1")
    assert not await store.mark_lost(NAME, 0)
    await store.detach(NAME, "stream-1")
    assert await store.session(NAME) is None
    assert await store.sessions() == []


async def test_silent_worker_is_lost_until_it_speaks(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    silent = await current(store)
    assert await store.mark_lost(NAME, silent.heartbeat)
    assert (await current(store)).lost
    assert await store.mark_lost(NAME, silent.heartbeat)
    assert await store.heartbeat(worker, "stream-1")
    assert not (await current(store)).lost
    assert not await store.mark_lost(NAME, silent.heartbeat)  # it spoke since
    assert not (await current(store)).lost


async def test_lost_worker_attaches_again(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    silent = await current(store)
    await store.mark_lost(NAME, silent.heartbeat)
    await store.attach(worker, "session-1", "stream-2")
    back = await current(store)
    assert not back.lost
    assert back.heartbeat > silent.heartbeat


async def test_sessions_are_in_order_of_name_and_know_no_jobs(store: JobStore, worker: Worker) -> None:
    await created(store, "jobs/a", worker="workers/x")
    for name in ("workers/c", "workers/a", "workers/b"):
        worker.name = name
        await store.attach(worker, "session", f"stream-{name}")
    assert [session.worker.name for session in await store.sessions()] == ["workers/a", "workers/b", "workers/c"]


async def lost(store: JobStore, name: str) -> WorkerName:
    """Attaches a worker and marks it lost."""
    await store.attach(Worker(name=name), "session", f"stream-{name}")
    session = await store.session(WorkerName(name))
    assert session
    assert await store.mark_lost(WorkerName(name), session.heartbeat)
    return WorkerName(name)


async def names(store: JobStore) -> list[str]:
    return [session.worker.name for session in await store.live_sessions()]


async def test_live_sessions_are_those_that_are_not_lost(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    gone = await lost(store, "workers/gone")
    back = await lost(store, "workers/back")
    assert await names(store) == [NAME]
    assert await store.heartbeat(Worker(name=back), f"stream-{back}")
    assert await names(store) == [back, NAME]
    await store.attach(Worker(name=gone), "session", "stream-2")
    assert await names(store) == [back, gone, NAME]


async def test_lost_holders_are_lost_and_hold_jobs(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    await lost(store, "workers/empty")
    await created(store, "jobs/live", worker=NAME)
    holder = await lost(store, "workers/holder")
    jobs = [await created(store, name, worker=holder) for name in ("jobs/a", "jobs/b")]
    assert await store.lost_holders() == [holder]
    await store.commit(change(jobs[0], worker=""))
    assert await store.lost_holders() == [holder]
    await store.commit(deletion(jobs[1]))
    assert await store.lost_holders() == []


async def test_a_worker_is_forgotten_once_it_is_lost_and_holds_nothing(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    assert not await store.forget(NAME), "it is not lost"
    job = await created(store, "jobs/a", worker=NAME)
    await store.mark_lost(NAME, (await current(store)).heartbeat)
    assert not await store.forget(NAME), "it holds a job"
    assert (await current(store)).lost
    before = await store.allocation(NAME)
    await store.commit(change(job, worker=""))
    for _ in range(2):
        assert await store.forget(NAME)
    assert await store.session(NAME) is None
    assert await store.sessions() == []
    assert not await store.heartbeat(worker, "stream-1"), "its old stream does not bring it back"
    await created(store, "jobs/b", worker=NAME)
    assert (await store.allocation(NAME)).version > before.version, "no version of an allocation comes twice"


async def test_workers_that_were_lost_long_ago_are_forgotten_by_age(store: JobStore, worker: Worker) -> None:
    await store.attach(worker, "session-1", "stream-1")
    for number in range(5):
        await lost(store, f"workers/{number}")
    await created(store, "jobs/a", worker="workers/0")
    assert await store.forget_lost(timedelta(hours=1), size=10) == []
    assert len(await store.forget_lost(timedelta(), size=2)) in (1, 2)
    while await store.forget_lost(timedelta(), size=10):
        pass
    assert [session.worker.name for session in await store.sessions()] == ["workers/0", NAME]


async def test_a_worker_with_attempts_that_may_live_is_not_forgotten_by_age(store: JobStore) -> None:
    for number in range(5):
        await lost(store, f"workers/{number}")
    job = await created(store, "jobs/a")
    await store.commit(change(job, unconfirmed=["workers/0", "workers/1"]))
    while await store.forget_lost(timedelta(), size=2):
        pass
    assert [session.worker.name for session in await store.sessions()] == ["workers/0", "workers/1"]
    await store.commit(change(await there(store, JobName("jobs/a")), unconfirmed=["workers/1"]))
    assert await store.forget_lost(timedelta(), size=2) == ["workers/0"]


async def test_more_workers_than_one_script_reads(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "BATCH", 3)
    expected = [f"workers/{number}" for number in range(8)]
    for name in expected:
        await store.attach(Worker(name=name), "session", f"stream-{name}")
    assert [session.worker.name for session in await store.sessions()] == expected
    assert await names(store) == expected


async def test_an_order_to_drain_stays_with_the_worker_until_it_is_taken_back_or_forgotten(
    store: JobStore, worker: Worker
) -> None:
    order = Drain(actor="ops", reason="new disk", time=Timestamp(seconds=1))
    assert not await store.order_drain(NAME, order), "nobody knows the worker"
    assert await store.session(NAME) is None
    await store.attach(worker, "session-1", "stream-1")
    assert (await current(store)).drain is None
    assert await store.order_drain(NAME, order)
    assert await store.order_drain(NAME, Drain(actor="eve"))
    await store.heartbeat(worker, "stream-1")
    await store.attach(worker, "session-2", "stream-2")
    await store.mark_lost(NAME, (await current(store)).heartbeat)
    assert (await current(store)).drain == order, "the first one stays"
    assert await store.sessions() == [await current(store)]
    assert await store.order_drain(NAME, None)
    assert (await current(store)).drain is None
    await store.order_drain(NAME, order)
    assert await store.forget(NAME)
    await store.attach(worker, "session-3", "stream-3")
    assert (await current(store)).drain is None


async def test_the_name_of_a_worker_is_its_agents_until_that_one_is_lost(store: JobStore) -> None:
    first, second = Worker(name=NAME, instance="i"), Worker(name=NAME, instance="k")
    assert await store.attach(first, "session-1", "stream-1")
    assert not await store.attach(second, "session-2", "stream-2"), "not connected yet"
    await store.heartbeat(first, "stream-1")
    assert not await store.attach(second, "session-2", "stream-2")
    assert await store.attach(first, "session-3", "stream-3"), "the same data directory, started again"
    await store.detach(NAME, "stream-3")
    before = await current(store)
    assert not await store.attach(second, "session-2", "stream-2"), "disconnected, and its lease not over"
    assert not await store.attach(Worker(name=NAME), "session-2", "stream-2"), "nor one that is too old to tell"
    assert await current(store) == before
    await store.mark_lost(NAME, before.heartbeat)
    assert await store.attach(second, "session-2", "stream-2")
    assert await store.attach(second, "session-2", "stream-2"), "the repeat of a call whose answer was lost"
    assert (await current(store)).worker == second
    assert not await store.attach(first, "session-3", "stream-4"), "it is back, and another has its name"


async def test_the_name_of_a_lost_worker_is_free_when_its_jobs_are_taken_from_it(store: JobStore) -> None:
    first, second = Worker(name=NAME, instance="i"), Worker(name=NAME, instance="k")
    await store.attach(first, "session-1", "stream-1")
    job = await created(store, "jobs/a", worker=NAME)
    await store.mark_lost(NAME, (await current(store)).heartbeat)
    assert not await store.attach(second, "session-2", "stream-2")
    await store.commit(change(job, worker=""))
    planned = await store.allocation(NAME)
    assert await store.attach(second, "session-2", "stream-2")
    late = change(await there(store, JobName("jobs/a")), worker=NAME, allocation=planned)
    with pytest.raises(Conflict):  # it was to be placed on GPUs of the first one
        await store.commit(late)
    assert await store.latest_token() != "0-0"
    assert len(await store.changes("0-0", size=9)) == 2


async def test_an_agent_that_is_too_old_to_tell_its_instance_is_followed_by_any(store: JobStore) -> None:
    assert await store.attach(Worker(name=NAME), "session-1", "stream-1")
    assert await store.attach(Worker(name=NAME), "session-2", "stream-2")
    assert await store.attach(Worker(name=NAME, instance="i"), "session-3", "stream-3")
