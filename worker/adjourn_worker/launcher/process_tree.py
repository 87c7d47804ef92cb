"""Training processes as the operating system knows them: telling one from another, and ending it with all it started.

What a training process started may have left its group and session (setsid) and lost its parent. What it keeps is a
working directory, or an output, in the attempt's directory. All of these are looked at.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from adjourn.internal.v1.trainer_pb2 import TrainingProcess
from adjourn_worker.attempt.files import LOG, WORK

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
DEATH_SECONDS: Final = 2.0
"""How long to wait for what was killed; longer takes only what hangs in the kernel."""
POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """A living process in the kernel's table."""

    parent: int
    group: int
    session: int
    terminal: int
    """0: none."""
    start_ticks: int
    """Since boot."""


def stat(pid: int) -> Stat | None:
    """Returns None if there is no such process, or only what is left of it (a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may contain anything; behind it are the fields from the third on.
    state, *fields = text[text.rindex(")") + 2 :].split()
    parent, group, session, terminal = map(int, fields[:4])
    if state in ("Z", "X"):
        return None
    return Stat(parent=parent, group=group, session=session, terminal=terminal, start_ticks=int(fields[18]))


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def identify(pid: int, directory: Path, nonce: str) -> TrainingProcess:
    """Returns a living process as it is recorded; raises ProcessLookupError."""
    found = stat(pid)
    if not found:
        raise ProcessLookupError(f"no process {pid}")
    return TrainingProcess(
        directory=str(directory), pid=pid, start_ticks=found.start_ticks, boot_id=boot_id(), nonce=nonce
    )


def alive(process: TrainingProcess) -> bool:
    """Tells whether exactly this process runs, and not another of its pid."""
    found = stat(process.pid)
    return found is not None and (process.boot_id, process.start_ticks) == (boot_id(), found.start_ticks)


def end(process: TrainingProcess, *, leads: bool) -> None:
    """SIGKILLs a training process and all it started, and waits a little until that is so (zombies are gone).

    `leads`: the pid is still the process's own (it runs, or is our zombie), so that its group and session are known to
    be its. Otherwise only what lives in its directory is.
    """
    found: set[psutil.Process] = set()
    while fresh := family(process, leads=leads) - found:
        for member in fresh:  # stopped first, so that none can start another while we look
            with contextlib.suppress(psutil.Error):
                member.suspend()
        found |= fresh
    for member in found:
        with contextlib.suppress(psutil.Error):
            member.kill()
    deadline = time.monotonic() + DEATH_SECONDS
    while any(stat(member.pid) for member in found) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def family(process: TrainingProcess, *, leads: bool) -> set[psutil.Process]:
    """Returns the living processes of a training process, itself included."""
    table = {pid: found for pid in psutil.pids() if (found := stat(pid))}
    directory = Path(process.directory)
    pids = {
        pid
        for pid, found in table.items()
        # Whoever has a terminal is a person who looks around there.
        if found.start_ticks >= process.start_ticks and not found.terminal and lives_in(pid, directory)
    }
    if leads:
        pids |= {pid for pid, found in table.items() if process.pid in (pid, found.group, found.session)}
    while children := {pid for pid, found in table.items() if found.parent in pids} - pids:
        pids |= children
    members = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            members.add(psutil.Process(pid))
    return members


def lives_in(pid: int, directory: Path) -> bool:
    """Tells whether a process works in an attempt's directory or writes to its log."""
    for link, place in (("cwd", directory / WORK), ("fd/1", directory / LOG), ("fd/2", directory / LOG)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/{link}").readlink().is_relative_to(place):
                return True
    return False
