"""A training that is cut at any step goes on with exactly the batches that are left: its code runs anew from the first
line of the epoch, as a resumed run's does."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from adjourn.training import loader as loader_module
from adjourn.training.loader import Loaders
from adjourn.training.positions import Record

EPOCHS = 3


class Draws:
    """Samples that are draws from all three global generators."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002


class Cut(BaseException):
    pass


class Course:
    """What `Session` does for a training, whose steps are what its code yields."""

    def __init__(self, workers: int = 0, saved: Any = None) -> None:
        self.steps = saved["steps"] if saved else 0
        self._workers = workers
        self._epoch = saved["epoch"] if saved else 0
        self.loaders = Loaders(1, steps=lambda: self.steps, asked=self.asked, saved=saved["loaders"] if saved else None)
        self.loaders.positions.cut_wanted = True
        self.boundaries: dict[int, Any] = {}
        self.cut: int | None = None
        self.left: Any = None
        """State at the cut."""
        assert saved is None or self.state()["loaders"]["positions"] == saved["loaders"]["positions"]

    def add(self, length: int = 14, **options: Any) -> Any:
        chosen: dict[str, Any] = {"batch_size": 3, "shuffle": True, "num_workers": self._workers}
        chosen |= {"sampler": None, "batch_sampler": None, "drop_last": False, "collate": None, "pin_memory": False}
        return self.loaders.add(dataset=options.pop("dataset", Draws(length)), **chosen | options)

    def epochs(self) -> Iterator[int]:
        while self._epoch < EPOCHS:
            self.loaders.open_epoch(self._epoch + 1)
            yield self._epoch + 1
            self.loaders.close_epoch()
            for loader in self.loaders:  # as the detector does, who knows what a resumed run makes anew
                for each in loader.open_passes:
                    self.loaders.positions.doubt(each.record)
            self._epoch += 1
            self.boundaries[self.steps] = self.state()

    def asked(self, record: Record) -> None:
        if self.steps == self.cut:
            self.left = self.state(record)
            raise Cut

    def state(self, asked: Record | None = None) -> Any:
        state = {"steps": self.steps, "epoch": self._epoch, "loaders": self.loaders.state(asked)}
        return json.loads(json.dumps(state))


Code = Callable[[Course], Iterator[Any]]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the looks for itertools.cycle, which go through all objects of the tests."""
    monkeypatch.setattr(loader_module, "LOOKS", 0)
    monkeypatch.setattr(loader_module, "is_cycled", lambda _: False)


def run(code: Code, course: Course, cut: int | None = None) -> list[Any]:
    """Returns what each step saw; `course.left` is the state after step `cut`, if the course may be cut there."""
    seen = []
    course.cut = cut
    with suppress(Cut):
        for step in code(course):
            course.steps += 1
            seen.append([part.tolist() if isinstance(part, torch.Tensor) else part for part in step])
    return seen


def simple(course: Course) -> Iterator[Any]:
    loader = course.add()
    for epoch in course.epochs():
        for batch in loader:
            yield epoch, batch


def validating_amid(course: Course) -> Iterator[Any]:
    loader, validation = course.add(20), course.add(4)
    for _ in course.epochs():
        losses = 0.0
        for place, batch in enumerate(loader):
            losses = sum(float(each.sum()) for each in validation) if place % 2 else 0.0
            yield batch, losses if place else 0
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
        for place, batch in enumerate(loader):
            validation = list(course.add(2)) if place % 2 else []
            yield batch, [each.tolist() for each in validation] if place else []


TRAININGS = [
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
