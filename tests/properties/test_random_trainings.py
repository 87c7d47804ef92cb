"""Whatever a training of a small family is made of, and wherever it is cut: it ends in the same bits."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.v1.job_pb2 import Pause
from tests.harness.training_processes import Attempt, TrainingProcesses
from tests.trainings import family

EPOCHS = 3
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcesses]:
    with TrainingProcesses(tmp_path_factory.mktemp("attempts")) as started:
        yield started


FAMILY = st.fixed_dictionaries(
    {
        "depth": st.integers(0, 3),
        "width": st.sampled_from([4, 6, 10]),
        "norm": st.sampled_from(sorted(family.NORMS)),
        "dropout": st.sampled_from([0.0, 0.3]),
        "optimizer": st.sampled_from(sorted(family.OPTIMIZERS)),
        "scheduler": st.sampled_from(sorted(family.SCHEDULERS)),
        "batch_size": st.integers(2, 7),
        "accumulate": st.integers(1, 3),
        "data": st.sampled_from(sorted(family.DATA)),
        "change": st.sampled_from(family.CHANGES),
    }
)
CUTS = st.lists(st.tuples(st.integers(1, 10), st.sampled_from(["STEP", "EPOCH"])), min_size=1, max_size=3)
"""Steps after which a pause is asked for, counted from the start of each attempt, and its mode."""


@pytest.mark.timeout(3600 if NIGHTLY else 300)
@settings(max_examples=200 if NIGHTLY else 20, deadline=None, derandomize=not NIGHTLY)
@given(made_of=FAMILY, cuts=CUTS, workers=st.lists(st.sampled_from([0, 2]), min_size=4, max_size=4))
def test_a_training_of_any_make_is_exact(
    trainings: TrainingProcesses, made_of: dict[str, Any], cuts: list[tuple[int, str]], workers: list[int]
) -> None:
    whole = trainings.run("family:main", epochs=EPOCHS, args={**made_of, "workers": 0})
    assert whole.kinds[-1] == "finished"
    attempts: list[Attempt] = []
    for number, (steps, mode) in enumerate([*cuts, (10**6, "EPOCH")]):
        before = attempts[-1] if attempts else None
        done = before.snapshots[-1].progress.step if before else 0
        cut = {"workers": workers[number], "pause_after": done + steps, "mode": mode}
        attempts.append(trainings.run("family:main", epochs=EPOCHS, args={**made_of, **cut}, restore=before))
        if attempts[-1].kinds[-1] == "finished":
            break
        assert attempts[-1].kinds[-1] == "paused"
    assert attempts[-1].digests == whole.digests
    assert {epoch: values for attempt in attempts for epoch, values in attempt.values.items()} == whole.values
    for attempt in attempts[1:]:
        began = attempt.events[0].began
        assert (began.verdict, list(began.verdict_reasons)) == (Pause.Verdict.EXACT, [])
