"""Whole training processes that are asked to pause at the worst moments: the agent knows at which epoch they do."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from adjourn.next_boundary import NextBoundary
from adjourn.v1.job_pb2 import JobSpec
from adjourn_worker.attempt.runner import read_boundary, write_control
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, until

Stopped = Callable[..., AbstractContextManager[tuple[Path, Callable[[], Attempt]]]]

EPOCHS = 4
PAUSES = 40


@pytest.fixture(scope="session")
def failpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failpoints")


@pytest.fixture(scope="session")
def stoppable(failpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingProcesses]:
    """Where training processes are forked that can be stopped wherever a failpoint is."""
    with TrainingProcesses(tmp_path_factory.mktemp("stoppable"), ADJOURN_FAILPOINT=str(failpoints)) as started:
        yield started


@pytest.fixture
def stopped(stoppable: TrainingProcesses, failpoints: Path) -> Stopped:
    """Has a process train up to a place in the boundary of an epoch; there it is stopped until it is let go on."""

    @contextmanager
    def stop(
        place: str, *, epoch: int, training: str = "brisk:main", **fields: Any
    ) -> Iterator[tuple[Path, Callable[[], Attempt]]]:
        (failpoints / f"training.{place}").write_text(f"stop@{epoch}")
        directory = stoppable.prepare(training, epochs=EPOCHS, **fields)
        with stoppable.running(directory) as wait:
            until((failpoints / f"training.{place}.hit").exists)
            (failpoints / f"training.{place}.hit").unlink()
            process = psutil.Process(pid(directory))
            until(lambda: process.status() == psutil.STATUS_STOPPED)

            def go_on() -> Attempt:
                with suppress(psutil.NoSuchProcess):  # the test has killed it
                    process.resume()
                return wait()

            yield directory, go_on

    return stop


def pid(directory: Path) -> int:
    return int((directory / "pid").read_text())


def found(directory: Path) -> NextBoundary | None:
    return read_boundary(directory / "boundary")


def until_it_trains(directory: Path) -> None:
    until(lambda: (boundary := found(directory)) and boundary.epoch > 3)


def ask_for_pause(directory: Path) -> NextBoundary | None:
    """Does what the agent does; returns what it finds then."""
    write_control(directory / "control", PAUSE)
    return found(directory)


def named(directory: Path) -> int:
    """Waits until it is certain where training pauses, as the agent does."""
    until(lambda: (boundary := found(directory)) and not boundary.deciding)
    boundary = found(directory)
    assert boundary
    return boundary.epoch


def paused_at(attempt: Attempt) -> int:
    assert (attempt.code, attempt.kinds[-2:]) == (0, ["snapshot", "paused"])
    return attempt.snapshots[-1].progress.epoch


@pytest.mark.parametrize(
    ("place", "then", "epoch"),
    [
        ("before-deciding", NextBoundary(epoch=2), 2),
        ("deciding", NextBoundary(epoch=2, deciding=True), 2),
        ("control-read", NextBoundary(epoch=2, deciding=True), 3),
        ("decided", NextBoundary(epoch=3), 3),
    ],
)
def test_a_pause_is_taken_where_it_is_named_wherever_in_a_boundary_it_comes(
    stopped: Stopped, place: str, then: NextBoundary, epoch: int
) -> None:
    with stopped(place, epoch=2) as (directory, go_on):
        assert ask_for_pause(directory) == then
        assert paused_at(go_on()) == epoch
    assert named(directory) == epoch


@pytest.mark.parametrize(
    ("place", "taken"), [("before-deciding", True), ("deciding", True), ("control-read", False), ("decided", False)]
)
def test_at_the_last_boundary_it_is_known_whether_the_run_ends_instead(
    stopped: Stopped, place: str, taken: bool
) -> None:
    with stopped(place, epoch=EPOCHS - 1) as (directory, go_on):
        ask_for_pause(directory)
        attempt = go_on()
    assert named(directory) == (EPOCHS - 1 if taken else EPOCHS)
    assert attempt.kinds[-1] == ("paused" if taken else "finished")


def test_of_training_that_ends_while_it_decides_nothing_is_known(stopped: Stopped) -> None:
    with stopped("control-read", epoch=2) as (directory, go_on):
        os.kill(pid(directory), signal.SIGKILL)
        assert go_on().code == -signal.SIGKILL
        assert ask_for_pause(directory) == NextBoundary(epoch=2, deciding=True)


def test_a_pause_is_named_before_the_first_step(trainings: TrainingProcesses) -> None:
    first = trainings.prepare("brisk:main", epochs=EPOCHS, args={"pace": 60})
    with trainings.running(first):
        until(lambda: found(first))
        assert ask_for_pause(first) == NextBoundary(epoch=1)
    paused = trainings.paused_at("brisk:main", 2, epochs=EPOCHS)
    again = trainings.prepare("brisk:main", epochs=EPOCHS, args={"pace": 60}, restore=paused)
    with trainings.running(again):
        until(lambda: found(again))
        assert ask_for_pause(again) == NextBoundary(epoch=3)


def test_a_run_that_has_enough_does_not_pause_any_more(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("brisk:main", epochs=EPOCHS, args={"enough": 2})
    assert attempt.kinds[-1] == "finished"
    assert ask_for_pause(attempt.directory) == NextBoundary(epoch=EPOCHS)


def test_a_pause_that_cannot_be_saved_is_named_at_the_next_boundary(stopped: Stopped) -> None:
    room = {"training": "unusual:lacks_room", "args": {"room": 3}, "order": PAUSE}
    with stopped("before-deciding", epoch=2, **room) as (directory, go_on):
        assert found(directory) == NextBoundary(epoch=2)
        attempt = go_on()
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "epoch", "epoch", "snapshot", "paused"]
    assert named(directory) == paused_at(attempt) == 3


def test_a_task_has_no_boundary(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:task", epochs=0)
    assert attempt.kinds[-1] == "finished"
    assert found(attempt.directory) is None


def test_pauses_at_any_moment_are_taken_where_they_are_named(trainings: TrainingProcesses) -> None:
    """Epochs take a few milliseconds, so that now and then one ends just as the pause is asked for."""
    moment = random.Random(5)
    for _ in range(PAUSES):
        directory = trainings.prepare("brisk:main", epochs=1_000_000, spec=JobSpec(checkpoint_epochs=0))
        with trainings.running(directory) as wait:
            until_it_trains(directory)
            time.sleep(moment.uniform(0, 0.01))
            ask_for_pause(directory)
            epoch = named(directory)
            assert paused_at(wait()) == epoch
