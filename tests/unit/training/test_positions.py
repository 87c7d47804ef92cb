"""A training that is cut at any step goes on with exactly the batches that are left: its code runs anew from the first
line of the epoch, as a resumed run's does."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from adjourn.training import loader as loader_module
from tests.harness.loader_course import EPOCHS, Code, Course, run


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the looks for itertools.cycle, which go through all objects of the tests."""
    monkeypatch.setattr(loader_module, "LOOKS", 0)
    monkeypatch.setattr(loader_module, "is_cycled", lambda _: False)


def simple(course: Course) -> Iterator[Any]:
    loader = course.add()
    for epoch in course.epochs():
        for batch in loader:
            yield epoch, batch


def validating_amid(course: Course) -> Iterator[Any]:
    loader, validation = course.add(20), course.add(4)
    for _ in course.epochs():
        for batch in loader:
            yield batch, [each.tolist() for each in validation] if course.steps % 2 else []
            if course.steps % 3:
                assert len(list(validation)) == 2
        assert len(list(validation)) == 2


def example_first(course: Course) -> Iterator[Any]:
    loader = course.add()
    first = next(iter(loader))
    for _ in course.epochs():
        mean = sum(float(batch.sum()) for batch in loader)
        example = next(iter(loader))
        for batch in loader:
            yield first, mean, example, batch


def twice_an_epoch(course: Course) -> Iterator[Any]:
    loader = course.add(7)
    for _ in course.epochs():
        for _ in range(2):
            for batch in loader:
                yield (batch,)


def breaking_off(course: Course) -> Iterator[Any]:
    one, other = course.add(), course.add(6)
    for _ in course.epochs():
        for batch in one:
            yield (batch,)
            if course.steps % 4 == 2:
                break
        for batch in other:
            yield (batch,)


def side_by_side(course: Course) -> Iterator[Any]:
    one, other = course.add(), course.add(20)
    for _ in course.epochs():
        yield from zip(one, other, strict=False)


def shorter_again_and_again(course: Course) -> Iterator[Any]:
    long, short = course.add(17), course.add(5)
    for _ in course.epochs():
        batches = endless(short)
        for batch in long:
            yield batch, next(batches)


def loop_in_a_loop(course: Course) -> Iterator[Any]:
    tasks, samples = course.add(8), course.add(7)
    for _ in course.epochs():
        for task in tasks:
            for batch in samples:
                yield task, batch


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def kept(course: Course) -> Iterator[Any]:
    batches = iter(loader := course.add())
    for epoch in course.epochs():
        while course.steps < 3 * epoch:
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            yield (batch,)


def kept_generator(course: Course) -> Iterator[Any]:
    unlabelled = endless(course.add(8))
    labelled = course.add(10)
    for _ in course.epochs():
        for batch in labelled:
            yield batch, next(unlabelled)


def kept_and_looked_into(course: Course) -> Iterator[Any]:
    loader = course.add()
    example = next(iter(loader))
    batches = iter(loader)
    first = next(batches)
    for epoch in course.epochs():
        while course.steps < 2 * epoch:
            yield example, first, next(batches, None)


def made_in_the_epoch(course: Course) -> Iterator[Any]:
    course.add()
    for epoch in course.epochs():
        loader = course.add(10 - epoch)
        assert len(list(course.add(2))) == 1
        for batch in loader:
            seen = [list(course.add(2)) for _ in range(course.steps % 3)]
            yield batch, [each.tolist() for (each,) in seen]


def looked_into_within(course: Course) -> Iterator[Any]:
    """Has passes before, within and behind an inner loop, some of which are gone through again."""
    tasks, samples, others = course.add(7), course.add(7), course.add(4)
    for _ in course.epochs():
        rest = iter(others)
        example = next(rest)
        mean = sum(float(each.sum()) for each in others)
        for task in tasks:
            before = sum(float(each.sum()) for each in others)
            for batch in samples:
                yield task, batch, example, mean, before
            assert len(list(samples)) == 3
        assert len(list(rest)) == 1


def many_passes(course: Course) -> Iterator[Any]:
    loader = course.add(3)
    for _ in course.epochs():
        for _ in range(6):
            yield from ([batch] for batch in loader)


TRAININGS = [
    validating_amid,
    looked_into_within,
    many_passes,
    made_in_the_epoch,
    simple,
    example_first,
    twice_an_epoch,
    breaking_off,
    side_by_side,
    shorter_again_and_again,
    loop_in_a_loop,
    kept,
    kept_generator,
    kept_and_looked_into,
]


@pytest.mark.parametrize("code", TRAININGS)
def test_cut_at_any_step(code: Code) -> None:
    whole = run(code, Course())
    missed = 0
    for cut in range(1, len(whole)):
        course = Course()
        before = run(code, course, cut)
        if course.left is None:  # a pass ended before another batch of it was asked for
            missed += 1
            continue
        assert before == whole[:cut]
        again = Course(saved=course.left)
        assert run(code, again) == whole[cut:], cut
    assert missed <= 2 * EPOCHS


@pytest.mark.parametrize("code", TRAININGS)
def test_cut_twice(code: Code) -> None:
    whole = run(code, Course())
    for first, between in itertools.product(range(1, len(whole), 3), (1, 4)):
        course = Course()
        run(code, course, first)
        if course.left is not None and first + between < len(whole):
            again = Course(saved=course.left)
            run(code, again, first + between)
            if again.left is not None:
                assert run(code, Course(saved=again.left)) == whole[first + between :], (first, between)


@pytest.mark.parametrize("code", TRAININGS)
def test_cut_at_the_ends_of_epochs(code: Code) -> None:
    course = Course()
    whole = run(code, course)
    assert len(course.boundaries) == EPOCHS
    for cut, state in course.boundaries.items():
        assert run(code, Course(saved=state)) == whole[cut:]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("code", [simple, kept, side_by_side])
def test_what_workers_have_made_ahead_is_made_again(code: Code, workers: int) -> None:
    whole = run(code, Course())
    cut = 4
    course = Course(workers)
    assert run(code, course, cut) == whole[:cut]
    assert run(code, Course(workers, saved=course.left), cut + 3) == whole[cut : cut + 3]


def test_at_the_end_of_an_epoch_nothing_is_left_to_tell() -> None:
    course = Course()
    run(simple, course)
    assert all(state["loaders"]["positions"] == {} for state in course.boundaries.values())
