import collections
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adjourn.training.state.detector import Detector, drawn_again
from adjourn.training.state.variables import CHUNK_WORDS, Comparison, checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("count", [1, 3, 64, 1001])
def test_checksums_see_every_change(dtype: torch.dtype, count: int) -> None:
    tensor = torch.ones(count).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    tensor[count // 2] = 0
    assert checksum(tensor) != before


def test_checksums_of_what_is_large_turned_or_odd() -> None:
    large = torch.zeros(CHUNK_WORDS * 8 + 9, dtype=torch.uint8)
    before = checksum(large)
    large[-1] = 1
    assert checksum(large) == before + 1
    value = torch.randn(3, 4, dtype=torch.complex64)
    assert checksum(value.t()) == checksum(value.t().contiguous())
    assert checksum(value.conj()) == checksum(value.conj().resolve_conj()) != checksum(value)
    assert checksum(torch.ones(2, device="meta")) == checksum(torch.eye(2).to_sparse()) == 0
    swapped = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert checksum(swapped) != checksum(swapped.flip(0))


def test_looking_asks_nothing_of_objects_that_are_not_its_business() -> None:
    class Touchy:
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(name)

    touchy = Touchy()
    detector = Detector()
    detector.begin({}, [], None)
    assert detector.findings({}, [], None) == []
    del touchy


def test_a_value_that_cannot_be_looked_at_does_not_end_the_training() -> None:
    class Refusing:
        def __repr__(self) -> str:
            raise AssertionError

    comparison = Comparison(set(), set())
    assert comparison.text({Refusing()}) is None
    assert comparison.text([1]) == comparison.text([1]) != comparison.text([2])


def test_values_that_hold_themselves_or_share_tensors_are_compared_once() -> None:
    tensor = torch.zeros(3)
    own: dict[str, Any] = {"tensor": tensor, "same": [tensor] * 3}
    own["own"] = own
    before = Comparison(set(), set()).text(own)
    assert Comparison(set(), set()).text(own) == before
    tensor[1] = 1
    assert Comparison(set(), set()).text(own) != before
    tracked = {tensor.untyped_storage().data_ptr()}
    before = Comparison(tracked, set()).text(own)
    tensor[1] = 2
    assert Comparison(tracked, set()).text(own) == before


@pytest.mark.parametrize("container", [list, tuple, collections.deque])
def test_of_a_long_container_length_and_ends_are_compared(container: Callable[[range], Any]) -> None:
    comparison = Comparison(set(), set())
    before = comparison.text(container(range(5000)))
    assert comparison.text(container(range(5000))) == before
    assert comparison.text(container(range(5001))) != before
    assert comparison.text(container(range(1, 5001))) != before


@pytest.mark.parametrize("stateful", [False, True])
def test_what_a_pass_draws_is_drawn_again_unless_it_goes_on_from_a_state(stateful: bool) -> None:
    class Shuffled:
        def __iter__(self) -> Iterator[int]:
            rng, hidden = random.Random(1), random.Random(2)
            generators.extend([rng, hidden])
            yield from sorted(range(3), key=lambda _: hidden.random())
            rng.random()

    generators: list[random.Random] = []
    dataset = Shuffled()
    going_on = iter(dataset)
    next(going_on)
    loader: Any = SimpleNamespace(parts={"dataset": dataset}, dataset=dataset, stateful=[dataset] if stateful else [])
    assert drawn_again([loader]) == (set() if stateful else set(map(id, generators)))
    assert next(going_on) in range(3)
