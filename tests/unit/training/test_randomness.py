import random
from typing import Any

import numpy as np
import pytest
import torch

from adjourn.training.state import generators
from adjourn.training.state.generators import (
    derived_seed,
    generator_states,
    memory_of,
    restore_generator,
    seed_generators,
    seeded,
)


def draws() -> tuple[float, float, float, float, float]:
    return random.random(), random.gauss(0, 1), np.random.random(), np.random.normal(), torch.rand(()).item()  # noqa: NPY002


def test_generators_go_on_where_they_were() -> None:
    seed_generators(3)
    draws()  # leaves the second of a pair of normal numbers behind
    states = generator_states()
    expected = draws()
    seed_generators(4)
    assert draws() != expected
    for name, state in states.items():
        restore_generator(name, state)
    assert draws() == expected


@pytest.mark.parametrize("seed", [0, 1, -5, 2**40, 2**63 - 1, -(2**63)])
def test_every_seed_of_a_job_will_do(seed: int) -> None:
    seed_generators(seed)
    one = draws()
    seed_generators(seed)
    assert draws() == one


def test_derived_seeds_never_change() -> None:
    """A checkpoint may be resumed by a later version, which has to see the same batches."""
    assert derived_seed("order", 7, "0", 1, 0) == 6700533764252982159
    assert derived_seed("draws", 7, "0", 1, 0, 3) == 3455844883963650956


def test_unknown_generators_are_refused() -> None:
    with pytest.raises(KeyError, match="dice"):
        restore_generator("random.dice", None)


class ClosedRandomState:
    """NumPy's global generator, if it kept its bits to itself."""

    __slots__ = ()
    get_state = generators.SINGLETON.get_state
    set_state = generators.SINGLETON.set_state


@pytest.fixture(params=["exchanged", "copied"])
def _ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators are put aside the fast way, or as where Python and NumPy keep their states elsewhere."""
    if request.param == "copied":
        monkeypatch.setattr(generators, "MEMORY", None)
        monkeypatch.setattr(generators, "SINGLETON", ClosedRandomState())
    else:
        assert generators.MEMORY is not None


@pytest.mark.usefixtures("_ways")
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_what_is_drawn_aside_leaves_no_trace(ahead: int) -> None:
    seed_generators(3)
    for _ in range(ahead):  # an odd number leaves the second of a pair of normal numbers behind
        draws()
    states = str(generator_states())
    with seeded(5):
        one = draws()
        with seeded(6):
            inner = draws()
        two = draws()
    assert str(generator_states()) == states
    with seeded(5):
        assert (draws(), draws()) == (one, two)
    with seeded(6):
        assert draws() == inner
    assert len({one, two, inner}) == 3


@pytest.mark.usefixtures("_ways")
def test_draws_aside_are_those_of_the_seed() -> None:
    with seeded(5):
        aside = draws()
    seed_generators(5)
    assert draws() == aside


@pytest.mark.usefixtures("_ways")
def test_code_that_seeds_and_restores_by_itself_is_let_be() -> None:
    seed_generators(3)
    before = str(generator_states())
    with seeded(5):
        state, python = np.random.get_state(), random.getstate()  # noqa: NPY002
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        np.random.normal()  # noqa: NPY002
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(python)
        one = draws()
    assert str(generator_states()) == before
    with seeded(5):
        assert draws() == one


def test_memory_that_is_no_state_is_not_taken_for_one() -> None:
    assert memory_of(random.Random(1)) is not None

    class Elsewhere(random.Random):
        def getstate(self) -> Any:
            return 3, (*range(624), 7), None

    assert memory_of(Elsewhere(1)) is None


def test_state_of_python_s_generator_is_made_anew_once_something_was_drawn() -> None:
    for change in (random.random, lambda: random.gauss(0, 1), lambda: random.gauss(0, 1), lambda: random.seed(7)):
        before = generator_states()["random.python"]
        assert before == random.getstate()
        change()
        after = generator_states()["random.python"]
        assert after == random.getstate() != before
        assert generator_states()["random.python"] == after
