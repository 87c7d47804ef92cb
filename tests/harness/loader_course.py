"""A training as its loaders see it: cut where batches are asked for, and gone on with as `Session` would."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from adjourn.training.loader import Loaders, More
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

    def __init__(self, workers: int = 0, saved: Any = None, epochs: int = EPOCHS) -> None:
        self._epochs = epochs
        self.steps = saved["steps"] if saved else 0
        self._workers = workers
        self._epoch = saved["epoch"] if saved else 0
        self.loaders = Loaders(
            1,
            steps=lambda: self.steps,
            asked=self.asked,
            returned=self.returned,
            saved=saved["loaders"] if saved else None,
        )
        self.loaders.positions.cut_wanted = True
        self.boundaries: dict[int, Any] = {}
        self.cut: int | None = None
        self.left: Any = None
        """State at the cut."""
        self.back = 0
        """How often it came to where it was cut."""
        assert saved is None or self.state()["loaders"]["positions"] == saved["loaders"]["positions"]

    def add(self, length: int = 14, **options: Any) -> Any:
        chosen: dict[str, Any] = {"batch_size": 3, "shuffle": True, "num_workers": self._workers}
        chosen |= {"sampler": None, "batch_sampler": None, "drop_last": False, "collate": None, "pin_memory": False}
        return self.loaders.add(dataset=options.pop("dataset", Draws(length)), **chosen | options)

    def epochs(self) -> Iterator[int]:
        while self._epoch < self._epochs:
            self.loaders.open_epoch(self._epoch + 1)
            yield self._epoch + 1
            self.loaders.close_epoch()
            for loader in self.loaders:  # as the detector does, who knows what a resumed run makes anew
                for each in loader.open_passes:
                    self.loaders.positions.doubt(each.record)
            self._epoch += 1
            self.boundaries[self.steps] = self.state()

    def returned(self) -> None:
        self.loaders.positions.back()
        self.back += 1

    def asked(self, record: Record, _more: More) -> None:
        if self.steps == self.cut:
            self.left = self.state(record)
            raise Cut

    def state(self, asked: Record | None = None) -> Any:
        state = {"steps": self.steps, "epoch": self._epoch, "loaders": self.loaders.state(asked)}
        return json.loads(json.dumps(state))


Code = Callable[[Course], Iterator[Any]]


def run(code: Code, course: Course, cut: int | None = None) -> list[Any]:
    """Returns what each step saw; `course.left` is the state after step `cut`, if the course may be cut there."""
    seen = []
    course.cut = cut
    with suppress(Cut):
        for step in code(course):
            course.steps += 1
            seen.append([part.tolist() if isinstance(part, torch.Tensor) else part for part in step])
    return seen
