import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, WeightedRandomSampler

from adjourn import training
from adjourn.training.loader import Loader, Loaders, More
from adjourn.training.positions import Record
from adjourn.training.state.generators import generator_states, seed_generators


class Draws:
    """A dataset whose samples are draws from all three global generators."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002


def loader(seed: int = 1, epoch: int = 1, **options: Any) -> Loader:
    loaders = Loaders(seed)
    made = loaders.add(**OPTIONS | options)
    loaders.open_epoch(epoch)
    return made


OPTIONS: dict[str, Any] = {
    "dataset": Draws(),
    "batch_size": 3,
    "shuffle": True,
    "num_workers": 0,
    "drop_last": False,
    "collate": None,
    "pin_memory": False,
    "sampler": None,
    "batch_sampler": None,
}


def batches(source: Iterable[torch.Tensor]) -> list[list[list[float]]]:
    return [batch.tolist() for batch in source]


def indices(source: Iterable[torch.Tensor]) -> list[int]:
    return [int(sample[0]) for batch in source for sample in batch]


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_changes_nothing(workers: int) -> None:
    torch.set_num_threads(1)
    assert batches(loader(num_workers=workers)) == batches(loader())


def test_every_sample_comes_once_in_an_order_of_its_own() -> None:
    order = indices(loader())
    assert sorted(order) == list(range(10))
    assert order == indices(loader())
    assert order != indices(loader(epoch=2))
    assert order != indices(loader(seed=2))
    assert indices(loader(shuffle=False)) == list(range(10))


def test_draws_depend_on_epoch_and_batch() -> None:
    first, second = (batches(loader(shuffle=False, epoch=epoch)) for epoch in (1, 2))
    draws = [sample[1] for batch in first + second for sample in batch]
    assert len(set(draws)) == len(draws)


def test_passes_of_an_epoch_differ_and_start_again_with_the_next() -> None:
    loaders = Loaders(1)
    made = loaders.add(**OPTIONS)
    loaders.open_epoch(1)
    one, two = batches(made), batches(made)
    assert one != two
    loaders.open_epoch(2)
    assert batches(made) == batches(loader(epoch=2))


def test_loaders_differ() -> None:
    loaders = Loaders(1)
    one, two = loaders.add(**OPTIONS), loaders.add(**OPTIONS)
    assert indices(one) != indices(two)


def test_loader_made_within_an_epoch_is_the_same_in_a_resumed_run() -> None:
    uninterrupted, resumed = Loaders(1), Loaders(1)
    for loaders in (uninterrupted, resumed):
        loaders.add(**OPTIONS)
    uninterrupted.open_epoch(1)
    uninterrupted.add(**OPTIONS)
    for loaders in (uninterrupted, resumed):
        loaders.open_epoch(2)
    assert batches(uninterrupted.add(**OPTIONS)) == batches(resumed.add(**OPTIONS))
    assert uninterrupted.state() == resumed.state()


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(workers: int) -> None:
    seed_generators(5)
    before = str(generator_states())
    batches(loader(num_workers=workers))
    assert str(generator_states()) == before


def test_global_generators_are_put_back_when_a_sample_raises() -> None:
    class Broken(Draws):
        def __getitem__(self, index: int) -> torch.Tensor:
            super().__getitem__(index)
            raise ValueError("no such sample")

    before = str(generator_states())
    with pytest.raises(ValueError, match="no such sample"):
        batches(loader(dataset=Broken()))
    assert str(generator_states()) == before


def test_number_of_threads_is_put_back() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = list(loader(collate=lambda _: torch.get_num_threads()))
        assert seen == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_a_pass_can_start_at_any_batch(start: int) -> None:
    made = loader()
    made.skip_to(start)
    assert batches(made) == batches(loader())[start:]
    assert len(batches(made)) == 4


def test_starting_fetches_nothing_that_comes_before() -> None:
    seen: list[int] = []

    class Seen(Draws):
        def __getitem__(self, index: int) -> torch.Tensor:
            seen.append(index)
            return super().__getitem__(index)

    made = loader(dataset=Seen(10_000), batch_size=10)
    made.skip_to(999)
    assert len(batches(made)) == 1
    assert len(seen) == 10


def test_lengths() -> None:
    assert len(loader()) == 4
    assert len(loader(drop_last=True)) == 3
    assert len(batches(loader(drop_last=True))) == 3
    assert len(batches(loader(dataset=Draws(0)))) == 0


def test_batches_are_collated() -> None:
    assert list(loader(shuffle=False, collate=len)) == [3, 3, 3, 1]
    (batch,) = loader(dataset=[({"a": 1}, 2.0)])
    assert batch[0]["a"].tolist() == [1]


def test_datasets_that_read_many_samples_at_once_do_so() -> None:
    class Together(Draws):
        def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
            return [torch.tensor(indices)]

    assert [batch.tolist() for batch in loader(dataset=Together(), shuffle=False)][-1] == [[9]]
    assert batches(loader(dataset=Together())) == batches(loader(dataset=Together(), num_workers=1))


@pytest.mark.parametrize("dataset", [iter([1, 2]), SimpleNamespace()])
def test_datasets_without_a_place_are_refused(dataset: Any) -> None:
    with pytest.raises(TypeError, match="a loader needs a dataset"):
        loader(dataset=dataset)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"num_workers": -1}])
def test_bad_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="< "):
        loader(**options)
    with pytest.raises(ValueError, match="batch 5 of 4"):
        loader().skip_to(5)


def test_a_million_samples_begin_at_once() -> None:
    made = loader(dataset=range(1_000_000), batch_size=1)
    begin = time.process_time()
    next(iter(made))
    assert time.process_time() - begin < 1


def test_content_is_that_of_a_few_samples() -> None:
    seed_generators(5)
    before = str(generator_states())
    one, other = loader(dataset=range(100)).content(), loader(dataset=range(1, 101)).content()
    assert len(one) == len(other) == 8
    assert not set(one) & set(other[:1])
    assert one == loader(dataset=range(100), batch_size=7, shuffle=False).content()
    assert loader(dataset=[]).content() == []
    assert loader(dataset=Draws()).content() == loader(dataset=Draws(), num_workers=2).content()
    assert str(generator_states()) == before


class Image:
    """As Pillow's."""

    size = (1, 1)

    def __init__(self, pixel: bytes) -> None:
        self.pixel = pixel

    def tobytes(self) -> bytes:
        return self.pixel


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.zeros(2)),
        (torch.ones(2), torch.ones(2, 1)),
        (np.ones(2), np.zeros(2)),
        ({"a": 1}, {"b": 1}),
        ((1, [2.0]), (1, [3.0])),
        ("a", "b"),
        (1, True),
        (b"a", b"b"),
        (Image(b"a"), Image(b"b")),
        (SimpleNamespace(a=torch.ones(1)), SimpleNamespace(a=torch.zeros(1))),
    ],
)
def test_samples_are_told_apart(one: Any, other: Any) -> None:
    assert loader(dataset=[one]).content() == loader(dataset=[one]).content() != loader(dataset=[other]).content()


def test_samples_that_cannot_be_read_do_not_end_a_training() -> None:
    class Broken(Draws):
        def __getitem__(self, index: int) -> torch.Tensor:
            raise OSError

    assert set(loader(dataset=Broken()).content()) == {"raises OSError"}


def test_which_iterators_outlive_their_epoch() -> None:
    loaders = Loaders(1)
    made = loaders.add(**OPTIONS)
    loaders.open_epoch(1)
    passing, used = iter(made), iter(made)
    assert set(made.open_passes) == {passing, used}
    assert len(list(used)) == 4
    assert made.open_passes == [passing]
    next(passing)
    loaders.open_epoch(2)
    next(passing)
    assert loaders.positions.keeps("0")
    assert made.open_passes == []  # it is saved from now on


def test_an_iterator_that_a_resumed_run_cannot_go_on_with_ends_with_its_epoch() -> None:
    loaders = Loaders(1)
    made = loaders.add(**OPTIONS)
    loaders.open_epoch(1)
    cycled, passing = itertools.cycle(made), iter(loaders.add(**OPTIONS))
    next(cycled)
    next(passing)
    loaders.open_epoch(2)
    with pytest.raises(training.UntrackedState, match=r"made in epoch 1, is used in epoch 2.*itertools\.cycle"):
        next(cycled)
    with pytest.raises(training.UntrackedState, match="made in epoch 1, is used in epoch 2"):
        next(passing)
    made.may_be_kept = True
    next(cycled)


def test_batches_that_are_given_again_are_heard_of() -> None:
    """By the loader, which does not see them."""
    loaders = Loaders(1)
    made = loaders.add(**OPTIONS)
    loaders.open_epoch(1)
    assert len(list(made)) == 4
    assert not made.cycled
    assert len(list(itertools.islice(itertools.cycle(made), 6))) == 6
    assert made.cycled


class Counting(IterableDataset[torch.Tensor]):
    """Shuffles through a buffer, with draws from all three global generators."""

    def __init__(self, length: int = 20) -> None:
        self.length = length
        self.begun = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.begun += 1
        buffer: list[int] = []
        for index in range(self.length):
            buffer.append(index)
            if len(buffer) > 4:
                yield self.drawn(buffer.pop(random.randrange(5)))
        yield from map(self.drawn, buffer)

    def drawn(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002


class Stateful(Counting):
    """Knows where it is."""

    def __init__(self, length: int = 20) -> None:
        super().__init__(length)
        self.place = 0
        self.loaded: list[int] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.place, begin = 0, self.place
        for index in range(begin, self.length):
            self.place = index + 1
            yield self.drawn(index)
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded.append(state["place"])
        self.place = state["place"]


def cut(made: Callable[[Loaders], Loader], after: int) -> tuple[list[Any], Loader]:
    """Takes so many batches, a step each; returns the rest, and the loader of a run that is resumed there."""
    states: list[Any] = []
    taken: list[Any] = []

    def asked(record: Record, _more: More) -> None:
        if len(taken) == after:
            states.append(json.loads(json.dumps(loaders.state(record))))

    loaders = Loaders(1, steps=lambda: len(taken), asked=asked)
    loader = made(loaders)
    loaders.positions.cut_wanted = True
    loaders.open_epoch(1)
    for batch in loader:
        taken.append(batch.tolist())  # noqa: PERF401  (`asked` looks at how many there are)
    again = Loaders(1, steps=lambda: after, saved=states[0])
    resumed = made(again)
    assert again.state()["positions"] == states[0]["positions"]
    again.open_epoch(1)
    return taken[after:], resumed


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Counting, Stateful])
@pytest.mark.parametrize("after", [1, 3, 6])
def test_iterable_datasets_go_on(
    dataset: type[Counting], workers: int, after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = batches(loader(dataset=dataset(), shuffle=False))
    assert sorted(index for batch in whole for index, *_ in batch) == list(range(20))
    rest, resumed = cut(
        lambda loaders: loaders.add(**OPTIONS | {"dataset": dataset(), "shuffle": False, "num_workers": workers}), after
    )
    assert rest == whole[after:]
    assert batches(resumed) == rest
    told = capsys.readouterr()
    assert (f"{after} batches of an iterable dataset were read again" in told.out + told.err) == (dataset is Counting)


class Endless(Stateful):
    """Goes on in each pass where the last one ended."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(7):
            self.place += 1
            yield torch.tensor([self.place])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_a_worker_reads_of_a_stream_is_known_to_the_next_pass_and_to_a_snapshot(workers: int) -> None:
    loaders = Loaders(1)
    options = OPTIONS | {"shuffle": False, "num_workers": workers}
    made = loaders.add(**options | {"dataset": Endless()})
    loaders.open_epoch(1)
    assert indices(made) == [1, 2, 3, 4, 5, 6, 7]
    broken_off = iter(made)
    assert indices([next(broken_off)]) == [8, 9, 10]
    assert loaders.state()["states"] == {"0": [{"place": 10}]}
    assert indices([next(broken_off)]) == [11, 12, 13]
    assert indices(made) == [14, 15, 16, 17, 18, 19, 20]
    loaders.close_epoch()
    resumed = Loaders(1, saved=loaders.state())
    again = resumed.add(**options | {"dataset": Endless()})
    resumed.open_epoch(2)
    assert indices(again)[0] == 21


def test_a_state_spares_reading_again() -> None:
    data = Stateful()
    _, resumed = cut(lambda loaders: loaders.add(**OPTIONS | {"dataset": data, "shuffle": False, "drop_last": True}), 4)
    assert [batch[0][0] for batch in batches(resumed)] == [12, 15]
    assert set(data.loaded) == {12}


def test_iterable_datasets_of_batches() -> None:
    assert (
        indices(loader(dataset=Counting(9), shuffle=False, batch_size=None, collate=lambda sample: sample[None])) != []
    )
    assert len(batches(loader(dataset=Counting(20), shuffle=False, drop_last=True))) == 6
    with pytest.raises(TypeError):
        len(loader(dataset=Counting(), shuffle=False))


class Bucketed:
    """A batch sampler that draws from the global generators, and shuffles by the epoch that it was told."""

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.length))
        random.Random(self.epoch).shuffle(order)
        while order:
            size = random.randint(1, 3)
            yield order[:size]
            order = order[size:]


COUNT = itertools.count()


class Drawing:
    """A sampler with generators of its own, which stand elsewhere each time that it is made."""

    def __init__(self) -> None:
        self.torch = torch.Generator().manual_seed(next(COUNT))
        self.numpy = np.random.default_rng(next(COUNT))
        self.legacy = np.random.RandomState(next(COUNT))
        self.python = random.Random(next(COUNT))

    def __iter__(self) -> Iterator[int]:
        for _ in range(2):
            yield int(torch.randint(10, (), generator=self.torch))
            yield int(self.numpy.integers(10))
            yield int(self.legacy.randint(10))
            yield self.python.randrange(10)


SAMPLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "random": lambda: {"sampler": RandomSampler(range(10))},
    "own generators": lambda: {"sampler": Drawing()},
    "inner generator": lambda: {
        "batch_sampler": BatchSampler(
            RandomSampler(range(10), generator=torch.Generator().manual_seed(next(COUNT))), 3, drop_last=False
        ),
        "batch_size": 1,
    },
    "weighted": lambda: {"sampler": WeightedRandomSampler(list(range(1, 11)), 10)},
    "batches": lambda: {"batch_sampler": BatchSampler(RandomSampler(range(10)), 3, drop_last=True), "batch_size": 1},
    "buckets": lambda: {"batch_sampler": Bucketed(), "batch_size": 1},
    "list": lambda: {"sampler": [3, 1, 4, 1, 5, 9, 2, 6]},
    "single": lambda: {"sampler": RandomSampler(range(10)), "batch_size": None},
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_samplers_go_on(kind: str, workers: int) -> None:
    options = OPTIONS | {"shuffle": False, "num_workers": workers}
    whole = batches(loader(**OPTIONS | {"shuffle": False} | SAMPLERS[kind]()))
    seed_generators(workers)
    before = str(generator_states())
    rest, resumed = cut(lambda loaders: loaders.add(**options | SAMPLERS[kind]()), 2)
    assert rest == whole[2:]
    assert batches(resumed) == rest
    assert str(generator_states()) == before
    if kind != "list":
        assert batches(loader(epoch=2, **OPTIONS | {"shuffle": False} | SAMPLERS[kind]())) != whole


def test_a_sampler_that_gives_other_samples_is_refused() -> None:
    sampler = [1, 2, 3, 4, 5, 6, 7]
    _, resumed = cut(lambda loaders: loaders.add(**OPTIONS | {"sampler": sampler, "shuffle": False}), 1)
    sampler[2] = 9
    with pytest.raises(training.StateMismatch, match="the sampler does not give the samples"):
        iter(resumed)


class Curriculum:
    """A sampler whose state training changes."""

    def __init__(self) -> None:
        self.hardest = 3

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.hardest))

    def __len__(self) -> int:
        return self.hardest

    def state_dict(self) -> dict[str, int]:
        return {"hardest": self.hardest}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.hardest = state["hardest"]


def test_the_state_of_a_sampler_is_saved() -> None:
    options = OPTIONS | {"shuffle": False}
    loaders, sampler = Loaders(1), Curriculum()
    loaders.add(**options | {"sampler": sampler})
    loaders.open_epoch(1)
    sampler.hardest = 7
    loaders.close_epoch()
    other = Curriculum()
    Loaders(1, saved=loaders.state()).add(**options | {"sampler": other})
    assert other.hardest == 7


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": [1]},
        {"batch_sampler": [[1]], "shuffle": False, "batch_size": 3},
        {"batch_sampler": [[1]], "sampler": [1], "shuffle": False, "batch_size": 1},
        {"dataset": Counting()},
        {"dataset": Counting(), "sampler": [1], "shuffle": False},
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sampler|shuffle"):
        loader(**options)


@pytest.mark.parametrize("saved", [[], {"version": 2}, {"version": 4}])
def test_states_of_other_versions_are_refused(saved: Any) -> None:
    with pytest.raises(training.StateMismatch, match="another version of Adjourn"):
        Loaders(1, saved=saved)
