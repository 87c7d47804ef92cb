"""How long processes have waited for a processor, as the kernel counts it: they could run, and others did."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


class Waits:
    """Tells what was added to the waits of processes since it was last asked."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._seen: dict[Path, int] = {}

    def added(self, pids: Iterable[int]) -> float:
        """Returns the seconds that the thread which waited longest has waited since the last call.

        A thread that was not there then counts from now on. Where the kernel does not count (it was built without
        CONFIG_SCHED_INFO), that is 0.
        """
        found: dict[Path, int] = {}
        for pid in pids:
            with suppress(OSError):  # gone, or gone meanwhile
                for thread in (self._proc / str(pid) / "task").iterdir():
                    with suppress(OSError, ValueError, IndexError):
                        found[thread] = int((thread / "schedstat").read_text().split()[1])
        added = [waited - self._seen[thread] for thread, waited in found.items() if thread in self._seen]
        self._seen = found
        return max(added, default=0) / 1e9
