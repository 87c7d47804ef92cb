"""Whole training processes whose code leaves something to the end of the interpreter."""

from pathlib import Path

import pytest

from adjourn.desired_state import DesiredState
from tests.harness.training_processes import PAUSE, TrainingProcesses


@pytest.mark.parametrize(
    ("order", "args", "last"),
    [(None, {}, "finished"), (PAUSE, {}, "paused"), (None, {"fails": True}, "failed")],
    ids=["finished", "paused", "failed"],
)
def test_what_user_code_leaves_to_the_end_is_done(
    trainings: TrainingProcesses, order: DesiredState | None, args: dict[str, bool], last: str
) -> None:
    attempt = trainings.run("leaves_things:main", order=order, args=args)
    assert attempt.kinds[-1] == last
    assert attempt.code == (1 if args else 0)
    work = attempt.directory / "work"
    assert (work / "written.txt").read_text() == "to the last line"
    assert (work / "logged.txt").read_text() == "INFO:root:logged\n"
    assert (work / "called.txt").read_text() == "by atexit"
    assert (work / "threaded.txt").read_text() == "by a thread"
    assert not Path((work / "temporary.txt").read_text()).exists()
    assert "the launcher's own callback" not in attempt.log


def test_files_that_go_with_the_attempt_are_named(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("leaves_things:main", epochs=1)
    line = attempt.log.splitlines()[-1]
    assert line.startswith("adjourn: removed with this attempt, since its working directory is: called.txt (0.0 MB)")
    assert "removed with this attempt" not in trainings.run("unusual:without_steps", epochs=1).log


def test_thread_that_never_ends_does_not_keep_the_process(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("leaves_things:hangs", epochs=1, order=PAUSE)
    assert attempt.code == 0
    assert attempt.kinds[-1] == "finished"
    assert "user code is not done after 0.3 s; threads: MainThread, endless" in attempt.log
