"""PURE. How long work for storage rests, so that training beside it is not slowed: by how long training has to wait.

Training that waits for a processor waits because of somebody. What it waits while the work rests is not the work's
fault, and counts as what it would wait anyhow. What it waits beyond that, while the work goes on, may be SHARE of the
time. If it is more, the work rests until it is not; but never for longer than MOST times as long as it worked, or the
checkpoint would never be durable.
"""

from typing import Final

SHARE: Final = 0.03
"""Of the time, that training may wait for a processor because of the work."""
MOST: Final = 4.0
"""Rest, in the time worked, at most: a fifth of the time is always worked."""
REMEMBERED: Final = 20.0
"""Seconds after which what was seen counts half: other load comes and goes."""
WATCHED: Final = 0.05
"""Seconds of rest, at least, from which it can be told how long training waits anyhow."""


class Rests:
    """Sees how long training waits beside work and beside rests."""

    def __init__(self) -> None:
        self._worked = self._worked_waits = 0.0
        self._rested = self._rested_waits = 0.0

    def saw(self, seconds: float, waited: float, *, working: bool) -> None:
        """Notes a time, and how long training waited for a processor in it."""
        if self._worked + self._rested > REMEMBERED:
            self._worked, self._worked_waits = self._worked / 2, self._worked_waits / 2
            self._rested, self._rested_waits = self._rested / 2, self._rested_waits / 2
        if working:
            self._worked += seconds
            self._worked_waits += waited
        else:
            self._rested += seconds
            self._rested_waits += waited

    @property
    def due(self) -> float:
        """How long to rest now, in seconds; 0: not at all."""
        anyhow = self._rested_waits / self._rested if self._rested >= WATCHED else 0.0
        caused = self._worked_waits - anyhow * self._worked
        return max(0.0, min(caused / SHARE - self._worked, MOST * self._worked) - self._rested)
