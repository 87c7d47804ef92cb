"""System calls that Python's library does not offer."""

import ctypes
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

M_ARENA_MAX: Final = -8
PR_SET_DUMPABLE: Final = 4
PR_SET_CHILD_SUBREAPER: Final = 36
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}.get(platform.machine())
"""Number of the system call, for which libc has no function; None: not known here."""
MEMBARRIER_CMD_GLOBAL: Final = 1
NICENESS: Final = 10
"""A tenth of the processor that others get. With 19, a hundredth, a thread that is put off while it has the lock of the
interpreter kept the agent's other threads waiting for most of a second, on a machine without a free processor."""
IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
"""As MEMBARRIER."""
IOPRIO_WHO_PROCESS: Final = 1
IOPRIO_IDLE: Final = 3 << 13
STORE_SECONDS: Final = 0.02
"""Far longer than any processor keeps what was written to itself."""

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


def share_heap() -> None:
    """Has all threads of this process take memory from one heap. Call it before there are any.

    A heap of its own for each thread keeps what that has let go of: buffers of parts, several times over. Of C
    libraries, glibc alone does so, and knows this call.
    """
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)


def yield_to_others() -> None:
    """Has this thread, from now on, come after others for processor and disk.

    What a kernel does not offer, or a container forbids, is left out: nobody depends on it. It is not undone, since
    that takes a privilege: what is urgent is done by another thread.
    """
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
    with suppress(OSError):  # it does not interrupt others when it wakes up
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if IOPRIO_SET is not None:
        libc.syscall(ctypes.c_long(IOPRIO_SET), IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)


def punch_hole(descriptor: int, offset: int, size: int) -> None:
    """Gives a range of a file back to the disk; it reads as zeros, and the file keeps its length. Raises OSError."""
    check(libc.fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size))


def sync_file_system(directory: Path) -> None:
    """Makes last what was written to the file system that a directory is on. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        check(libc.syncfs(descriptor))
    finally:
        os.close(descriptor)


def order_memory() -> None:
    """Returns once what this thread has written is seen by all processes, and they all had a memory barrier meanwhile.

    Each of their threads that shares memory with this one thus has its reads and writes of before in order, and needs
    no barrier of its own: membarrier(2). It takes some 10 ms. Where the kernel does not offer it, as long a wait is as
    good in practice, though no manual says so.
    """
    if MEMBARRIER is None or libc.syscall(ctypes.c_long(MEMBARRIER), MEMBARRIER_CMD_GLOBAL, 0, 0) != 0:
        time.sleep(STORE_SECONDS)


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    check(libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero))


def check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
