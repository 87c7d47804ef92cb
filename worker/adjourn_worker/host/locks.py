"""A file that one process at a time holds; the kernel lets go of it when the process ends, however it ends."""

import fcntl
import os
from pathlib import Path


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


def holder(path: Path) -> int | None:
    """Returns the pid that last took the lock."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
