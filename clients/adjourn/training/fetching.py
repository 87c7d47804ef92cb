"""Makes batches of samples, in the training process or in a worker of it, with the same result."""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from adjourn.training.errors import StateMismatch
from adjourn.training.state.generators import GENERATORS, Aside, derived_seed, seeded

Place = tuple[int | str, ...]
"""Seed, loader, epoch, pass."""
Collate = Callable[[Any], Any]


class Batch(NamedTuple):
    """Which samples make a batch, and the seed of every random draw made for it."""

    number: int
    seed: int
    indices: Any


class End(NamedTuple):
    """Stands for a batch where an iterable dataset has ended."""


END: Final = End()


class Seeds:
    """The seed of each batch of a pass."""

    def __init__(self, place: Place) -> None:
        self._key = derived_seed("draws", *place).to_bytes(8, "big")

    def __getitem__(self, number: int) -> int:
        digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big")


class Batches:
    """The batches of a pass, each made when it is asked for; may be iterated over once."""

    def __init__(self, place: Place, first: int, indices: Iterable[Any]) -> None:
        """`indices` are those of the batches from number `first` on."""
        self._seeds = Seeds(place)
        self._numbered = enumerate(indices, first)

    def __iter__(self) -> Iterator[Batch]:
        seeds = self._seeds
        for number, indices in self._numbered:
            yield Batch(number, seeds[number], indices)


class Fetcher(Dataset[Any]):
    """A dataset of batches of one that has `__getitem__`."""

    def __init__(self, dataset: Dataset[Any], collate: Collate, *, single: bool) -> None:
        """If `single`, each sample is a batch."""
        self._dataset = dataset
        self._collate = collate
        self._single = single
        self._together: Callable[[list[Any]], Any] | None = getattr(dataset, "__getitems__", None)
        """Reads many samples at once, as `DataLoader` has it do."""

    def __getitem__(self, batch: Batch) -> Any:
        with seeded(batch.seed):
            dataset, indices = self._dataset, batch.indices
            if self._single:
                return self._collate(dataset[indices])
            if self._together is not None:
                return self._collate(self._together(indices))
            return self._collate([dataset[index] for index in indices])


class Reader(Dataset[Any]):
    """A dataset of batches of an iterable one; they are asked for in their order, by one process.

    It begins at a batch with the state that the dataset had before it, or, if it has no such state, by reading those
    before it again. Each batch comes with the state behind it.
    """

    def __init__(
        self,
        dataset: Iterable[Any],
        collate: Collate,
        *,
        batch_size: int | None,
        drop_last: bool,
        place: Place,
        state: Any,
        told: bool,
    ) -> None:
        """`told` says whether each batch comes with the state behind it; else the state is None."""
        self._dataset = dataset
        self._collate = collate
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._seeds = Seeds(place)
        self._state = state
        self._told = told
        self._samples: Iterator[Any] | None = None
        self._number = 0
        self._beginning = derived_seed("begins", *place)

    def __getitem__(self, batch: Batch) -> tuple[Any, Any]:
        if self._samples is None:
            if self._state is not None:
                load_state(self._dataset, self._state)
                self._number = batch.number
            with seeded(self._beginning):
                self._samples = iter(self._dataset)
        while self._number < batch.number:
            with seeded(self._seeds[self._number]):
                self._read()
            self._number += 1
        with seeded(batch.seed):
            samples = self._read()
            made = END if samples is END else self._collate(samples)
        self._number += 1
        return made, state_of(self._dataset) if self._told else None

    def _read(self) -> Any:
        assert self._samples is not None
        if self._batch_size is None:
            return next(self._samples, END)
        samples = list(itertools.islice(self._samples, self._batch_size))
        return samples if len(samples) == self._batch_size or (samples and not self._drop_last) else END


def has_state(subject: Any) -> bool:
    return callable(getattr(subject, "state_dict", None)) and callable(getattr(subject, "load_state_dict", None))


def state_of(subject: Any) -> Any:
    return subject.state_dict() if has_state(subject) else None


def load_state(subject: Any, state: Any) -> None:
    if not has_state(subject):
        raise StateMismatch(f"{type(subject).__qualname__} had a state_dict() when it was saved, and has none now")
    subject.load_state_dict(state)


class Sampled:
    """The indices of batches as a sampler of the user's gives them.

    Its random draws, and those of its generators, depend on the place alone; what else it depends on is its own state,
    or set by `set_epoch`. Begun at a later batch it gives the indices of those before again, which must be what they
    were: raises StateMismatch.
    """

    def __init__(self, place: Place, sampler: Any, batches: Iterable[Any], restored: Mapping[str, Any] | None) -> None:
        """`batches` are made of the sampler; `restored` is `details` of the pass to go on with."""
        seed = derived_seed("sampler", *place)
        for number, generator in enumerate(generators_of(sampler)):
            seed_generator(generator, derived_seed(seed, number))
        if restored and restored.get("sampler") is not None:
            load_state(sampler, restored["sampler"])
        self._began = state_of(sampler)
        self._aside = Aside(seed)
        with self._aside:
            self._batches = iter(batches)
        self._digests = deque([b""])
        """Of all indices up to the newest batch that was handed out, and up to each that was made ahead."""
        self._before = b""

    def skip(self, count: int, expected: str | None) -> None:
        for _ in itertools.islice(self, count):
            self.handed_out()
        if expected is not None and self._digests[0].hex() != expected:
            raise StateMismatch(
                "the sampler does not give the samples that it gave before: let it depend on nothing but its own"
                " state_dict(), set_epoch() and random numbers, or change what it depends on between epochs only"
            )

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._aside:
                indices = next(self._batches, END)
            if indices is END:
                return
            content = self._digests[-1] + repr(indices).encode()
            self._digests.append(hashlib.blake2b(content, digest_size=8).digest())
            yield indices

    def handed_out(self) -> None:
        self._before = self._digests.popleft()

    def details(self, *, again: bool) -> dict[str, Any]:
        """Returns what it takes to go on; `again`: with the newest batch."""
        digest = self._before if again else self._digests[0]
        return {"sampler": self._began, "digest": digest.hex()}


def in_batches(sampler: Iterable[Any], batch_size: int | None, *, drop_last: bool) -> Iterator[Any]:
    samples = iter(sampler)
    if batch_size is None:
        yield from samples
        return
    while batch := list(itertools.islice(samples, batch_size)):
        if len(batch) == batch_size or not drop_last:
            yield batch


def generators_of(sampler: Any) -> list[Any]:
    """Returns the random generators that a sampler, or the one that it draws from, has as attributes."""
    found: list[Any] = []
    while sampler is not None and hasattr(sampler, "__dict__"):
        found += [value for value in vars(sampler).values() if isinstance(value, GENERATORS)]
        sampler = vars(sampler).get("sampler")
    return found


def seed_generator(generator: Any, seed: int) -> None:
    match generator:
        case torch.Generator():
            generator.manual_seed(seed)
        case np.random.Generator():
            fresh = type(generator.bit_generator)(seed)
            generator.bit_generator.state = fresh.state
        case np.random.RandomState():
            generator.seed(seed % (1 << 32))
        case _:
            generator.seed(seed)
