"""PURE. Which workers have been silent for a lease.

Silence is counted on the counter's own clock, from when it last saw the worker's beat change: no clock of another
host matters, and a control plane that starts, or finds its store again, starts counting anew. Silence was ours then.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from control_plane.store import Session, WorkerName


class Leases:
    """Remembers when each worker was last heard from."""

    def __init__(self, duration: timedelta) -> None:
        self.duration = duration
        self.heard: dict[WorkerName, tuple[int, datetime]] = {}

    def expired(self, sessions: Iterable[Session], now: datetime) -> list[Session]:
        """Returns the sessions, not yet marked lost, whose beat has not changed for a lease."""
        current: dict[WorkerName, tuple[int, datetime]] = {}
        silent = []
        for session in sessions:
            worker = WorkerName(session.worker.name)
            beat, since = self.heard.get(worker, (session.beat, now))
            current[worker] = (beat, since) if beat == session.beat else (session.beat, now)
            if not session.lost and now - current[worker][1] >= self.duration:
                silent.append(session)
        self.heard = current
        return silent

    def forget(self) -> None:
        """Starts counting anew: what was not heard may have been said."""
        self.heard = {}
