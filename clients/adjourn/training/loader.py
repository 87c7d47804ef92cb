"""Batches in an order, and with random draws, that depend on nothing but seed, loader, epoch, pass and batch.

So a resumed run sees what the uninterrupted one would have seen, whatever the number of worker processes, and can
start at any batch without replaying those before it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from adjourn.training.state.generators import derived_seed, seeded

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Which samples make a batch, and the seed of every random draw made for it."""

    indices: Sequence[int]
    seed: int


class Fetcher(Dataset[Any]):
    """A dataset of batches; runs in the training process or in a worker, with the same result."""

    def __init__(self, dataset: Dataset[Any], collate: Collate) -> None:
        self._dataset = dataset
        self._collate = collate

    def __getitem__(self, batch: Batch) -> Any:
        with seeded(batch.seed):
            return self._collate([self._dataset[index] for index in batch.indices])


class Loader:
    """An iterable of batches; iterate over it once an epoch to train, as often as you like to validate.

    Made by `Run.loader`. Each pass in an epoch has its own shuffled order and its own random draws.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int,
        shuffle: bool,
        num_workers: int,
        drop_last: bool,
        collate: Collate | None,
        pin_memory: bool,
        place: Callable[[], Sequence[int | str]],
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError("a loader needs a dataset with __len__ and __getitem__: others have no place to resume at")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size {batch_size} < 1, or num_workers {num_workers} < 0")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._fetcher = Fetcher(dataset, collate or default_collate)
        self._pin_memory = pin_memory
        self._place = place
        """Returns seed, loader and running epoch."""
        self._passes: tuple[Sequence[int | str], Iterator[int]] | None = None
        self._first = 0

    def __len__(self) -> int:
        """Batches in a pass."""
        samples = len(cast("Sized", self.dataset))
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        place = (*self._place(), self._next_pass())
        # A private generator: without one, iter() draws the workers' seed from the global generator.
        generator = torch.Generator()
        generator.manual_seed(derived_seed("workers", *place))
        first, self._first = self._first, 0
        batches = DataLoader(
            self._fetcher,
            sampler=self._batches(place)[first:],
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            pin_memory=self._pin_memory,
            generator=generator,
        )
        return iter(batches)

    def skip_to(self, batch: int) -> None:
        """Lets the next pass start at that batch, counted from 0, as if those before it had been taken."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"batch {batch} of {len(self)}")
        self._first = batch

    def identity(self) -> dict[str, int | bool]:
        """Returns what must be equal for two loaders to give the same batches."""
        return {
            "samples": len(cast("Sized", self.dataset)),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _next_pass(self) -> int:
        place = self._place()
        if self._passes is None or self._passes[0] != place:
            self._passes = (place, itertools.count())
        return next(self._passes[1])

    def _batches(self, place: Sequence[int | str]) -> list[Batch]:
        samples = len(cast("Sized", self.dataset))
        order: Sequence[int] = range(samples)
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(derived_seed("order", *place))
            order = torch.randperm(samples, generator=generator).tolist()
        return [
            Batch(
                indices=order[number * self.batch_size : (number + 1) * self.batch_size],
                seed=derived_seed("draws", *place, number),
            )
            for number in range(len(self))
        ]


class Loaders:
    """The loaders of a run, and the epoch that they are in."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lasting: list[Loader] = []
        self._passing = 0
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The running epoch, or the one before; 0 before the first of this attempt."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._passing = 0

    @property
    def first(self) -> Loader | None:
        return self._lasting[0] if self._lasting else None

    def add(self, **options: Any) -> Loader:
        """Makes a loader. One made within an epoch is numbered within it: a resumed run does not make those before."""
        lasting = self._epoch == 0
        name = str(len(self._lasting)) if lasting else f"{self._passing} of the epoch"
        loader = Loader(**options, place=lambda: (self._seed, name, self._epoch))
        if lasting:
            self._lasting.append(loader)
        else:
            self._passing += 1
        return loader

    def identities(self) -> list[dict[str, int | bool]]:
        """Returns what must be equal for a resumed run to see the same batches."""
        return [loader.identity() for loader in self._lasting]


def as_it_is(batch: Any) -> Any:
    return batch
