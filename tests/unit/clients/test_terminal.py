"""The command line on a real terminal: live views, and the question before something is done."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import ResourceSample

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane


class Terminal:
    """A command on a terminal of 100 by 30."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, words: str) -> str:
        """Returns what was written up to these words, without what steers the terminal."""
        seen = b""
        while words not in plain(seen):
            seen += os.read(self._master, 4096)  # OSError if the command ends before
        return plain(seen)


def plain(seen: bytes) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))


@contextmanager
def on_a_terminal(plane: "Plane", *words: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    environment = {**os.environ, "ADJOURN_ADDRESS": plane.address, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    argv = [sys.executable, "-m", "adjourn.cli", *words]
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_watch_is_live_and_ends_with_its_job(plane: "Plane") -> None:
    job = plane.add("x", Job.RUNNING)
    plane.samples = [ResourceSample(worker_cpu_percent=95)]
    changes = [plane.change(Job.RUNNING, 1), plane.change(Job.SUCCEEDED, 3)]
    changes[0].job.progress.step = 10
    plane.streams = [changes]
    with on_a_terminal(plane, "watch", job.name) as terminal:
        shown = terminal.until("x trained to its end, 3 epochs")
        assert "SUCCEEDED" in shown
        assert terminal.process.wait(30) == 0


def test_top_shows_bars_until_it_is_interrupted(plane: "Plane") -> None:
    plane.samples = [ResourceSample(worker_cpu_percent=95)]
    with on_a_terminal(plane, "top") as terminal:
        plane.add("x", Job.RUNNING, worker="workers/w")
        terminal.until("95 %")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(30) == 0


@pytest.mark.parametrize(("answer", "status", "left"), [("n\n", 1, ["jobs/x"]), ("y\n", 0, [])])
def test_people_are_asked_before_a_job_is_deleted(plane: "Plane", answer: str, status: int, left: list[str]) -> None:
    plane.add("x", Job.SUCCEEDED)
    with on_a_terminal(plane, "delete", "x") as terminal:
        terminal.until("Delete x with all checkpoints and metrics, for ever? [y/N]: ")
        terminal.type(answer)
        assert terminal.process.wait(30) == status
    assert list(plane.jobs) == left
