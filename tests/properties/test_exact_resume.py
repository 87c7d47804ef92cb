"""A training that is cut anywhere, any number of times, ends where the uninterrupted one does, to the last bit."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nursery import PAUSE, Attempt, Nursery

EPOCHS = 5


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("attempts")) as started:
        yield started


@pytest.fixture(scope="module")
def whole(nursery: Nursery) -> Attempt:
    """The run that was never interrupted."""
    attempt = nursery.run("tiny:main", epochs=EPOCHS, args={"workers": 0})
    assert attempt.code == 0
    assert attempt.last.HasField("finished")
    return attempt


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, EPOCHS - 1), unique=True).map(sorted), workers=st.integers(0, 1))
def test_cuts_change_nothing(nursery: Nursery, whole: Attempt, cuts: list[int], workers: int) -> None:
    ...
