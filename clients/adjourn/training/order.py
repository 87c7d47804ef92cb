"""The order of samples in a pass, as a function of a key and a position: nothing is stored for each sample.

A large set of n samples is shuffled by a keyed bijection of range(n): a Feistel network over ceil(log2 n) bits (Luby,
Rackoff: How to construct pseudorandom permutations from pseudorandom functions, 1988), whose two parts, of unequal
length where the number of bits is odd, take turns (Black, Rogaway: Ciphers with arbitrary finite domains, 2002, from
where the cycle walking is too: what falls outside range(n) is encrypted again, less than once on average). Half the
bits are few, so each round's function is a table of random words: it is a random function, as the theorems on these
networks ask for, and not a hash that is hoped to be one. Three or four rounds are indistinguishable from a random
permutation for few positions (Luby, Rackoff), five or more for many (Patarin: Security of random Feistel schemes with 5
or more rounds, 2004); a shuffle shows all positions, for which nothing as strong is proven, so there are twelve.
Measured: `tests/unit/training/test_order.py` compares places, neighbours, distances and fixed points with those of a
random permutation. The tables take some 100 * sqrt(n) bytes, and 20 to 40 ns a sample are less than `torch.randperm`
takes from a few million samples on.

A small set has few bits, for which a network is a poor shuffle: it is shuffled by `torch.randperm`, all permutations
being equally likely.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

SMALL: Final = 1 << 16
"""Samples up to which an order is a stored permutation."""
ROUNDS: Final = 12
BLOCK: Final = 1 << 12
"""Positions that are computed together, and about as many are held."""

Words = NDArray[np.int64]  # also indices: NumPy converts those of any other type
Order = Callable[[int, int], list[int]]
"""Returns the samples at positions from, to."""


def in_sequence(begin: int, end: int) -> list[int]:
    return list(range(begin, end))


def shuffled(samples: int, key: int) -> Order:
    """Returns the order of that many samples which belongs to a key of 64 bits."""
    if samples > SMALL:
        return Bijection(samples, key)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(key))
    return lambda begin, end: order[begin:end].tolist()


class Bijection:
    """A permutation of range(samples), evaluated where it is looked at."""

    def __init__(self, samples: int, key: int) -> None:
        self.samples = samples
        bits = (samples - 1).bit_length()
        self._low = bits // 2
        high = bits - self._low
        source = np.random.Philox(key=key)
        # The round functions, in turn from the low part to the high one and back.
        self._tables = [
            words(source, self._low, high) if turn % 2 else words(source, high, self._low) for turn in range(ROUNDS)
        ]

    def __call__(self, begin: int, end: int) -> list[int]:
        places = self._permuted(np.arange(begin, end))
        outside = np.flatnonzero(places >= self.samples)
        while outside.size:
            places[outside] = walked = self._permuted(places[outside])
            outside = outside[walked >= self.samples]
        found: list[int] = places.tolist()
        return found

    def _permuted(self, places: Words) -> Words:
        low, high = places & (1 << self._low) - 1, places >> self._low
        for turn, table in enumerate(self._tables):
            if turn % 2:
                low ^= table.take(high)
            else:
                high ^= table.take(low)
        return high << self._low | low


def words(source: np.random.Philox, into: int, out_of: int) -> Words:
    """Returns a random function from so many bits to so many."""
    return (source.random_raw(1 << out_of) >> np.uint64(64 - into)).astype(np.int64)


def batches(order: Order, batch_size: int, begin: int, end: int, samples: int) -> Iterator[list[int]]:
    """Yields the samples of batches number `begin` to `end`; they are computed some thousands at a time."""
    together = max(1, BLOCK // batch_size)
    for first in range(begin, end, together):
        last = min(first + together, end)
        block = order(first * batch_size, min(last * batch_size, samples))
        for place in range(0, len(block), batch_size):
            yield block[place : place + batch_size]
