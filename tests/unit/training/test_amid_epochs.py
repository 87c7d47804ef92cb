"""Whole training processes that are cut amid an epoch, and go on there as if nothing had been."""

from functools import cache
from typing import Any

import pytest

from adjourn.training.session import ABANDONED
from adjourn.v1.job_pb2 import JobSpec, Pause
from adjourn_worker.launcher import process_tree
from tests.harness.training_processes import (
    PAUSE,
    PAUSE_AT_STEP,
    TRAININGS,
    Attempt,
    TrainingProcesses,
    failed,
    read_events,
    until,
)


def run(
    trainings: TrainingProcesses, training: str, *, pause_at: int = 0, restore: Attempt | None = None, **options: Any
) -> Attempt:
    args = {"training": f"amid:{training}", "pause_at": pause_at, **options.pop("args", {})}
    return trainings.run("cut:main", args=args, restore=restore, epochs=2, **options)


@cache
def uncut(trainings: TrainingProcesses, training: str) -> Attempt:
    return run(trainings, training)


def values(*attempts: Attempt) -> dict[int, dict[str, float]]:
    return {epoch: found for attempt in attempts for epoch, found in attempt.values.items()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("training", "cuts"),
    [
        ("plain", [1, 4, 5, 10]),
        ("accumulating", [1, 2, 3]),
        ("nested", [2, 7, 11, 18]),
        ("streaming", [2, 3, 8]),
        ("side_by_side", [1, 4, 7]),
        ("twice", [2, 9]),
        ("counting", [2, 4, 7]),
        ("keeping", [1, 3, 7]),
        ("thawing", [1, 7, 9, 10]),
        ("thawing_late", [1, 7, 9, 10]),
        ("replacing", [3, 8, 9]),
        ("clipping", [3, 6]),
    ],
)
def test_a_run_that_is_cut_amid_its_epochs_is_the_same(
    trainings: TrainingProcesses, training: str, cuts: list[int], workers: int
) -> None:
    whole = uncut(trainings, training)
    assert whole.last.HasField("finished"), whole.log
    attempts: list[Attempt] = []
    for cut in cuts:
        restore = attempts[-1] if attempts else None
        attempts.append(run(trainings, training, pause_at=cut, restore=restore, args={"workers": workers}))
        paused = attempts[-1]
        assert paused.kinds[-2:] == ["snapshot", "paused"], paused.log
        assert paused.last.progress.step == cut
        assert paused.last.progress.epoch_step == cut - paused.last.progress.epoch * steps_of_an_epoch(whole)
    attempts.append(run(trainings, training, restore=attempts[-1]))
    assert attempts[-1].digests == whole.digests
    assert values(*attempts) == whole.values
    for attempt, cut in zip(attempts[1:], cuts, strict=True):
        began = attempt.events[0].began
        assert (began.verdict, began.restored_step) == (Pause.Verdict.EXACT, cut), began


@pytest.mark.parametrize("zeroes", ["before", "behind", "begins", "never"])
def test_whether_a_parameter_has_a_gradient_is_restored(trainings: TrainingProcesses, zeroes: str) -> None:
    args = {"zeroes": zeroes}
    whole = run(trainings, "leaving_out", args=args)
    paused = None
    for cut in (2, 6, 8):
        paused = run(trainings, "leaving_out", pause_at=cut, restore=paused, args=args)
        assert paused.last.HasField("paused"), paused.log
    resumed = run(trainings, "leaving_out", restore=paused, args=args)
    assert (resumed.events[0].began.verdict, resumed.digests) == (Pause.Verdict.EXACT, whole.digests), resumed.log


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_goes_on_where_its_state_says(trainings: TrainingProcesses, workers: int) -> None:
    args = {"dataset": "stream", "workers": workers}
    whole = run(trainings, "streaming", args=args)
    paused = run(trainings, "streaming", pause_at=8, args=args)
    resumed = run(trainings, "streaming", restore=paused, args=args)
    assert (resumed.events[0].began.verdict, resumed.digests) == (Pause.Verdict.EXACT, whole.digests), resumed.log


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_whose_state_lacks_the_place_is_refused(trainings: TrainingProcesses, workers: int) -> None:
    args = {"dataset": "vague", "workers": workers}
    paused = run(trainings, "streaming", pause_at=8, args=args)
    resumed = run(trainings, "streaming", restore=paused, args=args)
    message = failed(resumed, "STATE_MISMATCH")
    assert "a Vague, does not come back to that place, for all its state_dict(): let that tell what is left" in message
    assert resumed.kinds == ["failed"]


def test_a_stream_whose_next_batch_is_not_known_at_the_cut_is_not_exact(trainings: TrainingProcesses) -> None:
    paused = run(trainings, "streaming_within", pause_at=4)
    resumed = run(trainings, "streaming_within", restore=paused)
    began = resumed.events[0].began
    assert began.verdict == Pause.Verdict.UNPROVEN
    assert ["was not compared" in each for each in began.verdict_reasons] == [True], began


def steps_of_an_epoch(whole: Attempt) -> int:
    return whole.epochs[0].step


def test_values_that_were_given_before_the_first_epoch_are_defaults(trainings: TrainingProcesses) -> None:
    whole = run(trainings, "keeping")
    first = trainings.run("amid:keeping", epochs=2, order=PAUSE)
    second = trainings.run("amid:keeping", epochs=2, restore=first)
    assert second.events[0].began.verdict == Pause.Verdict.EXACT, second.log
    assert (second.digests, values(first, second)) == (whole.digests, whole.values)


def test_a_value_that_cannot_be_stored_is_named(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("amid:keeping_what_cannot_be", epochs=2)
    assert "state['by_name']['course']" in failed(attempt, "STATE_NOT_ENCODABLE")


def test_a_value_that_cannot_be_stored_is_refused_where_it_is_given(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("amid:giving_what_cannot_be", epochs=2)
    message = failed(attempt, "STATE_NOT_ENCODABLE")
    assert message.startswith("state['course']['is']: a amid.Course cannot be stored exactly")
    line = 1 + (TRAININGS / "amid.py").read_text().splitlines().index('        run.state.course = {"is": course}')
    assert f"It is assigned in amid.py:{line}. Give run.state numbers" in message
    assert attempt.kinds == ["failed"]


def test_a_run_that_never_comes_to_where_it_was_cut_ends(trainings: TrainingProcesses) -> None:
    paused = run(trainings, "skipping", pause_at=3)
    resumed = run(trainings, "skipping", restore=paused, args={"skip": True})
    assert "the run was cut after step 3 of epoch 1" in failed(resumed, "STATE_MISMATCH")


def test_a_state_that_is_not_equal_where_the_run_was_cut_is_not_trained_on(trainings: TrainingProcesses) -> None:
    paused = run(trainings, "plain", pause_at=3)
    digests = {**paused.digests, "model": paused.digests["optimizer"]}
    resumed = run(trainings, "plain", restore=paused, restore_digests=digests)
    assert "model" in failed(resumed, "RESTORE_DIVERGED")
    assert resumed.kinds == ["failed"]


def test_a_pause_that_is_ordered_before_the_first_step_comes_after_it(trainings: TrainingProcesses) -> None:
    attempt = run(trainings, "plain", order=PAUSE_AT_STEP)
    assert attempt.kinds == ["began", "snapshot", "paused"]
    assert attempt.last.progress.step == 1
    again = run(trainings, "plain", order=PAUSE_AT_STEP, restore=attempt)
    assert again.kinds == ["began", "snapshot", "paused"]
    assert again.last.progress.step == 2


def test_a_step_that_no_batch_follows_is_cut_at_the_end_of_its_epoch(trainings: TrainingProcesses) -> None:
    """What follows the loop may read what the loop assigns: there it is not cut."""
    attempt = run(trainings, "plain", pause_at=6)
    assert attempt.kinds == ["began", "epoch", "snapshot", "paused"]
    assert (attempt.last.progress.epoch, attempt.last.progress.epoch_step) == (1, 0)
    stream = run(trainings, "streaming", pause_at=6)
    assert stream.kinds == ["began", "epoch", "snapshot", "paused"]


def test_an_epoch_is_not_cut_where_an_earlier_loop_would_get_no_batches(trainings: TrainingProcesses) -> None:
    attempt = run(trainings, "twice", pause_at=5)
    assert attempt.kinds == ["began", "epoch", "snapshot", "paused"]


def test_a_validation_is_not_cut(trainings: TrainingProcesses) -> None:
    whole = run(trainings, "validating")
    paused = run(trainings, "validating", pause_at=steps_of_an_epoch(whole))
    assert paused.kinds == ["began", "epoch", "snapshot", "paused"]
    resumed = run(trainings, "validating", restore=paused)
    assert (resumed.digests, values(paused, resumed)) == (whole.digests, whole.values)


def test_without_a_loader_of_ours_training_pauses_at_the_end_of_its_epoch(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:stops_early", epochs=5, args={"stop": 3}, order=PAUSE_AT_STEP)
    assert attempt.kinds == ["began", "epoch", "snapshot", "paused"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("number", "the value of variable total of forgetful"),
        ("list", "the value of variable losses of forgetful"),
        ("attribute", "the value of attribute sum of self in forgetful"),
        ("generator", "the value of variable generator of forgetful"),
        ("draw", "the value of variable draw of forgetful"),
        ("zip", "the count of zip() around a loader"),
        ("comprehension", "what was gathered by a comprehension in"),
        ("expression", "what was gathered by a comprehension in"),
    ],
)
def test_what_begins_anew_with_the_epoch_lowers_the_verdict(
    trainings: TrainingProcesses, kind: str, reason: str
) -> None:
    paused = run(trainings, "forgetful", pause_at=7, args={"kind": kind})
    assert paused.last.progress.epoch_step == 2, paused.log
    resumed = run(trainings, "forgetful", restore=paused, args={"kind": kind})
    began = resumed.events[0].began
    assert began.verdict == Pause.Verdict.UNPROVEN
    assert [each for each in began.verdict_reasons if each.startswith(reason)], began


def test_variables_that_come_back_by_themselves_are_not_told(trainings: TrainingProcesses) -> None:
    whole, paused = run(trainings, "careful"), run(trainings, "careful", pause_at=7)
    resumed = run(trainings, "careful", restore=paused)
    assert (resumed.events[0].began.verdict, list(resumed.events[0].began.verdict_reasons)) == (Pause.Verdict.EXACT, [])
    assert resumed.digests == whole.digests


# What keeps it from being cut.


def test_a_pause_that_could_not_be_saved_amid_an_epoch_is_tried_again_there(trainings: TrainingProcesses) -> None:
    whole = run(trainings, "lacks_room", args={"room": 1})
    paused = run(trainings, "lacks_room", pause_at=2, args={"room": 4})
    assert paused.kinds == ["began", "snapshot_failed", "snapshot", "paused"], paused.log
    failure = paused.events[1].snapshot_failed
    assert (failure.reason, failure.last, paused.events[1].progress.step) == ("NO_SPACE", True, 2)
    assert paused.last.progress.step == 4
    assert paused.snapshots[0].last
    resumed = run(trainings, "lacks_room", restore=paused, args={"room": 5})
    assert resumed.events[0].began.verdict == Pause.Verdict.EXACT
    assert resumed.digests == whole.digests


def test_a_checkpoint_that_could_not_be_saved_amid_an_epoch_is_taken_when_the_next_is_due(
    trainings: TrainingProcesses,
) -> None:
    spec = JobSpec(checkpoint_epochs=0, checkpoint_steps=2)
    attempt = run(trainings, "lacks_room", args={"room": 5}, spec=spec)
    assert attempt.kinds[:4] == ["began", "snapshot_failed", "epoch", "snapshot"], attempt.log
    steps = [snapshot.progress.step for snapshot in attempt.snapshots]
    assert (attempt.events[1].progress.step, steps) == (2, [6, 8, 12])  # nobody gives slots back
    assert not attempt.events[1].snapshot_failed.last


def test_a_run_whose_launcher_is_gone_ends_at_its_next_cut(trainings: TrainingProcesses) -> None:
    spec = JobSpec(checkpoint_steps=1)
    directory = trainings.prepare("amid:outlives_its_launcher", epochs=2, args={"waits": True}, spec=spec)
    with trainings.abandoning(directory) as abandon:
        until(lambda: [event.progress.step for event in read_events(directory)][-1:] == [2])
        pid = int((directory / "pid").read_text())
        abandon()
        until(lambda: not process_tree.runs(pid))
    ended = Attempt(directory=directory, code=ABANDONED, events=read_events(directory))
    assert ended.kinds == ["began", *["snapshot"] * 3]
    assert (ended.last.snapshot.last, ended.last.progress.step) == (True, 3)
    resumed = trainings.run("amid:outlives_its_launcher", epochs=2, restore=ended)
    assert resumed.events[0].began.verdict == Pause.Verdict.EXACT
    assert resumed.digests == trainings.run("amid:outlives_its_launcher", epochs=2).digests


def test_a_batch_that_another_thread_asks_for_is_no_place_to_cut(trainings: TrainingProcesses) -> None:
    whole = trainings.run("amid:in_a_thread", epochs=2)
    paused = trainings.run("amid:in_a_thread", epochs=2, order=PAUSE_AT_STEP)
    assert paused.kinds == ["began", "epoch", "snapshot", "paused"], paused.log
    resumed = trainings.run("amid:in_a_thread", epochs=2, restore=paused)
    assert (resumed.events[0].began.verdict, resumed.digests) == (Pause.Verdict.EXACT, whole.digests), resumed.log


def test_what_was_replaced_amid_the_loop_that_is_cut_is_refused_and_says_where_it_could_be(
    trainings: TrainingProcesses,
) -> None:
    paused = run(trainings, "replacing", pause_at=9, args={"at": 7})
    resumed = run(trainings, "replacing", restore=paused, args={"at": 7})
    message = failed(resumed, "STATE_MISMATCH")
    assert "since a batch of epoch 2, and the run was cut behind that one: replace it before the loop over" in message
