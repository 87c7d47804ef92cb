"""Objects of the user's own whose state_dict() is trusted to have all that matters: what it seems to have forgotten.

An attribute that changes in training, and whose value is nowhere in what `state_dict()` returns, may be lost in a
resumed run. Values are compared, not names, so a state may have them in any order and place.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from adjourn.training.fetching import has_state
from adjourn.training.state.generators import GENERATORS, access
from adjourn.training.state.origins import Origin
from adjourn.training.state.variables import CONTAINERS, fields_of, is_of_user_code, is_users

DEPTH: Final = 3
"""Objects of the user's own within one are looked into so far."""
OF_OPTIMIZERS: Final = frozenset({"state", "param_groups", "defaults"})

Text = Callable[[Any], str | None]
"""Returns a text that is equal for equal values; None: they cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrusted:
    """An object with a state_dict() of its own."""

    name: str
    """As code has it."""
    place: str
    """For people."""
    subject: Any
    state: Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One of its attributes, or of an object below it."""

    name: str
    place: str
    origin: Origin
    text: str
    """Equal for equal values."""
    saved: bool
    """Its value is in the state."""


def is_entrusted(subject: Any) -> bool:
    return has_state(subject) and not isinstance(subject, nn.Module) and is_of_user_code(type(subject))


def attributes_of(each: Entrusted, text: Text, hidden: Container[int]) -> Iterator[Attribute]:
    """Returns its attributes, without objects whose ids are `hidden`: others answer for those."""
    try:
        texts = {found for value in values_in(each.state()) if (found := text(value)) is not None}
    except Exception:  # noqa: BLE001  (a state_dict() is anyone's, and may raise anything; a snapshot says it)
        return
    yield from _attributes(each.subject, each.name, f"of {each.place}", text, texts, hidden, DEPTH)


def _attributes(
    subject: Any, name: str, where: str, text: Text, texts: Container[str | None], hidden: Container[int], depth: int
) -> Iterator[Attribute]:
    for field, value in fields_of(subject).items():
        if id(value) in hidden or (isinstance(subject, Optimizer) and (field in OF_OPTIMIZERS or field[0] == "_")):
            continue
        if depth > 1 and is_users(value) and not has_state(value) and not isinstance(value, GENERATORS):
            inner = f"of {name}.{field} {where}"
            yield from _attributes(value, f"{name}.{field}", inner, text, texts, hidden, depth - 1)
        elif (found := text_of(value, text)) is not None:
            yield Attribute(
                name=f"{name}.{field}",
                place=f"attribute {field} {where}",
                origin=(subject, field),
                text=found,
                saved=is_in(value, text, texts),
            )


def values_in(state: Any) -> Iterator[Any]:
    """Returns a state and all that containers in it hold."""
    waiting = [state]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, CONTAINERS):
            waiting.extend(value)


def text_of(value: Any, text: Text) -> str | None:
    """Returns a text for how an attribute stands."""
    if isinstance(value, GENERATORS):
        return text(access(value)[0]())
    return text(value.state_dict()) if has_state(value) else text(value)


def is_in(value: Any, text: Text, texts: Container[str | None]) -> bool:
    """Tells whether a value, or all that it consists of, is among the values of a state."""
    parts: Iterable[Any] = ()
    if isinstance(value, GENERATORS):
        return any(text(form) in texts for form in forms_of(value))
    if isinstance(value, nn.Module):
        parts = [*value.parameters(), *value.buffers()]
    elif has_state(value):
        value = value.state_dict()
        parts = [each for each in values_in(value) if isinstance(each, torch.Tensor)]
    elif isinstance(value, CONTAINERS):
        parts = value.values() if isinstance(value, dict) else value
    found, parts = text(value), list(parts)
    if found in texts or (found is None and not parts):
        return True
    return bool(parts) and all(text(part) is None or text(part) in texts for part in parts)


def forms_of(generator: Any) -> Iterator[Any]:
    """Returns the states of a generator as people save them."""
    yield access(generator)[0]()
    if isinstance(generator, np.random.Generator):
        yield generator.bit_generator.state
    elif isinstance(generator, np.random.RandomState):
        yield from (generator.get_state(legacy=True), generator.get_state())
