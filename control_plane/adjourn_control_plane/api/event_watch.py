"""Follows the stream of events for WatchEvents: each event once, in order, from a token or from now on."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from adjourn import errors
from adjourn.v1.job_service_pb2 import WatchEventsRequest, WatchEventsResponse
from adjourn_control_plane.api.watch import KEEPALIVE_SECONDS, LOOK_SECONDS
from adjourn_control_plane.store.interface import Happened, JobStore, TokenTooOld
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.store.redis_codec import is_token

BATCH: Final = 500
"""Events read at a time."""
KEPT: Final = 2_000
"""Events that are kept for watchers. Who is further behind reads from the store."""


class EventTail:
    """The newest events of all jobs, read once for all watchers of this replica."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.lock = asyncio.Lock()
        self.events: deque[Happened] = deque()
        self.token = ""
        """Of the newest event that was read; empty: nothing was read yet."""
        self.floor = ""
        """Token after which everything is kept."""
        self.read_time = 0.0

    async def after(self, token: str) -> Sequence[Happened]:
        """Returns events after a token, oldest first, a batch at most; raises TokenTooOld."""
        await self.catch_up()
        if token == self.token:
            return []
        later: list[Happened] = []
        for happened in reversed(self.events):
            if happened.token == token:
                break
            later.append(happened)
        else:
            if token != self.floor:
                return await self.store.happened(token, size=BATCH)
        return later[: -BATCH - 1 : -1]

    async def catch_up(self) -> None:
        """Reads what is new, unless somebody has begun to do so since this was called, and come to the end."""
        asked = time.monotonic()
        async with self.lock:
            if self.read_time > asked:
                return
            began = time.monotonic()
            try:
                if not self.token:
                    self.token = self.floor = await self.store.latest_event_token()
                while found := await self.store.happened(self.token, size=BATCH):
                    self.events.extend(found)
                    self.token = found[-1].token
                    while len(self.events) > KEPT:
                        self.floor = self.events.popleft().token
            except TokenTooOld:  # the store has another past by now
                self.events.clear()
                self.token = self.floor = await self.store.latest_event_token()
            self.read_time = began  # who left, or found the store away, has read for nobody


class EventWatch:
    """Serves the watchers of events of this replica."""

    def __init__(self, store: JobStore, notifier: Notifier) -> None:
        self.store = store
        self.notifier = notifier
        self.tail = EventTail(store)

    async def follow(self, request: WatchEventsRequest) -> AsyncGenerator[WatchEventsResponse, None]:
        """Yields matching events for ever; raises InvalidRequestError, and ShuttingDownError when this process drains.

        What matches nothing moves the token of the next message on.
        """
        token = request.resume_token
        if token and not is_token(token):
            raise errors.InvalidRequestError({"resume_token": "must be the last one received, or empty"})
        with self.notifier.subscription() as subscription:
            if not token:
                token = await self.store.latest_event_token()
                yield WatchEventsResponse(resume_token=token)
            spoken = -math.inf if request.resume_token else time.monotonic()  # who comes back hears that it is live
            while True:
                self.notifier.check_open()  # somebody for whom there is always more must not hold up a drain
                try:
                    found = await self.tail.after(token)
                except TokenTooOld:  # a stream that breaks before the next token is told of the gap again
                    found = await self.store.happened("", size=BATCH)
                    token = token if found else await self.store.latest_event_token()
                    yield WatchEventsResponse(gap=True, resume_token=token)
                    spoken = time.monotonic()
                for happened in found:
                    token = happened.token
                    if matches(request, happened):
                        yield WatchEventsResponse(
                            job=happened.job, job_uid=happened.uid, event=happened.event, resume_token=token
                        )
                        spoken = time.monotonic()
                if found:
                    continue
                if time.monotonic() - spoken >= KEEPALIVE_SECONDS:
                    yield WatchEventsResponse(resume_token=token)
                    spoken = time.monotonic()
                await self.notifier.wait(subscription, LOOK_SECONDS)


def matches(request: WatchEventsRequest, happened: Happened) -> bool:
    """Tells whether a watcher wants to see an event."""
    named = not request.names or happened.job in request.names
    typed = not request.types or happened.event.type in request.types
    return named and typed and all(happened.labels.get(key) == value for key, value in request.labels.items())
