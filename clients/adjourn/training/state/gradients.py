"""Gradients that wait for the next optimizer step, when accumulation goes on across the end of an epoch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import Optimizer

USED = "_adjourn_used"
"""Attribute of a gradient: its version when an optimizer used it. Another tensor, or another backward pass into this
one, does not have it."""


class OptimizerState:
    """State of an optimizer and, only if they matter, of its parameters' gradients.

    Most loops leave gradients behind that the next `zero_grad()` throws away; those would double the size of a
    snapshot. They matter if they are not the ones that the last step used.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        optimizer.register_step_post_hook(self._stepped)

    def state(self) -> dict[str, Any]:
        waiting = any(
            gradient is not None and vars(gradient).get(USED) != gradient._version  # noqa: SLF001
            for gradient in self._gradients()
        )
        return {
            "state_dict": self._optimizer.state_dict(),
            "gradients": list(self._gradients()) if waiting else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["state_dict"])
        if state["gradients"] is not None:
            for parameter, gradient in zip(self._parameters(), state["gradients"], strict=True):
                parameter.grad = gradient

    def _parameters(self) -> Iterator[torch.Tensor]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def _gradients(self) -> Iterator[torch.Tensor | None]:
        for parameter in self._parameters():
            yield parameter.grad

    def _stepped(self, *_: object) -> None:
        for gradient in self._gradients():
            if gradient is not None:
                vars(gradient)[USED] = gradient._version  # noqa: SLF001
