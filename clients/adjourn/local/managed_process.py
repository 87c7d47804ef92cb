"""One process of the stack. It has a session and a log file of its own, and is ended by SIGTERM, then SIGKILL."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

POLL_SECONDS: Final = 0.05
TAIL_LINES: Final = 15
TAIL_BYTES: Final = 16 << 10
LOG_BYTES: Final = 16 << 20
"""Longest log of a process. What is older is kept once, as `.1`."""


class MissingServerError(Exception):
    """A server that the stack runs is not installed."""

    def __init__(self, program: str, option: str) -> None:
        super().__init__(f"{program} is not installed: pip install 'adjourn[local]', or name a server with {option}")


class ProgramError(Exception):
    """A process of the stack ended, or did not become ready. The text has the end of its log."""

    def __init__(self, name: str, what: str, log: Path, *, after: int = 0) -> None:
        lines = tail(log, after=after)
        text = "\n".join(f"  | {readable(line)}" for line in lines) or "  (it wrote nothing)"
        super().__init__(f"{name} {what}; the end of {log}:\n{text}")
        self.name = name


def readable(line: str) -> str:
    """Returns a line of a log for people: of one in JSON that has errors, these."""
    try:
        found = json.loads(line)
        return f"{found['event']}: {'; '.join(found['errors'])}"
    except (ValueError, KeyError, TypeError):
        return line


def tail(log: Path, lines: int = TAIL_LINES, *, after: int = 0) -> list[str]:
    """Returns the last lines of a log, from byte `after` on; none if there is no such file."""
    with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(after, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-lines:]
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, and how to find out whether it is ready."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    """Added to our own, without our ADJOURN_ variables."""
    directory: Path
    """Working directory."""
    log: Path
    ready: Callable[[], Awaitable[bool]]
    """Asks once whether it is ready."""
    patience: float
    """Longest time until it is ready, in seconds."""
    grace: float
    """From SIGTERM to SIGKILL, in seconds."""
    port: int | None = None
    """Where it has to listen itself to be ready; None: it is not looked at. Another program may answer there."""
    sockets: Sequence[Path] = ()
    """Socket files to remove when it has ended."""


@dataclass(slots=True)
class ManagedProcess:
    """A program, with its process while it runs."""

    program: Program
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    """time.monotonic() of the last start."""
    log_start: int = field(default=0, init=False)
    """Size of the log at the last start, in bytes."""

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.poll() is None else None

    def start(self) -> None:
        program = self.program
        program.log.parent.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADJOURN_")}
        with program.log.open("ab") as log:
            self.log_start = log.tell()
            # Popen, because asyncio kills the child when its transport is closed or collected.
            self.process = subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=program.directory,
                env={**inherited, **program.environment},
                start_new_session=True,  # Ctrl-C in the terminal reaches us only; we end it in order
            )
        self.started = time.monotonic()

    async def until_ready(self) -> None:
        """Waits until it is ready; raises ProgramError if it ends, or takes longer than its patience."""
        while not (await self.program.ready() and self.listens()):
            if self.pid is None:
                raise self.failed(self.ending())
            if time.monotonic() - self.started > self.program.patience:
                raise self.failed(f"is not ready after {self.program.patience:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        if self.pid is None:  # another process has its port, and answered
            raise self.failed(self.ending())

    def listens(self) -> bool:
        """Returns whether the process itself listens on the program's port; True if it has none."""
        if self.program.port is None:
            return True
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self.pid).net_connections("tcp") if self.pid else ()
            return any((each.status, each.laddr[1:2]) == (psutil.CONN_LISTEN, (self.program.port,)) for each in found)
        return False

    def bound_log(self) -> None:
        """Puts a log that has become too long aside, in place of the one before. What is written meanwhile is lost."""
        log = self.program.log
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > LOG_BYTES:
                shutil.copyfile(log, log.with_name(f"{log.name}.1"))
                os.truncate(log, 0)  # the process appends, so it goes on at the beginning
                self.log_start = 0

    def ending(self) -> str:
        """Returns how it ended, as text."""
        code = self.process.poll() if self.process else None
        return f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with status {code}"

    def failed(self, how: str) -> ProgramError:
        return ProgramError(self.program.name, how, self.program.log, after=self.log_start)

    def last_line(self) -> str:
        """Returns the last line written since the last start."""
        return "".join(tail(self.program.log, 1, after=self.log_start))

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Sends SIGTERM; after the grace, or as soon as `hurry` is set, SIGKILL. Returns when the process is gone."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            deadline = time.monotonic() + self.program.grace
            while self.process.poll() is None:
                if time.monotonic() > deadline or (hurry and hurry.is_set()):
                    self.process.kill()
                await asyncio.sleep(POLL_SECONDS)
        for path in self.program.sockets:
            path.unlink(missing_ok=True)
