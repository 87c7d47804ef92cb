"""Whole training processes that rehearse a resume: what a resumed run could not take is refused while it still runs."""

from typing import Any

import pytest

from adjourn.training.snapshot.round_trip import Structures
from adjourn.v1.job_pb2 import Pause
from tests.harness.training_processes import PAUSE, TrainingProcesses, failed


@pytest.mark.parametrize(
    ("entry_point", "args", "difference"),
    [
        ("tracks", {"kind": "IgnoresState"}, "tracked['values']: other values come back than are saved"),
        ("tracks", {"kind": "ForgetsACount"}, "tracked['nested'][0]['count']: 1 is saved, 0 comes back"),
        ("tracks", {"kind": "CastsState"}, "tracked['values']: float32 of shape [3] is saved, bfloat16 of [3]"),
        ("tracks", {"kind": "RefusesState"}, "loading comes later"),
        ("grows", {"in": 1}, "model does not take the state that was saved"),
        ("loads_into_the_original", {}, "not equal to what was saved: closures"),
    ],
)
@pytest.mark.parametrize("order", [None, PAUSE], ids=["running", "pausing"])
def test_state_that_a_resumed_run_cannot_take_is_refused_at_the_first_boundary(
    trainings: TrainingProcesses, entry_point: str, args: dict[str, str], difference: str, order: object
) -> None:
    attempt = trainings.run(f"unrestorable:{entry_point}", args=args, order=order)
    message = failed(attempt, "STATE_NOT_RESTORABLE")
    assert difference in message
    assert "build everything before the first epoch" in message
    assert attempt.kinds == ["began", "epoch", "failed"]


def test_state_that_changes_its_structure_later_is_told_and_the_run_ends_well(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unrestorable:grows", epochs=4, args={"in": 2})
    assert attempt.code == 0
    assert attempt.kinds == [
        "began",
        "epoch",
        "snapshot",
        "epoch",
        "snapshot_failed",
        *["epoch"] * 2,
        "snapshot",
        "finished",
    ]
    failure = attempt.events[4].snapshot_failed
    assert failure.reason == "STATE_NOT_RESTORABLE"
    assert "does not take the state" in failure.message
    assert attempt.snapshots[-1].live_digests == attempt.digests


def test_pause_of_a_structure_that_cannot_be_resumed_stays_pending(trainings: TrainingProcesses) -> None:
    """Also where the attempt began with a resume: what worked before a pause does not fail after it."""
    paused = trainings.run("unrestorable:grows", epochs=3, args={"in": 2}, order=PAUSE)
    attempt = trainings.run("unrestorable:grows", epochs=3, args={"in": 2}, order=PAUSE, restore=paused)
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "epoch", "snapshot", "finished"]
    assert attempt.events[2].snapshot_failed.last


@pytest.mark.parametrize(
    ("entry_point", "args"),
    [("masters", {}), ("adds_parameters", {"in": 1}), ("adds_parameters", {"in": 2}), ("shares_memory", {})],
)
def test_rehearsal_lets_what_is_exact_pass(
    trainings: TrainingProcesses, entry_point: str, args: dict[str, int]
) -> None:
    whole = trainings.run(f"unrestorable:{entry_point}", args=args)
    assert whole.kinds == ["began", *["epoch", "snapshot"] * 3, "finished"]
    paused = trainings.paused_at(f"unrestorable:{entry_point}", 2, args=args)
    assert paused.snapshots[-1].live_digests == paused.digests
    resumed = trainings.run(f"unrestorable:{entry_point}", args=args, restore=paused)
    assert resumed.events[0].began.verdict == Pause.Verdict.EXACT
    assert resumed.digests == whole.digests


def test_object_that_cannot_be_copied_is_said_to_be_unproven(trainings: TrainingProcesses) -> None:
    paused = trainings.run("unrestorable:tracks", args={"kind": "HasALock"}, order=PAUSE)
    assert paused.last.HasField("paused")
    assert "tracked: it cannot be copied (TypeError: cannot pickle '_thread.lock' object)" in paused.log
    resumed = trainings.run("unrestorable:tracks", args={"kind": "HasALock"}, restore=paused)
    assert resumed.events[0].began.verdict == Pause.Verdict.EXACT


def test_structures_of_trees_that_share_parts_are_told_as_those_of_new_ones() -> None:
    def tensor(*shape: int) -> dict[str, Any]:
        return {"$": "tensor", "name": "any", "dtype": "float32", "shape": list(shape)}

    trees: dict[str, Any] = {
        "model": {"state_dict": {"a": tensor(1), "b": tensor(2)}, "frozen": []},
        "optimizer": {"state_dict": {"state": {"0": tensor(1)}, "param_groups": [{"params": [0]}]}},
        "value": tensor(3),
        "epoch": 1,
    }
    one = Structures()
    first = one.digest(trees)
    changes: list[tuple[str, Any, bool]] = [
        ("epoch", 2, True),
        ("model", {**trees["model"], "frozen": ["a"]}, True),
        ("model", {"state_dict": {"a": tensor(1), "b": tensor(2, 1)}, "frozen": []}, False),
        ("model", trees["model"], True),
        ("value", tensor(4), False),
        ("value", tensor(3), True),
        ("more", tensor(1), False),
        ("optimizer", {"state_dict": {"state": {}, "param_groups": [{"params": [0, 1]}]}}, False),
    ]
    for name, tree, same in changes:
        trees = {**trees, name: tree}
        assert one.digest(trees) == Structures().digest(trees)
        assert (one.digest(trees) == first) == same
        trees.pop("more", None)
    assert one.digest({}) == Structures().digest({}) != first
