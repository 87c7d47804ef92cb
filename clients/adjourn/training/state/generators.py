"""Random generators: the global ones and the user's own are saved and put back; seeds depend on nothing but a place."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
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
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002  (the global one, which user code draws from)
    torch.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """Returns the state of every global generator, by component name."""
    states = cpu_generator_states()
    if torch.cuda.is_initialized():  # asking would start CUDA for a run that does not use it
        states |= {f"random.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def cpu_generator_states() -> dict[str, Any]:
    return {
        "random.python": random.getstate(),
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


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global CPU generators for the body, and puts them back as they were.

    One thread within, as in a loader's worker: the bits of large sums depend on the number of threads.
    """
    states = cpu_generator_states()
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
        for name, state in states.items():
            restore_generator(name, state)
