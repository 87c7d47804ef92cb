"""Keeps the processes of a stack running: one that ends is started again, after a backoff."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

from adjourn.local.child import Child, ChildError, Program

WATCH_SECONDS: Final = 0.2
BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Before each restart of a process that keeps ending."""
HEALTHY_SECONDS: Final = 30.0
"""After so long a life, its end counts as the first one again."""


@dataclass(slots=True)
class Watched:
    """A child that got ready once, and is to stay."""

    child: Child
    ends: int = 0
    due: float | None = None
    """When to start it again, by time.monotonic(); None while it runs."""


@dataclass(slots=True)
class LauncherClient:
    """Starts, watches and stops children."""

    report: Callable[[str], None]
    children: dict[str, Child] = field(default_factory=dict, init=False)
    _watched: dict[str, Watched] = field(default_factory=dict, init=False)

    async def start(self, program: Program) -> None:
        """Starts a program and returns when it is ready; raises ChildError. From then on it is kept running."""
        child = self.children.setdefault(program.name, Child(program))
        child.start()
        await child.until_ready()
        self._watched[program.name] = Watched(child)

    def release(self, name: str) -> None:
        """Lets the child end."""
        self._watched.pop(name, None)

    def revive(self, name: str) -> None:
        """Has a child that was released started again."""
        self._watched[name] = Watched(self.children[name], due=time.monotonic())

    async def watch(self) -> None:
        """Never returns."""
        while True:
            for name, watched in self._watched.items():
                self._look_after(name, watched)
            await asyncio.sleep(WATCH_SECONDS)

    def _look_after(self, name: str, watched: Watched) -> None:
        now = time.monotonic()
        if watched.child.pid is not None:
            return
        if watched.due is None:
            if now - watched.child.started > HEALTHY_SECONDS:
                watched.ends = 0
            backoff = BACKOFF_SECONDS[min(watched.ends, len(BACKOFF_SECONDS) - 1)]
            watched.ends += 1
            watched.due = now + backoff
            self.report(f"{name} {watched.child.ending()}, starts again in {backoff:g} s")
            if watched.ends > 1:
                self.report(f"{name} last wrote: {watched.child.last_words()}")
        elif now >= watched.due:
            watched.due = None
            watched.child.start()

    async def stop(self, names: set[str], hurry: asyncio.Event) -> None:
        """Ends these children, all at the same time."""
        for name in names:
            self.release(name)
        await asyncio.gather(*(self.children[name].stop(hurry) for name in names & self.children.keys()))


async def together(*work: Coroutine[None, None, None]) -> None:
    """Runs all; the first error ends the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* ChildError as errors:
        raise errors.exceptions[0] from None
