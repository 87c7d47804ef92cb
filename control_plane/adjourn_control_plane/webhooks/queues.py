"""PURE. Which event the sink is sent next: of each job in order, and of a job that fails later, so that others go on.

Events come in the order of the stream. One that is not taken is due again after a while, and those of its job wait
behind it. If several jobs fail and nothing is taken in between, the sink is away: then all of them wait. What is known
to be delivered is a place in the stream: all before it is settled, of what is behind it some.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from adjourn_control_plane.store.interface import Happened, JobUid

FIRST_DELAY: Final = 0.5
LAST_DELAY: Final = 20.0
"""Seconds between two tries; doubled from the first to the last."""
REFUSALS: Final = 3
"""As often an event is refused for itself before it is left out."""
PASSED_BY: Final = 5000
"""As many events of other jobs are taken before one that still is not, is left out: it is not the sink that is away."""
WINDOW: Final = 10_000
"""Events that are read at most behind one that is not settled."""


def delay(tries: int) -> float:
    """Returns the seconds until the next try, after so many."""
    return float(min(FIRST_DELAY * 2 ** min(tries - 1, 10), LAST_DELAY))


@dataclass(slots=True)
class Trouble:
    """What became of the first event of a job so far: it was not taken."""

    due: datetime
    tries: int = 0
    refusals: int = 0
    passed_by: int = 0
    """Events of others that were taken meanwhile."""


@dataclass(slots=True)
class Queues:
    """Events that were read and are not settled."""

    delivered: str
    """Token up to which all events are settled."""
    read: str = ""
    """Token of the newest that was read; as `delivered`, before the first."""
    _jobs: dict[JobUid, deque[Happened]] = field(default_factory=dict)
    """By job; jobs in the order of their first events, for the most part."""
    _troubles: dict[JobUid, Trouble] = field(default_factory=dict)
    _order: deque[str] = field(default_factory=deque)
    """Tokens from the first that is not settled on."""
    _settled: set[str] = field(default_factory=set)
    _failing: set[JobUid] = field(default_factory=set)
    """Jobs that have failed since an event was taken."""
    _away_until: datetime | None = None

    def __post_init__(self) -> None:
        self.read = self.read or self.delivered

    def add(self, happened: Happened) -> None:
        self.read = happened.token
        self._order.append(happened.token)
        self._jobs.setdefault(happened.uid, deque()).append(happened)

    def skip(self, token: str) -> None:
        """Goes on after a token: what was before it is kept no more."""
        self.read = token
        if not self._order:
            self.delivered = token

    @property
    def wants_more(self) -> bool:
        """Whether more is to be read: no event waits that was not tried, and there is room."""
        return self._away_until is None and self._fresh() is None and len(self._order) < WINDOW

    def next(self, now: datetime) -> Happened | None:
        """Returns the event that is to be tried now: one that is due again, else the first of a job without trouble."""
        if self._away_until is not None and now < self._away_until:
            return None
        due = [uid for uid, trouble in self._troubles.items() if trouble.due <= now]
        if due:
            return self._jobs[min(due, key=lambda uid: self._troubles[uid].due)][0]
        return self._fresh()

    def wait(self, now: datetime, most: float) -> float:
        """Returns the seconds until an event may be tried, `most` at most."""
        if not self._jobs:
            return most
        due = now if self._fresh() else min(trouble.due for trouble in self._troubles.values())
        return min(max((max(due, self._away_until or due) - now).total_seconds(), 0.0), most)

    def tries(self, happened: Happened) -> int:
        """Returns how often an event was not taken."""
        trouble = self._troubles.get(happened.uid)
        return trouble.tries if trouble else 0

    def took(self, happened: Happened) -> None:
        """Notes that the sink has taken an event: it is not away."""
        self._failing.clear()
        self._away_until = None
        self._settle(happened)
        for trouble in self._troubles.values():
            trouble.passed_by += 1

    def failed(self, happened: Happened, now: datetime, *, refused: bool, jitter: float) -> bool:
        """Notes that the sink has not taken an event; returns whether it is left out."""
        trouble = self._troubles.setdefault(happened.uid, Trouble(due=now))
        trouble.tries += 1
        trouble.refusals += refused
        self._failing.add(happened.uid)
        if len(self._failing) > 1:
            self._away_until = now + timedelta(seconds=jitter * delay(len(self._failing) - 1))
        if trouble.refusals >= REFUSALS or trouble.passed_by >= PASSED_BY:
            self._settle(happened)
            return True
        trouble.due = now + timedelta(seconds=jitter * delay(trouble.tries))
        return False

    def _fresh(self) -> Happened | None:
        """Returns the first event of a job without trouble."""
        return next((queue[0] for uid, queue in self._jobs.items() if uid not in self._troubles), None)

    def _settle(self, happened: Happened) -> None:
        self._troubles.pop(happened.uid, None)
        queue = self._jobs.pop(happened.uid)
        queue.popleft()
        if queue:  # behind the other jobs: each has its turn
            self._jobs[happened.uid] = queue
        self._settled.add(happened.token)
        while self._order and self._order[0] in self._settled:
            self.delivered = self._order.popleft()
            self._settled.remove(self.delivered)
