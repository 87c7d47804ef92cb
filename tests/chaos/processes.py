"""The processes of a worker, as the kernel knows them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTraining:
    """A training process, or a process that it started."""

    worker: str
    attempt: str
    """Name of the attempt's directory, `{job}-{uid8}-{attempt}-{nonce8}`."""
    pid: int

    @property
    def uid8(self) -> str:
        return self.attempt.rsplit("-", 3)[1]

    @property
    def number(self) -> int:
        return int(self.attempt.rsplit("-", 3)[2])


def live_trainings(workers: Path) -> list[LiveTraining]:
    """Returns what runs in the attempts' directories of the workers below `workers`; zombies are none."""
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            directory = Path(str((entry / "cwd").readlink()).removesuffix(" (deleted)"))
            if directory.is_relative_to(workers):
                worker, *rest = directory.relative_to(workers).parts
                if len(rest) > 1 and rest[0] == "attempts":
                    found.append(LiveTraining(worker=worker, attempt=rest[1], pid=int(entry.name)))
    return found


def launchers(data: Path) -> Iterator[psutil.Process]:
    """Yields the launcher of a worker's data directory; what it forked is not it."""
    found = {process.pid: process for process in psutil.process_iter() if _is_launched(process, data)}
    for process in found.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in found:
                yield process


def _is_launched(process: psutil.Process, data: Path) -> bool:
    try:
        words = process.cmdline()
        return "adjourn_worker.launcher" in words and str(data) in words and "attempts" not in process.cwd()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
