"""A second process that goes on from a snapshot comes to the same bits, or the training hears of it."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from adjourn import snapshots
from adjourn.internal.v1.trainer_pb2 import Drilled, Snapshot, TrainingStart
from adjourn.shared_files import Control
from adjourn.training.drill import Drill, difference
from adjourn.v1.job_pb2 import JobSpec, Pause
from tests.harness.training_processes import PAUSE, TRAININGS, Attempt, TrainingProcesses, failed, until

LONG = 1_000_000
"""Epochs of a training that the test has paused."""
SAME = "came to the same bits"
BEGUN = "a drill has begun"
DRILL_SECONDS = 200
"""Longest wait for a drill on a busy machine: its second process has the lower priority, and imports torch first."""


def drilled(steps: int = 5) -> JobSpec:
    return JobSpec(drill_steps=steps)


def verdict(attempt: Attempt) -> tuple[int, list[str]]:
    began = next(event.began for event in attempt.events if event.HasField("began"))
    return began.verdict, list(began.verdict_reasons)


def second_processes(directory: Path) -> list[int]:
    """Returns the pids of the second process of a drill, and of what it has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if path.readlink().is_relative_to(directory / "drill"):
                found.append(int(path.parent.name))
    return found


@contextmanager
def going_on(trainings: TrainingProcesses, directory: Path) -> Iterator[Callable[[str], Attempt]]:
    """Trains while the body runs; it gets a function that has the training paused once its log says something."""
    with trainings.running(directory) as end:

        def pause_after(said: str) -> Attempt:
            until(lambda: said in (directory / "log").read_text(), seconds=DRILL_SECONDS)
            with closing(Control(directory / "control")) as control:
                control.write(PAUSE)
            return end()

        until((directory / "log").exists)
        yield pause_after


def resumed(trainings: TrainingProcesses, paused: Attempt, **fields: Any) -> Attempt:
    """Goes on to the next boundary."""
    assert paused.last.HasField("paused"), paused.log
    return trainings.run("drilled:main", epochs=LONG, restore=paused, order=PAUSE, **fields)


def test_a_drill_that_comes_to_the_same_bits_makes_later_resumes_exact_replayed(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("drilled:main", epochs=LONG, args={"seconds": 0.1}, spec=drilled())
    with going_on(trainings, directory) as pause_after:
        paused = pause_after(SAME)
    assert not (directory / "drill").exists()
    for _ in range(2):  # what was shown is known from then on
        paused = resumed(trainings, paused, spec=drilled())
        assert verdict(paused) == (Pause.Verdict.EXACT_REPLAYED, [])
        assert BEGUN not in paused.log


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_a_drill_changes_nothing_of_a_run_and_is_waited_for_at_its_end(
    trainings: TrainingProcesses, steps: int
) -> None:
    """Its place is a step within an epoch, its last one, or the end of the run."""
    plain = trainings.run("drilled:main")
    attempt = trainings.run("drilled:main", spec=drilled(steps))
    assert attempt.last.HasField("finished"), attempt.log
    assert attempt.kinds == plain.kinds
    assert attempt.digests == plain.digests
    assert attempt.values == plain.values
    assert f"the drill from epoch 1, step 3 {SAME} at step {min(3 + steps, 9)}" in attempt.log


def test_the_training_itself_asks_for_a_drill(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("drilled:main", args={"drill": 4})
    assert attempt.last.HasField("finished"), attempt.log
    assert attempt.log.count(BEGUN) == 1
    assert f"the drill from epoch 1, step 3 {SAME} at step 7" in attempt.log


def test_a_drill_that_the_training_asks_for_finds_what_differs_and_is_not_repeated(
    trainings: TrainingProcesses,
) -> None:
    args = {"place": "environment", "seconds": 0.1, "drill": 5}
    attempt = trainings.run("drilled:hides", epochs=LONG, args=args)
    failed(attempt, "DRILL_DIFFERS")
    again = trainings.run("drilled:hides", epochs=LONG, args=args, restore=attempt, order=PAUSE)
    assert verdict(again)[0] == Pause.Verdict.UNPROVEN
    assert BEGUN not in again.log


def test_the_drill_of_the_job_takes_precedence(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("drilled:main", args={"drill": 4}, spec=drilled(2))
    assert f"the drill from epoch 1, step 3 {SAME} at step 5" in attempt.log
    assert attempt.log.count(BEGUN) == 1


@pytest.mark.parametrize(
    ("entry_point", "args", "error"),
    [
        ("drilled:main", {"drill": 0}, "ValueError: a drill of 0 steps; it has 1 to 1,000,000"),
        ("drilled:drills_late", {}, "RuntimeError: run.drill() is for a training with epochs, and is called before"),
    ],
)
def test_a_drill_that_cannot_be_asked_for(
    trainings: TrainingProcesses, entry_point: str, args: dict[str, Any], error: str
) -> None:
    assert error in failed(trainings.run(entry_point, args=args), "TRAINING_RAISED")


@pytest.mark.parametrize(
    ("entry_point", "args"),
    [
        ("tiny:main", {"workers": 2}),
        ("silent:two_kept_iterators", {}),
        ("zoo_process:main", {"training": "semi_supervised", "port": "ported", "workers": 2}),
    ],
)
def test_whatever_makes_a_resume_hard_is_the_same_in_a_drill(
    trainings: TrainingProcesses, entry_point: str, args: dict[str, Any]
) -> None:
    attempt = trainings.run(entry_point, args=args, spec=drilled(7))
    assert attempt.last.HasField("finished"), attempt.log
    assert SAME in attempt.log


def test_a_drill_goes_on_amid_an_epoch_where_a_checkpoint_is_taken_there(trainings: TrainingProcesses) -> None:
    """A run of a single epoch has no other."""
    plain = trainings.run("drilled:main", epochs=1)
    spec = JobSpec(drill_steps=1, checkpoint_steps=1)
    attempt = trainings.run("drilled:main", epochs=1, spec=spec)
    assert attempt.last.HasField("finished"), attempt.log
    assert f"the drill from epoch 0, step 1 {SAME} at step 2" in attempt.log
    assert attempt.digests == plain.digests


def test_what_is_known_to_be_in_no_snapshot_is_named_if_a_drill_differs(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("silent:local", spec=drilled(2))
    known = failed(attempt, "DRILL_DIFFERS").partition("Known to be in no snapshot:\n")[2]
    assert known.startswith("the value of variable rate of local")


def test_without_steps_the_next_end_of_an_epoch_is_compared(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("drilled:stepless", spec=drilled())
    assert attempt.last.HasField("finished"), attempt.log
    assert f"the drill from epoch 1, step 0 {SAME}" in attempt.log


@pytest.mark.parametrize("place", ["environment", "file", "c", "thread"])
def test_what_nothing_finds_is_found_by_a_drill(trainings: TrainingProcesses, place: str) -> None:
    without = trainings.run("drilled:hides", args={"place": place}, order=PAUSE)
    unnoticed = trainings.run("drilled:hides", args={"place": place}, restore=without, order=PAUSE)
    assert verdict(unnoticed) == (Pause.Verdict.EXACT, [])
    attempt = trainings.run("drilled:hides", args={"place": place}, spec=drilled())
    message = failed(attempt, "DRILL_DIFFERS")
    assert "from epoch 1, step 3, at step 8, model, optimizer differ; equal are numerics, random.numpy" in message
    assert attempt.snapshots[-1].last  # what was trained is saved


def test_a_run_whose_drill_differs_is_saved_and_may_be_resumed_as_unproven(trainings: TrainingProcesses) -> None:
    args = {"place": "environment", "seconds": 0.1}
    attempt = trainings.run("drilled:hides", epochs=LONG, args=args, spec=drilled())
    failed(attempt, "DRILL_DIFFERS")
    assert attempt.snapshots[-1].last
    assert attempt.snapshots[-1].progress.epoch == attempt.epochs[-1].epoch < LONG
    again = trainings.run("drilled:hides", epochs=LONG, args=args, restore=attempt, order=PAUSE, spec=drilled())
    assert verdict(again)[0] == Pause.Verdict.UNPROVEN
    assert again.last.HasField("paused")


@pytest.mark.parametrize(
    ("entry_point", "holds"),
    [("drilled:hides", "until saved"), ("drilled:ends_behind_a_look", "until looked at")],
)
def test_a_drill_that_differs_at_the_end_of_the_run_is_remembered(
    trainings: TrainingProcesses, entry_point: str, holds: str
) -> None:
    args = {"place": "environment", "holds": holds}
    attempt = trainings.run(entry_point, args=args, spec=drilled(1000))
    failed(attempt, "DRILL_DIFFERS")
    again = trainings.run(entry_point, args=args, spec=drilled(1000), restore=attempt)
    assert again.kinds == ["began", "snapshot", "finished"]
    expected = ["a drill was not over when the end of the run was saved"]
    assert verdict(again) == (Pause.Verdict.UNPROVEN, expected)


def test_a_drill_in_another_environment_is_made_again(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("drilled:main", epochs=LONG, args={"seconds": 0.1}, spec=drilled())
    with going_on(trainings, directory) as pause_after:
        paused = pause_after(SAME)
    path = Path(paused.snapshots[-1].directory) / snapshots.STATE
    document = json.loads(path.read_text())
    document["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(document))
    fields: dict[str, Any] = {"restore": paused, "spec": drilled(), "allow_inexact": True}
    directory = trainings.prepare("drilled:main", epochs=LONG, args={"seconds": 0.1}, **fields)
    with going_on(trainings, directory) as pause_after:
        again = pause_after(SAME)
    assert verdict(again)[0] == Pause.Verdict.WITHIN_TOLERANCE
    assert verdict(resumed(trainings, again)) == (Pause.Verdict.EXACT_REPLAYED, [])


def test_a_drill_that_differs_lowers_the_verdict_if_that_is_accepted(trainings: TrainingProcesses) -> None:
    args = {"place": "environment", "lax": True, "seconds": 0.1}
    directory = trainings.prepare("drilled:hides", epochs=LONG, args=args, spec=drilled())
    with going_on(trainings, directory) as pause_after:
        paused = pause_after("did not come to the same bits")
    for _ in range(2):
        paused = trainings.run("drilled:hides", epochs=LONG, args=args, restore=paused, order=PAUSE, spec=drilled())
        (reason,) = verdict(paused)[1]
        assert verdict(paused)[0] == Pause.Verdict.UNPROVEN
        assert reason.startswith("a drill did not come to the same bits: from epoch 1, step 3, at step 8, model, ")
        assert BEGUN not in paused.log


def test_a_drill_that_cannot_restore_differs(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("drilled:main", args={"changes": True}, spec=drilled())
    assert "RESTORE_DIVERGED: restored, but not equal to what was saved: model" in failed(attempt, "DRILL_DIFFERS")


def test_a_second_process_that_fails_shows_nothing(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("drilled:main", args={"raises": True}, spec=drilled())
    assert attempt.last.HasField("finished"), attempt.log
    assert "shows nothing, as its second process failed. TRAINING_RAISED" in attempt.log
    assert "no room for two" in attempt.log


def test_a_second_process_that_is_killed_shows_nothing(trainings: TrainingProcesses) -> None:
    args = {"holds": "for good", "seconds": 0.1}
    directory = trainings.prepare("drilled:main", epochs=LONG, args=args, spec=drilled())
    with going_on(trainings, directory) as pause_after:
        until(lambda: second_processes(directory))
        for pid in second_processes(directory):
            os.kill(pid, signal.SIGKILL)
        paused = pause_after("shows nothing, as its second process failed. It was ended by SIGKILL")
    assert verdict(resumed(trainings, paused)) == (Pause.Verdict.EXACT, [])


def test_a_pause_ends_a_drill_and_the_resumed_run_has_another(trainings: TrainingProcesses) -> None:
    args = {"holds": "for good", "seconds": 0.1}
    directory = trainings.prepare("drilled:main", epochs=LONG, args=args, spec=drilled())
    with going_on(trainings, directory) as pause_after:
        until(lambda: second_processes(directory))
        paused = pause_after(BEGUN)
    assert second_processes(directory) == []
    assert not (directory / "drill").exists()
    args = {"seconds": 0.1}
    directory = trainings.prepare("drilled:main", epochs=LONG, args=args, restore=paused, spec=drilled())
    with going_on(trainings, directory) as pause_after:
        again = pause_after(SAME)
    assert verdict(again) == (Pause.Verdict.EXACT, [])
    assert verdict(resumed(trainings, again)) == (Pause.Verdict.EXACT_REPLAYED, [])


def test_a_training_that_fails_ends_its_drill(trainings: TrainingProcesses) -> None:
    args = {"holds": "for good", "seconds": 0.1}
    attempt = trainings.run("drilled:fails", epochs=LONG, args=args, spec=drilled())
    assert "enough" in failed(attempt, "TRAINING_RAISED")
    assert BEGUN in attempt.log
    assert second_processes(attempt.directory) == []


def test_a_drill_that_is_not_done_soon_after_the_end_of_the_run_shows_nothing(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("drilled:outlasted", args={"holds": "for good"}, spec=drilled())
    assert attempt.kinds[-2:] == ["snapshot", "finished"], attempt.log
    assert "the drill shows nothing: " in attempt.log
    assert "after the end its second process is not done" in attempt.log
    assert second_processes(attempt.directory) == []
    assert not (attempt.directory / "drill").exists()


def test_where_the_snapshot_cannot_be_copied_there_is_no_drill(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("drilled:main", spec=drilled())
    (directory / "drill").touch()
    attempt = trainings.launch(directory)
    assert attempt.last.HasField("finished"), attempt.log
    assert "there is no drill: " in attempt.log


def test_a_drill_leaves_room_on_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drill = Drill(TrainingStart(spec=drilled()), tmp_path / "drill", {}, known=False)
    drill.begin(Snapshot(directory=str(tmp_path), size_bytes=1 << 60))
    assert (drill.due, drill.wanted, drill.runs) == (False, False, False)
    assert not (tmp_path / "drill").exists()
    assert (
        "there is no drill: [Errno 28] a copy of the snapshot and the code takes 1,152,921,504,606,846,976"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("steps", "known"), [(0, False), (5, True)])
def test_no_drill_is_due(tmp_path: Path, steps: int, known: bool) -> None:
    drill = Drill(TrainingStart(spec=drilled(steps)), tmp_path / "drill", {}, known=known)
    assert (drill.due, drill.wanted) == (False, False)
    assert drill.outcome() is None


def test_a_snapshot_from_before_drills_says_nothing_of_one(trainings: TrainingProcesses) -> None:
    paused = trainings.run("drilled:main", order=PAUSE)
    state = snapshots.read_state(Path(paused.snapshots[-1].directory))
    assert state.drilled is None


def test_what_differs_is_named() -> None:
    here = Drilled(epoch=1, step=8, digests={"model": "a", "random.torch": "b"})
    there = Drilled()
    there.CopyFrom(here)
    assert difference(here, there) == ""
    there.digests["model"] = "c"
    assert difference(here, there) == "at step 8, model differ; equal are random.torch"
    del there.digests["random.torch"]
    assert difference(here, there) == "at step 8, model, random.torch differ; equal are nothing"
    there.step = 7
    assert "after 1 epochs and 7 steps, the first after 1 and 8" in difference(here, there)


FILED = """
import os, pathlib, drilled
def main(run):
    factor = float(pathlib.Path("factor.txt").read_text()) * float(os.environ["FACTOR"])
    pathlib.Path("factor.txt").write_text("2.0")
    drilled.train(run, lambda: factor)
"""


def test_the_second_process_begins_in_the_folder_as_it_was_with_the_same_variables(
    trainings: TrainingProcesses,
) -> None:
    directory = trainings.prepare(
        "filed:main",
        anew=True,
        spec=JobSpec(drill_steps=5, environment={"FACTOR": "1.5", "NCCL_DEBUG": "INFO"}),
    )
    start = TrainingStart.FromString((directory / "start").read_bytes())
    start.code_directory = str(directory / "work")
    (directory / "start").write_bytes(start.SerializeToString())
    for name in ("work", "code"):
        (directory / name).mkdir()
        (directory / name / "filed.py").write_text(FILED)
        (directory / name / "factor.txt").write_text("0.5")
        shutil.copy(TRAININGS / "drilled.py", directory / name)
    attempt = trainings.launch(directory)
    assert attempt.kinds[-1] == "finished", attempt.log
    assert SAME in attempt.log
    assert "its working directory is: factor.txt (0.0 MB). Track" in attempt.log, (
        "code and what went along is not named"
    )
