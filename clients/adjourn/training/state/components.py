"""The tracked objects of a run: what is saved of each, and in which order they are loaded."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adjourn.training.state.generators import GENERATORS, access
from adjourn.training.state.gradients import OptimizerState, StrayGradients
from adjourn.training.state.modules import ModuleState
from adjourn.training.state.values import content, is_value, put_content


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One tracked object."""

    subject: Any
    state: Callable[[], Any]
    """Returns its state, by reference."""
    load: Callable[[Any], object]
    rank: int = 0
    """Lower ranks load first. A scheduler's constructor changes the optimizer's learning rate, and its load may; the
    optimizer's own has the last word (https://github.com/pytorch/pytorch/issues/119168)."""
    remarks: Callable[[], list[str]] = list
    """Returns what of it changed in training and is not saved, in sentences."""
    optimizer: OptimizerState | None = None
    """Of an optimizer: what knows its groups."""
    before: Mapping[str, str] | None = None
    """Of a module: the values that are not saved as long as they are so."""
    lent: Callable[[], Collection[str]] = tuple
    """Returns the keys of its state below which `load` copies all tensors."""


def component(
    name: str,
    subject: Any,
    parameters: Callable[[], Mapping[str, torch.Tensor]] = dict,
    before: Mapping[str, str] | None = None,
    owned: Callable[[], set[int]] | None = None,
) -> Component:
    """Returns how `subject` is saved and loaded; raises TypeError if it cannot be, StateNotEncodable.

    `parameters` returns those of the tracked modules, by name: an optimizer's groups are told by them. `before`: of the
    component that `subject` is a copy for. `owned` returns the ids of parameters of tracked optimizers; without it a
    module's gradients are no state.
    """
    match subject:
        case nn.Module() | nn.Parameter():
            whole = subject if isinstance(subject, nn.Module) else nn.ParameterList([subject])
            module = ModuleState(name, whole, before)
            found = Component(
                subject=subject,
                state=module.state,
                load=module.load,
                remarks=module.remarks,
                before=module.before,
                lent=module.lent,
            )
            return found if owned is None else with_gradients(found, StrayGradients(whole, owned))
        case Optimizer():
            optimizer = OptimizerState(subject, parameters)
            return Component(subject=subject, state=optimizer.state, load=optimizer.load, rank=2, optimizer=optimizer)
    if isinstance(subject, GENERATORS):
        read, write = access(subject)
        return Component(subject=subject, state=read, load=write)
    state, load = getattr(subject, "state_dict", None), getattr(subject, "load_state_dict", None)
    if callable(state) and callable(load):
        return Component(subject=subject, state=state, load=load, rank=1 if isinstance(subject, LRScheduler) else 0)
    if is_value(subject):
        return Component(
            subject=subject, state=lambda: content(subject), load=lambda value: put_content(subject, value)
        )
    raise TypeError(
        f"{name}: a {type(subject).__qualname__} has no state_dict() and load_state_dict(), and is no value that can be"
        f" changed in place: keep it as run.state.{name}"
    )


def with_gradients(module: Component, gradients: StrayGradients) -> Component:
    def load(state: Any) -> None:
        module.load(state)
        gradients.load(state)

    return dataclasses.replace(module, state=lambda: {**module.state(), **gradients.state()}, load=load)
