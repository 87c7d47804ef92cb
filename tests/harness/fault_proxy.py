"""A network that fails as a test wants it to: TCP and HTTP proxies on this machine, on a thread of their own.

A thread, because the loop of the tests stands still between two tests and the network must not. Every control may be
used from any thread. What is done to a link holds for the connections that it has and for those to come, until `heal`.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from adjourn.local.ports import HOST

T = TypeVar("T")
PIECE: Final = 16 << 10
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of a connection whose end is a reset."""


class Way(Enum):
    TO_SERVER = auto()
    TO_CLIENT = auto()


@dataclass(slots=True)
class Lane:
    """One way of a link. Bytes keep their order; what waits is sent when the link is healed."""

    delay: float = 0.0
    """Seconds that each piece waits."""
    rate: float = 0.0
    """Bytes a second; 0: no limit."""
    cut_after: int | None = None
    """Bytes that still come through; then the connection that sends the next one is reset, once."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set: a black hole. Nothing arrives, no connection ends, and what was sent arrives when it is healed."""


class Broken(Exception):
    """The connection is to be reset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What becomes of an HTTP request."""

    request: re.Pattern[str]
    """Searched in `METHOD target`."""
    action: str
    status: int = 503
    seconds: float = 0.0
    share: float = 1.0
    """Part of the requests that it befalls."""

    ACTIONS = frozenset(
        {
            "answer",  # with `status`; the server never hears of it
            "drop",  # reset; the server never hears of it
            "cut request",  # the server gets half of it; both connections are reset
            "cut reply",  # the server did it; the client gets a reset instead of the answer
            "half reply",  # the client gets half of the answer, then a reset
            "repeat",  # the server gets it twice; the second answer counts
            "delay",  # by `seconds`
            "hold",  # until the link is healed
        }
    )

    def __post_init__(self) -> None:
        assert self.action in self.ACTIONS, self.action


@dataclass(slots=True, eq=False)
class Connection:
    """A client's connection and ours to the server."""

    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    said: bytes = b""
    """What the client sent since the server last answered."""

    def reset(self) -> None:
        for _, writer in (self.client, self.server):
            with contextlib.suppress(OSError, AttributeError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    def writer(self, way: Way) -> asyncio.StreamWriter:
        return (self.server if way is Way.TO_SERVER else self.client)[1]


class Link:
    """A proxy before servers; a connection goes to the first that takes it, each time beginning with the next one."""

    def __init__(self, name: str, servers: Sequence[str], *, http: bool, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.servers = list(servers)
        """`host:port` each; may be changed for the connections to come."""
        self.address = ""
        """`host:port` for clients."""
        self.hits: deque[str] = deque(maxlen=1000)
        """What befell which request, as `action METHOD target`."""
        self._http = http
        self._loop = loop
        self._lanes = {way: Lane() for way in Way}
        self._refusing = False
        self._rules: list[tuple[Rule, int | None]] = []
        self._losses: list[bytes] = []
        self._heals = asyncio.Event()
        """Set when the faults of now are over."""
        self._turn = 0
        self._random = random.Random(name)  # repeatable, not secret
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._open()

    # What a test does to it.

    def black_hole(self, *ways: Way) -> None:
        """Lets nothing through on these ways (none named: both). Who sends notices nothing, as with lost packets."""

        def change() -> None:
            for way in ways or Way:
                self._lanes[way].open.clear()

        self._do(change)

    def slow(self, *, delay: float = 0.0, rate: float = 0.0, ways: Sequence[Way] = tuple(Way)) -> None:
        """Delays every piece by `delay` seconds; lets at most `rate` bytes a second through."""

        def change() -> None:
            for way in ways:
                self._lanes[way].delay, self._lanes[way].rate = delay, rate

        self._do(change)

    def refuse(self) -> None:
        """Resets what is connected and whoever connects."""

        def change() -> None:
            self._refusing = True
            self._reset()

        self._do(change)

    def reset(self) -> None:
        """Resets what is connected, once."""
        self._do(self._reset)

    def cut_after(self, count: int, way: Way) -> None:
        """Resets, once, the connection that sends the byte after the next `count` on this way: within a message."""
        self._do(lambda: setattr(self._lanes[way], "cut_after", count))

    def half_close(self, way: Way) -> None:
        """Ends one way of what is connected; the other stays open."""

        def change() -> None:
            for connection in self._connections:
                with contextlib.suppress(OSError, RuntimeError):
                    connection.writer(way).write_eof()

        self._do(change)

    def lose_reply(self, after: bytes, *, times: int = 1) -> None:
        """Throws away, `times` times, what the server answers to something with `after` in it, and resets."""
        self._do(lambda: self._losses.extend([after] * times))

    def befall(
        self,
        action: str,
        request: str = "",
        *,
        times: int | None = None,
        status: int = 503,
        seconds: float = 0.0,
        share: float = 1.0,
    ) -> None:
        """Has an action of `Rule.ACTIONS` befall HTTP requests whose `METHOD target` matches (None: always)."""
        assert self._http, f"{self.name} does not read HTTP"
        rule = Rule(request=re.compile(request), action=action, status=status, seconds=seconds, share=share)
        self._do(lambda: self._rules.append((rule, times)))

    def heal(self) -> None:
        """Ends all of it. Connections that live go on, and what waited arrives."""
        self._do(self._open)

    @property
    def connections(self) -> int:
        return len(self._connections)

    # What goes through it.

    async def close(self) -> None:
        """Resets everything, and returns when nothing is served."""
        for serving in list(self._serving):
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _do(self, change: Callable[[], object]) -> None:
        async def on_loop() -> None:
            change()

        asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result()

    def _open(self) -> None:
        self._refusing = False
        self._rules.clear()
        self._losses.clear()
        self._heals.set()
        self._heals = asyncio.Event()
        for lane in self._lanes.values():
            lane.delay, lane.rate, lane.cut_after = 0.0, 0.0, None
            lane.open.set()

    def _reset(self) -> None:
        for connection, serving in self._connections.items():
            connection.reset()
            serving.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        try:
            server = None if self._refusing else await self._connect()
            if server is not None and self._refusing:  # by now
                server[1].close()
                server = None
            if server is None:
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
                return
            connection = Connection((reader, writer), server)
            self._connections[connection] = task
            try:
                await (self._requests(connection) if self._http else self._pumps(connection))
            except (Broken, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                connection.reset()  # a cancellation is ours: `reset`, `refuse` or `close`
            finally:
                del self._connections[connection]
                connection.server[1].close()
        finally:
            writer.close()
            self._serving.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        self._turn += 1
        for number in range(len(self.servers)):
            host, _, port = self.servers[(self._turn + number) % len(self.servers)].rpartition(":")
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, int(port), limit=1 << 20)
        return None

    async def _send(self, connection: Connection, way: Way, data: bytes) -> None:
        lane, writer = self._lanes[way], connection.writer(way)
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            await lane.open.wait()
            if lane.delay:
                await asyncio.sleep(lane.delay)
            if lane.rate:
                await asyncio.sleep(len(piece) / lane.rate)
            await lane.open.wait()
            if lane.cut_after is not None:
                piece, lane.cut_after = piece[: lane.cut_after], lane.cut_after - len(piece)
            if not writer.is_closing():
                writer.write(piece)
                await writer.drain()
            if lane.cut_after is not None and lane.cut_after < 0:
                lane.cut_after = None
                raise Broken

    async def _pumps(self, connection: Connection) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(connection, Way.TO_SERVER, connection.client[0]))
                group.create_task(self._pump(connection, Way.TO_CLIENT, connection.server[0]))
        except* (Broken, OSError):
            raise Broken from None

    async def _pump(self, connection: Connection, way: Way, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(PIECE):
            if way is Way.TO_SERVER:
                connection.said += data
            elif lost := next((each for each in self._losses if each in connection.said), None):
                self._losses.remove(lost)
                self.hits.append(f"lose reply {lost.decode()}")
                raise Broken
            else:
                connection.said = b""
            await self._send(connection, way, data)
        await self._lanes[way].open.wait()
        with contextlib.suppress(OSError, RuntimeError):
            connection.writer(way).write_eof()

    async def _requests(self, connection: Connection) -> None:
        while (request := await read_message(connection.client[0])) is not None:
            line = " ".join(request.first.split()[:2])
            rule = self._next_rule(line)
            if rule is None:
                await self._send(connection, Way.TO_CLIENT, await self._ask(connection, request))
            else:
                self.hits.append(f"{rule.action} {line}")
                await self._send(connection, Way.TO_CLIENT, await self._befallen(connection, request, rule))

    async def _befallen(self, connection: Connection, request: "Message", rule: Rule) -> bytes:
        """Returns the reply to a request that a rule befalls; raises Broken."""
        match rule.action:
            case "answer":
                return refusal(rule.status)
            case "drop":
                raise Broken
            case "cut request":
                await self._send(connection, Way.TO_SERVER, request.raw[: len(request.raw) // 2])
                raise Broken
            case "delay":
                await asyncio.sleep(rule.seconds)
            case "hold":
                await self._heals.wait()
            case "repeat":
                await self._ask(connection, request)
        reply = await self._ask(connection, request)
        if rule.action == "cut reply":
            raise Broken
        if rule.action == "half reply":
            await self._send(connection, Way.TO_CLIENT, reply[: len(reply) // 2])
            raise Broken
        return reply

    async def _ask(self, connection: Connection, request: "Message") -> bytes:
        reader, writer = connection.server
        if reader.at_eof() or reader.exception() is not None:
            writer.close()
            again = await self._connect()
            if again is None:
                raise Broken
            connection.server = again
        await self._send(connection, Way.TO_SERVER, request.raw)
        reply = await read_message(connection.server[0], head_only=request.first.startswith("HEAD "))
        if reply is None:
            raise Broken
        return reply.raw

    def _next_rule(self, line: str) -> Rule | None:
        for number, (rule, times) in enumerate(self._rules):
            if rule.request.search(line) and (rule.share >= 1 or self._random.random() < rule.share):
                if times is not None:
                    self._rules[number : number + 1] = [(rule, times - 1)] if times > 1 else []
                return rule
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """An HTTP request or response."""

    first: str
    """Its first line."""
    raw: bytes


async def read_message(reader: asyncio.StreamReader, *, head_only: bool = False) -> Message | None:
    """Returns the next message; None at the end. Raises asyncio.IncompleteReadError if it ends within one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = first.split()[1] if first.startswith("HTTP/") else ""
    body = b""
    if head_only or status in ("204", "304"):
        pass
    elif "chunked" in headers.get("transfer-encoding", ""):
        while not body.endswith(b"0\r\n\r\n"):
            size = await reader.readuntil(b"\r\n")
            body += size + await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            if int(size.split(b";")[0], 16) == 0:
                break
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif status:
        body = await reader.read()
    return Message(first=first, raw=head + body)


def refusal(status: int) -> bytes:
    """Returns an answer of S3."""
    code = {500: "InternalError", 503: "SlowDown"}.get(status, "ServiceUnavailable")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>a fault of a test</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class FaultProxies:
    """Makes links. A context manager; in the end all connections are reset and nothing listens."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxies", daemon=True)
        self._listening: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def link(self, name: str, *servers: str, http: bool = False) -> Link:
        """Returns a new link before `host:port` servers; `http`: one on which requests can be told apart."""
        return self._run(self._listen(name, servers, http=http))

    def heal(self) -> None:
        for link in self.links.values():
            link.heal()

    async def _listen(self, name: str, servers: Sequence[str], *, http: bool) -> Link:
        link = Link(name, servers, http=http, loop=self._loop)
        server = await asyncio.start_server(link.serve, HOST, 0, limit=1 << 20)
        self._listening.append(server)
        link.address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
        self.links[name] = link
        return link

    async def _close(self) -> None:
        for server in self._listening:
            server.close()
        for link in self.links.values():
            await link.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def through(url: str, link: Link) -> str:
    """Returns a URL with the link's address in place of the server's."""
    return url.replace(server_of(url), link.address)


def server_of(url: str) -> str:
    """Returns `host:port` of a URL."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}"
