"""PURE. What a training process shows of its life: a count that every sign of progress raises, and what it is doing."""

from dataclasses import dataclass
from enum import IntEnum
from signal import SIGRTMAX
from typing import Final, Self

STACKS_SIGNAL: Final = int(SIGRTMAX) - 1
"""Has a training process, and each of its forks, write the Python stacks of all its threads to the log.

A real-time signal: SIGUSR1 and SIGUSR2 belong to user code and its libraries.
"""
WORDS: Final = 3
"""64-bit words of a pulse."""


class Phase(IntEnum):
    """What a training process is doing, as far as it knows."""

    UNKNOWN = 0
    """A task without epochs: what it should be doing is not known."""
    STARTING = 1
    """No step was made in this attempt: code and data are loaded, a state is restored."""
    STEPPING = 2
    """Within an epoch whose number of steps is known, and not all of them are made."""
    IN_EPOCH = 3
    """Within an epoch; whether all of its steps are made is not known, so it may be validating."""
    BOUNDARY = 4
    """From the last step of an epoch, or the last batch of a loader, to the next step."""
    SAVING = 5
    """A snapshot is taken, a resume rehearsed."""
    WAITING = 6
    """Training waits, for as long as it takes: for data that its agent fetches, or for room for what it has to tell, or
    for the run's last snapshot.
    """
    ENDING = 7
    """The last event is written; what user code left is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """A look at a training process. It has got on if, and only if, the next look is not equal to this one."""

    beats: int = 0
    """Steps, batches and changes of the phase, counted in this attempt."""
    phase: Phase = Phase.UNKNOWN
    steps: int = 0
    """Made in this attempt."""
    epochs: int = 0
    """Completed in this attempt."""

    @property
    def words(self) -> tuple[int, int, int]:
        return self.beats << 8 | self.phase, self.steps, self.epochs

    @classmethod
    def from_words(cls, first: int, steps: int, epochs: int) -> Self:
        """Raises ValueError for a phase that this version does not know."""
        return cls(beats=first >> 8, phase=Phase(first & 0xFF), steps=steps, epochs=epochs)
