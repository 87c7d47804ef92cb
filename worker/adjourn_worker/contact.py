"""PURE. Contact with the control plane: how long it has been silent, and whether this agent slept meanwhile.

Training does not wait for the control plane. Two things follow from silence all the same:

- An agent that slept (its process was stopped, or its machine suspended) while its lease ran out does not know what
  became of its jobs. What it trains may be trained elsewhere by now, so it is held still until the control plane has
  said what is meant for it. Silence that an agent was awake for does not do this: it is more often an outage of the
  control plane's own, in which no job goes elsewhere.
- After many leases of silence nobody counts on this worker any more. Its trainings pause at their next boundary: what
  they have is saved, and GPUs are free. Those that are held still go on to it as well.

All times are seconds of a clock that goes on while the machine is suspended, from a time of its own choosing.
"""

from typing import Final

DEFAULT_LEASE: Final = 15.0
"""Seconds, until the control plane has told its lease."""
SLEEP_SHARE: Final = 0.5
"""Share of a lease for which an agent must not have run, to have slept: a busy machine holds nothing still."""


class Contact:
    """What an agent knows of its contact. Feed it the time often, and every response."""

    def __init__(self, now: float, *, patience: int, lease: float = DEFAULT_LEASE, heard: float | None = None) -> None:
        """`patience`: leases of silence after which the agent is out of contact. `heard`: when an earlier agent heard.

        One that has just started has a lease to be heard again, however long its predecessor has been gone.
        """
        self.patience = patience
        self.lease = lease
        self.heard = now if heard is None else min(heard, now)
        """When the last response came."""
        self.alone_since = max(self.heard, now - (patience - 1) * lease)
        """From when on silence counts for `is_out`."""
        self.ran = now
        """When the agent was last seen to run."""
        self.sleeps = 0
        """How often it slept through the end of its lease."""
        self.asleep_seconds = 0.0
        """How long it slept the last time."""

    def slept(self, now: float) -> bool:
        """Notes that the agent runs; tells whether it has just woken from a sleep in which its lease ran out."""
        gap, self.ran = now - self.ran, max(self.ran, now)
        if gap < SLEEP_SHARE * self.lease or now - self.heard <= self.lease:
            return False
        self.sleeps += 1
        self.asleep_seconds = gap
        self.alone_since = now
        return True

    def respond(self, now: float, lease: float) -> None:
        """Notes a response, and the lease that it tells."""
        self.heard = self.alone_since = now
        self.lease = lease

    def is_out(self, now: float) -> bool:
        """Tells whether the control plane has been silent for so long that trainings are to pause by themselves."""
        return now - self.alone_since > self.patience * self.lease
