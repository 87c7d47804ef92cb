"""Keeps the processes of a stack running: starts one that ended again, after a backoff."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

from adjourn.local.managed_process import ManagedProcess, Program, ProgramError

WATCH_SECONDS: Final = 0.2
BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Wait before each restart of a process that keeps ending."""
HEALTHY_SECONDS: Final = 30.0
"""A process that ran this long starts over with the shortest backoff."""


@dataclass(slots=True)
class Watched:
    """A process that was ready once and must keep running."""

    process: ManagedProcess
    ends: int = 0
    due: float | None = None
    """When to start it again, by time.monotonic(); None while it runs."""
    coming: asyncio.Task[None] | None = None
    """Waits until it is ready again after a restart, and says so."""


@dataclass(slots=True)
class ProcessSupervisor:
    """Starts, watches and stops processes."""

    report: Callable[[str], None]
    processes: dict[str, ManagedProcess] = field(default_factory=dict, init=False)
    _watched: dict[str, Watched] = field(default_factory=dict, init=False)

    async def start(self, program: Program) -> None:
        """Starts a program and returns when it is ready; raises ProgramError. From then on it is kept running."""
        process = self.processes.setdefault(program.name, ManagedProcess(program))
        process.start()
        await process.until_ready()
        self._watched[program.name] = Watched(process)

    def release(self, name: str) -> None:
        """Stops watching a process: its end is no longer followed by a restart."""
        watched = self._watched.pop(name, None)
        if watched and watched.coming:
            watched.coming.cancel()

    def revive(self, name: str) -> None:
        """Starts a released process again, at the next look, and watches it."""
        self._watched[name] = Watched(self.processes[name], due=time.monotonic())

    async def watch(self) -> None:
        """Restarts processes that end; never returns."""
        while True:
            for name, watched in self._watched.items():
                self._check(name, watched)
                watched.process.bound_log()
            await asyncio.sleep(WATCH_SECONDS)

    def _check(self, name: str, watched: Watched) -> None:
        now = time.monotonic()
        if watched.process.pid is not None:
            return
        if watched.due is None:
            if now - watched.process.started > HEALTHY_SECONDS:
                watched.ends = 0
            backoff = BACKOFF_SECONDS[min(watched.ends, len(BACKOFF_SECONDS) - 1)]
            watched.ends += 1
            watched.due = now + backoff
            self.report(f"{name} {watched.process.ending()}, starts again in {backoff:g} s")
            if watched.ends > 1:
                self.report(f"{name} last wrote: {watched.process.last_line()}")
        elif now >= watched.due:
            watched.due = None
            watched.process.start()
            if watched.coming:
                watched.coming.cancel()
            if watched.ends:
                watched.coming = asyncio.create_task(self._tell_when_ready(name, watched.process))

    async def _tell_when_ready(self, name: str, process: ManagedProcess) -> None:
        try:
            await process.until_ready()
        except ProgramError as error:
            if process.pid is not None:  # one that has ended is told of when it is started again
                self.report(str(error))
        else:
            self.report(f"{name} works again, {time.monotonic() - process.started:.1f} s after its start")

    async def stop(self, names: set[str], hurry: asyncio.Event) -> None:
        """Ends these processes at the same time."""
        for name in names:
            self.release(name)
        await asyncio.gather(*(self.processes[name].stop(hurry) for name in names & self.processes.keys()))


async def together(*work: Coroutine[None, None, None]) -> None:
    """Runs all at the same time. The first ProgramError cancels the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except* ProgramError as errors:
        raise errors.exceptions[0] from None
