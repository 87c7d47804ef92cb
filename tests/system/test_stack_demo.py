"""`adjourn demo`, as people run it, and where it keeps its data."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from adjourn.cli.demo import play
from adjourn.demo import scenario
from adjourn.demo.temporary_directory import temporary_directory
from adjourn.local import process_cleanup
from adjourn.local.data_directory import DataDirectory

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_its_directory_goes_with_it_unless_it_is_kept(temporary: Path) -> None:
    async with temporary_directory(keep=False) as gone, temporary_directory(keep=True) as kept:
        (gone / "something").touch()
    async with temporary_directory(keep=False):
        assert within(temporary) > {kept}
    assert within(temporary) == {kept}


def within(directory: Path) -> set[Path]:
    return set(directory.iterdir())


async def test_what_a_killed_demonstration_left_is_removed(temporary: Path) -> None:
    async with temporary_directory(keep=False) as running:
        with DataDirectory(running).held():
            left = temporary / "adjourn-demo-killed"
            with DataDirectory(left).held():
                pass
            process = await asyncio.create_subprocess_exec("sleep", "600", env=process_cleanup.marker(left))
            async with temporary_directory(keep=False):
                assert await process.wait() == -signal.SIGTERM
                assert not left.exists()
                assert running.exists(), "that one is in use"


async def test_a_failure_is_explained_with_the_logs_and_is_no_success(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenario, "ENTRY_POINT", "adjourn.examples.nowhere:main")
    assert await play(keep=False) == 1
    printed = capsys.readouterr().out
    assert re.search(r"(?s)while waiting for its end: jobs/reference is FAILED, [A-Z_]+: .*nowhere", printed)
    assert "control-plane.log" in printed
    assert "EXACT" not in printed
    assert within(temporary) == set()


NARROW = """
from adjourn.demo import scenario
from adjourn.cli import main
scenario.ARGS = {"width": 40}
main()
"""
"""The command, whose training computes a tenth; people shall see an epoch go by."""


class Demo:
    """An `adjourn demo` in the background."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", NARROW, "demo"],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(directory), "COLUMNS": "160"},
            )

    def printed(self) -> str:
        return self.output.read_text()

    def has_printed(self, text: str) -> bool:
        assert self.process.poll() is None, self.printed()
        return text in self.printed()

    def left(self) -> list[Path]:
        return [*self.directory.glob("adjourn-*")]  # torch leaves a directory of its own


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    one = Demo(tmp_path)
    yield one
    if one.process.poll() is None:
        one.process.terminate()
        one.process.wait(60)


def test_it_ends_with_the_exact_line(demo: Demo) -> None:
    assert demo.process.wait(200) == 0, demo.printed()
    printed = demo.printed()
    assert printed.splitlines()[-1].startswith("EXACT: 12 epochs, 3 pauses, 2 workers, weights sha256 ")
    assert printed.splitlines()[-1].endswith(" equal to the uninterrupted run")
    for said in (
        "epoch 12/12",
        "killed with SIGKILL",
        "pause asked for",
        "Resources at the pause",
        "no process is left",
    ):
        assert said in printed
    assert demo.left() == []


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "starting Valkey"), (signal.SIGINT, "epoch  1/12")],
)
async def test_a_signal_leaves_nothing_behind(
    demo: Demo, eventually: Eventually, number: signal.Signals, said: str
) -> None:
    await eventually(lambda: demo.has_printed(said), seconds=90)
    (data,) = demo.left()
    demo.process.send_signal(number)
    assert demo.process.wait(60) == 130, demo.printed()
    assert list(process_cleanup.find(data)) == []
    assert demo.left() == []
