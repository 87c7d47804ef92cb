"""WebSockets of the origins: one client each, told what happens to one job or to all."""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from adjourn.client import AsyncClient
from adjourn.errors import AdjournError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn.web.origins import figures
from adjourn.web.origins.feed import Deleted, Feed, News, TooSlowError

HEARTBEAT_SECONDS: Final = 30.0
TOO_SLOW: Final = 1013
"""Close code: try again later."""
UNKNOWN_JOB: Final = 4404
"""Close code of an application: there is no such job."""
SAMPLE_AGE: Final = timedelta(seconds=30)

Frame = dict[str, Any]


class Dialect(Protocol):
    """How an origin words what its sockets tell."""

    needs_samples: bool
    """Frames have resources in use."""

    def connected(self, job: Job | None) -> Iterable[Frame]: ...
    def heartbeat(self) -> Frame: ...
    def pong(self, text: str) -> Frame | None:
        """Returns the answer to a message of the client; None: there is none."""

    def frames(self, news: News, sample: ResourceSample | None) -> Iterable[Frame]: ...


class Socket:
    """Serves one client from its first frame until it goes, or is too slow."""

    def __init__(self, client: AsyncClient, feed: Feed, dialect: Callable[[bool], Dialect]) -> None:
        self._client = client
        self._feed = feed
        self._dialect = dialect

    async def all_jobs(self, socket: WebSocket) -> None:
        await socket.accept()
        await self._serve(socket, None, self._dialect(True))

    async def one_job(self, socket: WebSocket) -> None:
        await socket.accept()
        await self._serve(socket, f"jobs/{socket.path_params['job_id']}", self._dialect(False))

    async def _serve(self, socket: WebSocket, name: str | None, dialect: Dialect) -> None:
        telling = asyncio.create_task(self._tell(socket, name, dialect))
        beating = asyncio.create_task(beat(socket, dialect))
        hearing = asyncio.create_task(hear(socket, dialect))
        try:
            done, _ = await asyncio.wait({telling, hearing, beating}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (WebSocketDisconnect, RuntimeError):  # Starlette's error for a send after the client has gone
            return
        finally:
            for task in (telling, hearing, beating):
                task.cancel()
            await asyncio.gather(telling, hearing, beating, return_exceptions=True)

    async def _tell(self, socket: WebSocket, name: str | None, dialect: Dialect) -> None:
        async with self._feed.listen() as news:
            try:
                job = await self._client.get_job(name) if name else None
            except AdjournError as error:
                await socket.close(UNKNOWN_JOB, error.message[:120])
                return
            for frame in dialect.connected(job):
                await send(socket, frame)
            try:
                async for each in news:
                    if name in (None, name_of(each)):
                        sample = await self._sample(name) if name and dialect.needs_samples else None
                        for frame in dialect.frames(each, sample):
                            await send(socket, frame)
            except TooSlowError:
                await socket.close(TOO_SLOW, "too slow: connect again")

    async def _sample(self, name: str) -> ResourceSample | None:
        """Returns the newest sample of resources in use; None if none is new enough, or none can be had just now."""
        with suppress(AdjournError):
            start = datetime.now(UTC) - SAMPLE_AGE
            return next(reversed(await self._client.list_resource_samples(name, start=start)), None)
        return None


def name_of(news: News) -> str:
    return news.name if isinstance(news, Deleted) else news.job.name


async def send(socket: WebSocket, frame: Frame) -> None:
    await socket.send_text(json.dumps(frame, allow_nan=False, ensure_ascii=False))


async def beat(socket: WebSocket, dialect: Dialect) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        await send(socket, dialect.heartbeat())


async def hear(socket: WebSocket, dialect: Dialect) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect
        answer = dialect.pong(message.get("text") or "")
        if answer is not None:
            await send(socket, answer)


def now() -> str:
    return figures.iso(datetime.now(UTC))
