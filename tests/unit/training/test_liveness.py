"""Which variables are overwritten before they are read, asked at a call in the function itself."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adjourn.training.state.liveness import overwritten


class Asked:
    """An iterator that, as `run.epochs()` does, looks at its caller each time it is asked for the next item."""

    def __init__(self) -> None:
        self.found: set[frozenset[str]] = set()

    def __iter__(self) -> Iterator[int]:
        for number in range(2):
            yield number
            frame = sys._getframe(1)
            self.found.add(overwritten(frame.f_code, frame.f_lasti))


def read(*values: object) -> None:
    """Has no other purpose than that its arguments are read."""


def resets(asked: Asked) -> None:
    total, best, last = 0.0, 9.0, 0.0
    for number in asked:
        total = 0.0
        if number:
            last = 1.0
        total += number
        best = min(best, total)
    read(best, last)


def only_sometimes(asked: Asked) -> None:
    total = 0.0
    for number in asked:
        if number:
            total = 0.0
        total += 1


def handles(asked: Asked) -> None:
    total = kept = 0.0
    for number in asked:
        try:
            kept = 1 / number
            total = kept  # noqa: F841
        except ZeroDivisionError:
            read(kept)


def is_used_within(asked: Asked) -> None:
    total = 0.0

    def show() -> None:
        read(total)

    for _ in asked:
        total = 1.0
        show()


def is_deleted(asked: Asked) -> None:
    total = 0.0
    for _ in asked:
        del total
        total = 1.0  # noqa: F841


def looks_at_all(asked: Asked) -> None:
    total = 0.0
    for _ in asked:
        total = 1.0
        read(locals(), total)


def has_a_method_of_that_name(asked: Asked, model: Any = None) -> None:
    total = 0.0
    for _ in asked:
        total = 1.0
        if model:
            model.eval()
        read(total)


def unpacks(asked: Asked) -> None:
    one, other = 1, 2
    for _ in asked:
        one, (other, _) = 3, (4, 5)
        read(one, [one + 1 for one in (other,)])


def is_read_after_the_loop(asked: Asked) -> str:
    name = ""
    for _ in asked:
        name = "x"
    return name


@pytest.mark.parametrize(
    ("function", "among", "not_among"),
    [
        (resets, {"total", "number"}, {"best", "last"}),
        (only_sometimes, {"number"}, {"total"}),
        (handles, {"total", "number"}, {"kept"}),
        (is_used_within, set(), {"total"}),
        (is_deleted, set(), {"total"}),
        (looks_at_all, set(), {"total"}),
        (has_a_method_of_that_name, {"total", "_"}, set()),
        (unpacks, {"other"}, set()),
        (is_read_after_the_loop, set(), {"name"}),
    ],
)
def test_what_is_overwritten(function: Callable[[Asked], object], among: set[str], not_among: set[str]) -> None:
    asked = Asked()
    function(asked)
    (found,) = asked.found
    assert among <= found
    assert not found & not_among
