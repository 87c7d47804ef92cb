"""Batches in an order, and with random draws, that depend on nothing but seed, loader, epoch, pass and batch.

So a resumed run sees what the uninterrupted one would have seen, whatever the number of worker processes, and can
start at any batch without replaying those before it.
"""

import gc
import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any, Final, cast

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, default_convert

from adjourn.training.errors import StateMismatch, UntrackedState
from adjourn.training.events import log_line
from adjourn.training.fetching import (
    Batches,
    Collate,
    End,
    Fetcher,
    Place,
    Reader,
    Sampled,
    has_state,
    in_batches,
    load_state,
    state_of,
)
from adjourn.training.order import batches as batches_of
from adjourn.training.order import in_sequence, shuffled
from adjourn.training.positions import Positions, Record
from adjourn.training.probes import PROBES, Probe, Probes, digest_of
from adjourn.training.state.fields import Fields, Values
from adjourn.training.state.generators import derived_seed

VERSION: Final = 3
"""Of the order and of the random draws: another one would give a resumed run other batches."""
Heard = Callable[[bool], None]
"""Told of each batch that is taken: False; and of the end of a pass: True."""
DATASET: Final = "dataset"
More = Callable[[], bool]
"""Tells whether another batch is left in a pass; where nobody knows, it is made and kept."""
LOOKS: Final = 4
"""Ends of passes at which a loader looks for who iterates over it: that goes through all objects."""


class Pass:
    """An iterator over the batches of one pass.

    If a resumed run goes on amid the pass, it begins behind the last batch that was handed out.
    """

    def __init__(self, loader: "Loader", record: Record) -> None:
        self._loader = loader
        self._positions = loader.positions
        self._steps = loader.steps
        self._epoch = self._positions.epoch
        self.record = record
        self._first = record.taken
        self._batches = loader.made(record)
        self._ahead: list[Any] = []
        """The next batch, if it had to be made to know whether there is one."""

    @property
    def open(self) -> bool:
        """Whether batches are left."""
        return not self.record.over

    @property
    def epoch(self) -> int:
        """In which it began."""
        return self.record.epoch

    def __iter__(self) -> Iterator[Any]:
        return self

    def __len__(self) -> int:
        """Batches that were left when it began, or was gone on with."""
        return len(self._loader) - self._first

    def __next__(self) -> Any:
        positions = self._positions
        if positions.epoch != self._epoch:
            self._enter_epoch()
        record = self.record
        if positions.awaited is record:
            self._loader.returned()
        if positions.cut_wanted and positions.may_cut(record, self._loader.length):
            self._loader.asked(record, self._more)
        try:
            batch = self._ahead.pop() if self._ahead else next(self._batches)
        except StopIteration:
            positions.ended(record)
            self._loader.pass_ended(self)
            raise
        record.taken += 1
        positions.clock += 1
        record.latest = positions.clock
        record.first = record.first or positions.clock
        record.handed = self._steps()
        self._loader.heard(False)
        return batch

    def _more(self) -> bool:
        length = self._loader.length
        if length is not None and not self._loader.reads_on:
            return self.record.taken < length
        if not self._ahead:
            self._ahead.extend(itertools.islice(self._batches, 1))
        self.record.upcoming = digest_of(self._ahead[0]) if self._ahead else None
        return bool(self._ahead)

    def _enter_epoch(self) -> None:
        """Goes on in a later epoch, if a resumed run could."""
        loader = self._loader
        if not loader.may_be_kept and (not loader.lasting or is_cycled(self)):
            raise UntrackedState(
                f"an iterator over a loader of {loader.told_length} batches, made in epoch {self.epoch}, is used in"
                f" epoch {self._positions.epoch}, and a resumed run could not go on with it: itertools.cycle keeps the"
                " batches themselves, and a loader that was made within an epoch ends with it. Make the loader and its"
                " iterator before the first epoch, and begin it anew when it has ended:"
                ' `def endless(): while True: yield from loader`; or say run.ignore(loader, reason="...")'
            )
        self._epoch = self._positions.epoch
        going_on = self._positions.enter_epoch(self.record)
        if going_on is not None:
            self.record = going_on
            self._batches = loader.made(going_on)

    def __del__(self) -> None:
        record = getattr(self, "record", None)
        if record is not None:
            self._positions.gone(record)


def is_cycled(iterator: Pass) -> bool:
    return any(type(holder) is itertools.cycle for holder in gc.get_referrers(iterator))


class Loader:
    """An iterable of batches; iterate over it once an epoch to train, as often as you like to validate.

    Made by `Run.loader`. Each pass in an epoch has its own shuffled order and its own random draws.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int | None,
        shuffle: bool,
        sampler: Any,
        batch_sampler: Any,
        num_workers: int,
        drop_last: bool,
        collate: Collate | None,
        pin_memory: bool,
        name: str,
        lasting: bool,
        seed: int,
        positions: Positions,
        steps: Callable[[], int],
        heard: Heard,
        asked: Callable[[Record, More], None],
        returned: Callable[[], None],
    ) -> None:
        """`lasting`: it was made before the first epoch or between stages, so a resumed run has it from there on."""
        if (batch_size is not None and batch_size < 1) or num_workers < 0:
            raise ValueError(f"batch_size {batch_size} < 1, or num_workers {num_workers} < 0")
        self.reads_on = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")
        """Whether the dataset is iterable, and knows no sample by its index."""
        if self.reads_on and (isinstance(dataset, Iterator) or not hasattr(dataset, "__iter__")):
            raise TypeError(
                "a loader needs a dataset with __len__ and __getitem__, or an iterable one that begins anew for each"
                " pass: an iterator has no place to resume at"
            )
        if not self.reads_on and not hasattr(dataset, "__len__") and sampler is None and batch_sampler is None:
            raise TypeError("a loader needs a dataset with __len__, or a sampler: others have no place to resume at")
        if (sampler is not None or batch_sampler is not None) and (shuffle or self.reads_on):
            raise ValueError("a sampler goes neither with shuffle=True nor with an iterable dataset")
        if batch_sampler is not None and (sampler is not None or batch_size != 1 or drop_last):
            raise ValueError("batch_sampler takes the place of batch_size, sampler and drop_last")
        if self.reads_on and shuffle:
            raise ValueError("an iterable dataset shuffles by itself: shuffle=True has no order to choose from")
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.num_workers = num_workers
        self.drop_last = drop_last
        self.name = name
        self.lasting = lasting
        self.positions = positions
        self.steps = steps
        self.heard = heard
        self.asked = asked
        self.returned = returned
        self._seed = seed
        self._collate = collate or (default_convert if batch_size is None else default_collate)
        self._pin_memory = pin_memory
        self._first = 0
        self._looks = 0
        self.cycled = False
        """Whether itertools.cycle iterates over it: that gives batches again of which the loader does not hear."""
        self._iterators: weakref.WeakSet[Pass] = weakref.WeakSet()
        self._content: list[str] | None = None
        stateless = {} if self.reads_on else {kind: part for kind, part in self.parts.items() if not has_state(part)}
        self.fields = Fields(stateless)
        """What is saved of a dataset or sampler without a state_dict()."""
        self._begun: Values = {}
        """The fields as they were where the newest pass began."""
        self._told: deque[Any] = deque([None])
        """States of an iterable dataset as a worker tells them; the last one is that behind the newest batch."""
        self._caught_up: Any = None
        """The one of them that the dataset of this process has."""
        self.may_be_kept = False
        """Whether user code has accepted that an iterator goes on in a later epoch without being saved."""

    def __len__(self) -> int:
        """Batches in a pass. Raises TypeError if nobody knows."""
        if self.batch_sampler is not None:
            return len(self.batch_sampler)
        samples = len(self.dataset if self.sampler is None else self.sampler)
        size = self.batch_size or 1
        return samples // size if self.drop_last else -(-samples // size)

    @property
    def parts(self) -> dict[str, Any]:
        """What decides which samples come, by its name."""
        return {DATASET: self.dataset, "sampler": self.sampler, "batch sampler": self.batch_sampler}

    @property
    def stateful(self) -> list[Any]:
        """The parts of it that have a state to be saved: samplers, an iterable dataset."""
        parts = [self.sampler, self.batch_sampler, *([self.dataset] if self.reads_on else [])]
        return [part for part in parts if has_state(part)]

    @property
    def length(self) -> int | None:
        try:
            return len(self)
        except TypeError:
            return None

    @property
    def told_length(self) -> str:
        return "unknown length" if self.length is None else f"{self.length}"

    @property
    def open_passes(self) -> list[Pass]:
        """The iterators that began in the running epoch, are alive and have batches left, of which none is saved."""
        if self.positions.keeps(self.name) and not self.cycled:
            return []
        return [each for each in self._iterators if each.open and each.epoch == self.positions.epoch]

    def __iter__(self) -> Iterator[Any]:
        record = self.positions.begin(self.name)
        if self._first:
            record.taken, self._first = self._first, 0
        iterator = Pass(self, record)
        self._iterators.add(iterator)
        return iterator

    def skip_to(self, batch: int) -> None:
        """Lets the next pass start at that batch, counted from 0, as if those before it had been taken."""
        if not 0 <= batch <= len(self):
            raise ValueError(f"batch {batch} of {len(self)}")
        self._first = batch

    def pass_ended(self, iterator: Pass) -> None:
        """Hears of a pass that has no batches left."""
        self.fields.doubt(place for place in self.fields.changed(self._begun) if place[0].startswith(DATASET))
        if self._looks < LOOKS:
            self._looks += 1
            self.cycled |= is_cycled(iterator)
        self.heard(True)

    def made(self, record: Record) -> Iterator[Any]:
        """Returns the batches of a pass that are left."""
        self._begun = self.fields.values()
        if record.over:
            return iter(())
        place: Place = (self._seed, self.name, record.epoch, record.number)
        if self.reads_on:
            return self._read(place, record)
        now, began = self.fields.state(), (record.restored or {}).get("fields")
        if began is not None:
            self.fields.load(began)
            self._begun = self.fields.values()
        made = self._made(place, record, self.fields.state())
        if began is not None and record.epoch != self.positions.epoch:
            self.fields.load(now)
        return made

    def _made(self, place: Place, record: Record, fields: Values) -> Iterator[Any]:
        """`fields`: as they are where the pass begins."""

        def details(_taken: int) -> dict[str, Any]:
            return {"fields": fields} if fields or self.fields.state() else {}

        first = record.taken
        record.details = details
        batch_size = 1 if self.batch_size is None else self.batch_size
        sampler = self.sampler if self.batch_sampler is None else self.batch_sampler
        if sampler is not None:
            batches = in_batches(
                sampler, None if sampler is self.batch_sampler else self.batch_size, drop_last=self.drop_last
            )
            sampled = Sampled(place, sampler, batches, record.restored)
            if first:
                sampled.skip(first, record.restored["digest"] if record.restored else None)
            record.details = lambda taken: details(taken) | sampled.details(again=taken < record.taken)
            return heard_of(self._fetched(place, first, sampled), sampled)
        samples = len(self.dataset)
        order = shuffled(samples, derived_seed("order", *place)) if self.shuffle else in_sequence
        indices: Iterable[Any] = batches_of(order, batch_size, first, len(self), samples)
        if self.batch_size is None:
            indices = (index for (index,) in indices)
        return self._fetched(place, first, indices)

    def _fetched(self, place: Place, first: int, indices: Iterable[Any]) -> Iterator[Any]:
        single = self.batch_size is None and self.batch_sampler is None
        fetcher = Fetcher(self.dataset, self._collate, single=single)
        return self._worked(place, fetcher, Batches(place, first, indices), self.num_workers)

    def _worked(self, place: Place, fetcher: Dataset[Any], batches: Batches, workers: int) -> Iterator[Any]:
        if not workers and not self._pin_memory:
            return map(fetcher.__getitem__, batches)  # a DataLoader's records for profilers cost more than this
        # A private generator: without one, iter() draws the workers' seed from the global generator.
        generator = torch.Generator()
        generator.manual_seed(derived_seed("workers", *place))
        return iter(
            DataLoader(
                fetcher,
                sampler=batches,
                batch_size=None,
                collate_fn=as_it_is,
                num_workers=workers,
                pin_memory=self._pin_memory,
                generator=generator,
            )
        )

    def _read(self, place: Place, record: Record) -> Iterator[Any]:
        """An iterable dataset is read by one worker at most: with more, their number would change what comes."""
        workers = min(self.num_workers, 1)
        self.catch_up()
        first, state = record.taken, (record.restored or {}).get("state")
        reader = Reader(
            self.dataset,
            self._collate,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            place=place,
            state=state,
            told=workers > 0 and has_state(self.dataset),
        )
        states = deque([state, state], maxlen=2)
        """Before and behind the newest batch that was handed out."""
        if workers:
            self._told = states

        def details(taken: int) -> dict[str, Any]:
            if taken < record.taken:
                return {"state": states[0] if workers else None}
            return {"state": states[1] if workers else state_of(self.dataset)}

        record.details = details
        record.again = workers > 0 or not has_state(self.dataset)
        made = self._worked(place, reader, Batches(place, first, itertools.repeat(None)), workers)
        batches = until_end(made, states, partial(self._say_replayed, first) if first and state is None else None)
        upcoming = (record.restored or {}).get("upcoming")
        return batches if upcoming is None else self._compared(batches, upcoming)

    def _compared(self, batches: Iterator[Any], upcoming: str) -> Iterator[Any]:
        """Raises StateMismatch, unless the first of the batches is the one that was to come where the run was cut."""
        first = list(itertools.islice(batches, 1))
        if [digest_of(each) for each in first] != [upcoming]:
            why = "and has no state_dict(): sort what it reads, or give it one"
            if has_state(self.dataset):
                why = "for all its state_dict(): let that tell what is left of the pass"
            raise StateMismatch(
                f"loader {self.name} does not go on with the batch that was next when the run was cut amid a pass: its"
                f" dataset, a {type(self.dataset).__qualname__}, does not come back to that place, {why}"
            )
        yield from itertools.chain(first, batches)

    def catch_up(self) -> None:
        """Has an iterable dataset know how far it was read by a worker: there it is a copy."""
        if (state := self._told[-1]) is not None and state is not self._caught_up:
            load_state(self.dataset, state)
            self._caught_up = state

    def _say_replayed(self, batches: int, seconds: float) -> None:
        log_line(
            f"loader {self.name}: {batches} batches of an iterable dataset were read again in {seconds:.1f} s to go on"
            " behind them; with state_dict() and load_state_dict() it would go on at once"
        )

    def content(self) -> list[str]:
        """Returns digests of a few samples, from the first to the last; they are read at the first call.

        A dataset that is read in worker processes is read in one of those: what it opens (HDF5, LMDB) must not be
        shared with them by a fork. One that has no samples by number is not read.
        """
        if self._content is None:
            samples = 0 if self.reads_on or not hasattr(self.dataset, "__len__") else len(self.dataset)
            places = sorted({place * (samples - 1) // (PROBES - 1) for place in range(PROBES)}) if samples else []
            probes: Iterable[Probe] = DataLoader(
                Probes(self.dataset, self.fields),
                sampler=places,
                batch_size=None,
                collate_fn=as_it_is,
                num_workers=min(self.num_workers, 1),
                generator=torch.Generator(),
            )
            self._content = []
            for digest, changed in probes:
                self._content.append(digest)
                self.fields.doubt(changed)
        return self._content

    def identity(self) -> dict[str, Any]:
        """Returns what must be equal for two loaders to give the same batches."""
        return {
            "content": self.content(),
            "samples": len(cast("Sized", self.dataset)) if hasattr(self.dataset, "__len__") else None,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "sampler": None if self.sampler is None else type(self.sampler).__qualname__,
            "batch_sampler": None if self.batch_sampler is None else type(self.batch_sampler).__qualname__,
            "drop_last": self.drop_last,
        }


def heard_of(batches: Iterator[Any], sampled: Sampled) -> Iterator[Any]:
    """Tells the sampler's record of each batch that is handed out, and not of those that are made ahead."""
    for batch in batches:
        sampled.handed_out()
        yield batch


def until_end(
    made: Iterator[tuple[Any, Any]], states: deque[Any], replayed: Callable[[float], None] | None
) -> Iterator[Any]:
    """Yields batches up to the end of an iterable dataset, and keeps the states that come with them."""
    begin = time.monotonic()
    for batch, state in made:
        if replayed is not None:
            replayed(time.monotonic() - begin)
            replayed = None
        states.append(state)
        if isinstance(batch, End):
            return
        yield batch


class Loaders:
    """The loaders of a run, and the epoch that they are in."""

    def __init__(
        self,
        seed: int,
        heard: Heard = lambda _over: None,
        *,
        steps: Callable[[], int] = lambda: 0,
        asked: Callable[[Record, More], None] = lambda _record, _more: None,
        returned: Callable[[], None] = lambda: None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """`asked` is called amid an epoch where the run may be cut, before a batch is handed out, while
        `positions.cut_wanted` is set: `state(record)` then tells how to go on. `returned` is called where a run that
        was cut there asks for the same batch again, until it says `positions.back`. `steps` returns the steps made.
        `saved`: `state` of the snapshot that the run goes on from; raises StateMismatch if it is not understood.
        """
        version = saved.get("version") if isinstance(saved, Mapping) else 1
        if saved is not None and version != VERSION:
            raise StateMismatch(
                f"the snapshot was made by another version of Adjourn, whose loaders give other batches (version"
                f" {version}; here it is {VERSION}): resume it there"
            )
        self._seed = seed
        self._heard = heard
        self._steps = steps
        self._asked = asked
        self._returned = returned
        self._saved = saved
        self._lasting: list[Loader] = []
        self._known: int | None = None
        """How many of them were made when the running stage began: a resumed run has made those by then. None: all."""
        self.positions = Positions(steps, saved and saved["positions"])

    @property
    def epoch(self) -> int:
        """The running epoch, or the one before; 0 before the first of this attempt."""
        return self.positions.epoch

    def open_epoch(self, epoch: int) -> None:
        self.positions.open_epoch(epoch)

    def close_epoch(self) -> None:
        self.positions.close_epoch()

    def begin_stage(self) -> None:
        """Reads samples of the data of loaders that were made since the last stage, before training may change it."""
        self._known = len(self._lasting)
        for loader in self._lasting:
            loader.content()

    @property
    def first(self) -> Loader | None:
        return self._lasting[0] if self._lasting else None

    def add(self, **options: Any) -> Loader:
        """Makes a loader. One made within an epoch is numbered within it: a resumed run does not make those before."""
        lasting = not self.positions.within
        name = str(len(self._lasting)) if lasting else self.positions.name_within()
        loader = Loader(
            **options,
            name=name,
            lasting=lasting,
            seed=self._seed,
            positions=self.positions,
            steps=self._steps,
            heard=self._heard,
            asked=self._asked,
            returned=self._returned,
        )
        if lasting:
            self._lasting.append(loader)
            for subject, state in zip(
                loader.stateful, (self._saved or {"states": {}})["states"].get(name, ()), strict=False
            ):
                load_state(subject, state)
        return loader

    def __iter__(self) -> Iterator[Loader]:
        """Yields the loaders that were made before the first epoch, or between stages."""
        return iter(self._lasting)

    def state(self, asked: Record | None = None) -> dict[str, Any]:
        """Returns what must be equal for a resumed run to see the same batches, and where it goes on.

        `asked`: the pass whose next batch is asked for, amid an epoch.
        """
        known = self._lasting[: self._known]
        for loader in known:
            loader.catch_up()
        return {
            "version": VERSION,
            "data": [loader.identity() for loader in known],
            "fields": {loader.name: state for loader in known if (state := loader.fields.state())},
            "states": {loader.name: [state_of(each) for each in loader.stateful] for loader in known},
            "positions": self.positions.state(asked),
        }

    def put_back(self, saved: Mapping[str, Any]) -> None:
        """Restores samplers and iterable datasets once more: code that ran meanwhile may have used them."""
        for loader in self._lasting:
            for subject, state in zip(loader.stateful, saved["states"].get(loader.name, ()), strict=False):
                load_state(subject, state)

    def put_fields_back(self, saved: Mapping[str, Any]) -> None:
        """Puts back the fields of datasets and samplers: code that ran meanwhile may have set them."""
        for loader in self._lasting:
            loader.fields.load(saved["fields"].get(loader.name, {}))

    def check(self, saved: Mapping[str, Any]) -> None:
        """Puts back the fields of datasets and samplers.

        Raises StateMismatch if a loader's data is as much as was saved, but other data.
        """
        for loader in self._lasting:
            loader.content()  # of samples as they are in a new run
        self.put_fields_back(saved)
        here_all: Sequence[Mapping[str, Any]] = [loader.identity() for loader in self._lasting]
        for number, (here, there) in enumerate(zip(here_all, saved["data"], strict=False)):
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
