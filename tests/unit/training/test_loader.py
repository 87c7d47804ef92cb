import random
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from adjourn import training
from adjourn.training.loader import Loader, Loaders
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
    loaders.epoch = epoch
    return made


OPTIONS: dict[str, Any] = {
    "dataset": Draws(),
    "batch_size": 3,
    "shuffle": True,
    "num_workers": 0,
    "drop_last": False,
    "collate": None,
    "pin_memory": False,
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
    loaders.epoch = 1
    one, two = batches(made), batches(made)
    assert one != two
    loaders.epoch = 2
    assert batches(made) == batches(loader(epoch=2))


def test_loaders_differ() -> None:
    loaders = Loaders(1)
    one, two = loaders.add(**OPTIONS), loaders.add(**OPTIONS)
    assert indices(one) != indices(two)


def test_loader_made_within_an_epoch_is_the_same_in_a_resumed_run() -> None:
    uninterrupted, resumed = Loaders(1), Loaders(1)
    for loaders in (uninterrupted, resumed):
        loaders.add(**OPTIONS)
    uninterrupted.epoch = 1
    uninterrupted.add(**OPTIONS)
    for loaders in (uninterrupted, resumed):
        loaders.epoch = 2
    assert batches(uninterrupted.add(**OPTIONS)) == batches(resumed.add(**OPTIONS))
    assert uninterrupted.identities() == resumed.identities()


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


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize("dataset", [Endless(), iter([1, 2])])
def test_datasets_without_a_place_are_refused(dataset: Any) -> None:
    with pytest.raises(TypeError, match="no place to resume at"):
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


def test_an_iterator_ends_with_its_epoch() -> None:
    loaders = Loaders(1)
    made = loaders.add(**OPTIONS)
    loaders.epoch = 1
    passing, used = iter(made), iter(made)
    assert set(made.open_passes) == {passing, used}
    assert len(list(used)) == 4
    assert made.open_passes == [passing]
    next(passing)
    loaders.epoch = 2
    with pytest.raises(training.UntrackedState, match="made in epoch 1, is used in epoch 2"):
        next(passing)
    assert made.open_passes == []
    made.may_be_kept = True
    next(passing)
