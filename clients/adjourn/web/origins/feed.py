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


class TooSlowError(Exception):
    """A listener is too far behind with the news."""


News = Happened | Deleted


class Feed:
    """Follows all jobs for as long as somebody listens, and tells each listener what happens from then on."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._listeners: set[asyncio.Queue[News | BaseException]] = set()
        self._seen: dict[str, Seen] = {}
        self._watching: asyncio.Task[None] | None = None
        self._begun: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncGenerator[News, None]]:
        """Gives what happens from now on, which raises TooSlowError; waits while the control plane is away."""
        queue: asyncio.Queue[News | BaseException] = asyncio.Queue(QUEUE)
        self._listeners.add(queue)
        if self._watching is None or self._begun is None:
            self._begun = asyncio.get_running_loop().create_future()
            self._watching = asyncio.create_task(self._watch(self._begun))
            self._watching.add_done_callback(self._failed)
        try:
            await asyncio.shield(self._begun)
            yield items(queue)
        finally:
            self._listeners.discard(queue)
            if not self._listeners:
                await self.aclose()

    async def aclose(self) -> None:
        if self._watching is not None:
            watching, self._watching = self._watching, None
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    def _failed(self, watching: asyncio.Task[None]) -> None:
        """Tells all who listen of a fault of the watch, which goes on until it is cancelled."""
        if watching.cancelled() or (error := watching.exception()) is None:
            return
        log.error("jobs_not_watched", exc_info=error)
        self._watching = None
        if self._begun is not None and not self._begun.done():
            self._begun.set_exception(error)
        for queue in [*self._listeners]:
            self._end(queue, error)

    async def _watch(self, begun: asyncio.Future[None]) -> None:
        """Goes on until cancelled, however long the control plane is away."""
        while True:
            try:
                if not begun.done():  # what was so before anybody listened is no news
                    self._seen = {
                        job.name: Seen.of(job, epoch=job.progress.epoch) async for job in self._client.list_jobs()
                    }
                    begun.set_result(None)
                async with aclosing(self._client.watch_jobs()) as changes:
                    async for change in changes:
                        if change.deleted:
                            self._deleted(change.deleted)
                        else:
                            await self._changed(change.job)
            except AdjournError as error:
                log.warning("jobs_not_watched", reason=error.reason, message=error.message)
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
                self._end(queue, TooSlowError())

    def _end(self, queue: "asyncio.Queue[News | BaseException]", why: BaseException) -> None:
        self._listeners.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(why)


async def items(queue: "asyncio.Queue[News | BaseException]") -> AsyncGenerator[News, None]:
    while not isinstance(news := await queue.get(), BaseException):
        yield news
    raise news
