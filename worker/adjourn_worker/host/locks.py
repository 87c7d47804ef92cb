"""Files that one process at a time holds; the kernel lets go of them when the process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path


class LockTaken(Exception):
    """Another process holds a lock."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is held by process {holder(path)}")
        self.path = path


def take(path: Path) -> int | None:
    """Returns the descriptor that holds the lock until it is closed; None: another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def take_all(paths: Iterable[Path]) -> ExitStack:
    """Returns what holds the locks until it is closed; raises LockTaken, holding none."""
    with ExitStack() as held:
        for path in paths:
            descriptor = take(path)
            if descriptor is None:
                raise LockTaken(path)
            held.callback(os.close, descriptor)
        return held.pop_all()


def holder(path: Path) -> int | None:
    """Returns the pid that last took the lock."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
