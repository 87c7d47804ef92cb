"""How far a training has got: steps, losses, metrics, time."""

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, SupportsFloat

import torch

from adjourn.v1.job_pb2 import Best, Progress

METRIC_LIMIT = 1000
"""Different names of metrics in a run."""
NAME_LIMIT = 256
"""Characters of a metric's name."""


class ProgressTracker:
    """Counts what has been completed, and keeps the newest values."""

    def __init__(self, restored: Progress | None, data: Mapping[str, Any] | None = None) -> None:
        """`data`: epoch and step to go on from and, amid an epoch, what `running` returned there."""
        before, data = restored or Progress(), data or {}
        self.epoch: int = data.get("epoch", 0)
        """Completed."""
        self.step: int = data.get("step", 0)
        self.epoch_step = 0
        self.steps_per_epoch: int | None = before.steps_per_epoch if before.HasField("steps_per_epoch") else None
        self.length_known = False
        """The last epoch had as many steps as was expected of it, and none of this attempt had another number."""
        self._length_varies = False
        self._counted = False
        self._newest = before
        self.loss: float | None = None
        self.not_finite_steps = 0
        """Steps so far whose loss was NaN or infinite."""
        self.metrics: dict[str, float] = {}
        """Newest value of each."""
        self.values: dict[str, float] = {}
        """Values of the running epoch."""
        self.losses: list[float | torch.Tensor] = []
        """Of the steps since `settle`; those on a GPU are copies there, so that nothing waits for it."""
        self._sum = 0.0
        self._count = 0
        self._active_before = before.active_duration.ToTimedelta().total_seconds()
        self._start: float | None = None
        self._epoch_start = 0.0
        self.stepped = 0.0
        """When the newest step was made, by the monotonic clock."""
        self._put_newest()
        if "running" in data:
            self.put_back(self.step, data["running"])

    @property
    def active_seconds(self) -> float:
        """Training time of this attempt and those before."""
        return self._active_before + (0.0 if self._start is None else time.monotonic() - self._start)

    @property
    def steps_left(self) -> bool:
        """Whether steps of the running epoch are certainly left."""
        return self.length_known and self.steps_per_epoch is not None and self.epoch_step < self.steps_per_epoch

    @property
    def epoch_seconds(self) -> float:
        return time.monotonic() - self._epoch_start

    @property
    def end_seconds(self) -> float:
        """Time since the newest step of the epoch, in this process."""
        return time.monotonic() - max(self.stepped, self._epoch_start)

    def start(self) -> None:
        """Starts the clock."""
        self._start = time.monotonic()

    def running(self) -> dict[str, Any]:
        """Returns what decides the values of the epoch that is under way, beside its steps to come."""
        self.settle()
        return {"step": self.epoch_step, "sum": self._sum, "count": self._count, "values": dict(self.values)}

    def put_back(self, step: int, running: Mapping[str, Any]) -> None:
        """Goes on amid an epoch: after `step` steps in all, with what `running` returned, and what was newest then."""
        self.step, self.epoch_step = step, running["step"]
        self._sum, self._count, self.values = running["sum"], running["count"], dict(running["values"])
        self.losses.clear()
        self._put_newest()

    def stand_at(self, step: int) -> None:
        """Stands between epochs, after `step` steps in all: those since are not counted."""
        self.step, self.epoch_step = step, 0
        self.losses.clear()

    def _put_newest(self) -> None:
        self.loss = self._newest.loss if self._newest.HasField("loss") else None
        self.metrics = dict(self._newest.metrics)
        self.not_finite_steps = self._newest.not_finite_steps

    def go_on(self) -> None:
        """Begins with an epoch that is under way."""
        self._epoch_start = time.monotonic()

    def begin_epoch(self, learning_rate: float | None = None) -> None:
        self.settle()  # steps between stages belong to no epoch
        self.go_on()
        self.epoch_step = 0
        self.values = {} if learning_rate is None else {"learning_rate": learning_rate}
        self.metrics |= self.values
        self._sum, self._count = 0.0, 0

    def end_epoch(self) -> None:
        """Counts the epoch, and completes its values by `train_loss`, the mean over its steps."""
        self.settle()
        if self._count:
            self.values.setdefault("train_loss", self._sum / self._count)
        self.metrics |= self.values
        expected = self.epoch_step > 0 and self.epoch_step == self.steps_per_epoch
        self._length_varies |= self._counted and not expected  # what the first is compared with may be a guess
        self._counted = True
        self.length_known = expected and not self._length_varies
        self.steps_per_epoch = self.epoch_step or self.steps_per_epoch
        self.epoch += 1
        self.epoch_step = 0

    def record(self, values: Mapping[str, SupportsFloat], *, in_epoch: bool) -> None:
        """Adds values that user code has logged.

        Every event carries the newest value of each metric, so their number and names are limited. Raises ValueError
        for one too many or a name too long, TypeError for what is no number, and then adds none.
        """
        new = values.keys() - self.metrics.keys()
        if long := sorted(name for name in new if len(name) > NAME_LIMIT):
            raise ValueError(f"metric {long[0][:40]!r}... has {len(long[0])} characters; at most {NAME_LIMIT} are kept")
        if new and len(self.metrics) + len(new) > METRIC_LIMIT:
            raise ValueError(
                f"{len(self.metrics) + len(new)} different metrics with {min(new)!r}; at most {METRIC_LIMIT} are"
                " kept: let names not depend on the epoch or the step"
            )
        numbers = {name: float(value) for name, value in values.items()}
        self.metrics |= numbers
        if in_epoch:
            self.values |= numbers

    def settle(self) -> None:
        """Adds up the losses since the last call, in their order: the mean does not depend on when this is called."""
        for loss in self.losses:
            self.loss = float(loss)
            self._sum += self.loss
            self._count += 1
            self.not_finite_steps += not math.isfinite(self.loss)
        self.losses.clear()

    def progress(self, best: Best | None) -> Progress:
        self.settle()
        progress = Progress(
            epoch=self.epoch,
            step=self.step,
            epoch_step=self.epoch_step,
            steps_per_epoch=self.steps_per_epoch,
            loss=self.loss,
            metrics=self.metrics,
            best=best,
            not_finite_steps=self.not_finite_steps,
        )
        progress.active_duration.FromTimedelta(timedelta(seconds=self.active_seconds))
        progress.report_time.GetCurrentTime()
        return progress


def copied(loss: torch.Tensor | SupportsFloat) -> float | torch.Tensor:
    """Returns the loss as a number if that costs nothing, else as a copy on its device.

    A copy, because the memory of a tensor may be used again.
    """
    if type(loss) is float:
        return loss
    if isinstance(loss, torch.Tensor):
        return loss.item() if loss.is_cpu else loss.detach().clone()
    return float(loss)
