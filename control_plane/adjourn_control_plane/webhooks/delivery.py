"""Delivers events to the sink: all of them, those of a job in the order in which they happened, each until it is taken.

The queue is the store's stream of events, with the place up to which they were delivered. One replica at a time
delivers, as long as it keeps a lease in the store. What a replica has delivered behind that place when it loses the
lease is sent again: the sink has it at least once, under the same id.

An event that is not taken holds up those of its job, and not those of others (`queues.py`). A sink that is away, fails
or refuses us is tried again for as long as it takes. An event that it refuses for itself (`sink.REFUSED`), or will not
have while it takes thousands of other jobs, is left out and logged.
"""

import random
from collections.abc import Callable
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
from adjourn_control_plane.webhooks.queues import Queues
from adjourn_control_plane.webhooks.sink import HttpSink, Sink

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=60)
"""Longer than a try and the longest wait after it."""
LOOK_SECONDS: Final = 2.0
"""How often to look without a notification, and for the lease of a replica that is gone."""
BATCH: Final = 100


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
    ) -> None:
        self.store = store
        self.notifier = notifier
        self.sink = sink
        self.secret = secret
        self.holder = uuid4().hex
        self.wait = LOOK_SECONDS
        """Seconds after which to look again, without a notification."""
        self._queues: Queues | None = None
        self._now = now

    async def run(self) -> None:
        """Delivers until cancelled; then another replica may at once."""
        try:
            with self.notifier.subscription() as subscription:
                while True:
                    self.wait = LOOK_SECONDS
                    await rounds.attempt("webhooks", self.deliver)
                    await self.notifier.wait(subscription, self.wait)
        finally:
            with suppress(StoreUnavailableError):
                await self.store.release_delivery(self.holder)

    async def deliver(self) -> None:
        """Delivers all that can be now, and sets `wait`; nothing, if another replica does."""
        while (token := await self.store.hold_delivery(self.holder, LEASE)) is not None:
            if not token:  # the first time of all: from now on
                await self.store.note_delivered(self.holder, await self.store.latest_event_token())
                continue
            if self._queues is None or self._queues.delivered != token:  # another has delivered meanwhile
                self._queues = Queues(token)
            await self.read_on(self._queues)
            happened = self._queues.next(self._now())
            if happened is not None:
                await self.send(self._queues, happened)
            if self._queues.delivered != token:
                await self.store.note_delivered(self.holder, self._queues.delivered)
            if happened is None:
                self.wait = self._queues.wait(self._now(), LOOK_SECONDS)
                return

    async def read_on(self, queues: Queues) -> None:
        """Reads the next events, if none waits; of those that are kept no more it only says so."""
        if not queues.wants_more:
            return
        try:
            found = await self.store.happened(queues.read, size=BATCH)
        except TokenTooOld:
            why = "the sink was away for longer than events are kept"
            log.critical("webhook_events_lost", why=why, after=queues.read)
            found = await self.store.happened("", size=BATCH)
            if not found:
                queues.skip(await self.store.latest_event_token())
        for happened in found:
            queues.add(happened)

    async def send(self, queues: Queues, happened: Happened) -> None:
        """Sends an event once, and notes what became of it."""
        identity, data = message.identifier(happened), message.body(happened)
        answer = await self.sink.post(data, message.headers(identity, data, self.secret, self._now()))
        tries = queues.tries(happened)
        if answer.taken:
            queues.took(happened)
            if tries:
                log.info("webhook_works", id=identity, tries=tries + 1)
            return
        jitter = random.uniform(0.5, 1)  # noqa: S311 - spreads tries, guards nothing
        if queues.failed(happened, self._now(), refused=answer.refused, jitter=jitter):
            log.error("webhook_refused", job=happened.job, id=identity, problem=answer.problem)
        elif not tries:
            log.warning("webhook_waits", problem=answer.problem, id=identity)


async def deliver(settings: Settings, store: JobStore, notifier: Notifier) -> None:
    """Delivers to the sink of the settings until cancelled; returns at once if there is none."""
    if settings.webhook_url:
        sink = HttpSink(settings.webhook_url)
        try:
            await Deliveries(store, notifier, sink, settings.webhook_secret).run()
        finally:
            sink.close()
