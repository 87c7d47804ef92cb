"""The keys of the store on Valkey."""

from uuid import uuid4

from redis.asyncio import Redis

from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import JobName, Request, WorkerName
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
