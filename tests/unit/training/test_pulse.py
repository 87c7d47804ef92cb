"""What a training process shows of its life, and how it tells where it hangs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from adjourn.internal.v1.trainer_pb2 import TrainingProcess
from adjourn.pulse import Phase, Pulse
from adjourn.shared_files import PulseFile
from adjourn.training.progress import ProgressTracker
from adjourn_worker.attempt import stacks
from adjourn_worker.launcher import process_tree
from tests.harness.training_processes import PAUSE, TrainingProcesses, until

STEPS = 4
"""In an epoch of trainings/hangs.py; it hangs after the second of the third epoch."""
HUNG = 2 * STEPS + 2


def pulse(directory: Path) -> Pulse | None:
    with closing(PulseFile(directory / "pulse")) as file:
        return file.read()


@contextmanager
def hanging(
    trainings: TrainingProcesses, how: str, *, loader_workers: int = 0
) -> Iterator[tuple[Path, TrainingProcess]]:
    """Yields the directory and the process of a training that hangs."""
    directory = trainings.prepare("hangs:main", epochs=4, args={"how": how, "loader_workers": loader_workers})
    with trainings.running(directory):
        until((directory / "work" / "hangs").exists)
        yield directory, process_tree.identify(int((directory / "pid").read_text()), directory, "nonce")


@pytest.mark.parametrize(
    ("how", "where"), [("spin", "in spin"), ("sleep", "in sleep"), ("hold_the_lock", "in hold_the_lock")]
)
def test_training_that_hangs_writes_its_stacks(trainings: TrainingProcesses, how: str, where: str) -> None:
    with hanging(trainings, how) as (directory, process):
        assert stacks.ask(process, directory, "training hangs") == [process.pid]
        until(lambda: where in (directory / "log").read_text())
        log = (directory / "log").read_text()
        assert "training hangs\n" in log
        assert f"the stacks of the training process, pid {process.pid}:" in log
        assert "in main" in log
        assert process_tree.alive(process), "it is asked, not ended"
        found = pulse(directory)
        assert found
        assert (found.phase, found.epochs, found.steps) == (Phase.STEPPING, 2, HUNG)


def test_the_workers_of_its_loaders_are_asked_too(trainings: TrainingProcesses) -> None:
    with hanging(trainings, "sleep", loader_workers=2) as (directory, process):
        pids = stacks.ask(process, directory, "training hangs")
        assert pids[0] == process.pid
        assert len(pids) == 3
        until(lambda: (directory / "log").read_text().count("in _worker_loop") >= 2)
        log = (directory / "log").read_text()
        for pid in pids[1:]:
            assert f"the stacks of its fork, pid {pid}:" in log


def test_training_that_is_stopped_writes_its_stacks_when_it_goes_on(trainings: TrainingProcesses) -> None:
    with hanging(trainings, "sleep") as (directory, process):
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: process_state(process.pid) == "T")
        assert stacks.ask(process, directory, "training hangs") == [process.pid]
        log = (directory / "log").read_text()
        assert "somebody has stopped by a signal" in log
        assert "in main" not in log
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: "in main" in (directory / "log").read_text())


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_who_does_not_catch_the_signal_is_not_ended_by_it(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as other:
        process = process_tree.identify(other.pid, tmp_path, "nonce")
        assert stacks.ask(process, tmp_path, "training hangs") == []
        assert "does not catch the signal" in (tmp_path / "log").read_text()
        assert process_tree.alive(process)
        assert other.stdin
        other.stdin.write(b"\n")
    assert other.returncode == 0


def test_a_process_that_is_gone_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as other:
        process = process_tree.identify(other.pid, tmp_path, "nonce")
    assert stacks.ask(process, tmp_path, "training hangs") == []
    assert "it is gone" in (tmp_path / "log").read_text()


def test_a_run_shows_its_steps_and_epochs_and_that_it_ends(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("hangs:main", epochs=3, args={"how": "go_on"})
    found = pulse(attempt.directory)
    assert found
    assert (found.phase, found.steps, found.epochs) == (Phase.ENDING, 3 * STEPS, 3)
    assert found.beats > 6 * STEPS, "each step and each batch is a sign of life"


def test_a_pause_and_a_failure_end_it_too(trainings: TrainingProcesses) -> None:
    paused = trainings.run("hangs:main", epochs=3, args={"how": "go_on"}, order=PAUSE)
    failed = trainings.run("broken:raises")
    for attempt in (paused, failed):
        assert (found := pulse(attempt.directory))
        assert found.phase == Phase.ENDING


def test_a_wait_for_room_is_shown_as_such(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("unusual:lacks_room", epochs=1)
    with trainings.running(directory) as wait:
        until(lambda: (found := pulse(directory)) and found.phase == Phase.WAITING)
        (directory / "work" / "room").touch()
        assert wait().code == 0


def test_a_task_shows_its_steps(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("hangs:task", epochs=0)
    assert (found := pulse(attempt.directory))
    assert (found.steps, found.epochs) == (3, 0)


@pytest.mark.parametrize(
    ("expected", "lengths", "known"),
    [
        (None, [4], False),
        (None, [4, 4], True),
        (4, [4], True),
        (8, [4], False),
        (8, [4, 4], True),
        (None, [4, 5, 5, 5], False),
        (4, [4, 3], False),
        (None, [0, 0], False),
    ],
)
def test_steps_are_left_only_in_epochs_whose_length_was_seen(
    expected: int | None, lengths: list[int], known: bool
) -> None:
    tracker = ProgressTracker(None)
    tracker.steps_per_epoch = expected
    for length in lengths:
        tracker.begin_epoch()
        tracker.epoch_step = length
        tracker.end_epoch()
    tracker.begin_epoch()
    assert tracker.steps_left == known
    tracker.epoch_step = lengths[-1]
    assert not tracker.steps_left
