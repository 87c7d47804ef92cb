"""Whole training processes that keep files with their snapshots."""

from pathlib import Path

import pytest

from adjourn import outputs
from adjourn.v1.job_pb2 import JobSpec
from tests.harness.training_processes import PAUSE, PAUSE_AT_STEP, Attempt, TrainingProcesses, failed


def kept(attempt: Attempt, into: Path) -> dict[str, str]:
    """Returns the files that the newest snapshot has, by path."""
    outputs.unpack(Path(attempt.snapshots[-1].directory), into)
    return {str(path.relative_to(into)): path.read_text() for path in into.rglob("*") if path.is_file()}


def test_files_belong_to_the_snapshot_and_are_there_when_the_run_goes_on(
    trainings: TrainingProcesses, tmp_path: Path
) -> None:
    whole = kept(trainings.run("writes:main", epochs=3), tmp_path / "whole")
    assert whole == {
        "log.txt": "epoch 1\nepoch 2\nepoch 3\n",
        "model.txt": "a model",
        "newest.txt": "epoch 3",
        **{f"plots/{epoch}.txt": "a picture" for epoch in (1, 2, 3)},
    }
    paused = trainings.paused_at("writes:main", 2)
    found = kept(paused, tmp_path / "paused")
    assert (found["log.txt"], found["newest.txt"], "model.txt" in found) == ("epoch 1\nepoch 2\n", "epoch 2", False)
    size = sum((Path(paused.snapshots[-1].directory) / name).stat().st_size for name in ("state.json", *outputs.FILES))
    assert paused.snapshots[-1].size_bytes > size
    for mode in ("a", "w"):
        resumed = trainings.run("writes:main", epochs=3, restore=paused, args={"mode": mode})
        assert kept(resumed, tmp_path / mode) == whole


def test_what_came_after_the_snapshot_is_gone_as_the_training_is_that_wrote_it(
    trainings: TrainingProcesses, tmp_path: Path
) -> None:
    first = trainings.run("writes:main", epochs=3, spec=JobSpec(checkpoint_epochs=2), order=None)
    earlier = Attempt(
        directory=first.directory, code=first.code, events=first.events[: first.kinds.index("snapshot") + 1]
    )
    found = kept(trainings.run("writes:main", epochs=3, restore=earlier), tmp_path / "resumed")
    assert found["log.txt"] == "epoch 1\nepoch 2\nepoch 3\n"


@pytest.mark.parametrize("entry_point", ["writes:steps", "writes:stages"])
def test_what_code_that_runs_again_has_written_anew_is_undone(
    trainings: TrainingProcesses, tmp_path: Path, entry_point: str
) -> None:
    epochs = 2 if entry_point == "writes:steps" else 4
    whole = kept(trainings.run(entry_point, epochs=epochs), tmp_path / "whole")
    paused = trainings.run(entry_point, epochs=epochs, order=PAUSE_AT_STEP if epochs == 2 else PAUSE)
    if epochs == 4:
        for _ in range(2):
            paused = trainings.run(entry_point, epochs=epochs, restore=paused, order=PAUSE)
    assert paused.kinds[-1] == "paused"
    assert kept(paused, tmp_path / "paused")["log.txt"].count("\n") < whole["log.txt"].count("\n")
    assert kept(trainings.run(entry_point, epochs=epochs, restore=paused), tmp_path / "resumed") == whole


def test_more_than_is_kept_ends_the_run_with_what_it_is(trainings: TrainingProcesses) -> None:
    told = failed(trainings.run("writes:large", output_bytes=1999), "OUTPUT_TOO_LARGE")
    assert "has 1 files of 0.0 MB" in told
    assert "The largest is large.bin" in told
    assert trainings.run("writes:large", output_bytes=2000).kinds[-1] == "finished"


def test_a_task_has_no_output_directory(trainings: TrainingProcesses) -> None:
    assert "a task has no checkpoint" in failed(trainings.run("writes:of_a_task", epochs=0), "TRAINING_RAISED")
