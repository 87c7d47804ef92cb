"""The tracked objects of a run: what is saved of each, and in which order they are loaded."""

import dataclasses
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adjourn.training.errors import StateMismatch
from adjourn.training.state.generators import GENERATORS, access
from adjourn.training.state.gradients import OptimizerState, StrayGradients
from adjourn.training.state.modules import ModuleState


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
                subject=subject, state=module.state, load=module.load, remarks=module.remarks, before=module.before
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


# Values that are changed in place.

CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, deque, set)


def is_value(subject: Any) -> bool:
    if type(subject) in (*CONTAINERS, np.ndarray, torch.Tensor, SimpleNamespace):
        return True
    parameters = getattr(type(subject), "__dataclass_params__", None)
    return parameters is not None and not isinstance(subject, type) and not parameters.frozen


def content(subject: Any) -> Any:
    """Returns what a value holds, by reference."""
    if isinstance(subject, SimpleNamespace):
        return vars(subject)
    if dataclasses.is_dataclass(subject):
        return {field.name: getattr(subject, field.name) for field in dataclasses.fields(subject)}
    return subject


def put_content(subject: Any, value: Any) -> None:
    """Makes a value hold what was saved; whoever refers to it sees the change."""
    match subject:
        case deque() if subject.maxlen != value.maxlen:
            raise StateMismatch(f"a deque of at most {value.maxlen} was saved, one of {subject.maxlen} is there")
        case list() | deque():
            subject.clear()
            subject.extend(value)
        case dict() | set():
            subject.clear()
            subject.update(value)
        case np.ndarray():
            if (subject.shape, subject.dtype, subject.strides) != (value.shape, value.dtype, value.strides):
                raise StateMismatch(f"{value.dtype}{value.shape} was saved, {subject.dtype}{subject.shape} is there")
            subject[...] = value
        case torch.Tensor():
            if (subject.shape, subject.dtype) != (value.shape, value.dtype):
                raise StateMismatch(f"{value.dtype}{value.shape} was saved, {subject.dtype}{subject.shape} is there")
            with torch.no_grad():
                subject.copy_(value)
        case SimpleNamespace():
            vars(subject).clear()
            vars(subject).update(value)
        case _:
            for name, item in value.items():
                setattr(subject, name, item)
