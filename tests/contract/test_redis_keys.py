"""The keys of the store on Valkey."""

from datetime import timedelta
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store import redis_codec
from adjourn_control_plane.store.interface import JobName, JobUid, Request, WorkerName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.store_records import created, creation, deletion, there

A = JobName("jobs/a")
WORKER = WorkerName("workers/w")


async def test_keys_are_of_one_slot_and_go_with_their_job(redis_url: str, namespace: str) -> None:
    async with (
        RedisStore.connect(redis_url, namespace) as store,
        Redis.from_url(redis_url, decode_responses=True) as client,
    ):
        await store.attach(Worker(name=WORKER), "session", "stream")
        request = Request(id="r", digest="d", answer=Job())
        await store.commit(creation(A, worker=WORKER, request=request))
        keys = [key async for key in client.scan_iter(f"*{namespace}*", count=1000)]
        assert keys
        assert all(key.startswith(f"{{{namespace}}}:") for key in keys)
        for passing in (f"{{{namespace}}}:request:r", f"{{{namespace}}}:done:stream"):
            assert await client.ttl(passing) > 0
        await store.commit(deletion(await there(store, A)))
        assert not [key async for key in client.scan_iter(f"*{namespace}*{A}*", count=1000)]


async def test_namespaces_do_not_mix(redis_url: str, namespace: str) -> None:
    async with RedisStore.connect(redis_url, namespace) as one, RedisStore.connect(redis_url, uuid4().hex) as other:
        await created(one, "jobs/a")
        assert await other.get(A) is None
        assert await other.latest_token() == "0-0"
        await other.commit(creation(A, request=Request(id="r", digest="d", answer=Job())))
        assert await one.answered("r") is None


@pytest.mark.parametrize("clock", [1, 2**52], ids=["far behind", "far ahead"])
async def test_of_deleted_jobs_the_newest_are_known_whatever_the_clock_said(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    """An older version ordered them by time, and forgot what was older than 90 days."""
    monkeypatch.setattr(redis_codec, "DELETED_KEPT", 2)
    async with (
        RedisStore.connect(redis_url, namespace) as store,
        Redis.from_url(redis_url, decode_responses=True) as client,
    ):
        await client.zadd(f"{{{namespace}}}:deleted", {"old": clock})
        uids = [JobUid("old")]
        for name in ("jobs/a", "jobs/b"):
            old = await created(store, name)
            uids.append(JobUid(old.record.job.uid))
            await store.commit(deletion(old))
            assert await store.deleted(uids) == set(uids[-2:])


async def test_a_worker_that_was_lost_before_the_clock_was_set_back_is_forgotten_in_time(
    redis_url: str, namespace: str
) -> None:
    async with (
        RedisStore.connect(redis_url, namespace) as store,
        Redis.from_url(redis_url, decode_responses=True) as client,
    ):
        await store.attach(Worker(name=WORKER), "session", "stream")
        session = await store.session(WORKER)
        assert session
        await store.mark_lost(WORKER, session.heartbeat)
        year_ms = 365 * 86400 * 1000
        await client.zincrby(f"{{{namespace}}}:workers:lost", year_ms, WORKER)
        assert await store.forget_lost(timedelta(hours=1), size=10) == []
        seconds, _ = await client.time()
        lost = await client.zscore(f"{{{namespace}}}:workers:lost", WORKER)
        assert lost is not None
        assert lost < (seconds + 60) * 1000, "it counts from now"
        await client.zincrby(f"{{{namespace}}}:workers:lost", -3600_001, WORKER)  # an hour later
        assert await store.forget_lost(timedelta(hours=1), size=10) == [WORKER]
