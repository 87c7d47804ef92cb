"""What an optimizer computes with: its state and groups, and gradients that wait for its next step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from adjourn.training.errors import StateMismatch
from adjourn.training.state.modules import named_modules, named_parameters, qualified

USED = "_adjourn_used"
"""Attribute of a gradient: its version when an optimizer used it. Another tensor, or another backward pass into this
one, does not have it."""
KEPT = "_adjourn_kept"
"""Attribute of a gradient that is the same tensor in a later step: `zero_grad(set_to_none=False)` keeps it, or nothing
is zeroed at all."""
ABSENT, NEW, OLD, AGAIN, ADDED = "-noka"
"""How a gradient stands: there is none; no step has used it; one has; more than one has; one has, and since then
something was added to it, or it was zeroed."""


Groups = list[list[str | None]]
"""Names of the parameters in each group of an optimizer; None: of no tracked module."""


class OptimizerState:
    """State of an optimizer and of its parameters' gradients, as far as they matter.

    Which parameters have one always matters: a step skips those that have none. Values would double the size of a
    snapshot. Most loops leave gradients behind that the next `zero_grad()` throws away: then they are not saved. They
    matter if not all of them are ones that the last step used, and that no step before it did.
    """

    def __init__(self, optimizer: Optimizer, parameters: Callable[[], Mapping[str, torch.Tensor]] = dict) -> None:
        """`parameters` returns those of all modules that are tracked, by name."""
        self._optimizer = optimizer
        self._named = parameters
        optimizer.register_step_post_hook(stepped)

    def state(self) -> dict[str, Any]:
        return {
            "kind": qualified(type(self._optimizer)),
            "state_dict": self._optimizer.state_dict(),
            "gradients": gradients_of(list(self._parameters())),
            "groups": self.groups(),
        }

    def groups(self) -> Groups:
        names = {id(parameter): name for name, parameter in self._named().items()}
        return [[names.get(id(parameter)) for parameter in group["params"]] for group in self._optimizer.param_groups]

    def load(self, state: dict[str, Any]) -> None:
        """Raises StateMismatch if another kind of optimizer was saved, or a group that was added in training has
        parameters of no tracked module.
        """
        if (kind := qualified(type(self._optimizer))) != state["kind"]:
            raise StateMismatch(f"a {state['kind']} was saved, a {kind} is there")
        self.regroup(state["groups"])
        self._optimizer.load_state_dict(state["state_dict"])
        self._put_uncast(state["state_dict"])
        put_gradients(list(self._parameters()), state["gradients"])

    def regroup(self, saved: Groups) -> None:
        """Gives the optimizer the groups that it had; raises StateMismatch if it cannot be told what was in them."""
        groups = self._optimizer.param_groups
        if [len(names) for names in saved] == [len(group["params"]) for group in groups]:
            return
        named = self._named()
        missing = [name for names in saved for name in names if name is None or name not in named]
        if missing:
            raise StateMismatch(
                "parameter groups were added or changed in training, and not all of their parameters are of a module"
                " that was tracked before, or together with, the optimizer: track those modules"
            )
        del groups[len(saved) :]
        wanted = [[named[name] for name in names if name] for names in saved]
        for group, parameters in zip(groups, wanted, strict=False):
            group["params"] = parameters
        for parameters in wanted[len(groups) :]:
            self._optimizer.add_param_group({"params": parameters})
        left = set(map(id, self._parameters()))
        for parameter in [parameter for parameter in self._optimizer.state if id(parameter) not in left]:
            del self._optimizer.state[parameter]  # its state_dict() would not know what it belongs to

    def _put_uncast(self, saved: Mapping[str, Any]) -> None:
        """Undoes what torch's `load_state_dict` does to values of another type than their parameter's: it casts them.

        Those are the master copies of half-precision parameters. https://github.com/pytorch/pytorch/issues/104976
        """
        indices = [index for group in saved["param_groups"] for index in group["params"]]
        for index, parameter in zip(indices, self._parameters(), strict=True):
            loaded = self._optimizer.state.get(parameter, {})
            for name, value in saved["state"].get(index, {}).items():
                found = loaded.get(name)
                if isinstance(found, torch.Tensor) and isinstance(value, torch.Tensor) and cast(found, value):
                    loaded[name] = value

    def _parameters(self) -> Iterator[torch.Tensor]:
        return parameters_of(self._optimizer)


class StrayGradients:
    """Gradients of a module's parameters that no tracked optimizer has.

    Nobody sets them to zero, so that they add up: a clipped norm sees them, and an optimizer that gets the parameters.
    """

    def __init__(self, module: nn.Module, owned: Callable[[], set[int]]) -> None:
        """`owned` returns the ids of the parameters of tracked optimizers."""
        self._module = module
        self._owned = owned

    def state(self) -> dict[str, Any]:
        """Returns by name each gradient, and how it stands; nothing if there is none."""
        owned = self._owned()
        found = {
            name: [parameter.grad, standing(parameter.grad)]
            for name, parameter in named_parameters(named_modules(self._module))
            if id(parameter) not in owned and parameter.grad is not None
        }
        return {"gradients": found} if found else {}

    def load(self, state: Mapping[str, Any]) -> None:
        owned, saved = self._owned(), state.get("gradients", {})
        for name, parameter in self._module.named_parameters():
            if id(parameter) not in owned:
                parameter.grad = None
            if name in saved:
                gradient, how = saved[name]
                parameter.grad = marked(gradient, how)


def parameters_of(optimizer: Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def stepped(optimizer: Optimizer, *_: object) -> None:
    """Marks the gradients that a step has used. As a hook it refers to nothing: an optimizer ends with its users."""
    for parameter in parameters_of(optimizer):
        if parameter.grad is not None:
            mark_used(parameter.grad)


def mark_used(gradient: torch.Tensor) -> None:
    marks = vars(gradient)
    if USED in marks:
        marks[KEPT] = True
    marks[USED] = gradient._version  # noqa: SLF001


def standing(gradient: torch.Tensor | None) -> str:
    """Returns how a gradient stands."""
    if gradient is None:
        return ABSENT
    marks = vars(gradient)
    if USED not in marks:
        return NEW
    if marks[USED] != gradient._version:  # noqa: SLF001
        return ADDED
    return AGAIN if KEPT in marks else OLD


def marked(gradient: torch.Tensor, how: str) -> torch.Tensor:
    """Returns a new gradient so that it stands like another."""
    if how != NEW:
        vars(gradient)[USED] = -1 if how == ADDED else gradient._version  # noqa: SLF001
    if how == AGAIN:
        vars(gradient)[KEPT] = True
    return gradient


def gradients_of(parameters: Sequence[torch.Tensor]) -> dict[str, Any] | None:
    """Returns how the gradients of parameters stand, and their values if they matter; None: there are none."""
    gradients = [parameter.grad for parameter in parameters]
    stand = "".join(map(standing, gradients))
    if stand == ABSENT * len(gradients):
        return None
    # A sparse one is small, and takes more than a shape to be made anew.
    sparse = any(gradient is not None and gradient.layout is not torch.strided for gradient in gradients)
    return {"stand": stand, "values": gradients if sparse or not {*stand} <= {ABSENT, OLD} else None}


def put_gradients(parameters: Sequence[torch.Tensor], saved: Mapping[str, Any] | None) -> None:
    """Gives parameters the gradients that they had: zeros, where values did not matter; and none where there was none.

    Until the next step makes others, they stand as they stood.
    """
    stand = saved["stand"] if saved else ABSENT * len(parameters)
    values = (saved and saved["values"]) or [None] * len(parameters)
    for parameter, how, value in zip(parameters, stand, values, strict=True):
        if how == ABSENT:
            parameter.grad = None
        else:
            parameter.grad = marked(torch.zeros_like(parameter) if value is None else value, how)


def cast(found: torch.Tensor, saved: torch.Tensor) -> bool:
    if found.layout is not torch.strided or saved.layout is not torch.strided:
        return found.dtype != saved.dtype
    return (found.dtype, found.device, found.stride()) != (saved.dtype, saved.device, saved.stride())
