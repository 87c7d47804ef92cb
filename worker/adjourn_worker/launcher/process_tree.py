"""Training processes as the operating system knows them: telling one from another, and ending it with all it started.

The launcher and each training process are subreapers (prctl(2), PR_SET_CHILD_SUBREAPER). A process that loses its
parent becomes a child of its training process, or of the launcher once that one has ended. So all that a training
process has started is in the tree below it, and a child of the launcher that is no training process was left behind.

Only a launcher that was killed leaves processes outside of its tree. Every process of a launcher inherits the variable
MARK; the next launcher ends all that have it. A process that was started with an empty environment, and whose parents
are gone as well, is not found.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from adjourn.internal.v1.trainer_pb2 import TrainingProcess
from adjourn_worker.paths import ID, worker_id

MARK: Final = "ADJOURN_LAUNCHER"
"""Variable that names the worker of a launcher: the id in its data directory, and the directory's device and inode.

The id alone would also be that of a copied directory, the inode alone that of a directory made in place of another.
"""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
DEATH_SECONDS: Final = 2.0
"""How long to wait for what was killed; longer takes only what hangs in the kernel."""
POLL_SECONDS: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """A process in the kernel's table."""

    parent: int
    start_ticks: int
    """Since boot."""
    zombie: bool
    """It has ended, and its parent has not asked how."""
    stopped: bool
    """By a signal, until SIGCONT."""


def stat(pid: int) -> Stat | None:
    """Returns None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may contain anything; behind it are the fields from the third on.
    state, parent, *fields = text[text.rindex(")") + 2 :].split()
    return Stat(parent=int(parent), start_ticks=int(fields[17]), zombie=state in ("Z", "X"), stopped=state == "T")


def runs(pid: int) -> bool:
    found = stat(pid)
    return found is not None and not found.zombie


def boot_id() -> str:
    return BOOT_ID.read_text().strip()


def identify(pid: int, directory: Path, nonce: str) -> TrainingProcess:
    """Returns a living process as it is recorded; raises ProcessLookupError."""
    found = stat(pid)
    if not found or found.zombie:
        raise ProcessLookupError(f"no process {pid}")
    return TrainingProcess(
        directory=str(directory), pid=pid, start_ticks=found.start_ticks, boot_id=boot_id(), nonce=nonce
    )


def alive(process: TrainingProcess) -> bool:
    """Tells whether exactly this process runs, and not another of its pid."""
    found = stat(process.pid)
    return (
        found is not None
        and not found.zombie
        and (process.boot_id, process.start_ticks) == (boot_id(), found.start_ticks)
    )


def held(process: TrainingProcess) -> bool:
    """Tells whether exactly this process runs and is stopped by a signal."""
    found = stat(process.pid)
    return found is not None and found.stopped and alive(process)


def children(pid: int) -> set[int]:
    """Returns the children of a process, zombies included."""
    return {each for each in psutil.pids() if (found := stat(each)) and found.parent == pid}


def tree(roots: Collection[int]) -> set[psutil.Process]:
    """Returns the living processes among `roots` and below them."""
    table = {pid: found for pid in psutil.pids() if (found := stat(pid))}
    pids = set(roots) & table.keys()
    while below := {pid for pid, found in table.items() if found.parent in pids} - pids:
        pids |= below
    members = set()
    for pid in pids:
        if not table[pid].zombie:
            with contextlib.suppress(psutil.Error):
                members.add(psutil.Process(pid))
    return members


def stop(roots: Collection[int]) -> set[psutil.Process]:
    """SIGSTOPs processes and all below them, also what they start meanwhile; returns them."""
    found: set[psutil.Process] = set()
    while fresh := tree(roots) - found:
        for member in fresh:
            with contextlib.suppress(psutil.Error):
                member.suspend()
        found |= fresh
    return found


def hold(processes: Iterable[TrainingProcess]) -> None:
    """Stops training processes and all they have started, until they are let go."""
    stop([process.pid for process in processes if alive(process)])


def let_go(processes: Iterable[TrainingProcess]) -> None:
    """Lets training processes go on, with all they have started."""
    for member in tree([process.pid for process in processes if alive(process)]):
        with contextlib.suppress(psutil.Error):
            member.resume()


def end(roots: Collection[int]) -> None:
    """SIGKILLs processes and all below them, and waits a little until they are gone (zombies are)."""
    found = stop(roots)  # so that none can start another meanwhile
    for member in found:
        with contextlib.suppress(psutil.Error):
            member.kill()
    deadline = time.monotonic() + DEATH_SECONDS
    while any(runs(member.pid) for member in found) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def mark(data: Path) -> str:
    """Returns the value of MARK for the launchers of a data directory; raises UnsafePath, OSError."""
    found = data.stat()
    return f"{worker_id(data / ID)}:{found.st_dev}:{found.st_ino}"


def end_marked(value: str) -> list[int]:
    """Ends every process that has the mark, but this one, with all below them; returns those that had it."""
    entry = f"{MARK}={value}".encode()
    marked = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if pid != os.getpid() and entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                marked.append(pid)
    end(marked)
    return marked
