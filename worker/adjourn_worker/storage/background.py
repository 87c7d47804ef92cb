"""Work for storage beside training, which must not slow it: in threads that the system puts last, and with rests.

Threads alone do not do: nice values count within a control group, and within a session where the kernel groups
processes by session (sched_autogroup(7)), and the S3 server may be on this machine too. So the waits of training are
looked at as well. Once nobody trains, or somebody waits for the work, it is done elsewhere, at full speed: see
`PartStore.beside`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from adjourn.objects import ObjectStore
from adjourn_worker.host.kernel import yield_to_others
from adjourn_worker.host.waits import Waits
from adjourn_worker.storage.rests import Rests

THREADS: Final = 2
"""For hashing and files. More would keep more processors from training."""
LOOK_SECONDS: Final = 0.02
"""Least time between two looks at the waits of training."""
SLICE_SECONDS: Final = 0.1
"""Longest rest until it is looked again whether it has to go on."""


class Background:
    """Where work beside training is done. Lives as long as the agent."""

    def __init__(self, objects: ObjectStore, training: Callable[[], Iterable[int]]) -> None:
        """`objects` has threads of low priority; `training` returns the pids of training processes."""
        self.objects = objects
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="background", initializer=yield_to_others)
        self._training = training
        self._waits = Waits()
        self._rests = Rests()
        self._looked_at = 0.0
        self._at_work = 0
        self._resting = False
        self._one_rests = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, beside: Callable[[], bool]) -> AsyncIterator[None]:
        """Lets work begin: at once if training hardly waits, or does not go on `beside` it; else after a rest."""
        async with self._one_rests:
            await self._rest(beside)
        self._look()
        self._at_work += 1
        try:
            yield
        finally:
            self._look()
            self._at_work -= 1

    async def _rest(self, beside: Callable[[], bool]) -> None:
        self._look()
        self._resting = True
        try:
            while beside() and (due := self._rests.due) > 0:
                await asyncio.sleep(min(due, SLICE_SECONDS))
                self._look()
        finally:
            self._resting = False

    def _look(self) -> None:
        """Notes how long training has waited since the last look, unless nothing was going on."""
        now = asyncio.get_running_loop().time()
        seconds, going_on = now - self._looked_at, self._at_work > 0 or self._resting
        if going_on and seconds < LOOK_SECONDS:
            return
        waited = self._waits.added(self._training())
        self._looked_at = now
        if going_on:
            self._rests.saw(seconds, waited, working=self._at_work > 0)
