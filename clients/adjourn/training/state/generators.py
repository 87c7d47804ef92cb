"""Random generators: the global ones and the user's own are saved and put back; seeds depend on nothing but a place."""

import ctypes
import hashlib
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

GENERATORS: Final = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""Kinds of generators that user code may make for itself."""


def access(subject: Any) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Returns how the state of a random generator is read and set."""
    match subject:
        case torch.Generator():
            return subject.get_state, subject.set_state
        case random.Random():
            return subject.getstate, subject.setstate
        case np.random.RandomState():
            return lambda: subject.get_state(legacy=False), subject.set_state
        case _:
            return lambda: numpy_state(subject), lambda state: put_numpy_state(subject, state)


def numpy_state(subject: np.random.Generator) -> dict[str, Any]:
    """Returns the bits of a generator, and from where those that it spawns get theirs."""
    seeds: Any = subject.bit_generator.seed_seq
    spawning = None
    if type(seeds) is np.random.SeedSequence:
        entropy = list(seeds.entropy) if isinstance(seeds.entropy, list | tuple | np.ndarray) else seeds.entropy
        spawning = {**seeds.state, "entropy": entropy, "spawn_key": list(seeds.spawn_key)}
    return {"bits": subject.bit_generator.state, "spawning": spawning}


def put_numpy_state(subject: np.random.Generator, state: Mapping[str, Any]) -> None:
    bits: Any = subject.bit_generator
    if state["spawning"] is None:
        bits.state = state["bits"]
    else:
        bits.__setstate__((state["bits"], np.random.SeedSequence(**state["spawning"])))


def seed_generators(seed: int) -> None:
    """Seeds every global generator: Python's, NumPy's, torch's on the CPU and on each GPU."""
    seed_cpu_generators(seed)
    torch.manual_seed(seed)


def seed_cpu_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  (the global one, which user code draws from)
    torch.default_generator.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """Returns the state of every global generator, by component name."""
    states = cpu_generator_states()
    if torch.cuda.is_initialized():  # asking would start CUDA for a run that does not use it
        states |= {f"random.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def cpu_generator_states() -> dict[str, Any]:
    return {
        "random.python": LAST_PYTHON_STATE.get(),
        "random.numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "random.torch": torch.get_rng_state(),
    }


def restore_generator(name: str, state: Any) -> None:
    """Puts one generator back to a state of `generator_states`."""
    match name.split("."):
        case ["random", "python"]:
            random.setstate(state)
        case ["random", "numpy"]:
            np.random.set_state(state)  # noqa: NPY002
        case ["random", "torch"]:
            torch.set_rng_state(state)
        case ["random", "cuda", index]:
            torch.cuda.set_rng_state(state, int(index))
        case _:
            raise KeyError(name)


def derived_seed(*place: int | str) -> int:
    """Returns 64 bits that depend on `place` alone: (seed, what for, loader, epoch, batch...)."""
    text = "/".join(map(str, place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class NoBits:
    """Stands in for NumPy's bit generator while what else belongs to its state is read or set."""

    def __init__(self) -> None:
        self.state = {"bit_generator": "none", "state": {}}


NO_BITS: Final = NoBits()
SINGLETON: Final[Any] = np.random.mtrand._rand  # noqa: SLF001
SPARE: Final[list[np.random.MT19937]] = []
"""Bit generators that are not in use: making one takes longer than seeding it."""


def without_bits(act: Callable[[], Any]) -> Any:
    """Spares NumPy's global generator to make numbers of its bits; one whose bits are out of reach makes them."""
    try:
        bits = SINGLETON._bit_generator  # noqa: SLF001
        SINGLETON._bit_generator = NO_BITS  # noqa: SLF001
    except AttributeError:
        return act()
    try:
        return act()
    finally:
        SINGLETON._bit_generator = bits  # noqa: SLF001


def normal_drawn_ahead() -> dict[str, Any] | None:
    """Returns the second of the two normal numbers that NumPy's global generator draws together, if it is left."""
    state = without_bits(lambda: SINGLETON.get_state(legacy=False))
    return dict(state) if state["has_gauss"] else None


def put_normal_drawn_ahead(state: dict[str, Any]) -> None:
    without_bits(lambda: SINGLETON.set_state(state))


def memory_of(generator: random.Random) -> memoryview | None:
    """Returns the memory of Python's generator: an index and 624 words; None if this Python has them elsewhere."""
    size = 4 * 625
    if random.Random.__basicsize__ < object.__basicsize__ + size:
        return None
    memory = (ctypes.c_char * size).from_address(id(generator) + object.__basicsize__)
    index, *words = struct.unpack("=i624I", memory)
    *expected, place = generator.getstate()[1]
    return memoryview(memory).cast("B") if (index, words) == (place, expected) else None


MEMORY: Final = memory_of(random._inst)  # noqa: SLF001


def python_state() -> Any:
    """Returns the state of Python's global generator, for `put_python_state` in the same process."""
    return (bytes(MEMORY), random._inst.gauss_next) if MEMORY else random.getstate()  # type: ignore[attr-defined]  # noqa: SLF001


def put_python_state(state: Any) -> None:
    if MEMORY:
        MEMORY[:], random._inst.gauss_next = state  # type: ignore[attr-defined]  # noqa: SLF001
    else:
        random.setstate(state)


class LastPythonState:
    """What `random.getstate()` returned the last time: if nothing was drawn since, it is not made anew.

    It has 624 numbers, which are then the same objects, and nobody has to look at them again.
    """

    def __init__(self) -> None:
        self._words: Any = None
        self._state: Any = None

    def get(self) -> Any:
        words, normal = python_state() if MEMORY else (None, None)
        if words is None or normal is not None or words != self._words:
            self._words, self._state = words if normal is None else None, random.getstate()
        return self._state


LAST_PYTHON_STATE: Final = LastPythonState()


class seeded:  # noqa: N801  (used as a function)
    """Seeds the global CPU generators for the body, and puts them back as they were.

    One thread within, as in a loader's worker: the bits of large sums depend on the number of threads. This is done for
    each batch, so Python's generator is copied as memory, and NumPy's bits are exchanged, not copied: `getstate()` and
    `get_state()` make 624 Python numbers each, and take ten times as long as all of this.
    """

    __slots__ = ("_bits", "_normal", "_python", "_seed", "_spare", "_threads", "_torch")

    def __init__(self, seed: int | None) -> None:
        """None leaves it to the body to seed them."""
        self._seed = seed

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        if self._threads > 1:
            torch.set_num_threads(1)
        self._python = python_state()
        self._normal = normal_drawn_ahead()
        self._bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._torch = torch.default_generator.get_state()
        self._spare = SPARE.pop() if SPARE else np.random.MT19937(0)
        np.random.set_bit_generator(self._spare)  # type: ignore[attr-defined]
        if self._seed is not None:
            seed_cpu_generators(self._seed)

    def __exit__(self, *_: object) -> None:
        if self._threads > 1:
            torch.set_num_threads(self._threads)
        put_python_state(self._python)
        np.random.set_bit_generator(self._bits)  # type: ignore[attr-defined]
        SPARE.append(self._spare)
        if self._normal:
            put_normal_drawn_ahead(self._normal)
        torch.default_generator.set_state(self._torch)


class Aside:
    """Global CPU generators of one's own within `with`; each time they go on from where they were the last time."""

    def __init__(self, seed: int) -> None:
        self._scope = seeded(None)
        self._bits = np.random.MT19937(0)
        with self:
            seed_cpu_generators(seed)

    def __enter__(self) -> None:
        self._scope.__enter__()
        np.random.set_bit_generator(self._bits)  # type: ignore[attr-defined]
        if hasattr(self, "_torch"):
            put_python_state(self._python)
            torch.default_generator.set_state(self._torch)
            if self._normal:
                put_normal_drawn_ahead(self._normal)

    def __exit__(self, *_: object) -> None:
        self._python = python_state()
        self._normal = normal_drawn_ahead()
        self._torch = torch.default_generator.get_state()
        self._scope.__exit__()
