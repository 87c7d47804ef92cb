"""Values that are changed in place: what can be tracked of Python's own kinds, and how it is made what was saved.

Code may have more names for what a value holds: a list within a tracked dict, a parameter that an optimizer has too. So
what is in the place that something was saved from is changed itself, as far as kind and shape allow it, and another
object put there only if they do not.
"""

import dataclasses
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from adjourn.training.errors import StateMismatch, StateNotEncodable
from adjourn.training.state.codec import INTEGER_LIMIT, Encoder

CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, deque, set)
ABSENT: Final = object()


class Namespace(SimpleNamespace):
    """What `Run.state` is: it takes only what can be stored."""

    def __setattr__(self, name: str, value: Any) -> None:
        kind = type(value)
        if not (kind in (bool, float, str) or (kind is int and abs(value) < INTEGER_LIMIT)):
            try:
                Encoder().encode(value, ("state", name))
            except StateNotEncodable as error:
                caller = sys._getframe(1)  # noqa: SLF001  (inspect would read the source)
                raise StateNotEncodable(
                    error.path,
                    f"{error.why}. It is assigned in {caller.f_code.co_filename}:{caller.f_lineno}. Give run.state"
                    " numbers, strings, tensors, arrays, and lists and dicts of them; what has state_dict() and"
                    " load_state_dict() is for run.track",
                ) from None
        super().__setattr__(name, value)


def is_value(subject: Any) -> bool:
    if type(subject) in (*CONTAINERS, np.ndarray, torch.Tensor, Namespace, SimpleNamespace):
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
    """Makes a value hold what was saved; whoever refers to it sees the change. Raises StateMismatch."""
    before = content(subject)
    match subject:
        case deque() if subject.maxlen != value.maxlen:
            raise StateMismatch(f"a deque of at most {value.maxlen} was saved, one of {subject.maxlen} is there")
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
            found = InPlace(value).items(before, value)
            vars(subject).clear()
            vars(subject).update(found)
        case _ if dataclasses.is_dataclass(subject) and not isinstance(subject, type):
            for name, item in InPlace(value).items(before, value):
                setattr(subject, name, item)
        case _:
            InPlace(value).fill(subject, subject, value)


class InPlace:
    """Puts what was saved in the place of what is there.

    Containers are filled anew. Tensors take the values if they require gradients, for an optimizer may have them, or if
    no other tensor has their memory. Other tensors are replaced: they may be views of what must not change, as those of
    a `state_dict()` are. So are arrays.
    """

    def __init__(self, saved: Any) -> None:
        self._found: dict[int, tuple[Any, Any]] = {}
        """What stands for what was saved, and that itself, by its id."""
        self._taken: set[int] = set()
        tensors = {id(each): each for each in tensors_in(saved, set())}.values()
        self._memory = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
        """How many of the saved tensors lie in it."""

    def put(self, there: Any, saved: Any) -> Any:
        """Returns what stands for `saved` from now on; `there` is in its place, or ABSENT."""
        if isinstance(saved, tuple):
            return self._tuple(there, saved)
        if not isinstance(saved, (*CONTAINERS, torch.Tensor)):
            return saved
        if id(saved) not in self._found:
            result: Any = there if id(there) not in self._taken and self._fits(there, saved) else saved
            self._taken.add(id(result))
            self._found[id(saved)] = (result, saved)
            if not isinstance(saved, torch.Tensor):
                self.fill(result, there, saved)
            elif result is not saved:
                with torch.no_grad():
                    result.copy_(saved)
        return self._found[id(saved)][0]

    def _fits(self, there: Any, saved: Any) -> bool:
        if not isinstance(saved, torch.Tensor):
            return fits(there, saved)
        if type(there) not in (torch.Tensor, nn.Parameter) or not there.is_leaf or outline(there) != outline(saved):
            return False
        alone = is_alone(there) and self._memory[saved.untyped_storage().data_ptr()] == 1
        return there.requires_grad or alone

    def fill(self, result: Any, there: Any, saved: Any) -> None:
        """Gives the container `result` the items of `saved`; `there` has those that are in their places."""
        match saved:
            case dict():
                items = self.items(there if isinstance(there, dict) else {}, saved)
                result.clear()
                result.update(items)
                if isinstance(saved, OrderedDict) and isinstance(result, OrderedDict):
                    vars(result).update(vars(saved))
            case list() | deque():
                found = self._items(there, saved)
                result.clear()
                result.extend(found)
            case set() if result is not saved:
                result.clear()
                result.update(list(saved))  # one by one, as it was made

    def items(self, there: Mapping[Any, Any], saved: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        return [(key, self.put(there.get(key, ABSENT), value)) for key, value in saved.items()]

    def _items(self, there: Any, saved: Iterable[Any]) -> list[Any]:
        before = list(there) if isinstance(there, list | tuple | deque) else []
        return [self.put(before[at] if at < len(before) else ABSENT, item) for at, item in enumerate(saved)]

    def _tuple(self, there: Any, saved: tuple[Any, ...]) -> Any:
        found = self._items(there, saved)
        return saved if all(one is other for one, other in zip(found, saved, strict=True)) else tuple(found)


def tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yields the dense tensors that containers hold."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            yield value
    elif isinstance(value, (*CONTAINERS, tuple)) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item, seen)


def is_alone(tensor: torch.Tensor) -> bool:
    """Tells whether no other tensor has memory of this one's; an array that has, counts as one."""
    return (
        tensor.layout is torch.strided
        and not tensor.is_inference()
        and 0 not in tensor.stride()
        # The second is the object that is asked for it here.
        and torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) == 2  # noqa: SLF001
    )


def fits(there: Any, saved: Any) -> bool:
    """Tells whether a container can become what was saved."""
    return type(there) is type(saved) and all(
        getattr(there, name, None) == getattr(saved, name, None) for name in ("maxlen", "default_factory")
    )


def outline(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else None
    return (tensor.layout, tensor.dtype, tensor.shape, strides, tensor.device, tensor.is_conj(), tensor.is_neg())
