"""The newest changes of all jobs, read once for all watchers of this replica.

The tail is read when somebody asks for it, and kept for those who ask later. The record of a changed job is read when
the first watcher needs it, and is then there for all.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.job.updater import to_public
from adjourn_control_plane.store.interface import Changed, JobStore, TokenTooOld

BATCH: Final = 500
"""Changes read at a time."""
KEPT_CHANGES: Final = 5_000
KEPT_BYTES: Final = 64 << 20
"""How far the tail goes back, at most. Who is further behind reads from the store."""


def position(token: str) -> tuple[int, int]:
    """Returns the order of a token among others."""
    time, _, sequence = token.partition("-")
    return int(time), int(sequence)


class Update:
    """A change, and the job as it is since."""

    def __init__(self, change: Changed) -> None:
        self.change = change
        self.position = position(change.token)
        self.lock = asyncio.Lock()
        self.is_kept = False
        """It is in the tail."""
        self.is_read = False
        self.job: Job | None = None
        """As callers see it; None: it is gone, or was not read yet."""


class ChangeTail:
    """Keeps the newest changes."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.lock = asyncio.Lock()
        self.updates: deque[Update] = deque()
        self.bytes = 0
        self.token = ""
        """Of the newest change that was read; empty: none was."""
        self.floor = (0, 0)
        """Everything after this position is kept."""
        self.generation = 0
        """Grows when the tail begins anew. A token that was good before must be shown to the store again."""
        self.read_time = 0.0

    async def after(self, token: str) -> Sequence[Update] | None:
        """Returns the changes after a token that the store knows; None if the tail does not go back so far."""
        await self.catch_up()
        start = position(token)
        if start < self.floor:
            return None
        found: list[Update] = []
        for update in reversed(self.updates):
            if update.position <= start:
                break
            found.append(update)
        return found[::-1]

    async def catch_up(self) -> None:
        """Reads what is new, unless somebody has begun to do so since this was called, and come to the end."""
        asked = asyncio.get_running_loop().time()
        async with self.lock:
            if self.read_time > asked:
                return
            began = asyncio.get_running_loop().time()
            if not self.token:
                await self.begin()
            try:
                while changes := await self.store.changes(self.token, size=BATCH):
                    self.keep(changes)
                    self.token = changes[-1].token
                    self.trim()
            except TokenTooOld:
                self.generation += 1
                await self.begin()
            self.read_time = began  # who left, or found the store away, has read for nobody

    def keep(self, changes: Sequence[Changed]) -> None:
        for change in changes:
            update = Update(change)
            update.is_kept = True
            self.updates.append(update)

    async def begin(self) -> None:
        """Starts from now."""
        self.token = await self.store.latest_token()
        for update in self.updates:
            update.is_kept = False
        self.updates.clear()
        self.bytes = 0
        self.floor = position(self.token)

    async def read(self, update: Update) -> Job | None:
        """Returns the job as it is since a change; None if it is gone."""
        async with update.lock:
            if not update.is_read:
                stored = await self.store.get(update.change.job)
                update.job = to_public(stored.record) if stored else None
                update.is_read = True
                if update.is_kept:
                    self.bytes += size(update)
                    self.trim()
        return update.job

    def trim(self) -> None:
        """Forgets the oldest changes beyond what is kept."""
        while len(self.updates) > KEPT_CHANGES or (self.updates and self.bytes > KEPT_BYTES):
            oldest = self.updates.popleft()
            oldest.is_kept = False
            self.bytes -= size(oldest)
            self.floor = oldest.position


def size(update: Update) -> int:
    return update.job.ByteSize() if update.job is not None else 0
