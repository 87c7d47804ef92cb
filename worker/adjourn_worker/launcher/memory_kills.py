"""Whether the kernel's out-of-memory killer has lately been at work in our control group."""

import time
from collections.abc import Callable
from typing import Final

from adjourn_worker.host import cgroup

RECENT_SECONDS: Final = 30.0
"""What it kills may take so long to end: the kernel has to free the memory first."""


class MemoryKills:
    """Looks at the kernel's count of what it has killed."""

    def __init__(
        self,
        count: Callable[[], int | None] = cgroup.out_of_memory_kills,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._count = count
        self._now = now
        self._counted = count()
        self._grew_at = float("-inf")

    def forget(self) -> None:
        """Counts from here: what was killed before is nobody's end."""
        self._counted = self._count()
        self._grew_at = float("-inf")

    def look(self) -> None:
        """To be called every few seconds while a process runs whose end may have to be explained."""
        count, before = self._count(), self._counted
        if count is not None and before is not None and count > before:
            self._grew_at = self._now()
        self._counted = count

    def lately(self) -> bool:
        """Looks, and returns whether something was killed within RECENT_SECONDS."""
        self.look()
        return self._now() - self._grew_at < RECENT_SECONDS
