"""Settings in attributes of datasets and samplers are saved with the loader, and decide what its passes give."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from adjourn.training.loader import Loader, Loaders
from adjourn.training.positions import Record
from adjourn.training.state.fields import ITEM_LIMIT, Fields


class Leveled(Dataset[torch.Tensor]):
    """As many samples as were set."""

    def __init__(self) -> None:
        self.length = 4
        self.weights = [1.0]
        self.reads = 0
        self.many = [0] * (ITEM_LIMIT + 1)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        self.reads += 1
        return torch.tensor(index)


class Numbered:
    """A sampler that gives others in each epoch, which it is told or counts itself."""

    def __init__(self, *, counts: bool) -> None:
        self.epoch = 0
        self.counts = counts

    def __iter__(self) -> Iterator[int]:
        begin = self.epoch
        self.epoch += self.counts
        yield from range(begin, begin + 3)


class Course:
    """Loaders of a run, made as in a new one, and what their samples come from."""

    def __init__(self, saved: Any = None, epoch: int = 1, *, counts: bool = False) -> None:
        self.steps = 0
        self.states: list[Any] = []
        self.restored = saved
        self.data, self.sampler = Leveled(), Numbered(counts=counts)
        self.loaders = Loaders(1, steps=lambda: self.steps, asked=self._asked, returned=self._returned, saved=saved)
        options: dict[str, Any] = {"drop_last": False, "collate": None, "pin_memory": False, "num_workers": 0}
        options |= {"batch_sampler": None, "batch_size": 1}
        inner: Any = Subset(self.data, range(10))
        self.plain: Loader = self.loaders.add(**options, dataset=self.data, shuffle=True, sampler=None)
        self.sampled: Loader = self.loaders.add(**options, dataset=inner, shuffle=False, sampler=self.sampler)
        if saved:
            self.loaders.check(saved)
        else:
            self.loaders.state()
        self.loaders.open_epoch(epoch)

    def _asked(self, record: Record, *_: object) -> None:
        self.states.append(self.saved(record))

    def _returned(self) -> None:
        self.loaders.put_fields_back(self.restored)
        self.loaders.positions.back()

    def saved(self, record: Record | None = None) -> Any:
        return json.loads(json.dumps(self.loaders.state(record)))

    def taken(self, loader: Loader) -> list[int]:
        found = []
        for batch in loader:
            self.steps += 1
            found.append(int(batch))
        return found


def test_they_are_saved_with_the_loader_and_put_back_in_place() -> None:
    course = Course()
    course.sampler.epoch, course.data.length = 4, 9
    course.data.weights.append(3.0)
    course.data.many.append(1)
    course.loaders.close_epoch()
    saved = course.saved()
    settings = {"length": 9, "weights": [1, 3]}
    assert saved["fields"] == {
        "0": {"dataset": settings},
        "1": {"dataset.dataset": settings, "sampler": {"epoch": 4}},
    }
    resumed = Course(saved, 2)
    assert (resumed.data.length, resumed.data.weights, resumed.sampler.epoch) == (9, [1, 3], 4)
    assert resumed.saved()["fields"] == saved["fields"]
    assert sorted(resumed.taken(resumed.plain)) == list(range(9))
    assert resumed.taken(resumed.sampled) == [4, 5, 6]


def test_what_was_loaded_is_saved_also_where_it_is_what_the_constructor_made() -> None:
    fields = Fields({"dataset": Leveled()})
    state = {"dataset": {"length": 4}}
    fields.load(state)
    assert fields.state() == state


def test_what_was_not_saved_is_as_the_constructor_made_it() -> None:
    data = Leveled()
    fields = Fields({"dataset": data})
    data.length = 5
    fields.load({})
    assert data.length == 4


def test_what_reading_changes_is_not_saved() -> None:
    course = Course()
    course.taken(course.plain)
    assert course.data.reads > 0
    assert course.saved()["fields"] == {}
    names = {name for _, name in course.plain.fields.covered()}
    assert names == {"length", "weights"}


def test_what_changes_amid_a_pass_is_not_saved_of_a_dataset() -> None:
    """It decides at once where no worker reads ahead, and in the next pass where workers do."""
    course = Course()
    for _ in course.plain:
        course.data.length = 5
    assert course.saved()["fields"] == {"1": {"dataset.dataset": {"length": 5}}}
    for _ in course.sampled:
        course.data.length = 6
    assert course.saved()["fields"] == {}


@pytest.mark.parametrize("counts", [False, True])
def test_a_pass_goes_on_with_the_settings_that_it_began_with(*, counts: bool) -> None:
    """The code of the epoch is executed again, and may set them relative to what they were."""

    def train(course: Course) -> Iterator[int]:
        course.data.length += 3
        course.sampler.epoch += 2
        for loader in (course.sampled, course.plain):
            yield from course.taken(loader)

    whole = Course(counts=counts)
    found = list(train(whole))
    assert found[:3] == [2, 3, 4]
    cut = Course(counts=counts)
    cut.loaders.positions.cut_wanted = True
    assert list(train(cut)) == found
    for done, state in enumerate(cut.states, 1):
        resumed = Course(state, counts=counts)
        assert list(train(resumed)) == found[done:]
        assert resumed.saved()["fields"] == whole.saved()["fields"]


@pytest.mark.parametrize("value", [1, 2.5, "a", None, (1, "b"), {1, 2}, frozenset({1}), {"a": 1}, np.float32(0.5)])
def test_kinds_of_settings(value: Any) -> None:
    data = Leveled()
    fields = Fields({"dataset": data})
    data.setting = value  # type: ignore[attr-defined]
    assert fields.state() == {"dataset": {"setting": value}}


@pytest.mark.parametrize("value", [object(), torch.ones(1), [[1]], {"a": [1]}, 1 << 9000, [0] * (ITEM_LIMIT + 1)])
def test_what_is_no_setting(value: Any) -> None:
    data = Leveled()
    fields = Fields({"dataset": data})
    data.setting = value  # type: ignore[attr-defined]
    assert fields.state() == {}
