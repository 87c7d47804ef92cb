"""What user code leaves for the end of the interpreter: threads, atexit callbacks, buffered files.

A training process is a fork and ends by `os._exit`, since the interpreter's end would do the launcher's work too. So
what the user's own code left is done here, as `multiprocessing` does it for its forks.
"""

import atexit
import gc
import io
import logging
import multiprocessing.util
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adjourn.training.events import log_line

END_SECONDS = 30.0
"""Longest that threads, callbacks and files of user code may take after the training."""
LISTED = 5
"""Files in the working directory that are named in the log."""


class InterpreterEnd:
    """Made before user code runs; carries out what it left, and nothing that the launcher had left before."""

    def __init__(self) -> None:
        self._inherited = list(open_writers())
        atexit._clear()  # noqa: SLF001
        multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]  # noqa: SLF001
        finalizers: Any = weakref.finalize
        for finalizer in list(finalizers._registry):  # noqa: SLF001
            finalizer.atexit = False
        for callback in (logging.shutdown, multiprocessing.util._exit_function, finalizers._exitfunc):  # type: ignore[attr-defined]  # noqa: SLF001
            atexit.register(callback)

    def run(self, code: int) -> None:
        """Waits for threads, calls what was registered with atexit, flushes files; prints what is raised.

        After END_SECONDS the process ends with `code`, whatever is still under way.
        """
        threading.Thread(target=expire, args=(code, END_SECONDS), name="adjourn-end", daemon=True).start()
        for step in (threading._shutdown, atexit._run_exitfuncs, gc.collect):  # type: ignore[attr-defined]  # noqa: SLF001
            try:
                step()
            except BaseException:  # noqa: BLE001  (user code may raise anything)
                traceback.print_exc()
        known = {id(writer) for writer in self._inherited}  # their descriptors may be other files' by now
        for writer in open_writers():
            if id(writer) not in known:
                try:
                    writer.flush()
                except (OSError, ValueError) as error:
                    log_line(f"{getattr(writer, 'name', writer)} could not be flushed: {error}")


def expire(code: int, seconds: float) -> None:
    threading.Event().wait(seconds)
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    log_line(f"the process ends, though user code is not done after {seconds:g} s; threads: {', '.join(threads)}")
    sys.stdout.flush()
    os._exit(code)


def open_writers() -> Iterator[io.IOBase]:
    """Yields every open file that buffers what is written to it."""
    kinds: dict[type, bool] = {}
    for item in gc.get_objects():
        kind = type(item)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, io.IOBase) and not issubclass(kind, io.RawIOBase)
        if kinds[kind] and not item.closed and item.writable():
            yield item


def files_in(directory: Path) -> dict[Path, tuple[int, int]]:
    """Returns size and time of each file below a directory, but for what Python makes of its modules there."""
    found = {}
    for place, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for path in (Path(place, name) for name in names):
            with suppress(OSError):
                status = path.stat()
                found[path] = status.st_size, status.st_mtime_ns
    return found


def say_what_is_removed(directory: Path, found: Mapping[Path, tuple[int, int]]) -> None:
    """Writes to the log which files user code has left or changed in its working directory: they go with the attempt.

    `found` is what was there before.
    """
    now = files_in(directory)
    sizes = {path: now[path][0] for path in sorted(now) if now[path] != found.get(path)}
    if sizes:
        named = [f"{path.relative_to(directory)} ({size / 1e6:,.1f} MB)" for path, size in list(sizes.items())[:LISTED]]
        more = f" and {len(sizes) - LISTED} more" if len(sizes) > LISTED else ""
        log_line(
            f"removed with this attempt, since its working directory is: {', '.join(named)}{more}. Track what a resumed"
            " run needs; write what should stay to run.output_directory"
        )
