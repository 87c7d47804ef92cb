"""Tests that are interrupted in the middle leave no process behind, however they are ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from adjourn.local import process_cleanup
from adjourn.local.process_cleanup import Role

ROOT = Path(__file__).parents[2]
BEGIN_SECONDS = 120.0
END_SECONDS = 60.0
AGENTS = ("tests/integration/test_launcher.py", "tests/integration/test_agent_process.py")


class Run:
    """A run of tests of this repository, and the processes that it has."""

    def __init__(self, directory: Path, marker: dict[str, str], *arguments: str) -> None:
        self.directory = directory / "run"
        with (directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={self.directory}", *arguments),
                cwd=ROOT,
                env={**os.environ, **marker},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def started(self) -> set[psutil.Process]:
        """Returns what it has started and lives: its descendants, and whatever works in its directory or carries it."""
        found = set()
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and self._is_of_it(process):
                    found.add(process)
            except psutil.NoSuchProcess:  # or a zombie
                continue
        return found

    def _is_of_it(self, process: psutil.Process) -> bool:
        if process.status() == psutil.STATUS_ZOMBIE or process == psutil.Process(self.process.pid):
            return False
        if any(parent.pid == self.process.pid for parent in process.parents()):
            return True
        if any(str(self.directory) in word for word in process.cmdline()):
            return True
        try:
            return str(self.directory) in process.cwd()
        except psutil.AccessDenied:
            return False

    def has_trained(self, stack: str) -> bool:
        """Whether a launcher or training process of it runs: in a stack, or for an agent's tests."""
        return any(kind is Role.TRAINING for kind, _ in process_cleanup.find(self.directory / stack))

    def launches(self) -> bool:
        return any("adjourn_worker.launcher" in words(process) for process in self.started())


def words(process: psutil.Process) -> list[str]:
    """Returns a process's command line; none of one that has ended meanwhile."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


@pytest.fixture
def begin(tmp_path: Path, servers: Path) -> Iterator[Callable[..., Run]]:
    begun: list[Run] = []

    def run(*arguments: str) -> Run:
        begun.append(Run(tmp_path, process_cleanup.marker(servers), *arguments))
        return begun[-1]

    yield run
    for tests in begun:
        left = tests.started()
        tests.process.kill()
        tests.process.wait()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (signal.SIGINT, ("-n", "2", "--dist", "loadfile", *AGENTS)),
        (signal.SIGTERM, AGENTS),
        (signal.SIGKILL, ("-n", "2", "--dist", "loadfile", *AGENTS)),
        (signal.SIGKILL, ("tests/system/test_jobs.py",)),
    ],
    ids=["SIGINT to two", "SIGTERM", "SIGKILL of two", "SIGKILL with a stack"],
)
def test_nothing_is_left(begin: Callable[..., Run], number: signal.Signals, arguments: tuple[str, ...]) -> None:
    tests = begin(*arguments)
    whole_stack = "tests/system/test_jobs.py" in arguments
    wait(lambda: tests.has_trained("stack0") if whole_stack else tests.launches(), BEGIN_SECONDS)
    before = tests.started()
    assert before
    if number == signal.SIGINT:
        os.killpg(tests.process.pid, number)  # as a terminal does
    else:
        tests.process.send_signal(number)
    tests.process.wait(END_SECONDS)
    wait(lambda: not any(process.is_running() for process in before | tests.started()), END_SECONDS)
