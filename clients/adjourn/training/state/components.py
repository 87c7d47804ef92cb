"""The tracked objects of a run: what is saved of each, and in which order they are loaded."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adjourn.training.errors import StateMismatch
from adjourn.training.state.gradients import OptimizerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One tracked object."""

    subject: Any
    state: Callable[[], Any]
    """Returns its state, by reference."""
    load: Callable[[Any], object]
    rank: int
    """Lower ranks load first. A scheduler's constructor changes the optimizer's learning rate, and its load may; the
    optimizer's own has the last word (https://github.com/pytorch/pytorch/issues/119168)."""


def component(name: str, subject: Any) -> Component:
    """Returns how `subject` is saved and loaded; raises TypeError if it cannot be."""
    match subject:
        case nn.Module():
            return Component(
                subject=subject,
                state=lambda: module_state(subject),
                load=lambda state: load_module(subject, state),
                rank=0,
            )
        case Optimizer():
            optimizer = OptimizerState(subject)
            return Component(subject=subject, state=optimizer.state, load=optimizer.load, rank=2)
        case torch.Generator():
            return Component(subject=subject, state=subject.get_state, load=subject.set_state, rank=0)
        case random.Random():
            return Component(subject=subject, state=subject.getstate, load=subject.setstate, rank=0)
        case np.random.Generator():
            bits = subject.bit_generator
            return Component(
                subject=subject,
                state=lambda: bits.state,
                load=lambda state: setattr(bits, "state", state),
                rank=0,
            )
    state, load = getattr(subject, "state_dict", None), getattr(subject, "load_state_dict", None)
    if not callable(state) or not callable(load):
        raise TypeError(f"{name}: a {type(subject).__qualname__} has no state_dict() and load_state_dict()")
    rank = 1 if isinstance(subject, LRScheduler) else 0
    return Component(subject=subject, state=state, load=load, rank=rank)


def module_state(module: nn.Module) -> dict[str, Any]:
    """Returns all that a module computes with, of which `state_dict()` is only a part.

    Buffers that are not persistent, which parameters are frozen and which modules are in evaluation mode change during
    a training too, and a resumed one must find them as they were.
    """
    return {
        "state_dict": module.state_dict(),
        "buffers": dict(transient_buffers(module)),
        "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
        "evaluating": [name for name, part in module.named_modules() if not part.training],
    }


def load_module(module: nn.Module, state: dict[str, Any]) -> None:
    module.load_state_dict(state["state_dict"])
    buffers = dict(transient_buffers(module))
    if buffers.keys() != state["buffers"].keys():
        raise StateMismatch(f"buffers {sorted(state['buffers'])} were saved, {sorted(buffers)} are there")
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(state["buffers"][name])
    frozen, evaluating = set(state["frozen"]), set(state["evaluating"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, part in module.named_modules():
        part.training = name not in evaluating


def transient_buffers(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    for prefix, part in module.named_modules():
        for name in sorted(part._non_persistent_buffers_set):  # noqa: SLF001  (no public way to ask)
            buffer = part._buffers.get(name)  # noqa: SLF001
            if buffer is not None:
                yield f"{prefix}.{name}".lstrip("."), buffer
