"""Delivers events to the sink: all of them, in the order in which they happened, each until it is taken.

The queue is the store's stream of events, with the place up to which they were delivered. One replica at a time
delivers, as long as it keeps a lease in the store. A replica that loses it between a request and the note of it leaves
one event that is sent again: the sink has it at least once, under the same id.

An event that is not taken holds up those behind it, of all jobs: nobody sees PAUSED before PAUSE_REQUESTED. A sink that
is away, fails or refuses us is tried again for as long as it takes. Only an event that it refuses for itself
(`sink.REFUSED`), REFUSALS times, is left out and logged.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

import structlog

from adjourn.errors import StoreUnavailableError
from adjourn_control_plane.fleet import rounds
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Happened, JobStore, TokenTooOld
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.webhooks import message
from adjourn_control_plane.webhooks.sink import HttpSink, Sink

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=60)
"""Longer than a try and the longest wait after it."""
LOOK_SECONDS: Final = 2.0
"""How often to look without a notification, and for the lease of a replica that is gone."""
FIRST_DELAY: Final = 0.5
LAST_DELAY: Final = 20.0
"""Seconds between two tries; doubled from the first to the last."""
BATCH: Final = 100
REFUSALS: Final = 3


def utc_now() -> datetime:
    return datetime.now(UTC)


class Deliveries:
    """Delivers while it is run; any number of replicas may."""

    def __init__(
        self,
        store: JobStore,
        notifier: Notifier,
        sink: Sink,
        secret: bytes,
        *,
        now: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self.notifier = notifier
        self.sink = sink
        self.secret = secret
        self.holder = uuid4().hex
        self._now = now
        self._sleep = sleep

    async def run(self) -> None:
        """Delivers until cancelled; then another replica may at once."""
        try:
            with self.notifier.subscription() as subscription:
                while True:
                    await rounds.attempt("webhooks", self.deliver)
                    await self.notifier.wait(subscription, LOOK_SECONDS)
        finally:
            with suppress(StoreUnavailableError):
                await self.store.release_delivery(self.holder)

    async def deliver(self) -> None:
        """Delivers all that waits; nothing, if another replica does."""
        while (token := await self.store.hold_delivery(self.holder, LEASE)) is not None:
            if not token:  # the first time of all: from now on
                await self.store.note_delivered(self.holder, await self.store.latest_event_token())
                continue
            for happened in (waiting := await self.waiting(token)):
                if not await self.took(happened):
                    return
            if not waiting:
                return

    async def waiting(self, token: str) -> list[Happened]:
        """Returns the next events; of those that are kept no more it only says so."""
        try:
            return await self.store.happened(token, size=BATCH)
        except TokenTooOld:
            log.critical("webhook_events_lost", why="the sink was away for longer than events are kept", after=token)
            found = await self.store.happened("", size=BATCH)
            if not found:
                await self.store.note_delivered(self.holder, await self.store.latest_event_token())
            return found

    async def took(self, happened: Happened) -> bool:
        """Sends an event until it is taken, or refused for good; False if another replica has the lease by then."""
        identity, data = message.identifier(happened), message.body(happened)
        tries, refusals, delay = 0, 0, FIRST_DELAY
        while True:
            answer = await self.sink.post(data, message.headers(identity, data, self.secret, self._now()))
            tries += 1
            refusals += answer.refused
            if answer.taken or refusals >= REFUSALS:
                break
            if tries == 1:
                log.warning("webhook_waits", problem=answer.problem, id=identity)
            await self._sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - spreads tries, guards nothing
            delay = min(2 * delay, LAST_DELAY)
            if await self.store.hold_delivery(self.holder, LEASE) is None:
                return False
        if not answer.taken:
            log.error("webhook_refused", job=happened.job, id=identity, problem=answer.problem)
        elif tries > 1:
            log.info("webhook_works", id=identity, tries=tries)
        return await self.store.note_delivered(self.holder, happened.token)


async def deliver(settings: Settings, store: JobStore, notifier: Notifier) -> None:
    """Delivers to the sink of the settings until cancelled; returns at once if there is none."""
    if settings.webhook_url:
        sink = HttpSink(settings.webhook_url)
        try:
            await Deliveries(store, notifier, sink, settings.webhook_secret).run()
        finally:
            sink.close()
