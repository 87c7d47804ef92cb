"""Wakes waiting streams when something changed. A notification may be missed: who waits also looks again without."""

import asyncio
import contextlib
from collections.abc import Iterator

from adjourn import errors
from adjourn_control_plane.store.interface import JobStore


class Notifier:
    """Passes the store's notifications on to the subscriptions of this process."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.subscriptions: dict[asyncio.Event, str] = {}
        self.closed = False
        self.arrivals = 0
        """Grows when a worker came or went, or when that may have been missed."""

    async def run(self) -> None:
        """Passes notifications on for ever."""
        async for job, worker in self.store.notifications():
            if worker and not job:
                self.arrivals += 1
            self.notify(worker)

    def notify(self, worker: str) -> None:
        """Sets the subscriptions of a worker and those to everything; for "", all of them."""
        if not worker:
            self.arrivals += 1
        for subscription, topic in self.subscriptions.items():
            if not worker or topic in ("", worker):
                subscription.set()

    @contextlib.contextmanager
    def subscription(self, worker: str = "") -> Iterator[asyncio.Event]:
        """Returns an event that is set when one worker's jobs change, or, for "", when any job does."""
        subscription = asyncio.Event()
        self.subscriptions[subscription] = worker
        try:
            yield subscription
        finally:
            del self.subscriptions[subscription]

    async def wait(self, subscription: asyncio.Event, seconds: float) -> bool:
        """Waits for an event; False if it was not set in time. Raises ShuttingDownError when this process drains."""
        try:
            async with asyncio.timeout(seconds):
                await subscription.wait()
        except TimeoutError:
            was_set = False
        else:
            was_set = True
        subscription.clear()
        self.check_open()
        return was_set

    def check_open(self) -> None:
        """Raises ShuttingDownError when this process drains."""
        if self.closed:
            raise errors.ShuttingDownError("this control plane is shutting down; reconnect")

    def close(self) -> None:
        """Ends every stream that waits."""
        self.closed = True
        self.notify("")
