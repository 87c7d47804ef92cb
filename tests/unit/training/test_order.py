import itertools
import time

import numpy as np
import pytest

from adjourn.training import order
from adjourn.training.order import SMALL, Bijection, batches, in_sequence, shuffled

KEYS = 1500


@pytest.mark.parametrize("samples", [2, 3, 1000, SMALL, SMALL + 1, 1 << 17, (1 << 17) + 1])
def test_every_sample_has_one_position(samples: int) -> None:
    assert sorted(shuffled(samples, 1)(0, samples)) == list(range(samples))
    assert sorted(Bijection(samples, 1)(0, samples)) == list(range(samples))


def test_no_samples() -> None:
    assert shuffled(0, 1)(0, 0) == []
    assert list(batches(in_sequence, 3, 0, 0, 0)) == []


@pytest.mark.parametrize("samples", [10, SMALL + 5])
def test_an_order_is_a_function_of_key_and_position(samples: int) -> None:
    whole = shuffled(samples, 1)(0, samples)
    assert shuffled(samples, 1)(3, 9) == whole[3:9]
    assert shuffled(samples, 2)(0, samples) != whole


def test_the_order_of_a_key_is_that_of_earlier_versions() -> None:
    """A checkpoint's order must not change: if it has to, `loader.VERSION` does too."""
    assert shuffled(100, 5)(0, 4) == [11, 22, 39, 23]
    assert shuffled(10**6, 5)(999_996, 10**6) == [579965, 838509, 929406, 286193]
    assert shuffled(10**12, 5)(10**12 - 3, 10**12) == [390580346252, 171877551458, 45842204498]


@pytest.mark.parametrize("batch_size", [1, 3, 5000])
@pytest.mark.parametrize("begin", [0, 1, 4])
def test_batches_are_the_same_wherever_they_begin(batch_size: int, begin: int) -> None:
    samples = 5 * batch_size - 2 if batch_size > 2 else 5 * batch_size
    made = list(batches(in_sequence, batch_size, begin, 5, samples))
    assert list(itertools.chain(*made)) == list(range(begin * batch_size, samples))
    assert [len(batch) for batch in made[:-1]] == [batch_size] * (4 - begin)


def test_positions_cost_the_same_wherever_they_are() -> None:
    """And an order of a billion samples is there at once: neither time nor memory for each."""
    begin = time.process_time()
    large = shuffled(10**9, 1)
    large(10**9 - 32, 10**9)
    assert time.process_time() - begin < 1
    assert sum(table.nbytes for table in large._tables) < 8 << 20  # type: ignore[attr-defined]


# As good as a random permutation: a statistic of df degrees of freedom lies within five deviations of its mean.


def chi_squared(counts: np.ndarray) -> float:
    """Returns how many deviations the counts are from equal ones."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))


def buckets(values: list[int], samples: int, count: int) -> np.ndarray:
    return np.asarray(values) * count // samples


@pytest.mark.parametrize("samples", [300, SMALL + 1, 1 << 17, (1 << 17) + 1])
def test_over_keys_places_and_pairs_are_equally_likely(samples: int) -> None:
    firsts = [Bijection(samples, key)(0, 3) for key in range(KEYS)]
    one, two, three = (buckets([first[place] for first in firsts], samples, 8) for place in range(3))
    for found in (one, two, three):
        assert abs(chi_squared(np.bincount(found, minlength=8))) < 5
    for found in (8 * one + two, 8 * two + three, 8 * one + three, 8 * one + (three - two) % 8):
        assert abs(chi_squared(np.bincount(found, minlength=64))) < 5
    low_bits = np.bincount([first[0] % 2 * 2 + first[1] % 2 for first in firsts], minlength=4)
    assert abs(chi_squared(low_bits)) < 5


@pytest.mark.parametrize("samples", [SMALL + 1, 100_000, (1 << 17) + 1])
@pytest.mark.parametrize("key", [0, 1, (1 << 64) - 1])
def test_within_an_order_neighbours_and_strides_are_independent(samples: int, key: int) -> None:
    found = Bijection(samples, key)(0, samples)
    coarse = buckets(found, samples, 32)
    for stride in (1, 2, 3, 64, 256, 257, 512):
        assert abs(chi_squared(np.bincount(32 * coarse[:-stride] + coarse[stride:], minlength=1024))) < 5
        steps = np.abs(np.diff(np.asarray(found)[::stride]))  # of two random places of n: n/3 on average, n/18**.5
        assert abs(steps.mean() - samples / 3) < 5 * samples / np.sqrt(18 * len(steps))
    places = np.arange(samples) * 32 // samples
    assert abs(chi_squared(np.bincount(32 * places + coarse, minlength=1024))) < 5


def test_fixed_points_are_as_many_as_of_random_permutations() -> None:
    samples = 2000
    counts = [int((np.asarray(Bijection(samples, key)(0, samples)) == np.arange(samples)).sum()) for key in range(400)]
    assert abs(np.mean(counts) - 1) < 0.25
    assert abs(np.var(counts) - 1) < 0.4


def test_too_few_rounds_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "ROUNDS", 2)
    with pytest.raises(AssertionError):
        test_within_an_order_neighbours_and_strides_are_independent(SMALL + 1, 1)
