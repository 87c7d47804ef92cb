"""PURE. Which workers have been silent for a lease.

Silence is counted on the counter's own monotonic clock, from when it last saw the worker's heartbeat change. No clock
of another host matters, nor a clock that is set. How long the monitor works on what it finds does not matter.

Heartbeats may have gone unseen, or unwritten, while this process was not there, was stopped, or while the store did not
answer. Then counting starts anew, and agents are given time to come back first: their streams were broken by us, and
they wait longer between their tries the longer we are away.
"""

from collections.abc import Iterable
from datetime import timedelta

from adjourn_control_plane.store.interface import Session, WorkerName


class Leases:
    """Remembers when each worker was last heard from."""

    def __init__(self, duration: timedelta) -> None:
        self.duration = duration
        self.heard: dict[WorkerName, tuple[int, float]] = {}
        """The newest heartbeat of each worker, and when it was first seen, in seconds."""
        self.awake_at = 0.0
        self.counting = False
        """Whether there was a round since counting began: who is seen first later has just come."""

    @property
    def allowance(self) -> timedelta:
        """How long agents may take to come back after an outage of ours, before their lease begins."""
        return self.duration  # an agent tries at least three times a lease; a call that hangs costs it some of them

    def awake(self, now: float) -> None:
        """Notes that this process runs; to be called several times a lease. A longer gap starts the count anew."""
        if now - self.awake_at >= self.duration.total_seconds() / 2:
            self.forget()
        self.awake_at = now

    def expired(self, sessions: Iterable[Session], *, asked: float, answered: float) -> list[Session]:
        """Returns the sessions, not yet marked lost, whose heartbeat has not changed for a lease.

        The sessions were asked for and answered at these times, in seconds; both count in favour of the worker.
        """
        lease = self.duration.total_seconds()
        if answered - asked >= lease / 3:  # the store was away; heartbeats wait to be written
            self.forget()
        begin = answered if self.counting else answered + self.allowance.total_seconds()
        self.counting = True
        current: dict[WorkerName, tuple[int, float]] = {}
        silent = []
        for session in sessions:
            worker = WorkerName(session.worker.name)
            heartbeat, since = self.heard.get(worker, (session.heartbeat, begin))
            current[worker] = (heartbeat, since) if heartbeat == session.heartbeat else (session.heartbeat, answered)
            if not session.lost and asked - current[worker][1] >= lease:
                silent.append(session)
        self.heard = current
        return silent

    def forget(self) -> None:
        """Starts counting anew: what was not heard may have been said."""
        self.heard, self.counting = {}, False
