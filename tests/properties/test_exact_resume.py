"""A training that is cut anywhere, any number of times, ends where the uninterrupted one does, to the last bit."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn import snapshots
from adjourn.snapshots import STATE, TENSORS
from adjourn.training.state.numerics import NUMERICS
from adjourn.v1.job_pb2 import Pause
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses

EPOCHS = 6
COMPONENTS = (
    "data",
    "model",
    "optimizer",
    "random.numpy",
    "random.python",
    "random.torch",
    "scheduler",
    "stopping",
)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcesses]:
    with TrainingProcesses(tmp_path_factory.mktemp("attempts")) as started:
        yield started


@pytest.fixture(scope="module")
def whole(trainings: TrainingProcesses) -> Attempt:
    """The run that was never interrupted."""
    attempt = trainings.run("tiny:main", epochs=EPOCHS, args={"workers": 0})
    assert attempt.kinds[-2:] == ["snapshot", "finished"]
    assert set(attempt.digests) == {*COMPONENTS, NUMERICS}
    return attempt


def train(trainings: TrainingProcesses, cuts: Sequence[int], workers: Sequence[int]) -> list[Attempt]:
    """Trains with a pause after each epoch of `cuts`; each attempt has its own number of loader workers."""
    attempts: list[Attempt] = []
    for number, cut in enumerate((*cuts, EPOCHS)):
        before = attempts[-1] if attempts else None
        trained = cut - (before.epochs[-1].epoch if before else 0)
        # The pause is asked for while the epoch is trained; from there the next boundary is its own.
        args = {"workers": workers[number % len(workers)], "pause_in": cut if cut < EPOCHS else 0}
        attempts.append(trainings.run("tiny:main", epochs=EPOCHS, args=args, restore=before))
        assert len(attempts[-1].epochs) == trained
    return attempts


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    cuts=st.sets(st.integers(1, EPOCHS - 1)).map(sorted),
    workers=st.lists(st.integers(0, 1), min_size=1, max_size=EPOCHS),
)
def test_cuts_change_nothing(trainings: TrainingProcesses, whole: Attempt, cuts: list[int], workers: list[int]) -> None:
    attempts = train(trainings, cuts, workers)
    assert attempts[-1].digests == whole.digests
    assert {epoch: values for attempt in attempts for epoch, values in attempt.values.items()} == whole.values
    assert [attempt.kinds[-1] for attempt in attempts] == ["paused"] * len(cuts) + ["finished"]
    for attempt, cut in zip(attempts[1:], cuts, strict=True):
        began = attempt.events[0].began
        assert (began.verdict, began.restored_epoch) == (Pause.Verdict.EXACT, cut)


@pytest.fixture(scope="module")
def two_epochs(trainings: TrainingProcesses) -> tuple[Attempt, Attempt]:
    """The same run, paused after its first and after its second epoch."""
    first = trainings.run("tiny:main", epochs=EPOCHS, args={"workers": 0}, order=PAUSE)
    return first, trainings.run("tiny:main", epochs=EPOCHS, args={"workers": 0}, order=PAUSE, restore=first)


def with_older(component: str, older: Path, newer: Path, target: Path) -> None:
    """Makes a snapshot of `newer` in which one component is that of `older`."""
    trees = {**snapshots.read_state(newer).components, component: snapshots.read_state(older).components[component]}
    sources = {name: older if name.partition("/")[0] == component else newer for name in tensor_names(older, newer)}
    entries = {name: snapshots.read_layout(source / TENSORS).get(name) for name, source in sources.items()}
    found = {name: entry for name, entry in entries.items() if entry}
    head, places = snapshots.layout((name, entry.dtype, entry.shape) for name, entry in found.items())
    content = bytearray(max([len(head), *(place.end for place in places.values())]))
    content[: len(head)] = head
    for name, entry in found.items():
        data = (sources[name] / TENSORS).read_bytes()
        content[places[name].begin : places[name].end] = data[entry.begin : entry.end]
    target.mkdir()
    (target / TENSORS).write_bytes(content)
    (target / STATE).write_text(json.dumps({**json.loads((newer / STATE).read_text()), "components": trees}))


def tensor_names(*directories: Path) -> set[str]:
    return {name for directory in directories for name in snapshots.read_layout(directory / TENSORS)}


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_matters(
    trainings: TrainingProcesses, whole: Attempt, two_epochs: tuple[Attempt, Attempt], component: str, tmp_path: Path
) -> None:
    """With any one component left as it was an epoch before, the run ends elsewhere: the comparison sees them all."""
    first, second = two_epochs
    older, newer = (Path(attempt.snapshots[-1].directory) for attempt in (first, second))
    with_older(component, older, newer, tmp_path / "mixed")
    mixed = snapshots.component_digests(tmp_path / "mixed")
    assert [name for name in COMPONENTS if mixed[name] != second.digests[name]] == [component]

    args = {"workers": 0}
    directory = str(tmp_path / "mixed")
    unnoticed = trainings.run("tiny:main", epochs=EPOCHS, args=args, restore_directory=directory, restore_digests=mixed)
    assert unnoticed.last.HasField("finished")
    assert (unnoticed.digests, unnoticed.values) != (whole.digests, whole.values)

    noticed = trainings.run(
        "tiny:main", epochs=EPOCHS, args=args, restore_directory=directory, restore_digests=second.digests
    )
    assert noticed.code != 0
    assert noticed.kinds == ["failed"]
    assert noticed.last.failed.reason == "RESTORE_DIVERGED"
    assert component in noticed.last.failed.message
    shutil.rmtree(tmp_path / "mixed")
