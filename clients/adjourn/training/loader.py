"""Batches in an order, and with random draws, that depend on nothing but seed, loader, epoch, pass and batch.

So a resumed run sees what the uninterrupted one would have seen, whatever the number of worker processes, and can
start at any batch without replaying those before it.
"""

import hashlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from adjourn.training.errors import StateMismatch, UntrackedState
from adjourn.training.order import Order, in_sequence, shuffled
from adjourn.training.order import batches as order_of_batches
from adjourn.training.state.generators import derived_seed, seeded

Place = Sequence[int | str]
"""Seed, loader, epoch, pass."""
Collate = Callable[[list[Any]], Any]
Heard = Callable[[bool], None]
"""Told of each batch that is taken: False; and of the end of a pass: True."""


class Batch(NamedTuple):
    """Which samples make a batch, and the seed of every random draw made for it."""

    indices: list[int]
    seed: int


class Batches:
    """The batches of a pass, each made when it is asked for."""

    def __init__(self, order: Order, batch_size: int, samples: int, place: Place, numbers: range) -> None:
        self._order = order
        self._batch_size = batch_size
        self._samples = samples
        self._numbers = numbers
        self._key = derived_seed("draws", *place).to_bytes(8, "big")

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Batch]:
        numbers = self._numbers
        batches = order_of_batches(self._order, self._batch_size, numbers.start, numbers.stop, self._samples)
        for number, indices in zip(numbers, batches, strict=True):
            digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8, key=self._key).digest()
            yield Batch(indices, int.from_bytes(digest, "big"))


class Pass:
    """An iterator over the batches of one pass, which must end with its epoch.

    A resumed run cannot go on amid a pass: raises UntrackedState for a batch that is asked for in a later epoch.
    """

    def __init__(self, batches: Iterator[Any], length: int, loader: "Loader") -> None:
        self._batches = batches
        self._length = length
        self._loader = loader
        self.epoch = loader.epoch
        self.open = True
        """Whether batches are left."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Any:
        if self._loader.epoch != self.epoch and not self._loader.may_be_kept:
            raise UntrackedState(
                f"an iterator over a loader of {len(self._loader)} batches, made in epoch {self.epoch}, is used in"
                f" epoch {self._loader.epoch}: a resumed run would have to begin it anew. Iterate over the loader"
                " within the epoch (itertools.cycle(loader) there, if it is the shorter one), or say"
                ' run.ignore(loader, reason="...")'
            )
        try:
            batch = next(self._batches)
        except StopIteration:
            self.open = False
            self._loader.heard(True)
            raise
        self._loader.heard(False)
        return batch


class Fetcher(Dataset[Any]):
    """A dataset of batches; runs in the training process or in a worker, with the same result."""

    def __init__(self, dataset: Dataset[Any], collate: Collate) -> None:
        self._dataset = dataset
        self._collate = collate
        self._together: Callable[[list[int]], Any] | None = getattr(dataset, "__getitems__", None)
        """Reads many samples at once, as `DataLoader` has it do."""

    def __getitem__(self, batch: Batch) -> Any:
        with seeded(batch.seed):
            if self._together is not None:
                return self._collate(self._together(batch.indices))
            dataset = self._dataset
            return self._collate([dataset[index] for index in batch.indices])


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
        heard: Heard,
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
        self.heard = heard
        self._passes: tuple[Sequence[int | str], Iterator[int]] | None = None
        self._first = 0
        self._iterators: weakref.WeakSet[Pass] = weakref.WeakSet()
        self._content: list[str] | None = None
        self.may_be_kept = False
        """Whether user code has accepted that an iterator goes on in a later epoch."""

    def __len__(self) -> int:
        """Batches in a pass."""
        samples = len(cast("Sized", self.dataset))
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    @property
    def epoch(self) -> int:
        """The running epoch."""
        return int(self._place()[-1])

    @property
    def open_passes(self) -> list[Pass]:
        """The iterators of the running epoch that are alive and have batches left; older ones give none."""
        return [each for each in self._iterators if each.open and each.epoch == self.epoch]

    def __iter__(self) -> Iterator[Any]:
        place = (*self._place(), self._next_pass())
        first, self._first = self._first, 0
        batches = self._batches(place, first)
        iterator = Pass(self._made(batches, place), len(batches), self)
        self._iterators.add(iterator)
        return iterator

    def _made(self, batches: Batches, place: Place) -> Iterator[Any]:
        if not self.num_workers and not self._pin_memory:
            return map(self._fetcher.__getitem__, batches)  # a DataLoader's records for profilers cost more than this
        # A private generator: without one, iter() draws the workers' seed from the global generator.
        generator = torch.Generator()
        generator.manual_seed(derived_seed("workers", *place))
        return iter(
            DataLoader(
                self._fetcher,
                sampler=batches,
                batch_size=None,
                collate_fn=as_it_is,
                num_workers=self.num_workers,
                pin_memory=self._pin_memory,
                generator=generator,
            )
        )

    def skip_to(self, batch: int) -> None:
        """Lets the next pass start at that batch, counted from 0, as if those before it had been taken."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"batch {batch} of {len(self)}")
        self._first = batch

    def content(self) -> list[str]:
        """Returns digests of a few samples, from the first to the last; they are read at the first call.

        A dataset that is read in worker processes is read in one of those: what it opens (HDF5, LMDB) must not be
        shared with them by a fork.
        """
        if self._content is None:
            samples = len(cast("Sized", self.dataset))
            places = sorted({place * (samples - 1) // (PROBES - 1) for place in range(PROBES)}) if samples else []
            probes = DataLoader(
                Probes(self.dataset),
                sampler=places,
                batch_size=None,
                collate_fn=as_it_is,
                num_workers=min(self.num_workers, 1),
                generator=torch.Generator(),
            )
            self._content = list(probes)
        return self._content

    def identity(self) -> dict[str, Any]:
        """Returns what must be equal for two loaders to give the same batches."""
        return {
            "content": self.content(),
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

    def _batches(self, place: Place, first: int) -> Batches:
        samples = len(cast("Sized", self.dataset))
        order = shuffled(samples, derived_seed("order", *place)) if self.shuffle else in_sequence
        return Batches(order, self.batch_size, samples, place, range(first, len(self)))


class Loaders:
    """The loaders of a run, and the epoch that they are in."""

    def __init__(self, seed: int, heard: Heard = lambda _over: None) -> None:
        self._seed = seed
        self._heard = heard
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
        loader = Loader(**options, place=lambda: (self._seed, name, self._epoch), heard=self._heard)
        if lasting:
            self._lasting.append(loader)
        else:
            self._passing += 1
        return loader

    def __iter__(self) -> Iterator[Loader]:
        """Yields the loaders that were made before the first epoch."""
        return iter(self._lasting)

    def identities(self) -> list[dict[str, Any]]:
        """Returns what must be equal for a resumed run to see the same batches."""
        return [loader.identity() for loader in self._lasting]

    def check(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Raises StateMismatch if a loader's data is as much as was saved, but other data."""
        for number, (here, there) in enumerate(zip(self.identities(), saved, strict=False)):
            pairs = list(zip(here["content"], there["content"], strict=False))
            different = sum(one != other for one, other in pairs)
            if here["samples"] == there["samples"] and different:
                raise StateMismatch(
                    f"the data of loader {number} is not that of before: {different} of {len(pairs)} samples that were"
                    " compared differ. Is it split with another seed, or are files listed in another order? Sort them,"
                    " and make the split from run.seed"
                )


def as_it_is(batch: Any) -> Any:
    return batch


PROBES = 8
"""Samples whose digests stand for a dataset."""
PROBE_BYTES = 1 << 20
"""Of a tensor, array or image, as many bytes count."""
PROBE_DEPTH = 6


class Probes(Dataset[str]):
    """Digests of samples; random draws within them are always the same."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> str:
        with seeded(derived_seed("probe", index)):
            try:
                sample = self._dataset[index]
            except Exception as error:  # noqa: BLE001  (training may never ask for it; if it does, it will say so)
                return f"raises {type(error).__qualname__}"
        hasher = hashlib.blake2b(digest_size=16)
        for piece in pieces(sample, PROBE_DEPTH):
            hasher.update(piece)
        return hasher.hexdigest()


def pieces(sample: Any, depth: int) -> Iterator[bytes]:
    """Returns bytes that are equal for equal samples; of an object that is not known, only its type."""
    yield type(sample).__qualname__.encode()
    if isinstance(sample, torch.Tensor) and sample.layout is torch.strided and not sample.is_meta:
        yield f"{sample.dtype}{tuple(sample.shape)}".encode()
        flat = sample.detach().resolve_conj().resolve_neg().reshape(-1)[: PROBE_BYTES // sample.element_size()]
        yield flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    elif isinstance(sample, bool | int | float | complex | str | None):
        yield repr(sample).encode()
    elif isinstance(sample, bytes | bytearray):
        yield bytes(sample[:PROBE_BYTES])
    elif callable(raw := getattr(sample, "tobytes", None)):  # an array, an image
        yield repr(getattr(sample, "shape", getattr(sample, "size", ""))).encode()
        yield raw()[:PROBE_BYTES]
    elif depth and isinstance(sample, Mapping):
        for key, value in sample.items():
            yield from pieces(key, depth - 1)
            yield from pieces(value, depth - 1)
    elif depth and isinstance(sample, list | tuple):
        for value in sample:
            yield from pieces(value, depth - 1)
    elif depth and hasattr(sample, "__dict__"):
        yield from pieces(vars(sample), depth - 1)
