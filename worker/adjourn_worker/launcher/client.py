"""The agent's side of the launcher: asks it, replaces it when it dies, and cleans up after one that died.

Training processes whose launcher died are nobody's children: no one would learn how they end, and the same attempt
might be started beside them. So they are ended before anything else runs.
"""

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import structlog

from adjourn.internal.v1.trainer_pb2 import (
    Kill,
    Launch,
    LauncherRequest,
    LauncherResponse,
    ListProcesses,
    Shutdown,
    TrainingProcess,
)
from adjourn_worker.attempt import files
from adjourn_worker.host.notify import ring
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.link import LauncherConnection, LauncherGone
from adjourn_worker.launcher.server import ENTRY
from adjourn_worker.launcher.start import LauncherFailed, find, find_or_start, kill_holder, until_gone
from adjourn_worker.paths import WorkerPaths

START_SECONDS: Final = 90.0
"""Importing torch from a cold disk takes a while."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class LaunchRefused(Exception):
    """The launcher cannot do what it was asked; the text says why."""


class LauncherClient:
    """The launcher of a data directory, whichever process that is. `async with` it; leaving lets the launcher live."""

    def __init__(
        self, paths: WorkerPaths, environment: Mapping[str, str], *, entry: str = ENTRY, patience: float = START_SECONDS
    ) -> None:
        self._places = paths
        self._environment = environment
        self._entry = entry
        self._patience = patience
        self._link: LauncherConnection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = asyncio.Lock()
        self._over = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._link:
            self._link.close()
        if self._child and self._child.poll() is None:
            self._child.returncode = 0  # it is meant to outlive us; keeps Popen from warning of that

    async def start(self) -> None:
        """Makes sure that a launcher is there, and that nothing runs which it does not know; raises LauncherFailed."""
        async with self._turn:
            if self._over:
                raise LauncherFailed("the launcher was shut down")
            if self._link and not self._link.lost.is_set():
                return
            link, child = await find_or_start(self._places, self._environment, self._entry, self._patience)
            if child:
                if self._child:
                    self._child.wait()  # the earlier one is gone, or this one would not have its lock
                self._child = child
            await self._end_orphans(link)
            self._link = link

    async def keep(self) -> None:
        """Replaces the launcher whenever it dies; returns after `shutdown`. Raises LauncherFailed."""
        while not self._over:
            try:
                link = await self._living()
                await link.lost.wait()
                if not self._over:
                    log.warning("launcher_lost")
            except LauncherGone as error:  # it died while it was greeted
                log.warning("launcher_lost", error=str(error))
            except LauncherFailed:
                if not self._over:
                    raise

    async def launch(self, directory: Path, nonce: str) -> TrainingProcess:
        """Starts the training process of an attempt, or returns the one it has or had; raises LaunchRefused."""
        await self._ask(LauncherRequest(launch=Launch(directory=str(directory), nonce=nonce)))
        process = files.read_process(directory)
        if process is None:
            raise LaunchRefused(f"{directory} has no process, and has ended")
        return process

    async def kill(self, directory: Path) -> None:
        """SIGKILLs the training process of an attempt and all it started; its `exit` follows."""
        await self._ask(LauncherRequest(kill=Kill(directory=str(directory))))

    async def processes(self) -> list[TrainingProcess]:
        """Returns the training processes whose end is not yet recorded."""
        return list((await self._ask(LauncherRequest(list=ListProcesses()))).processes)

    async def exit_lost(self, process: TrainingProcess) -> bool:
        """Tells whether a process is gone and nobody saw it end: its launcher had died, so no `exit` will come."""
        if process_tree.alive(process) or process in await self.processes():
            return False
        return files.read_exit(Path(process.directory)) is None

    async def shutdown(self) -> None:
        """Ends all training, and the launcher; returns when it is gone. Starts none to do so."""
        self._over = True
        async with self._turn:
            if link := await find(self._places):
                try:
                    await link.ask(LauncherRequest(shutdown=Shutdown()))
                except LauncherGone as error:
                    log.warning("launcher_lost", error=str(error))
                link.close()
            else:
                kill_holder(self._places)  # it hangs, or has not begun to listen and so has nothing to end
            await until_gone(self._places)
            if self._child:
                self._child.wait()
            await asyncio.to_thread(end_orphans, self._places, [])

    async def _end_orphans(self, link: LauncherConnection) -> None:
        known = (await link.ask(LauncherRequest(list=ListProcesses()))).processes
        if await asyncio.to_thread(end_orphans, self._places, known):
            ring(str(self._places.notify_socket))

    async def _ask(self, request: LauncherRequest) -> LauncherResponse:
        """Asks, and if the launcher dies under it asks the next one: every request may be repeated."""
        try:
            try:
                answer = await (await self._living()).ask(request)
            except LauncherGone:
                answer = await (await self._living()).ask(request)
        except LauncherGone as error:
            raise LauncherFailed(f"launchers keep dying: {error}") from error
        if answer.error:
            raise LaunchRefused(answer.error)
        return answer

    async def _living(self) -> LauncherConnection:
        await self.start()
        assert self._link
        return self._link


def end_orphans(paths: WorkerPaths, known: Sequence[TrainingProcess]) -> list[TrainingProcess]:
    """Ends the processes of attempts that the launcher does not know, and returns those that still ran."""
    orphans = []
    for directory in paths.attempt_directories():
        try:
            process = files.read_process(directory)
            over = files.read_exit(directory) is not None
        except files.AttemptDamaged as error:
            log.warning("attempt_damaged", error=str(error))
            process, over = TrainingProcess(directory=str(directory)), False
        if process is None or over or process in known:
            continue
        lives = process_tree.alive(process)
        process_tree.end(process, leads=lives)
        if lives:
            orphans.append(process)
            log.warning("stray_ended", directory=directory.name, pid=process.pid)
    return orphans
