"""What a fork of the launcher does to become a training process."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from adjourn_worker.attempt.files import LOG, WORK
from adjourn_worker.host.disk import FULL
from adjourn_worker.host.kernel import become_subreaper

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Entry = Callable[[Path], int]
"""Runs the attempt in a directory and returns the exit code."""

RAISED: Final = 1
UNRECORDED: Final = 125
NO_ROOM: Final = 122
"""Exit status: the disk had no room for what the process has to write, and nobody else could be told."""
OOM_SCORE: Final = "500"
"""When memory runs out the kernel shall take a training process, not what watches over it."""


def become_training(entry: Entry, directory: Path, gate: int) -> NoReturn:
    """Runs the entry in a session of its own, without anything of the launcher, and ends the process.

    Waits for a byte on `gate`; its end without one means that the launcher died before it recorded us. As a subreaper
    the process becomes the parent of what loses its parent below it: `os.wait()` in training code may return such a
    process.
    """
    code = RAISED
    try:
        os.setsid()
        become_subreaper()
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not os.read(gate, 1):
            os._exit(UNRECORDED)
        redirect(directory / LOG)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
        os.umask(0o077)
        work = directory / WORK
        work.mkdir(exist_ok=True)
        os.chdir(work)
        sys.argv[1:] = []
        code = entry(directory)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else RAISED if end.code else 0
    except OSError as error:
        traceback.print_exc()
        code = NO_ROOM if error.errno in FULL else RAISED
    except BaseException:  # noqa: BLE001 - nothing may run on into the launcher's own code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code & 0xFF)


def redirect(log: Path) -> None:
    """Sends what the process prints to its log, line by line; nothing comes in."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.__stdout__ = printing_to(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = printing_to(2)  # type: ignore[misc]


def printing_to(descriptor: int) -> io.TextIOWrapper:
    file = io.BufferedWriter(LogFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class LogFile(io.FileIO):
    """A log on a disk that may be full. What finds no room is lost, and the log says so: no training fails of it."""

    lost = 0
    """Bytes, since something was written."""

    def write(self, data: "ReadableBuffer", /) -> int:
        size = memoryview(data).nbytes
        try:
            if self.lost:
                super().write(f"adjourn: {self.lost} bytes are missing here, as the disk was full\n".encode())
                self.lost = 0
            return super().write(data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.lost += size
            return size
