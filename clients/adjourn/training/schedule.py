"""PURE. When a run is to be cut amid an epoch: for a checkpoint that is due, or a pause that is wanted."""

import math
from typing import Final

from adjourn.v1.job_pb2 import JobSpec

NEVER: Final = math.inf
RETRY_SECONDS: Final = 10
"""Until a pause that could not be saved amid an epoch is tried there again."""


class Schedule:
    """Counts steps and time from the newest checkpoint, or from the last one that was due and could not be taken."""

    def __init__(self, spec: JobSpec) -> None:
        self._epochs = spec.checkpoint_epochs if spec.HasField("checkpoint_epochs") else 1
        self._steps = spec.checkpoint_steps or NEVER
        interval = spec.checkpoint_interval.ToTimedelta().total_seconds()
        self._seconds = interval if interval > 0 else NEVER
        self._retry = 0.0
        self._wanted = False
        self._step: float = NEVER
        self._time: float = NEVER

    @property
    def step(self) -> float:
        """After how many steps in all it is to be found out whether a cut is wanted; never, if one is."""
        return NEVER if self._wanted else self._step

    @property
    def time(self) -> float:
        """The same: at which moment."""
        return NEVER if self._wanted else self._time

    def begin(self, step: int, now: float) -> None:
        """Begins to count: a checkpoint was taken, or left out, after `step` steps in all."""
        self._step, self._time = step + self._steps, now + self._seconds

    def unsaved(self, now: float) -> None:
        """Hears that a pause could not be saved."""
        self._retry = now + RETRY_SECONDS

    def due(self, step: int, now: float) -> bool:
        """Tells whether a checkpoint is due by steps or time."""
        return step >= self._step or now >= self._time

    def due_after(self, epoch: int) -> bool:
        """Tells whether one is due at the end of an epoch because of its number."""
        return self._epochs > 0 and epoch % self._epochs == 0

    def wants_cut(self, step: int, now: float, *, pausing: bool) -> bool:
        """Tells whether the run is to be cut where it next may be; `pausing`: it is to pause at a step."""
        self._wanted = self.due(step, now) or (pausing and now >= self._retry)
        return self._wanted
