"""The examples learn, and end the same when they are paused on the way."""

from typing import Any

import pytest

from tests.harness.training_processes import TrainingProcesses

SMALL = [
    ("adjourn.examples.digits:main", {"width": 8}),
    ("adjourn.examples.stdlib_lm:main", {"files": 30, "width": 32, "layers": 1, "steps": 20, "batch_size": 8}),
]


@pytest.mark.parametrize(("entry_point", "args"), SMALL)
def test_example(trainings: TrainingProcesses, entry_point: str, args: dict[str, Any]) -> None:
    whole = trainings.run(entry_point, epochs=2, args=args)
    assert whole.code == 0, whole.log
    assert whole.values[2]["val_loss"] < whole.values[1]["val_loss"]
    paused = trainings.paused_at(entry_point, 1, epochs=2, args=args)
    resumed = trainings.run(entry_point, epochs=2, args=args, restore=paused)
    assert resumed.digests == whole.digests
    assert resumed.values[2] == whole.values[2]
    assert whole.log.splitlines()[-1] == resumed.log.splitlines()[-1]
