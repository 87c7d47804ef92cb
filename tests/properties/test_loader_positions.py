"""Whatever loops a training makes over its loaders, wherever it is cut, it goes on with the batches that are left."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.training import loader
from tests.harness.loader_course import Course, run

LOADERS = 2


@dataclass(frozen=True)
class Look:
    """Goes through a loader, or takes its first batch, without a step."""

    loader: int
    whole: bool


@dataclass(frozen=True)
class Loop:
    """Goes through a loader: does what is in it, then makes a step, if it is one that makes steps."""

    loader: int
    body: tuple["Look | Loop", ...]
    steps: bool


PARTS = st.recursive(
    st.builds(Look, loader=st.integers(0, LOADERS - 1), whole=st.booleans())
    | st.builds(Loop, loader=st.integers(0, LOADERS - 1), body=st.just(()), steps=st.just(value=True)),
    lambda inner: st.builds(
        Loop,
        loader=st.integers(0, LOADERS - 1),
        body=st.lists(inner, min_size=1, max_size=2).map(tuple),
        steps=st.booleans(),
    ),
    max_leaves=4,
)


def executed(parts: tuple[Look | Loop, ...], loaders: list[Any], seen: list[Any]) -> Iterator[list[Any]]:
    """Yields what each step saw: the batches of the loops it is in, and what was looked at before in their bodies."""
    for part in parts:
        if isinstance(part, Look):
            batches = iter(loaders[part.loader])
            seen = [*seen, sum(float(batch.sum()) for batch in batches) if part.whole else next(batches)]
            continue
        for batch in loaders[part.loader]:
            yield from executed(part.body, loaders, [*seen, batch])
            if part.steps:
                yield [*seen, batch]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(PARTS, min_size=1, max_size=3).map(tuple), cuts=st.lists(st.integers(0, 10**6), max_size=4))
def test_cuts_change_nothing(parts: tuple[Look | Loop, ...], cuts: list[int]) -> None:
    def code(course: Course) -> Iterator[list[Any]]:
        loaders = [course.add(2 + number, batch_size=1) for number in range(LOADERS)]
        for _ in course.epochs():
            yield from executed(parts, loaders, [])

    with mock.patch.object(loader, "LOOKS", 0):
        whole = run(code, Course(epochs=2))
        saved = None
        for cut in sorted({1 + place % len(whole) for place in cuts} if whole else ()):
            course = Course(saved=saved, epochs=2)
            before = course.steps
            assert run(code, course, cut) == (whole[before:cut] if course.left else whole[before:])
            saved = course.left or saved
        assert run(code, Course(saved=saved, epochs=2)) == whole[saved["steps"] if saved else 0 :]
