"""Whole training processes that go on where another left off, and what keeps one from it."""

import json
from pathlib import Path
from typing import Any

import pytest

from adjourn.snapshots import STATE
from adjourn.v1.job_pb2 import Pause
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, failed


def test_counts_and_times_are_carried_on(trainings: TrainingProcesses) -> None:
    before = trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)
    attempt = trainings.run("tiny:main", args={"workers": 0}, restore=before)
    began = attempt.events[0]
    assert (began.began.restored_epoch, began.began.restored_step) == (1, 5)
    assert (began.progress.epoch, began.progress.step, began.progress.epoch_step) == (1, 6, 1)
    earlier = before.snapshots[-1].progress.active_duration.ToTimedelta()
    assert began.progress.active_duration.ToTimedelta() > earlier
    assert [metrics.epoch for metrics in attempt.epochs] == [2, 3]


def test_accumulated_gradients_and_thawed_layers_survive(trainings: TrainingProcesses) -> None:
    whole = trainings.run("unusual:accumulates", epochs=4)
    for epoch in (1, 2, 3):
        paused = trainings.paused_at("unusual:accumulates", epoch, epochs=4)
        resumed = trainings.run("unusual:accumulates", epochs=4, restore=paused)
        assert resumed.digests == whole.digests


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "saved, but not tracked now: model"),
        ({"model": 2, "other": 1}, "tracked, but not in the snapshot: other"),
        ({"model": 3}, "model does not take the state that was saved"),
    ],
)
def test_other_objects_than_were_saved(trainings: TrainingProcesses, args: dict[str, int], message: str) -> None:
    before = trainings.run("broken:varies", args={"model": 2}, order=PAUSE)
    assert message in failed(trainings.run("broken:varies", args=args, restore=before), "STATE_MISMATCH")


def test_errors_cannot_be_swallowed(trainings: TrainingProcesses) -> None:
    before = trainings.run("broken:varies", args={"model": 3}, order=PAUSE)
    attempt = trainings.run("broken:catches_its_errors", restore=before)
    assert "caught model does not take" in attempt.log
    failed(attempt, "STATE_MISMATCH")


def test_other_data_than_before(trainings: TrainingProcesses) -> None:
    before = trainings.run("broken:varies", args={"samples": 4}, order=PAUSE)
    attempt = trainings.run("broken:varies", args={"samples": 5}, restore=before)
    assert failed(attempt, "RESTORE_DIVERGED").endswith("saved: data")


def test_state_that_is_changed_after_it_was_restored(trainings: TrainingProcesses) -> None:
    before = trainings.run("broken:changes_what_was_restored", order=PAUSE)
    attempt = trainings.run("broken:changes_what_was_restored", restore=before)
    assert failed(attempt, "RESTORE_DIVERGED").endswith("saved: model")
    assert attempt.kinds == ["failed"]


def test_digests_of_the_snapshot_itself_are_used_if_none_are_given(trainings: TrainingProcesses) -> None:
    before = trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)
    attempt = trainings.run("tiny:main", args={"workers": 0}, restore_directory=before.snapshots[-1].directory)
    assert attempt.events[0].began.verdict == Pause.Verdict.EXACT


def test_number_of_threads_is_that_of_the_beginning(trainings: TrainingProcesses) -> None:
    before = trainings.run("unusual:shows_arguments", order=PAUSE, threads=2)
    attempt = trainings.run("unusual:shows_arguments", restore=before, threads=1)
    assert attempt.code == 0
    assert attempt.log.splitlines()[1].startswith("2 ")


def change(attempt: Attempt, **environment: str) -> None:
    path = Path(attempt.snapshots[-1].directory) / STATE
    document: dict[str, Any] = json.loads(path.read_text())
    document["environment"] |= environment
    path.write_text(json.dumps(document))


def test_other_environment_is_refused(trainings: TrainingProcesses) -> None:
    before = trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)
    change(before, torch="1.0", gpus="Voodoo")
    attempt = trainings.run("tiny:main", args={"workers": 0}, restore=before)
    message = failed(attempt, "ENVIRONMENT_DIFFERS")
    assert "torch was 1.0, is 2." in message
    assert "gpus was Voodoo, is unknown" in message


def test_other_environment_may_be_allowed(trainings: TrainingProcesses) -> None:
    before = trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)
    change(before, torch="1.0")
    attempt = trainings.run("tiny:main", args={"workers": 0}, restore=before, allow_inexact=True)
    assert attempt.code == 0
    began = attempt.events[0].began
    assert began.verdict == Pause.Verdict.WITHIN_TOLERANCE
    (reason,) = began.verdict_reasons
    assert reason.startswith("torch was 1.0, is 2.")


def test_states_are_compared_also_where_another_environment_is_allowed(trainings: TrainingProcesses) -> None:
    before = trainings.run("broken:changes_what_was_restored", order=PAUSE)
    change(before, torch="1.0")
    attempt = trainings.run("broken:changes_what_was_restored", restore=before, allow_inexact=True)
    assert failed(attempt, "RESTORE_DIVERGED").endswith("saved: model")


def test_what_is_not_saved_leaves_a_resume_unproven(trainings: TrainingProcesses) -> None:
    before = trainings.run("unrestorable:remembers", order=PAUSE)
    assert "a resume will be UNPROVEN: model.memory is a unrestorable.Memory that changed in training" in before.log
    attempt = trainings.run("unrestorable:remembers", restore=before)
    began = attempt.events[0].began
    assert began.verdict == Pause.Verdict.UNPROVEN
    assert [reason.partition(" ")[0] for reason in began.verdict_reasons] == ["model.memory"]


def test_same_environment_is_exact_even_if_another_were_allowed(trainings: TrainingProcesses) -> None:
    before = trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)
    attempt = trainings.run("tiny:main", args={"workers": 0}, restore=before, allow_inexact=True)
    assert attempt.events[0].began.verdict == Pause.Verdict.EXACT


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
def test_snapshot_that_cannot_be_read(trainings: TrainingProcesses, file: str) -> None:
    before = trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)
    digests = before.digests
    (Path(before.snapshots[-1].directory) / file).write_bytes(b"\x07")
    attempt = trainings.run(
        "tiny:main",
        args={"workers": 0},
        restore_directory=before.snapshots[-1].directory,
        restore_digests=digests,
    )
    assert file in failed(attempt, "CHECKPOINT_CORRUPT")


@pytest.mark.parametrize("args", [{}, {"stop": 2}])
def test_the_code_behind_the_epochs_is_executed_once(trainings: TrainingProcesses, args: dict[str, int]) -> None:
    """A run that ended, and of which nobody heard: it goes on from its end."""
    whole = trainings.run("unusual:changes_its_end", args=args)
    assert whole.last.HasField("finished"), whole.log
    again = trainings.run("unusual:changes_its_end", args=args, restore=whole)
    assert again.kinds == ["began", "snapshot", "finished"], again.log
    assert again.events[0].began.verdict == Pause.Verdict.EXACT
    assert again.digests == whole.digests
    assert "the end" not in again.log
    for name in ("epoch", "step", "loss", "metrics", "best"):
        assert getattr(again.last.progress, name) == getattr(whole.last.progress, name), name


def test_a_run_that_is_to_have_more_epochs_than_at_its_end_has_them(trainings: TrainingProcesses) -> None:
    """UpdateJob can raise them before another attempt tells the end."""
    whole = trainings.run("unusual:changes_its_end", epochs=2)
    again = trainings.run("unusual:changes_its_end", epochs=4, restore=whole)
    assert again.last.HasField("finished"), again.log
    assert [metrics.epoch for metrics in again.epochs] == [3, 4]


def test_the_end_of_a_run_that_is_not_what_was_saved_is_no_end(trainings: TrainingProcesses) -> None:
    whole = trainings.run("unusual:changes_its_end")
    digests = {**whole.digests, "model": whole.digests["stopping"]}
    again = trainings.run("unusual:changes_its_end", restore=whole, restore_digests=digests)
    assert "model" in failed(again, "RESTORE_DIVERGED")
