"""The store on a server that restarts, hangs, refuses, or loses answers."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from adjourn.errors import StoreUnavailableError
from adjourn.local import process_cleanup, valkey
from adjourn.local.managed_process import ManagedProcess
from adjourn.local.ports import free_ports
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store import redis
from adjourn_control_plane.store.interface import JobName, Request, WorkerName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.store_records import change, created, creation, queued, there

A = JobName("jobs/a")
WORKER = WorkerName("workers/w")


@dataclass
class Server:
    """A Valkey of the test's own, to be killed."""

    child: ManagedProcess
    url: str

    async def start(self) -> None:
        self.child.start()
        await self.child.until_ready()

    def kill(self) -> None:
        process = self.child.process
        assert process is not None
        process.kill()
        process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self.child.process is not None
        self.child.process.send_signal(number)


@pytest.fixture
async def server(servers: Path, tmp_path: Path) -> AsyncIterator[Server]:
    (port,) = free_ports(1)
    password = secrets.token_hex(8)
    marker = process_cleanup.marker(servers)
    program = valkey.program(directory=tmp_path, logs=tmp_path, port=port, password=password, environment=marker)
    server = Server(child=ManagedProcess(program), url=valkey.url(port=port, password=password))
    await server.start()
    yield server
    server.send(signal.SIGCONT)
    await server.child.stop()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[RedisStore]:
    async with RedisStore.connect(server.url, "test") as store:
        yield store


@asynccontextmanager
async def operator(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, decode_responses=True) as client:
        yield client


async def test_restarted_server_has_everything(server: Server, store: RedisStore) -> None:
    await store.attach(Worker(name=WORKER), "session", "stream")
    request = Request(id="r", digest="d", answer=Job(name=A))
    await store.commit(creation(A, worker=WORKER, request=request))
    await store.commit(change(await there(store, A), events=[JobEvent(sequence=1)]))
    last = change(await there(store, A), state=Job.RUNNING)
    version = await store.commit(last)

    async def everything() -> list[object]:
        allocation = await store.allocation(WORKER)
        return [
            await store.get(A),
            await store.events(A, after=0, size=9),
            await store.answered("r"),
            await store.page(states=[Job.RUNNING], labels={}, size=9, before=None),
            await store.sessions(),
            await store.latest_token(),
            await store.changes("0-0", size=9),
            (allocation, list(allocation.jobs)),
        ]

    before = await everything()
    server.kill()
    await server.start()
    assert await everything() == before
    assert await store.commit(last) == version  # scripts are loaded anew, repeats still recognised
    assert (await created(store, "jobs/b")).version > version


async def test_server_that_is_gone_is_reported_soon_and_found_again(server: Server, store: RedisStore) -> None:
    old = await created(store, "jobs/a")
    server.kill()
    for call in (store.get(A), store.commit(change(old)), queued(store), store.ping(), store.durability()):
        with pytest.raises(StoreUnavailableError) as unavailable:
            await call
        assert "no answer in time" not in str(unavailable.value), "that is waited for longest"
    address = server.url.split("@")[1].removesuffix("/0")
    assert unavailable.value.metadata["store"] == address
    assert address in str(unavailable.value)
    assert server.url.split(":")[2].split("@")[0] not in str(unavailable.value)
    await server.start()
    assert await store.get(A) == old


async def test_server_that_hangs_is_not_waited_for(
    server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await created(store, "jobs/a")
    monkeypatch.setattr(redis, "LONGEST_WAIT", 0.3)
    server.send(signal.SIGSTOP)
    for call in (store.get(A), store.commit(change(old, state=Job.FAILED))):
        with pytest.raises(StoreUnavailableError, match="no answer in time"):
            await call
    server.send(signal.SIGCONT)
    monkeypatch.undo()
    # Each later call gets its own answer, not the late one of a call that was given up.
    for name in "bcdef":
        assert (await created(store, f"jobs/{name}")).record.job.name == f"jobs/{name}"


async def test_full_server_refuses_the_whole_change(server: Server, store: RedisStore) -> None:
    old = await created(store, "jobs/a")
    async with operator(server.url) as client:
        await client.config_set("maxmemory", "1mb")
        with pytest.raises(StoreUnavailableError, match="maxmemory"):
            await store.commit(change(old, state=Job.RUNNING, worker=WORKER, events=[JobEvent(sequence=1)]))
        assert await there(store, A) == old
        assert (await store.allocation(WORKER)).version == 0
        await client.config_set("maxmemory", "0")
    await store.commit(change(old, state=Job.RUNNING))


async def test_replica_refuses_changes(server: Server, store: RedisStore) -> None:
    old = await created(store, "jobs/a")
    async with operator(server.url) as client:
        await client.replicaof("127.0.0.1", "1")
        with pytest.raises(StoreUnavailableError):
            await store.commit(change(old))
        await client.replicaof("NO", "ONE")
    await store.commit(change(old))


async def test_server_held_up_by_a_script_is_unavailable(server: Server, store: RedisStore) -> None:
    await created(store, "jobs/a")

    async def read_for_ever() -> None:
        while True:
            await store.get(A)

    async with operator(server.url) as client, operator(server.url) as other:
        await client.config_set("busy-reply-threshold", 50)
        endless = asyncio.create_task(other.execute_command("EVAL", "while true do end", 0))  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(60):
                with pytest.raises(StoreUnavailableError, match="BUSY"):
                    await read_for_ever()
        finally:
            await client.script_kill()
            await asyncio.gather(endless, return_exceptions=True)
    assert await store.get(A) is not None


async def test_wrong_password_is_reported(server: Server) -> None:
    async with RedisStore.connect(server.url.replace("//:", "//:not"), "test") as store:
        with pytest.raises(StoreUnavailableError):
            await store.get(A)


async def notified(store: RedisStore, notifications: AsyncIterator[tuple[JobName, WorkerName]]) -> None:
    """Returns when a notification of the job has come: changes it until one does."""
    async with asyncio.timeout(60):
        pending = asyncio.ensure_future(anext(notifications))
        while True:
            await store.commit(change(await there(store, A)))
            await asyncio.wait([pending], timeout=0.1)
            if pending.done():
                if pending.result() == (A, ""):
                    return
                pending = asyncio.ensure_future(anext(notifications))


async def test_notifications_go_on_after_the_connection_broke(server: Server, store: RedisStore) -> None:
    await created(store, "jobs/a")
    async with aclosing(store.notifications()) as notifications:
        assert await anext(notifications) == ("", "")
        await notified(store, notifications)
        async with operator(server.url) as client, asyncio.timeout(60):
            assert await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1  # type: ignore[no-untyped-call]
            while await anext(notifications) != ("", ""):
                pass
        await notified(store, notifications)
        server.kill()
        await server.start()
        async with asyncio.timeout(60):
            while await anext(notifications) != ("", ""):
                pass
        await notified(store, notifications)


async def test_notifications_notice_a_server_that_hangs(
    server: Server, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis, "SILENCE", 0.02)
    async with operator(server.url) as client, aclosing(store.notifications()) as notifications, asyncio.timeout(60):
        assert await anext(notifications) == ("", "")
        following = asyncio.ensure_future(anext(notifications))
        before = await pings(client)
        while await pings(client) < before + 3:  # noqa: ASYNC110  # it is the server's
            await asyncio.sleep(0.02)
        assert not following.done()  # silence is no reason to reconnect while pings are answered
        monkeypatch.setattr(redis, "SOCKET_WAIT", 0.25)
        with capture_logs() as logs:
            server.send(signal.SIGSTOP)
            while "store_notifications_interrupted" not in [entry["event"] for entry in logs]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        server.send(signal.SIGCONT)
        assert await following == ("", "")


async def pings(client: Redis) -> int:
    """Returns how often the server was asked whether it is there."""
    asked = (await client.info("commandstats")).get("cmdstat_ping", {})
    return int(asked.get("calls", 0))


async def test_weak_settings_are_told(server: Server, store: RedisStore) -> None:
    assert await store.durability() == []
    async with operator(server.url) as client:
        await client.config_set("appendfsync", "everysec")
        await client.config_set("maxmemory-policy", "allkeys-lru")
        assert len(await store.durability()) == 2
        await client.config_set("appendonly", "no")
        assert len(await store.durability()) == 2


async def test_settings_that_may_not_be_read_are_told(server: Server) -> None:
    async with operator(server.url) as client:
        await client.execute_command("ACL", "SETUSER", "adjourn", "on", ">secret", "~*", "&*", "+@all", "-config")  # type: ignore[no-untyped-call]
    async with RedisStore.connect(f"redis://adjourn:secret@{server.url.split('@')[1]}", "test") as store:
        (sentence,) = await store.durability()
        assert "cannot be checked" in sentence
        await created(store, "jobs/a")


async def test_a_closed_store_ends_what_waits_and_connects_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for patience in ("SOCKET_WAIT", "LONGEST_WAIT"):
        monkeypatch.setattr(redis, patience, 60.0)
    store = RedisStore(server.url, "test")
    await store.ping()
    server.send(signal.SIGSTOP)
    waiting = [asyncio.create_task(store.ping()) for _ in range(3)]
    await asyncio.wait(waiting, timeout=0.05)  # they are on their way
    async with asyncio.timeout(redis.SOCKET_WAIT / 2):
        await store.aclose()
        for each in waiting:
            with pytest.raises(StoreUnavailableError, match="closed"):
                await each
        with pytest.raises(StoreUnavailableError, match="closed"):
            await store.ping()
    server.send(signal.SIGCONT)
    async with operator(server.url) as client, asyncio.timeout(60):
        while len(await client.client_list()) > 1:  # noqa: ASYNC110  # it is the server's
            await asyncio.sleep(0.01)
