"""The store in memory and the one on Valkey answer alike, whatever is asked of them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Drain, Worker
from adjourn_control_plane.store.interface import (
    Allocation,
    Change,
    Conflict,
    Fence,
    JobName,
    JobStore,
    JobUid,
    Request,
    RequestSeen,
    Tombstone,
    WorkerName,
)
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import queued, record

JOBS = [JobName(f"jobs/{i}") for i in range(3)]
UIDS = [JobUid(f"uid-{i}") for i in range(3)]
WORKERS = [WorkerName(f"workers/{i}") for i in range(2)]
STATES: list[Job.State.ValueType] = [Job.QUEUED, Job.RUNNING, Job.PAUSED]
STREAMS = ["s1", "s2", "s3"]

Call = Callable[[JobStore], Any]


@st.composite
def commits(draw: st.DrawFn) -> Call:
    job = draw(st.sampled_from(JOBS))
    new = record(
        job,
        state=draw(st.sampled_from(STATES)),
        worker=draw(st.sampled_from(["", *WORKERS])),
        released=draw(st.booleans()),
        labels={"team": draw(st.sampled_from("ab"))},
        uid=draw(st.sampled_from(UIDS)),
        unconfirmed=draw(st.lists(st.sampled_from(WORKERS), max_size=2)),
    )
    deleting = draw(st.integers(0, 5)) == 0
    behind = draw(st.integers(0, 9)) == 0  # someone else came first
    guard, guard_behind = draw(st.sampled_from(WORKERS)), draw(st.sampled_from([None, None, 0, 1]))
    request_id = draw(st.sampled_from([None, None, None, "r1", "r2"]))
    fence = draw(
        st.sampled_from([None, None, *(Fence(worker=WORKERS[0], stream=f"{WORKERS[0]} {s}") for s in STREAMS)])
    )
    number, event_count, repeats = draw(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(1, 2)))
    change_id = uuid4().hex

    async def commit(store: JobStore) -> list[int]:
        old = await store.get(job)
        version = old.version if old else 0
        held = await store.allocation(guard)
        change = Change(
            id=change_id,
            job=job,
            expected=version + behind,
            record=None if deleting and old else new,
            events=[JobEvent(sequence=number)] * event_count,
            epochs=[EpochMetrics(epoch=number, attempt=version)],
            checkpoints=[Checkpoint(name=f"{job}/checkpoints/{number}", step=version)],
            request=Request(id=request_id, digest=f"{job} {number}", answer=new.job) if request_id else None,
            fence=fence,
            allocation=None if guard_behind is None else Allocation(worker=guard, version=held.version - guard_behind),
        )
        return [await store.commit(change) for _ in range(repeats)]

    return commit


def sessions() -> st.SearchStrategy[Call]:
    def calls(worker: WorkerName, stream: str, heartbeat: int, instance: str) -> list[Call]:
        described = Worker(name=worker, cpu_slots=heartbeat, instance=instance)
        return [
            lambda store: store.attach(described, f"session of {stream}", f"{worker} {stream}"),
            lambda store: store.heartbeat(described, f"{worker} {stream}"),
            lambda store: store.detach(worker, f"{worker} {stream}"),
            lambda store: store.mark_lost(worker, heartbeat),
            lambda store: store.order_drain(worker, Drain(actor=stream)),
            lambda store: store.order_drain(worker, None),
            lambda store: store.forget(worker),
        ]

    built = st.builds(
        calls,
        st.sampled_from(WORKERS),
        st.sampled_from(STREAMS),
        st.integers(0, 3),
        st.sampled_from(" ik").map(str.strip),
    )
    return built.flatmap(st.sampled_from)


def tombstone(uid: JobUid, *, removed: bool) -> Call:
    return lambda store: store.remove_tombstone(Tombstone(uid)) if removed else store.add_tombstone(uid)


async def outcome(store: JobStore, call: Call) -> object:
    try:
        return await call(store)
    except RequestSeen as seen:
        return seen.digest, seen.answer
    except Conflict as error:
        return type(error)


async def seen(store: JobStore) -> list[object]:
    """Returns all that can be read; without what depends on the clock."""
    token = "0-0"
    view: list[object] = [await queued(store), await store.tombstones(), await store.answered("r1")]
    view.append([replace(session, report_time_ns=0) for session in await store.sessions()])
    view.append(await store.deleted(UIDS))
    view.append([change.job for change in await store.changes(token, size=99)])
    view += [await store.page(states=STATES[:2], labels={"team": "a"}, size=1, before=None)]
    view += [await store.page(states=[], labels={}, size=2, before=None)]
    for worker in WORKERS:
        allocation = await store.allocation(worker)
        view.append((allocation.version, list(allocation.jobs), await store.unconfirmed(worker)))
    for job in JOBS:
        view += [
            await store.get(job),
            await store.events(job, after=1, size=2),
            await store.epochs(job, after=1, size=2),
            await store.checkpoints(job, size=2, before=3),
            await store.checkpoint(job, f"{job}/checkpoints/1"),
        ]
    return view


calls = st.one_of(commits(), commits(), sessions(), st.builds(tombstone, st.sampled_from(UIDS), removed=st.booleans()))


@settings(max_examples=60, deadline=None)
@given(calls=st.lists(calls, max_size=25))
def test_both_stores_answer_alike(redis_url: str, calls: list[Call]) -> None:
    async def compare() -> None:
        memory = MemoryStore()
        async with RedisStore.connect(redis_url, f"test-{uuid4().hex}") as redis:
            for call in calls:
                assert await outcome(memory, call) == await outcome(redis, call)
            assert await seen(memory) == await seen(redis)

    asyncio.run(compare())
