"""Answers that get lost, calls that are given up, and more calls than connections."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from adjourn.errors import StoreUnavailableError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store import redis
from adjourn_control_plane.store.interface import JobName, Request, WorkerName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.store_records import change, created, creation, deletion, queued, there

A = JobName("jobs/a")
WORKER = WorkerName("workers/w")


@dataclass
class Lossy:
    """A proxy before a server that can lose answers."""

    target: tuple[str, int]
    url: str = ""
    losses: int = 0
    """Answers still to lose; the connection breaks with each."""
    lost: int = 0

    connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        answers, requests = await asyncio.open_connection(*self.target)
        asking = asyncio.create_task(self.ask(reader, requests))
        try:
            while data := await answers.read(1 << 16):
                if self.losses:
                    self.losses -= 1
                    self.lost += 1
                    break
                writer.write(data)
        finally:
            asking.cancel()
            for each in (requests, writer):
                each.close()
                await asyncio.gather(each.wait_closed(), return_exceptions=True)

    async def ask(self, reader: asyncio.StreamReader, requests: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            requests.write(data)
        requests.write_eof()


@pytest.fixture
async def lossy(redis_url: str) -> AsyncIterator[Lossy]:
    scheme, _, address = redis_url.rpartition("@")
    host, port = address.removesuffix("/0").split(":")
    proxy = Lossy((host, int(port)))
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"{scheme}@127.0.0.1:{listening.sockets[0].getsockname()[1]}/0"
    yield proxy
    listening.close()
    await listening.wait_closed()
    async with asyncio.timeout(60):
        await asyncio.gather(*proxy.connections)


async def test_change_whose_answer_was_lost_happens_once(lossy: Lossy, redis_url: str, namespace: str) -> None:
    async with RedisStore.connect(lossy.url, namespace) as store, RedisStore.connect(redis_url, namespace) as other:
        await created(store, "jobs/a")
        for losses in (1, 2):
            old = await there(store, A)
            lossy.losses = losses
            version = await store.commit(change(old, events=[JobEvent(sequence=losses)]))
            assert lossy.losses == 0
            assert version == (await there(other, A)).version == old.version + 1
        assert len(await other.events(A, after=0, size=9)) == 2
        lossy.losses = 1
        assert await store.commit(deletion(await there(other, A))) == 0
        assert await other.get(A) is None
        assert lossy.lost == 4


async def test_change_of_unknown_outcome_can_be_repeated(lossy: Lossy, redis_url: str, namespace: str) -> None:
    async with RedisStore.connect(lossy.url, namespace) as store, RedisStore.connect(redis_url, namespace) as other:
        await store.ping()
        wanted = creation(A)
        lossy.losses = 1000
        with pytest.raises(StoreUnavailableError):
            await store.commit(wanted)
        lossy.losses = 0
        assert await store.commit(wanted) == (await there(other, A)).version
        assert len(await other.changes("0-0", size=9)) == 1


async def test_attachment_whose_answer_was_lost_does_not_take_over_again(
    lossy: Lossy, redis_url: str, namespace: str
) -> None:
    worker = Worker(name=WORKER)
    async with RedisStore.connect(lossy.url, namespace) as store, RedisStore.connect(redis_url, namespace) as other:
        await store.ping()
        lossy.losses = 1
        await store.attach(worker, "session", "old")
        await other.attach(worker, "session", "new")
        await store.attach(worker, "session", "old")
        assert await store.heartbeat(worker, "new")
        assert not await store.heartbeat(worker, "old")
        session = await store.session(WORKER)
        assert session is not None
        assert session.heartbeat == 3


async def test_answer_that_says_more_is_kept_though_that_it_is_was_not_heard(
    lossy: Lossy, redis_url: str, namespace: str
) -> None:
    more = Job(name=A, etag="2")
    async with RedisStore.connect(lossy.url, namespace) as store, RedisStore.connect(redis_url, namespace) as other:
        await store.commit(creation(A, request=Request(id="r", digest="d", answer=Job(name=A))))
        lossy.losses = 1
        assert await store.settle("r", more) == more
        assert lossy.lost == 1
        assert await other.answered("r") == ("d", more)


async def test_more_calls_than_connections_all_get_through(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "CONNECTIONS", 3)
    async with RedisStore.connect(redis_url, namespace) as store:
        names = [JobName(f"jobs/{i}") for i in range(40)]
        await asyncio.gather(*(store.commit(creation(name)) for name in names))
        assert len(await queued(store)) == 40


async def test_call_that_was_cancelled_leaves_the_others_their_answers(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "CONNECTIONS", 2)
    async with RedisStore.connect(redis_url, namespace) as store:
        names = [JobName(f"jobs/{i}") for i in range(10)]
        for name in names:
            await store.commit(creation(name))
        calls = [asyncio.create_task(store.get(names[i % 10])) for i in range(60)]
        for i, call in enumerate(calls):
            if i % 3 == 0:
                call.cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*calls, return_exceptions=True)
        for i, result in enumerate(results):
            if isinstance(result, BaseException):
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert result is not None
                assert result.record.job.name == names[i % 10]
