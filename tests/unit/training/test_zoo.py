"""Trainings as people write them, between training processes: they are cut anywhere, and end with the same bits."""

import pytest

from adjourn.v1.job_pb2 import Pause
from tests.harness import zoo
from tests.harness.training_processes import TrainingProcesses

UNPROVEN: dict[str, list[str]] = {}
"""Trainings that cannot be EXACT, with the reasons that their verdicts have to give."""


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_plain_form_trains(trainings: TrainingProcesses, name: str) -> None:
    args = {"training": name, "epochs": 2, "workers": 0}
    attempt = trainings.run("zoo_process:plain", epochs=0, args=args)
    assert attempt.code == 0, attempt.log


def test_few_lines_are_added() -> None:
    added = {name: len(zoo.added_lines(name)) for name in zoo.NAMES}
    assert {name: lines for name, lines in added.items() if lines > 10} == {}
    assert sum(lines <= 5 for lines in added.values()) > len(added) / 2, added


@pytest.mark.parametrize("name", zoo.NAMES)
def test_cut_anywhere_it_ends_with_the_same_bits(trainings: TrainingProcesses, name: str) -> None:
    uncut = zoo.whole(trainings, name)
    attempts = zoo.cut(trainings, name, zoo.random_pauses(uncut, name, epochs=1, steps=5))
    assert attempts[-1].last.HasField("finished"), attempts[-1].log
    assert attempts[-1].digests == uncut.digests
    assert zoo.end(attempts[-1]) == zoo.end(uncut)
    assert zoo.history(attempts) == uncut.values
    assert any(zoo.amid(attempt) for attempt in attempts) is (name not in zoo.ONLY_AFTER_EPOCHS)
    for attempt in attempts[1:]:
        verdict, reasons = zoo.verdict(attempt)
        expected = UNPROVEN.get(name, [])
        assert verdict == (Pause.Verdict.UNPROVEN if expected else Pause.Verdict.EXACT), reasons
        assert len(reasons) == len(expected), reasons
        assert all(any(part in reason for reason in reasons) for part in expected), reasons
