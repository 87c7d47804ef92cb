"""One watch of the control plane for all pages that ask for the same: what comes is kept for a while, and sent to each.

A page has no queue of its own. It has a place in what is kept, and one that is too far behind for that begins again
with the jobs as they are: memory does not depend on how many read, nor on how slowly.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import structlog

from adjourn.errors import AdjournError, ControlPlaneUnreachableError, InternalError
from adjourn.web.rest import sse
from adjourn.web.rest.transcoding import to_json

log = structlog.get_logger()

KEPT_MESSAGES: Final = 4096
KEPT_BYTES: Final = 8 << 20
KEPT_SECONDS: Final = 120.0
"""How long what was sent is kept for those who come back, where there is as much room as this takes."""
PIECE_BYTES: Final = 64 << 10
"""About as much is sent at once."""
FIRST_DELAY: Final = 0.2
LAST_DELAY: Final = 2.0
LINGER_SECONDS: Final = 30.0
"""How long a watch stays without a reader: a page that is loaded again finds it."""

Upstream = Callable[[str], AsyncGenerator[Any, None]]
"""Opens the watch of the control plane, from a token on; empty: from the beginning."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that was sent, for those who come back."""

    token: str
    frame: bytes
    time: float
    """Of the event loop's clock."""


class SharedWatch:
    """What one watch has told, and how it stands. `run` follows it; any number of pages `follow` this."""

    lists: bool
    """It begins with a list of what there is."""

    def __init__(self, upstream: Upstream, *, lists: bool) -> None:
        self.lists = lists
        self.listed: dict[str, bytes] = {}
        """The newest message about each job."""
        self._upstream = upstream
        self._listing: dict[str, bytes] | None = None
        """The list that is coming in; None: none is."""
        self._kept: deque[Kept] = deque()
        self._kept_bytes = 0
        self._begin = 0
        """Number of the first message that is kept."""
        self._floor = ""
        """Token before the first message that is kept."""
        self._places: dict[str, int] = {}
        """Number of the message that follows each token."""
        self._generation = 0
        """Of the list: grows when it begins again."""
        self._token = ""
        """Newest one of upstream."""
        self._live = False
        self._failures = 0
        self._failure: AdjournError = ControlPlaneUnreachableError("the watch has not begun")
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follows the control plane, over as many streams as it takes; returns when it refuses the watch."""
        delay = FIRST_DELAY
        while True:
            came, failure = await self._one_stream()
            delay = FIRST_DELAY if came else delay
            if failure is None and came:
                continue  # a replica that goes away ends its streams: another is asked before anybody is told
            self._failure = failure or ControlPlaneUnreachableError("the control plane ends the watch")
            self._live, self._failures = False, self._failures + 1
            self._tell()
            if not sse.may_mend(self._failure):
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)

    async def _one_stream(self) -> tuple[bool, AdjournError | None]:
        """Takes in one stream of upstream; returns whether anything came, and the error that it ended with."""
        came = False
        self._listing = {} if self.lists and not self._token else None
        try:
            async for message in self._upstream(self._token):
                came = True
                self._take(message)
        except AdjournError as error:
            return came, error
        except Exception:
            log.exception("watch_failed")
            return came, InternalError("the gateway failed to read the watch; its log has the traceback")
        return came, None

    async def follow(self, token: str) -> sse.Frames:
        """Yields what follows a token; without one, or if this is kept no more, the list anew.

        A watch without a list begins with a message that has a token alone, and so does one that goes on where nothing
        was missed: it is live. Where there is no list, what is kept no more is asked for upstream, for this reader
        alone until it has caught up. Raises the error of upstream when that breaks.
        """
        await self._until_live()
        place = self._place(token) if token else None
        generation = self._generation
        if place == self._end():
            yield sse.with_token("{}", token)
        while True:
            news = self._news
            if place is None or place < self._begin or generation != self._generation:
                if token and not self.lists:
                    async with aclosing(self._missed(token)) as missed:
                        async for message in missed:
                            token = message.resume_token
                            yield sse.message_frame(message, token)
                    place = self._place(token)
                    continue
                frames = self._list(anew=bool(token))
                generation, place, token = self._generation, self._end(), self._last_token()
            else:
                found = list(islice(self._kept, place - self._begin, None))
                frames = [each.frame for each in found]
                place, token = place + len(found), found[-1].token if found else token
            for piece in pieces(frames):
                yield piece
            if not frames:
                await self._more(news)

    async def _more(self, news: asyncio.Event) -> None:
        """Waits until there is more; raises the error of upstream if there is none."""
        if not self._live:
            raise self._failure
        await news.wait()

    async def _missed(self, token: str) -> AsyncGenerator[Any, None]:
        """Yields the messages of upstream that follow a token, up to one whose place is known here."""
        async with aclosing(self._upstream(token)) as messages:
            async for message in messages:
                yield message
                if self._place(message.resume_token) is not None:
                    return
        raise ControlPlaneUnreachableError("the control plane ended the watch")

    def _list(self, *, anew: bool) -> list[bytes]:
        """Returns the list of what there is, with the token that ends it; one in place of another says so first."""
        begin = [sse.frame("{}", "")] if anew else []
        return [*begin, *self.listed.values(), sse.with_token("{}", self._last_token())]

    async def _until_live(self) -> None:
        """Waits until upstream tells something; raises its error if that fails first."""
        failures = self._failures
        while not self._live:
            if self._failures > failures:
                raise self._failure
            await self._news.wait()

    def _place(self, token: str) -> int | None:
        return self._begin if token == self._floor else self._places.get(token)

    def _end(self) -> int:
        """Returns the number of the next message."""
        return self._begin + len(self._kept)

    def _last_token(self) -> str:
        return self._kept[-1].token if self._kept else self._floor

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _take(self, message: Any) -> None:
        """Takes a message of upstream in."""
        token, message.resume_token = message.resume_token, ""
        if self.lists and not token:
            self._listing = {} if self._listing is None else self._listing
            if message.HasField("job"):
                self._listing[message.job.name] = sse.message_frame(message, "")
            return
        self._token = token
        data = to_json(message)
        if self._listing is not None:  # the list is complete; a change that is with it is one
            self.listed, self._listing = self._listing, None
            self._forget(token)
        elif not self.lists and not self._live and not self._floor:
            self._floor = token
        if data != "{}":
            self._keep(message, data, token)
        self._live = True
        self._tell()

    def _forget(self, token: str) -> None:
        """Begins anew after a token: what was kept leads nowhere."""
        self._begin = self._end()
        self._kept.clear()
        self._places.clear()
        self._kept_bytes, self._floor = 0, token
        self._generation += 1

    def _keep(self, message: Any, data: str, token: str) -> None:
        if self.lists and message.HasField("job"):
            self.listed[message.job.name] = sse.frame(data, "")
        elif self.lists:
            self.listed.pop(message.deleted, None)
        now = asyncio.get_running_loop().time()
        kept = Kept(token, sse.with_token(data, token), now)
        self._kept.append(kept)
        self._kept_bytes += len(kept.frame)
        self._places[token] = self._end()
        while self._kept and (
            len(self._kept) > KEPT_MESSAGES or self._kept_bytes > KEPT_BYTES or self._kept[0].time < now - KEPT_SECONDS
        ):
            oldest = self._kept.popleft()
            self._begin += 1
            self._kept_bytes -= len(oldest.frame)
            self._floor = oldest.token
            self._places.pop(oldest.token, None)


def pieces(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Yields frames joined to pieces."""
    joined: list[bytes] = []
    size = 0
    for each in frames:
        joined.append(each)
        size += len(each)
        if size >= PIECE_BYTES:
            yield b"".join(joined)
            joined, size = [], 0
    if joined:
        yield b"".join(joined)


class Watches:
    """The watches that pages follow now, by what they ask for. Each ends a while after its last reader."""

    def __init__(self) -> None:
        self._watches: dict[bytes, tuple[SharedWatch, asyncio.Task[None]]] = {}
        self._readers: dict[bytes, int] = {}
        self._endings: dict[bytes, asyncio.TimerHandle] = {}

    async def follow(self, key: bytes, make: Callable[[], SharedWatch], token: str) -> sse.Frames:
        """Yields what the watch of a key tells; makes it if there is none, or if it was refused."""
        watch = self._watch(key, make)
        self._readers[key] = self._readers.get(key, 0) + 1
        if ending := self._endings.pop(key, None):
            ending.cancel()
        try:
            async with aclosing(watch.follow(token)) as found:
                async for piece in found:
                    yield piece
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                self._endings[key] = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end, key)

    def __len__(self) -> int:
        return len(self._watches)

    def _watch(self, key: bytes, make: Callable[[], SharedWatch]) -> SharedWatch:
        found = self._watches.get(key)
        if found is None or found[1].done():
            watch = make()
            found = self._watches[key] = watch, asyncio.create_task(watch.run())
        return found[0]

    def _end(self, key: bytes) -> None:
        self._endings.pop(key, None)
        self._readers.pop(key, None)
        _, task = self._watches.pop(key)
        task.cancel()

    async def aclose(self) -> None:
        """Ends all of them."""
        for ending in self._endings.values():
            ending.cancel()
        tasks = [task for _, task in self._watches.values()]
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
