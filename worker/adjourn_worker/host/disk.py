"""Whether a worker's disk has room for another attempt: an attempt needs some before it can do anything."""

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from adjourn import reasons
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.paths import free_bytes

RESERVE: Final = 256 << 20
"""Free bytes below which a worker takes nothing new, by default."""
EXHAUSTED: Final = 1 << 20
"""Free bytes below which what fails has most likely failed for lack of room."""
REFUSED_SECONDS: Final = 60.0
"""How long a worker takes nothing new after an attempt found no room."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Disk:
    """The disk of the data directory. It counts as full until twice the reserve is free, so that this does not flap."""

    def __init__(
        self,
        directory: Path,
        reserve: int = RESERVE,
        *,
        free: Callable[[Path], int] = free_bytes,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._reserve = reserve
        self._free = free
        self._now = now
        self._full = False
        self._refused_until = float("-inf")

    def refused(self) -> None:
        """Notes that an attempt found no room, whatever the figures say: it may have needed more than the reserve."""
        self._full = True
        self._refused_until = self._now() + REFUSED_SECONDS

    def exhausted(self) -> bool:
        """Returns whether there is no room for anything."""
        return self._free(self._directory) < EXHAUSTED

    def condition(self) -> Condition | None:
        """Returns the worker's condition DISK_FULL; None if there is room."""
        free = self._free(self._directory)
        if free < self._reserve:
            self._full = True
        elif free >= 2 * self._reserve and self._now() >= self._refused_until:
            self._full = False
        if not self._full:
            return None
        needed = f"{2 * self._reserve >> 20} MiB"
        message = f"{self._directory} has no room for another attempt; nothing new is taken until {needed} are free"
        return Condition(type=Condition.DISK_FULL, reason=reasons.NO_SPACE, message=message)
