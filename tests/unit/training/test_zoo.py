"""Trainings as people write them are cut anywhere and end with the same bits; what they forget to track is named."""

from functools import cache

import pytest

from adjourn.v1.job_pb2 import Pause
from tests.harness import zoo
from tests.harness.training_processes import Attempt, TrainingProcesses

UNPROVEN: dict[str, list[str]] = {}
"""Trainings that cannot be EXACT, with the reasons that their verdicts have to give."""


@cache
def whole(trainings: TrainingProcesses, name: str) -> Attempt:
    attempt = zoo.train(trainings, name)
    assert attempt.last.HasField("finished"), attempt.log
    return attempt


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
    uncut = whole(trainings, name)
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


@pytest.mark.parametrize("port", ["naive", "nothing"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_what_is_not_tracked_is_named_or_changes_no_bit(trainings: TrainingProcesses, name: str, port: str) -> None:
    uncut = whole(trainings, name)
    for pause in zoo.random_pauses(uncut, name, epochs=2, steps=1):
        attempts = zoo.cut(trainings, name, [pause], port=port)
        last = attempts[-1]
        if last.code:
            reason = last.last.failed.reason
            assert reason == "UNTRACKED_STATE" or (reason == "STATE_MISMATCH" and len(attempts) > 1), last.log
            said = attempts[0].log + last.last.failed.message
            assert any(zoo.names(name, subject, said) for subject in zoo.forgotten(last)), said
            continue
        assert last.last.HasField("finished"), last.log
        verdict, reasons = zoo.verdict(last)
        if verdict == Pause.Verdict.UNPROVEN:
            silent = {subject for subject in zoo.forgotten(last) if not zoo.names(name, subject, "\n".join(reasons))}
            assert not silent, reasons
        else:
            assert verdict == Pause.Verdict.EXACT or len(attempts) == 1
            assert zoo.end(last) == zoo.end(uncut)
            assert zoo.history(attempts) == uncut.values
