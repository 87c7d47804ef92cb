"""Stops a training that no longer gets better."""

import math
from collections.abc import Callable
from typing import Any, Literal


class EarlyStopping:
    """Remembers the best value of a metric, and says when `patience` updates in a row have not improved on it.

    Track it like a model, and update it once an epoch, after validation. An improvement is one by more than
    `min_delta`; NaN never is one. `mode` says whether less (`min`) or more (`max`) is better, `metric` what the value
    is called where the best epoch is shown.
    """

    def __init__(
        self,
        patience: int,
        min_delta: float = 0.0,
        *,
        mode: Literal["min", "max"] = "min",
        metric: str = "val_loss",
    ) -> None:
        if patience < 1 or not min_delta >= 0 or mode not in ("min", "max"):
            raise ValueError(f"patience {patience} < 1, min_delta {min_delta} < 0, or mode {mode!r} unknown")
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.metric = metric
        self.best: float | None = None
        self.best_epoch = 0
        """Counted from 1; 0 before the first update that counts."""
        self.stale = 0
        """Updates since the best."""
        self.updates = 0
        self._running_epoch: Callable[[], int] | None = None

    def follow(self, running_epoch: Callable[[], int]) -> None:
        """Takes epoch numbers from there; without it, every update counts as an epoch. `Run.track` calls this."""
        self._running_epoch = running_epoch

    def update(self, value: float) -> bool:
        """Takes the metric's value of this epoch; returns whether training should stop."""
        value = float(value)
        self.updates += 1
        sign = 1 if self.mode == "min" else -1
        reference = math.inf if self.best is None else sign * self.best - self.min_delta
        if sign * value < reference:
            self.best = value
            self.best_epoch = self._running_epoch() if self._running_epoch else self.updates
            self.stale = 0
        else:
            self.stale += 1
        return self.stale >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "stale": self.stale, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.best_epoch = state["best_epoch"]
        self.stale = state["stale"]
        self.updates = state["updates"]
