"""Server-sent events: how messages and errors are written, and an answer that lives until its source or reader ends."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from starlette.types import Receive, Send

from adjourn.errors import AdjournError, ShuttingDownError
from adjourn.web.rest import errors
from adjourn.web.rest.transcoding import to_json

T = TypeVar("T")

OPEN_SECONDS: Final = 1.0
"""How long the head of an answer waits for the first message: an error until then has a status of its own."""
KEEPALIVE_SECONDS: Final = 15.0
STALL_SECONDS: Final = 60.0
"""After so long without the reader taking what was sent, it is given up."""
RETRY: Final = b"retry: 1000\n\n"
KEEPALIVE: Final = b": still here\n\n"
HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
)

Frames = AsyncGenerator[bytes, None]


class ReaderGone(Exception):
    """The other side has closed the connection, or takes nothing any more."""


def frame(data: str, identity: str | None = None) -> bytes:
    """Returns an event; `identity` comes back as `Last-Event-ID`, and an empty one has that forgotten."""
    named = "" if identity is None else f"id: {identity}\n" if identity else "id\n"
    return f"{named}data: {data}\n\n".encode()


def message_frame(message: Message, identity: str | None = None) -> bytes:
    return frame(to_json(message), identity)


def with_token(data: str, token: str) -> bytes:
    """Returns the event of a message, in JSON without its token, with its token."""
    named = f'"resumeToken": {json.dumps(token)}'
    return frame(f"{data[:-1]}, {named}}}" if len(data) > 2 else f"{{{named}}}", token)


def error_frame(error: AdjournError) -> bytes:
    return b"event: error\n" + frame(errors.status_json(error.to_status()))


def may_mend(error: AdjournError) -> bool:
    """Tells whether waiting may help: a browser comes back by itself to a stream, never to another answer."""
    return errors.http_status(error) in (429, 503, 504)


async def disconnection(receive: Receive) -> None:
    """Returns when the other side has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` does; raises ReaderGone, with the work cancelled, if the other side leaves before."""
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    gone: asyncio.Future[None] = asyncio.ensure_future(disconnection(receive))
    both: set[asyncio.Future[Any]] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ReaderGone
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream:
    """One answer: frames of a source until it ends, keep-alives meanwhile, an error as the last event."""

    def __init__(self, source: Frames, closing: asyncio.Event) -> None:
        self.source = source
        self.closing = closing
        """Set when the gateway goes away."""

    async def serve(self, receive: Receive, send: Send) -> None:
        """Answers a request; raises AdjournError if it was refused before anything was sent."""
        with suppress(ReaderGone):
            await unless_gone(receive, self._pump(send))

    async def _pump(self, send: Send) -> None:
        async with aclosing(self.source) as source:
            pending: asyncio.Future[bytes] = asyncio.ensure_future(anext(source))
            closed = asyncio.ensure_future(self.closing.wait())
            either: set[asyncio.Future[Any]]
            opened, wait = False, OPEN_SECONDS
            try:
                while True:
                    either = {pending, closed}
                    await asyncio.wait(either, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                    chunk, last = self._next(pending, closed, opened=opened)
                    if not opened and last and not chunk:
                        await send({"type": "http.response.start", "status": 204, "headers": []})
                        await send({"type": "http.response.body", "body": b""})
                        return
                    if not opened:
                        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
                        chunk = RETRY + (b"" if chunk == KEEPALIVE else chunk)
                        opened, wait = True, KEEPALIVE_SECONDS
                    await sent(send({"type": "http.response.body", "body": chunk, "more_body": not last}))
                    if last:
                        return
                    if pending.done():
                        pending = asyncio.ensure_future(anext(source))
            finally:
                for each in (pending, closed):
                    each.cancel()
                await asyncio.gather(pending, closed, return_exceptions=True)

    def _next(
        self, pending: "asyncio.Future[bytes]", closed: "asyncio.Future[Any]", *, opened: bool
    ) -> tuple[bytes, bool]:
        """Returns what is sent next, and whether it is the last; raises AdjournError if nothing was sent yet."""
        if closed.done():  # also where there is always more
            return error_frame(ShuttingDownError("this gateway is stopping")), True
        if not pending.done():
            return KEEPALIVE, False
        try:
            return pending.result(), False
        except StopAsyncIteration:
            return b"", True
        except AdjournError as error:
            if not opened and not may_mend(error):
                raise
            return error_frame(error), True


async def sent(sending: Awaitable[None]) -> None:
    """Waits until the reader has room for what is sent; raises ReaderGone if it takes too long."""
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await sending
    except TimeoutError:
        raise ReaderGone from None
