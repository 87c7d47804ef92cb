"""All that a module computes with, of which `state_dict()` is only a part."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from adjourn.snapshots import component_digest, dumps
from adjourn.training.errors import StateMismatch, StateNotEncodable
from adjourn.training.state.codec import INTEGER_LIMIT, Encoder, is_plain
from adjourn.training.state.generators import GENERATORS, access

OWN: Final = frozenset(vars(nn.Module()))
"""Attributes of every module, which hold parameters, buffers, modules and hooks."""
SCALARS: Final = frozenset({bool, int, str, type(None)})
"""Kinds of attributes that most modules have several of."""
PARALLEL: Final = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class ModuleState:
    """The state of a module and of those below it.

    Parameters, buffers (those that are not persistent too), which parameters are frozen, which modules are in
    evaluation mode, and attributes: tensors, random generators, and plain values that have changed since the module was
    tracked. A value that has not changed comes from the constructor, in a resumed run too.
    """

    def __init__(self, name: str, module: nn.Module, before: Mapping[str, str] | None = None) -> None:
        """`before`: that of another state, which this module is a copy for.

        Raises StateNotEncodable for modules that train in more than one process or on more than one GPU.
        """
        for place, part in module.named_modules():
            if isinstance(part, PARALLEL):
                raise StateNotEncodable(
                    f"{name}.{place}".rstrip("."),
                    f"{type(part).__qualname__} is not supported yet: train on one GPU, and track the module itself",
                )
        self._name = name
        self._module = module
        own = list(own_attributes(module.named_modules()))
        self.before = {place: text for place, _, text in attributes(own) if text is not None}
        """Texts of the attributes' values when the module was tracked."""
        if before is not None:
            self.before = dict(before)
        self._objects = {place: fields(value) for place, value in objects(own)}
        self._constants: dict[str, dict[str, Any]] = {}
        """By module, attributes that cannot change in place and have the value that they had: the very object."""

    def state(self) -> dict[str, Any]:
        module = self._module
        parts = named_modules(module)
        own = list(own_attributes(parts, self._constants))
        return {
            "state_dict": module.state_dict(),
            "buffers": dict(transient_buffers(parts)),
            "empty_buffers": sorted(place for place, _, _, buffer in buffers(parts) if buffer is None),
            "frozen": [name for name, parameter in named_parameters(parts) if not parameter.requires_grad],
            "evaluating": [name for name, part in parts if not part.training],
            "structure": [f"{name}: {qualified(type(part))}" for name, part in parts],
            "attributes": dict(self._changed(own)),
            "generators": {place: access(value)[0]() for place, value in generators(own)},
        }

    def _changed(self, own: "Attributes") -> Iterator[tuple[str, Any]]:
        """Yields the attributes that are saved, and remembers those that need not be looked at again."""
        for place, value, text in attributes(own):
            if text is None or text != self.before.get(place):
                yield place, value
            elif type(value) in (*SCALARS, float) or (type(value) is tuple and is_plain(value)):
                prefix, _, name = place.rpartition(".")
                self._constants.setdefault(prefix, {})[name] = value

    def load(self, state: Mapping[str, Any]) -> None:
        module = self._module
        put_buffers(module, state)
        put_layouts(module, state["state_dict"])
        module.load_state_dict(state["state_dict"])
        transient = dict(transient_buffers(module.named_modules()))
        if transient.keys() != state["buffers"].keys():
            raise StateMismatch(f"buffers {sorted(state['buffers'])} were saved, {sorted(transient)} are there")
        with torch.no_grad():
            for name, buffer in transient.items():
                buffer.copy_(state["buffers"][name])
        frozen, evaluating = set(state["frozen"]), set(state["evaluating"])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for name, part in module.named_modules():
            part.training = name not in evaluating
        for place, value in state["attributes"].items():
            prefix, _, name = place.rpartition(".")
            vars(module.get_submodule(prefix))[name] = value
        there = dict(generators(own_attributes(module.named_modules())))
        if there.keys() != state["generators"].keys():
            raise StateMismatch(f"generators {sorted(state['generators'])} were saved, {sorted(there)} are there")
        for place, value in state["generators"].items():
            access(there[place])[1](value)

    def lent(self) -> list[str]:
        """Returns the keys of the state whose tensors `load` copies: where nothing but torch's own code sees them."""
        return ["state_dict"] if all(map(is_loaded_by_torch, self._module.modules())) else []

    def remarks(self) -> list[str]:
        """Returns which objects below the module changed since it was tracked, and cannot be saved."""
        return [
            f"{self._name}.{place} is a {qualified(type(value))} that changed in training and cannot be saved: give it"
            " state_dict() and load_state_dict() and track it, or keep its values in attributes of the module"
            for place, value in objects(own_attributes(named_modules(self._module), self._constants))
            if fields(value) != self._objects.get(place)
        ]


def qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


Parts = Iterable[tuple[str, nn.Module]]
"""What `named_modules` returns: going through all of them takes its time, while training stands still."""
Attributes = Iterable[tuple[str, Any]]
"""What `own_attributes` returns."""


def named_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns what `module.named_modules()` does, in a third of the time."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()

    def visit(part: nn.Module, place: str) -> None:
        if part not in seen:
            seen.add(part)
            found.append((place, part))
            for name, child in part._modules.items():  # noqa: SLF001  (named_children() leaves out those met twice)
                if child is not None:
                    visit(child, f"{place}.{name}" if place else name)

    visit(module, "")
    return found


def named_parameters(parts: Parts) -> Iterator[tuple[str, nn.Parameter]]:
    """Returns what `module.named_parameters()` does, for what `named_modules` returned."""
    seen: set[int] = set()
    for prefix, part in parts:
        for name, parameter in part._parameters.items():  # noqa: SLF001  (as above)
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}" if prefix else name, parameter


def own_attributes(
    parts: Parts, constants: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> Iterator[tuple[str, Any]]:
    """Returns what user code has put into the modules, by place; no parameters, buffers, modules or functions.

    `constants`: by module, those that are left out if they are still these objects.
    """
    for prefix, part in parts:
        known = constants.get(prefix, {})
        for name, value in vars(part).items():
            if name not in OWN and known.get(name, known) is not value and not callable(value):
                yield f"{prefix}.{name}".lstrip("."), value


def attributes(own: Attributes) -> Iterator[tuple[str, Any, str | None]]:
    """Returns the attributes that can be encoded: place, value, text; no text if tensors or arrays are in it."""
    for place, value in own:
        if type(value) in SCALARS and (type(value) is not int or abs(value) < INTEGER_LIMIT):
            yield place, value, repr(value)
            continue
        if isinstance(value, GENERATORS) or holds_parts(value):
            continue
        encoder = Encoder()
        try:
            tree = encoder.encode(value, (place,))
        except StateNotEncodable:
            continue
        yield place, value, None if encoder.blobs else dumps(tree)


def generators(own: Attributes) -> Iterator[tuple[str, Any]]:
    for place, value in own:
        if isinstance(value, GENERATORS):
            yield place, value


def objects(own: Attributes) -> Iterator[tuple[str, Any]]:
    """Returns attributes of the user's own kinds; those of torch keep no state that matters beside the module's."""
    for place, value in own:
        if isinstance(value, GENERATORS):
            continue
        if hasattr(value, "__dict__") and not type(value).__module__.startswith(("torch", "builtins", "collections")):
            yield place, value


def fields(value: Any) -> dict[str, str]:
    """Returns what can be encoded of an object, as text; of tensors and arrays, their digest."""
    found = {}
    for name, item in vars(value).items():
        encoder = Encoder()
        try:
            tree = encoder.encode(item, (name,))
        except StateNotEncodable:
            continue
        found[name] = component_digest(tree, lambda blob: encoder.blobs[blob].chunks())  # noqa: B023
    return found


def holds_parts(value: Any, depth: int = 3) -> bool:
    """Tells whether a container has parameters or modules: it says how the module is built (`_flat_weights`)."""
    if isinstance(value, nn.Parameter | nn.Module):
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth > 0 and any(holds_parts(item, depth - 1) for item in items)


def buffers(parts: Parts) -> Iterator[tuple[str, nn.Module, str, torch.Tensor | None]]:
    """Returns place, module, name and tensor of every buffer; None: it is registered and has no value."""
    for prefix, part in parts:
        for name, buffer in part._buffers.items():  # noqa: SLF001  (no public way to see those without a value)
            yield f"{prefix}.{name}".lstrip("."), part, name, buffer


def transient_buffers(parts: Parts) -> Iterator[tuple[str, torch.Tensor]]:
    """Returns buffers that are not in `state_dict()`."""
    for place, part, name, buffer in buffers(parts):
        if buffer is not None and name in part._non_persistent_buffers_set:  # noqa: SLF001  (no public way to ask)
            yield place, buffer


def put_buffers(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Gives buffers a value that had one, takes it from those that had none, and lets them have their saved shape."""
    saved = {**state["state_dict"], **state["buffers"]}
    for place, part, name, buffer in list(buffers(module.named_modules())):
        value = saved.get(place)
        if place in state["empty_buffers"]:
            part._buffers[name] = None  # noqa: SLF001
        elif isinstance(value, torch.Tensor) and (buffer is None or buffer.shape != value.shape):
            part._buffers[name] = value.clone() if buffer is None else value.clone().to(buffer.device)  # noqa: SLF001


LOADING: Final = ("load_state_dict", "_load_from_state_dict", "set_extra_state")
HOOKS: Final = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def is_loaded_by_torch(part: nn.Module) -> bool:
    """Tells whether a module's `state_dict()` is loaded by copying it into plain tensors."""
    tensors = [*part._parameters.values(), *part._buffers.values()]  # noqa: SLF001  (its own only)
    return (
        all(getattr(type(part), name).__module__.startswith("torch.") for name in LOADING)
        and vars(part).keys().isdisjoint(LOADING)
        and not any(getattr(part, name) for name in HOOKS)
        and all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in tensors if tensor is not None)
    )


def put_layouts(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Gives parameters and buffers the type and the strides that they had; loading alone would keep the new ones."""
    live = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for place, tensor in live:
        saved = state_dict.get(place)
        if not isinstance(saved, torch.Tensor) or saved.shape != tensor.shape:
            continue
        if (saved.dtype, saved.stride()) != (tensor.dtype, tensor.stride()):
            tensor.data = torch.empty_strided(saved.shape, saved.stride(), dtype=saved.dtype, device=tensor.device)
