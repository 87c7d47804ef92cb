from collections.abc import Iterator

import pytest

from tests.harness.training_processes import TrainingProcesses


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcesses]:
    """Where training processes are forked; one for all tests, since importing torch takes seconds."""
    with TrainingProcesses(tmp_path_factory.mktemp("attempts")) as started:
        yield started
