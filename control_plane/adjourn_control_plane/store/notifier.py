"""Tells waiting streams that something changed. Hints only: whoever waits also looks again by itself."""

import asyncio
import contextlib
from collections.abc import Iterator

from adjourn import errors
from adjourn_control_plane.store.interface import JobStore


class Notifier:
    """Spreads the store's hints over the bells of this process."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.subscriptions: dict[asyncio.Event, str] = {}
        self.closed = False
        self.arrivals = 0
        """Grows when a worker came or went, or when that may have been missed."""

    async def run(self) -> None:
        """Rings bells for ever."""
        async for job, worker in self.store.notifications():
            if worker and not job:
                self.arrivals += 1
            self.notify(worker)

    def notify(self, worker: str) -> None:
        """Rings the bells of a worker, and those that listen to everything; all of them for ""."""
        if not worker:
            self.arrivals += 1
        for subscription, topic in self.subscriptions.items():
            if not worker or topic in ("", worker):
                subscription.set()

    @contextlib.contextmanager
    def subscription(self, worker: str = "") -> Iterator[asyncio.Event]:
        """Hands out a bell that rings for one worker's jobs, or for all jobs."""
        subscription = asyncio.Event()
        self.subscriptions[subscription] = worker
        try:
            yield subscription
        finally:
            del self.subscriptions[subscription]

    async def wait(self, subscription: asyncio.Event, seconds: float) -> bool:
        """Waits for the bell; False if it did not ring in time. Raises ShuttingDownError when this process drains."""
        try:
            async with asyncio.timeout(seconds):
                await subscription.wait()
        except TimeoutError:
            rang = False
        else:
            rang = True
        subscription.clear()
        if self.closed:
            raise errors.ShuttingDownError("this control plane is shutting down; reconnect")
        return rang

    def close(self) -> None:
        """Ends every stream that waits."""
        self.closed = True
        self.notify("")
