"""Plain values in attributes of a loader's dataset and samplers: which epoch it is, how hard the samples are.

User code sets them between passes (`set_epoch`, `set_difficulty`), and they decide what the next pass gives.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from adjourn.training.state.codec import ARRAY_DTYPES, INTEGER_LIMIT
from adjourn.training.state.generators import GENERATORS
from adjourn.training.state.values import put_content

DEPTH: Final = 3
"""A dataset is looked into: it may be a subset of one that is made of another."""
ITEM_LIMIT: Final = 1000
"""A container of more items is data, and no setting."""
OPAQUE: Final = (type, ModuleType, FunctionType, MethodType, CodeType, FrameType, str, bytes, int, float, torch.Tensor)
"""What is not looked into for objects that it refers to."""
SCALARS: Final = (bool, int, float, complex, str, type(None))

MISSING: Final = object()

Values = Mapping[str, Mapping[str, Any]]
"""Values by owner and attribute."""


class Fields:
    """Those of a few objects, the roots, and of the objects that these are made of.

    Saved is what has changed since this was made: the rest comes from the constructor, in a resumed run too. Not what
    changes while samples are read: a worker process reads a copy, so such a change depends on the number of workers.
    """

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = roots
        self._before = self.values()
        self._loaded: set[tuple[str, str]] = set()
        """What was loaded is saved again, whatever the constructor made of it here."""
        self._unsteady: set[tuple[str, str]] = set()

    def values(self) -> dict[str, dict[str, Any]]:
        """Returns copies of all plain values."""
        return {
            place: {name: copy.copy(value) for name, value in vars(owner).items() if is_plain(value)}
            for place, owner in self._owners()
        }

    def changed(self, before: Values) -> list[tuple[str, str]]:
        """Returns owner and attribute of the values that are others than before, or new."""
        return [
            (place, name)
            for place, values in self.values().items()
            for name, value in values.items()
            if name not in before.get(place, {}) or repr(before[place][name]) != repr(value)
        ]

    def doubt(self, places: Iterable[tuple[str, str]]) -> None:
        """Tells that these change while samples are read: by that, or by somebody else meanwhile."""
        self._unsteady.update(places)

    def state(self) -> dict[str, dict[str, Any]]:
        """Returns copies of the values that are saved."""
        saved = {*self.changed(self._before), *self._loaded} - self._unsteady
        return {
            place: kept
            for place, values in self.values().items()
            if (kept := {name: value for name, value in values.items() if (place, name) in saved})
        }

    def load(self, state: Values) -> None:
        """Puts values back as `state` returned them; what it does not have was as the constructor made it."""
        self._loaded |= {(place, name) for place, values in state.items() for name in values}
        for place, owner in self._owners():
            for name, value in {**self._before.get(place, {}), **state.get(place, {})}.items():
                if (place, name) not in self._unsteady and repr(vars(owner).get(name, MISSING)) != repr(value):
                    put(owner, name, copy.copy(value))

    def covered(self) -> set[tuple[int, str]]:
        """Returns which attributes are saved if they change: the owner's id, and the name."""
        return {
            (id(owner), name)
            for place, owner in self._owners()
            for name, value in vars(owner).items()
            if (place, name) not in self._unsteady and is_plain(value)
        }

    def _owners(self) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for kind, root in self._roots.items():
            for place, owner in parts_of(root, kind):
                if id(owner) not in seen:
                    seen.add(id(owner))
                    yield place, owner


def parts_of(root: Any, place: str, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Returns a dataset or sampler, and objects that it is made of, by place."""
    if depth and hasattr(root, "__dict__") and not isinstance(root, (*OPAQUE, *GENERATORS, nn.Module)):
        yield place, root
        for name, value in list(vars(root).items()):
            yield from parts_of(value, f"{place}.{name}", depth - 1)


def is_plain(value: Any) -> bool:
    """Tells whether a value is a number, a text, or a short container of such."""
    if isinstance(value, list | tuple | set | frozenset | dict):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        kinds = (list, tuple, set, frozenset, dict)
        return type(value) in kinds and len(value) <= ITEM_LIMIT and all(map(is_scalar, items))
    return is_scalar(value)


def is_scalar(value: Any) -> bool:
    if isinstance(value, np.generic):
        return value.dtype.str in ARRAY_DTYPES
    return type(value) in SCALARS and (type(value) is not int or abs(value) < INTEGER_LIMIT)


def put(owner: Any, name: str, value: Any) -> None:
    """Sets an attribute; a container that is there holds the value, for others may refer to it."""
    there = vars(owner).get(name)
    if type(there) is type(value) and isinstance(there, list | dict | set):
        put_content(there, value)
    else:
        vars(owner)[name] = value
