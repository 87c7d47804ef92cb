"""PURE. Whether training hangs, by its own pace: how long it has shown no sign of life, and how long that may take.

The agent looks at the pulse of a training process twice a second. A silence is the time between two looks that differ.
It is judged by what training was doing as it began, since a validation may take a thousand times as long as a step:

- Between two steps of an epoch: `factor` times the longest such silence that was seen, `step_seconds` at least.
  Only after a whole epoch was watched in which the number of steps was known. Until then as the next.
- Anything else (validation, a snapshot, the first batch of an epoch): `factor` times the longest silence of its kind,
  `other_seconds` at least. So what happens for the first time, or once in a hundred epochs, may take that long.
- Before the first step of an attempt: `other_seconds`, if the job is known to make steps because it goes on from a
  checkpoint with some. What has never made a step, or has no epochs, is not judged: it may not know of `Run.step`.
- The wait for room is not judged, and counts as no silence.

`JobSpec.hang_timeout` takes the place of all this from the first step of an attempt on: then validation and snapshots
count as well, and batches are no sign of life. Before the first step it is `other_seconds` at least.

Time counts only while training could run and the agent looked: not while the agent, the machine or the training process
was stopped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from adjourn.pulse import Phase, Pulse

WATCHED_EPOCHS: Final = 2
"""Epochs that have to end before one of them was certainly watched from its first step to its last."""
ENDING_SECONDS: Final = 90.0
"""A training process ends itself 30 s after user code has returned."""
DOING: Final[Mapping[Phase, str]] = {
    Phase.UNKNOWN: "after a step",
    Phase.STARTING: "before its first step",
    Phase.STEPPING: "between two steps of an epoch",
    Phase.IN_EPOCH: "in an epoch",
    Phase.BOUNDARY: "between two epochs",
    Phase.SAVING: "while it takes a snapshot",
    Phase.WAITING: "while it waits for room",
    Phase.ENDING: "at its end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What counts as hanging, for every job of a worker; times in seconds."""

    factor: float = 10.0
    step_seconds: float = 120.0
    other_seconds: float = 1800.0
    grace_seconds: float = 10.0
    """From then on until a hanging attempt is ended: its stacks are written meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Training has been silent for longer than it may be; times in seconds."""

    silence: float
    limit: float
    phase: Phase
    pulse: Pulse
    own_pace: bool
    """The limit is found from what was seen, and not given with the job."""

    def __str__(self) -> str:
        by = "by its own pace and the worker's settings" if self.own_pace else "by the job's hang_timeout"
        return (
            f"training has not got on for {self.silence:.0f} s {DOING[self.phase]}, after {self.pulse.steps} steps and"
            f" {self.pulse.epochs} epochs of this attempt; it may take {self.limit:.0f} s, {by}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was seen of a training process since its agent looks at it; times in seconds."""

    makes_steps: bool = False
    """The job has made steps before this attempt."""
    timeout: float | None = None
    """`JobSpec.hang_timeout`."""
    pulse: Pulse | None = None
    """At the last look."""
    silence: float = 0.0
    """Since the pulse changed."""
    stepless: float = 0.0
    """Since the number of steps changed, waits for room left out."""
    longest: Mapping[Phase, float] = field(default_factory=dict)
    """Silence that was seen in each phase, and has ended."""
    first_epoch: int | None = None
    """Epochs of the attempt that were completed when it was first seen between two steps."""
    moved: bool = False
    """The pulse has changed since this watch began, or since training was last found hanging."""

    def looked(self, pulse: Pulse | None, seconds: float) -> Self:
        """Returns what is known after a look, `seconds` of possible training after the one before."""
        if pulse is None:
            return self
        before = self.pulse
        if before is None:
            return replace(self, pulse=pulse, first_epoch=first_epoch(self.first_epoch, pulse))
        silence = self.silence + seconds
        stepless = self.stepless if before.phase == Phase.WAITING else self.stepless + seconds
        if pulse == before:
            return replace(self, silence=silence, stepless=stepless)
        longest = max(silence, self.longest.get(before.phase, 0.0))
        return replace(
            self,
            pulse=pulse,
            silence=0.0,
            stepless=stepless if pulse.steps == before.steps else 0.0,
            longest={**self.longest, before.phase: longest},
            first_epoch=first_epoch(self.first_epoch, pulse),
            moved=True,
        )

    def found_hanging(self) -> Self:
        """Returns the watch from which on `moved` tells of signs of life since."""
        return replace(self, moved=False)

    def hang(self, pace: Pace) -> Hang | None:
        """Returns None if training is not known to hang."""
        limit = self.limit(pace)
        if limit is None or self.pulse is None:
            return None
        silence = self.stepless if self.by_timeout else self.silence
        if silence <= limit:
            return None
        return Hang(
            silence=silence, limit=limit, phase=self.pulse.phase, pulse=self.pulse, own_pace=not self.by_timeout
        )

    @property
    def by_timeout(self) -> bool:
        """Whether the limit that is given with the job is the one that counts now."""
        phase = self.pulse.phase if self.pulse else Phase.UNKNOWN
        return self.timeout is not None and phase not in (Phase.WAITING, Phase.ENDING)

    def limit(self, pace: Pace) -> float | None:
        """Returns how long training may be silent now; None: for as long as it takes."""
        if self.pulse is None or self.pulse.phase == Phase.WAITING:
            return None
        phase, seen = self.pulse.phase, pace.factor * self.longest.get(self.pulse.phase, 0.0)
        if phase == Phase.ENDING:
            return ENDING_SECONDS
        if phase == Phase.STARTING:
            if self.timeout is not None:
                return max(self.timeout, pace.other_seconds)
            return max(pace.other_seconds, seen) if self.makes_steps else None
        if self.pulse.steps == 0:
            return None
        if self.timeout is not None:
            return self.timeout
        if phase == Phase.UNKNOWN:
            return None
        if phase == Phase.STEPPING and self.knows_steps:
            return max(pace.step_seconds, seen)
        return max(pace.other_seconds, seen)

    @property
    def knows_steps(self) -> bool:
        """Whether a whole epoch was watched whose steps were told from its boundary."""
        if self.pulse is None or self.first_epoch is None:
            return False
        return self.pulse.epochs >= self.first_epoch + WATCHED_EPOCHS


def first_epoch(known: int | None, pulse: Pulse) -> int | None:
    return pulse.epochs if known is None and pulse.phase == Phase.STEPPING else known
