"""Whole training processes in stages: every boundary resumes to the bit, whatever was made between stages."""

import pytest

from adjourn.training.state.registry import DATA
from adjourn.v1.job_pb2 import JobSpec, Pause
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, failed

EPOCHS = {
    "folds": 6,
    "curriculum": 6,
    "thawing": 5,
    "stops_early": 9,
    "one_by_one": 4,
    "kept_iterators": 6,
    "iterators_of_stages": 6,
    "thaws_within": 5,
    "adds_within": 5,
}
UNPROVEN = {"kept_iterators"}
"""What a generator holds, nobody can see to be used again before it is."""


def verdict(attempt: Attempt) -> tuple[int, list[str]]:
    began = next(event.began for event in attempt.events if event.HasField("began"))
    return began.verdict, list(began.verdict_reasons)


@pytest.mark.parametrize("training", EPOCHS)
def test_exact_from_every_boundary(trainings: TrainingProcesses, training: str) -> None:
    """Each attempt is paused at its first boundary, and another one goes on from there to the end."""
    entry_point, epochs = f"staged:{training}", EPOCHS[training]
    whole = trainings.run(entry_point, epochs=epochs)
    assert whole.last.HasField("finished"), whole.log
    paused: Attempt | None = None
    for cut in range(1, len(whole.epochs)):
        paused = trainings.run(entry_point, epochs=epochs, restore=paused, order=PAUSE)
        assert paused.last.HasField("paused"), paused.log
        assert paused.snapshots[-1].progress.epoch == cut
        resumed = trainings.run(entry_point, epochs=epochs, restore=paused)
        assert resumed.last.HasField("finished"), resumed.log
        expected = Pause.Verdict.UNPROVEN if training in UNPROVEN else Pause.Verdict.EXACT
        assert verdict(resumed)[0] == expected, verdict(resumed)
        equal = {name for name in whole.digests if resumed.digests[name] == whole.digests[name]}
        # Positions tell of iterators, also of one in a generator that is gone.
        assert equal >= whole.digests.keys() - ({DATA} if training in UNPROVEN else set()), cut
        assert resumed.values == {epoch: values for epoch, values in whole.values.items() if epoch > cut}
        assert resumed.last.progress.metrics == whole.last.progress.metrics
        assert resumed.last.progress.step == whole.last.progress.step


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ("scores_untracked", "variable scores of scores_untracked"),
        ("ensemble_untracked", "variable ensemble of ensemble_untracked"),
        ("split_drawn_between", "variable order of split_drawn_between"),
    ],
)
def test_verdict_is_lowered_by_what_code_between_stages_makes_otherwise(
    trainings: TrainingProcesses, training: str, reason: str
) -> None:
    paused = trainings.paused_at(f"staged:{training}", 3, epochs=4)
    for _ in range(2):  # an attempt that goes on from such a run is not EXACT either
        paused = trainings.run(f"staged:{training}", epochs=4, restore=paused)
        level, reasons = verdict(paused)
        assert level == Pause.Verdict.UNPROVEN
        assert any(reason in each for each in reasons), reasons


def test_data_drawn_between_stages_is_refused(trainings: TrainingProcesses) -> None:
    paused = trainings.paused_at("staged:data_drawn_between", 3, epochs=4)
    resumed = trainings.run("staged:data_drawn_between", epochs=4, restore=paused)
    assert "the data of loader 1 is not that of before" in failed(resumed, "STATE_MISMATCH")


def test_code_that_does_not_come_to_the_stage_of_the_snapshot_fails(trainings: TrainingProcesses) -> None:
    paused = trainings.paused_at("staged:stages_left_out", 3, epochs=4)
    resumed = trainings.run("staged:stages_left_out", epochs=4, restore=paused, args={"short": True})
    assert "a later run.epochs() than the 1 that" in failed(resumed, "STATE_MISMATCH")


def test_what_is_not_tracked_in_a_later_stage_is_refused_in_it(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("staged:untracked_in_a_later_stage", epochs=4)
    assert "a torch.optim.sgd.SGD in variable optimizer" in failed(attempt, "UNTRACKED_STATE")
    assert len(attempt.epochs) == 3


def test_a_resume_is_rehearsed_with_the_objects_of_each_stage(trainings: TrainingProcesses) -> None:
    spec = JobSpec(checkpoint_epochs=0)
    attempt = trainings.run("staged:cannot_be_restored_in_a_later_stage", epochs=4, spec=spec)
    assert attempt.kinds == ["began", *["epoch"] * 3, "snapshot_failed", "epoch", "snapshot", "finished"]
    assert attempt.events[4].snapshot_failed.reason == "STATE_NOT_RESTORABLE"


def test_a_pause_that_user_code_caught_ends_the_next_stage(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("staged:catches_the_pause", epochs=4, order=PAUSE)
    assert attempt.kinds == ["began", "epoch", "snapshot", "paused"]
    assert attempt.code == 0


def test_a_loop_ends_when_another_begins(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("staged:begins_another_loop", epochs=4)
    assert "another run.epochs() was begun meanwhile" in failed(attempt, "TRAINING_RAISED")


def test_a_run_that_builds_what_was_replaced_is_told_how_not_to(trainings: TrainingProcesses) -> None:
    args = {"build": False}
    paused = trainings.paused_at("staged:thaws_within", 2, epochs=5, args=args)
    paused = trainings.run("staged:thaws_within", epochs=5, args=args, restore=paused, order=PAUSE)
    message = failed(trainings.run("staged:thaws_within", epochs=5, args=args, restore=paused), "STATE_MISMATCH")
    assert "build that one before the loop if run.epoch >= 3" in message


def test_what_was_tracked_within_an_epoch_is_awaited_at_the_first_step(trainings: TrainingProcesses) -> None:
    paused = trainings.paused_at("staged:adds_within", 2, epochs=5)
    resumed = trainings.run("staged:adds_within", epochs=5, args={"again": False}, restore=paused)
    assert "history (in epoch 2), scheduler (in epoch 2)" in failed(resumed, "STATE_MISMATCH")
    assert resumed.kinds == ["failed"]


def test_random_numbers_drawn_to_make_it_are_taken_back_and_told(trainings: TrainingProcesses) -> None:
    whole = trainings.run("staged:adds_within", epochs=5, args={"draws": True})
    paused = trainings.paused_at("staged:adds_within", 3, epochs=5, args={"draws": True})
    resumed = trainings.run("staged:adds_within", epochs=5, args={"draws": True}, restore=paused)
    assert resumed.digests == whole.digests
    level, reasons = verdict(resumed)
    assert level == Pause.Verdict.UNPROVEN
    assert any("random numbers were drawn in epoch 4" in each for each in reasons)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (False, "nothing is tracked as 'optimizer': run.track(optimizer=...)"),
        (True, "run.replace() was called before the first epoch: track what is there"),
    ],
)
def test_only_what_is_tracked_is_replaced_and_from_the_first_epoch_on(
    trainings: TrainingProcesses, before: bool, message: str
) -> None:
    attempt = trainings.run("staged:replaces_what_is_not_there", args={"before": before})
    assert message in failed(attempt, "TRAINING_RAISED")
