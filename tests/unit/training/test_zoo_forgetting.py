"""Trainings as people write them, of which too little is tracked: what is missing is named, or changes no bit."""

import pytest

from adjourn.v1.job_pb2 import Pause
from tests.harness import zoo
from tests.harness.training_processes import TrainingProcesses


@pytest.mark.parametrize("port", ["naive", "nothing"])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_what_is_not_tracked_is_named_or_changes_no_bit(trainings: TrainingProcesses, name: str, port: str) -> None:
    uncut = zoo.whole(trainings, name)
    for pause in zoo.random_pauses(uncut, name, epochs=2, steps=1):
        attempts = zoo.cut(trainings, name, [pause], port=port)
        last = attempts[-1]
        if last.code:
            reason = last.last.failed.reason
            assert reason == "UNTRACKED_STATE" or (reason == "STATE_MISMATCH" and len(attempts) > 1), last.log
            said = attempts[0].log + last.last.failed.message
            assert any(zoo.names(name, subject, said) for subject in zoo.forgotten(last)), said
            if zoo.is_over_before(last, pause):
                break  # so it is before any later one
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
