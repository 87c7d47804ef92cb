"""The log of a training process, which must never fill the disk; nor must that of the launcher itself.

A process writes to its log directly, so nothing that dies or is slow holds it up. Once a log is longer than its limit,
the launcher frees what lies between the first half of the limit and the newest half, about once a second; those parts
of the file read as zeros. When the process has ended, the agent writes the two halves out as the log that is kept.
The log of the launcher goes on for as long as the data directory, and stays as it is.
"""

import os
from pathlib import Path
from typing import Final

import structlog

from adjourn_worker.host.kernel import punch_hole

LIMIT: Final = 64 << 20
"""In bytes, unless the settings say otherwise."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def bound(path: Path, limit: int) -> None:
    """Frees the middle of a log that is longer than `limit` bytes; its length stays.

    On a file system without holes the log is cut back to its first half instead.
    """
    half = limit // 2
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    except OSError:
        return  # training code has removed it, or made something else of it
    try:
        size = os.fstat(descriptor).st_size
        if size > limit:
            try:
                punch_hole(descriptor, half, size - limit)
            except OSError:
                os.ftruncate(descriptor, half)
                os.write(descriptor, cut_mark(size - half, limit))
    except OSError as error:
        log.warning("log_not_bounded", path=str(path), error=str(error))
    finally:
        os.close(descriptor)


def compact(path: Path, limit: int) -> None:
    """Makes a log that is longer than `limit` bytes its first half, a sentence, and its last half."""
    try:
        size = path.stat().st_size
        if size <= limit:
            return
        half = limit // 2
        fresh = path.with_name(f".{path.name}.compact")
        with path.open("rb") as old, fresh.open("wb") as new:
            new.write(old.read(half).rstrip(b"\0"))
            new.write(cut_mark(size - 2 * half, limit))
            old.seek(size - half)
            new.write(old.read(half).lstrip(b"\0"))
        fresh.replace(path)
    except OSError as error:
        log.warning("log_not_compacted", path=str(path), error=str(error))


def cut_mark(left_out: int, limit: int) -> bytes:
    return f"\n[adjourn: {left_out} bytes are left out here; ADJOURN_LOG_BYTES limits a log to {limit}]\n".encode()
