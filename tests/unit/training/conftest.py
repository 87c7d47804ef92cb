from collections.abc import Iterator

import pytest

from tests.harness.training_processes import Nursery


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where training processes are forked; one for all tests, since importing torch takes seconds."""
    with Nursery(tmp_path_factory.mktemp("attempts")) as started:
        yield started
