"""System calls that Python's library does not offer."""

import ctypes
import os
import time
from typing import Final

PR_SET_DUMPABLE: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def boot_seconds() -> float:
    """Returns the seconds since boot; unlike those of `time.monotonic` they go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def become_subreaper() -> None:
    """Makes this process the parent of every descendant that loses its own; forks do not inherit that."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Closes this process's memory and environment to other processes of its user; root can always read them.

    Lasts until the next exec. The kernel writes no core dump of such a process.
    """
    prctl(PR_SET_DUMPABLE, 0)


def punch_hole(descriptor: int, offset: int, size: int) -> None:
    """Gives a range of a file back to the disk; it reads as zeros, and the file keeps its length. Raises OSError."""
    check(libc.fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size))


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    check(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
