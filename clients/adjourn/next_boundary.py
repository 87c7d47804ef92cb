"""PURE. The boundary at which training decides next whether it pauses, as one 64-bit word.

How agent and training process agree on the epoch of a pause, though neither waits for the other. Each has a word that
only it writes: `control` says what is wanted, `boundary` where training decides. At the boundary of an epoch, training

1. writes that it decides now,
2. reads `control`, once, and does what it says,
3. writes where it decides next: here, if it pauses (it does not decide again), else one epoch later.

The agent writes `control`, then reads `boundary`. Each writes before it reads, so at least one of them sees what the
other has written, as in Dekker's algorithm. If the agent reads where training decides next, then training has not come
there yet, and will read the agent's `control` when it does; or it has decided to pause there. Either way, that is the
epoch of the pause. If the agent reads that training decides just now, it looks again: deciding takes microseconds,
unless training is stopped in the midst of it, or ends.

A processor may let a read overtake an earlier write, and Python has no instruction that forbids it. The agent does so
for both sides, between its write and its read: `order_memory` of `adjourn_worker.host.kernel`. What is written in 3.
depends on what was read in 2., so these two cannot change places on any processor.
"""

from dataclasses import dataclass
from typing import Final, Self

MOST: Final = 2**31 - 1
"""Epochs of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextBoundary:
    """Where training decides."""

    epoch: int
    """Epochs completed there; `JobSpec.total_epochs`: nothing is left to decide, the run ends."""
    deciding: bool = False
    """It does so now."""

    @property
    def word(self) -> int:
        return self.epoch << 1 | self.deciding

    @classmethod
    def from_word(cls, word: int) -> Self | None:
        """Returns None for 0, which says nothing, and for what training does not write."""
        epoch = word >> 1
        return cls(epoch=epoch, deciding=bool(word & 1)) if 0 < epoch <= MOST else None
