"""One watch of all jobs for all sockets of a gateway."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from adjourn.client import AsyncClient
from adjourn.errors import AdjournError, NotFoundError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.web.origins import happened
from adjourn.web.origins.happened import Happened, Seen

QUEUE: Final = 1000
"""News that a socket may be behind with; one that is further behind is closed."""
AGAIN_SECONDS: Final = 1.0
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Deleted:
    """A job that is gone."""

    name: str


News = Happened | Deleted


class Feed:
    """Follows all jobs for as long as somebody listens, and tells each listener what happens from then on."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._listeners: set[asyncio.Queue[News | None]] = set()
        self._seen: dict[str, Seen] = {}
        self._watching: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncGenerator[News, None]]:
        """Gives what happens from now on; it ends when the listener is too slow."""
        queue: asyncio.Queue[News | None] = asyncio.Queue(QUEUE)
        self._listeners.add(queue)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            await self._begun.wait()
            yield items(queue)
        finally:
            self._listeners.discard(queue)
            if not self._listeners:
                await self.aclose()

    async def aclose(self) -> None:
        if self._watching is not None:
            watching, self._watching = self._watching, None
            self._begun.clear()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _watch(self) -> None:
        """Goes on until cancelled, however long the control plane is away."""
        while True:
            try:
                if not self._begun.is_set():  # what was so before anybody listened is no news
                    self._seen = {
                        job.name: Seen.of(job, epoch=job.progress.epoch) async for job in self._client.list_jobs()
                    }
                    self._begun.set()
                async with aclosing(self._client.watch_jobs()) as changes:
                    async for change in changes:
                        if change.deleted:
                            self._deleted(change.deleted)
                        else:
                            await self._changed(change.job)
            except AdjournError as error:
                log.warning("jobs cannot be watched", reason=error.reason, message=error.message)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _changed(self, job: Job) -> None:
        before = self._seen.get(job.name)
        told = before.epoch if before else 0
        # A job may say how far it is before the figures of its newest epoch are there: a later change brings them.
        ended = await self._epochs(job.name, told) if job.progress.epoch > told else []
        self._seen[job.name] = Seen.of(job, epoch=max((each.epoch for each in ended), default=told))
        for each in happened.between(before, job, ended):
            self._tell(each)

    async def _epochs(self, name: str, after: int) -> list[EpochMetrics]:
        try:
            return [each async for each in self._client.list_epoch_metrics(name) if each.epoch > after]
        except NotFoundError:  # it was deleted meanwhile
            return []

    def _deleted(self, name: str) -> None:
        if self._seen.pop(name, None) is not None:
            self._tell(Deleted(name))

    def _tell(self, news: News) -> None:
        for queue in [*self._listeners]:
            try:
                queue.put_nowait(news)
            except asyncio.QueueFull:
                self._listeners.discard(queue)
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)


async def items(queue: "asyncio.Queue[News | None]") -> AsyncGenerator[News, None]:
    while (news := await queue.get()) is not None:
        yield news
