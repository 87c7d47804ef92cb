"""The faults that tests make are the faults that they say."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from adjourn.errors import ObjectStoreUnavailableError
from adjourn.local.ports import HOST
from adjourn.objects import S3Objects, S3Settings
from tests.harness.fault_proxy import FaultProxies, Link, Way, server_of, through

Eventually = Callable[..., Awaitable[None]]


@dataclass
class Echo:
    """Answers each line in capitals, and keeps what it heard."""

    heard: bytes = b""
    ended: int = 0
    address: str = ""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(1 << 16):
                self.heard += data
                writer.write(data.upper())
        except ConnectionError:
            pass
        self.ended += 1


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, HOST, 0)
    echo.address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
    yield echo
    server.close()
    for writer in echo.writers:
        writer.close()


@pytest.fixture
def proxies() -> Iterator[FaultProxies]:
    with FaultProxies() as proxies:
        yield proxies


@pytest.fixture
def link(proxies: FaultProxies, echo: Echo) -> Link:
    return proxies.link("echo", echo.address)


@dataclass
class Caller:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def hears(self, wanted: bytes) -> None:
        async with asyncio.timeout(10):
            assert await self.reader.readexactly(len(wanted)) == wanted

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await self.reader.readexactly(1)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(self.reader.read(), 10)


@pytest.fixture
async def call(link: Link) -> AsyncIterator[Callable[[], Awaitable[Caller]]]:
    made: list[Caller] = []

    async def connect() -> Caller:
        host, _, port = link.address.rpartition(":")
        made.append(Caller(*await asyncio.open_connection(host, int(port))))
        return made[-1]

    yield connect
    for caller in made:
        caller.writer.close()


Call = Callable[[], Awaitable[Caller]]


async def test_without_a_fault_everything_arrives_and_both_ends_are_told(
    echo: Echo, call: Call, eventually: Eventually
) -> None:
    caller = await call()
    caller.writer.write(b"a" * 100_000)
    await caller.hears(b"A" * 100_000)
    caller.writer.write_eof()
    await eventually(lambda: echo.ended)


@pytest.mark.parametrize("way", Way)
async def test_what_falls_into_a_black_hole_arrives_when_it_is_healed(
    link: Link, echo: Echo, call: Call, eventually: Eventually, way: Way
) -> None:
    caller = await call()
    link.black_hole(way)
    caller.writer.write(b"word")
    await eventually(lambda: echo.heard == (b"" if way is Way.TO_SERVER else b"word"))
    await caller.hears_nothing()
    assert echo.heard == (b"" if way is Way.TO_SERVER else b"word")
    caller.writer.write_eof()
    assert not echo.ended or way is Way.TO_CLIENT
    link.heal()
    await caller.hears(b"WORD")
    await eventually(lambda: echo.ended)


async def test_a_connection_made_in_a_black_hole_hears_nothing_either(link: Link, call: Call) -> None:
    link.black_hole()
    caller = await call()
    caller.writer.write(b"word")
    await caller.hears_nothing()
    link.heal()
    await caller.hears(b"WORD")


async def test_a_link_that_refuses_resets_who_is_there_and_who_comes(link: Link, call: Call) -> None:
    caller = await call()
    caller.writer.write(b"a")
    await caller.hears(b"A")
    link.refuse()
    await caller.is_reset()
    with contextlib.suppress(ConnectionResetError):  # the reset may come while it connects
        await (await call()).is_reset()
    link.heal()
    again = await call()
    again.writer.write(b"b")
    await again.hears(b"B")
    link.reset()
    await again.is_reset()


async def test_who_is_connecting_when_a_link_begins_to_refuse_is_reset(
    link: Link, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, going_on, connect = threading.Event(), asyncio.Event(), Link._connect

    async def slowly(link: Link) -> Any:
        connecting.set()
        await going_on.wait()
        return await connect(link)

    monkeypatch.setattr(Link, "_connect", slowly)
    caller = await call()
    await asyncio.to_thread(connecting.wait, 10)
    link.refuse()
    link._do(going_on.set)
    await caller.is_reset()


@pytest.mark.parametrize("way", Way)
async def test_a_cut_is_within_the_message(
    link: Link, echo: Echo, call: Call, eventually: Eventually, way: Way
) -> None:
    link.cut_after(3, way)
    caller = await call()
    caller.writer.write(b"message")
    await caller.is_reset()
    await eventually(lambda: echo.ended)
    assert echo.heard == (b"mes" if way is Way.TO_SERVER else b"message")
    other = await call()
    other.writer.write(b"whole")
    await other.hears(b"WHOLE")


async def test_one_way_can_be_closed_alone(link: Link, echo: Echo, call: Call, eventually: Eventually) -> None:
    caller = await call()
    caller.writer.write(b"a")
    await caller.hears(b"A")
    link.half_close(Way.TO_CLIENT)
    assert await caller.reader.read() == b""
    caller.writer.write(b"b")
    await eventually(lambda: echo.heard == b"ab")


async def test_delay_and_rate(link: Link, call: Call) -> None:
    caller = await call()
    link.slow(delay=0.1)
    began = time.monotonic()
    caller.writer.write(b"a")
    await caller.hears(b"A")
    assert time.monotonic() - began >= 0.2
    link.slow(rate=100_000, ways=[Way.TO_SERVER])
    began = time.monotonic()
    caller.writer.write(b"a" * 20_000)
    await caller.hears(b"A" * 20_000)
    assert time.monotonic() - began >= 0.2


async def test_a_reply_is_lost_after_the_request_was_heard(link: Link, echo: Echo, call: Call) -> None:
    caller = await call()
    link.lose_reply(b"commit")
    caller.writer.write(b"look")
    await caller.hears(b"LOOK")
    caller.writer.write(b"commit")
    await caller.is_reset()
    assert echo.heard == b"lookcommit"
    again = await call()
    again.writer.write(b"commit")
    await again.hears(b"COMMIT")


async def test_the_next_server_takes_the_connection_that_the_first_does_not(link: Link, echo: Echo, call: Call) -> None:
    link.servers = ["127.0.0.1:1", echo.address]
    for _ in range(3):
        caller = await call()
        caller.writer.write(b"a")
        await caller.hears(b"A")


async def test_a_connection_that_is_being_made_ends_with_the_proxies(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = threading.Event()

    async def connect(_: Link) -> None:
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Link, "_connect", connect)
    with FaultProxies() as proxies:
        host, _, port = proxies.link("echo", echo.address).address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await asyncio.to_thread(connecting.wait, 10)
    assert await reader.read() == b""
    writer.close()


class TestHttp:
    @pytest.fixture
    def link(self, proxies: FaultProxies, s3_environment: dict[str, str]) -> Link:
        return proxies.link("s3", server_of(s3_environment["ADJOURN_S3_ENDPOINT"]), http=True)

    @pytest.fixture
    async def objects(self, link: Link, s3_environment: dict[str, str]) -> AsyncIterator[S3Objects]:
        endpoint = through(s3_environment["ADJOURN_S3_ENDPOINT"], link)
        async with S3Objects(
            S3Settings.from_environment({**s3_environment, "ADJOURN_S3_ENDPOINT": endpoint})
        ) as objects:
            await objects.ensure_bucket()
            yield objects

    @pytest.mark.parametrize(
        "action", ["answer", "drop", "cut request", "cut reply", "half reply", "repeat", "delay", "hold"]
    )
    async def test_one_fault_is_overcome(
        self, link: Link, objects: S3Objects, action: str, eventually: Eventually
    ) -> None:
        data = bytes(range(256)) * 1000
        link.befall(action, "^(PUT|GET) .*/tests/http", times=2, seconds=0.05)
        work = asyncio.create_task(self.both_ways(objects, data))
        if action == "hold":
            await eventually(lambda: link.hits)
            link.heal()
        assert await work == data
        assert [hit.startswith(f"{action} ") for hit in link.hits] == [True] * len(link.hits)
        assert link.hits

    async def both_ways(self, objects: S3Objects, data: bytes) -> bytes:
        await objects.put("tests/http", data)
        return await objects.get("tests/http", limit=len(data))

    async def test_a_store_that_always_refuses_is_unavailable_and_others_are_not_befallen(
        self, link: Link, objects: S3Objects
    ) -> None:
        link.befall("answer", "PUT .*/tests/refused", status=500)
        with pytest.raises(ObjectStoreUnavailableError, match="InternalError"):
            await objects.put("tests/refused", b"x")
        await objects.put("tests/taken", b"x")
        assert set(link.hits) == {"answer PUT /models/tests/refused"}
        assert await objects.list("tests/refused") == {}
        assert await objects.stat("tests/taken")
