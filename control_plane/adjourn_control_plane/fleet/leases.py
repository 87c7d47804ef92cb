"""PURE. Which workers have been silent for a lease.

Silence is counted on the counter's own monotonic clock, from when it last saw the worker's beat change: no clock of
another host matters, nor a clock that is set. A control plane that starts, finds its store again, or was itself stopped
for a while starts counting anew. Silence was ours then.
"""

from collections.abc import Iterable
from datetime import timedelta

from adjourn_control_plane.store.interface import Session, WorkerName


class Leases:
    """Remembers when each worker was last heard from."""

    def __init__(self, duration: timedelta) -> None:
        self.duration = duration
        self.heard: dict[WorkerName, tuple[int, float]] = {}
        self.counted = 0.0

    def expired(self, sessions: Iterable[Session], now: float) -> list[Session]:
        """Returns the sessions, not yet marked lost, whose beat has not changed for a lease; `now` in seconds."""
        lease = self.duration.total_seconds()
        if now - self.counted >= lease / 2:  # we were away ourselves
            self.forget()
        self.counted = now
        current: dict[WorkerName, tuple[int, float]] = {}
        silent = []
        for session in sessions:
            worker = WorkerName(session.worker.name)
            heartbeat, since = self.heard.get(worker, (session.heartbeat, now))
            current[worker] = (heartbeat, since) if heartbeat == session.heartbeat else (session.heartbeat, now)
            if not session.lost and now - current[worker][1] >= lease:
                silent.append(session)
        self.heard = current
        return silent

    def forget(self) -> None:
        """Starts counting anew: what was not heard may have been said."""
        self.heard = {}
