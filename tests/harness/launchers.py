"""Launchers as tests run them: with real processes; only training is replaced, by short scripts."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from adjourn.internal.v1.trainer_pb2 import ProcessExit, TrainingStart
from adjourn.local import process_cleanup
from adjourn_worker.attempt import files
from adjourn_worker.host.locks import holder
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.client import LauncherClient
from adjourn_worker.paths import WorkerPaths

DEADLINE: Final = 60.0
"""Seconds that a busy machine may take for anything."""
NONCE: Final = "0" * 32
ENTRY: Final = "scripted:main"
SOFTWARE: Final = "scripted:software"
SCRIPTED: Final = """
def main(directory):
    scope = {"directory": directory}
    exec((directory / "script").read_text(), scope)
    return scope.get("code", 0)

def software():
    return {"torch": "none"}
"""
SLEEPER: Final = "import pathlib, time; pathlib.Path('began').touch(); time.sleep(600)"
FAMILY: Final = """
import os, pathlib, subprocess, sys, time
# One in our group; one with a session of its own; one whose parent has gone, with all of it elsewhere.
child = subprocess.Popen(["sleep", "600"])
apart = subprocess.Popen(["sleep", "600"], start_new_session=True)
elsewhere = "start_new_session=True, cwd='/', stdout=-3, stderr=-3"  # -3 is /dev/null
orphan = f"import subprocess; print(subprocess.Popen(['sleep', '600'], {elsewhere}).pid)"
found = subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, check=True, text=True)
(directory / "family.new").write_text(f"{child.pid} {apart.pid} {found.stdout.strip()}")
os.rename(directory / "family.new", directory / "family")
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherHarness:
    """A data directory, a launcher's environment, and attempts made by hand."""

    paths: WorkerPaths
    environment: dict[str, str]

    def launcher(self, **options: Any) -> LauncherClient:
        return LauncherClient(self.paths, self.environment, **{"entry": ENTRY, "software": SOFTWARE, **options})

    def attempt(self, script: str, number: int = 1) -> Path:
        directory = self.paths.attempts / f"job-{number}-{NONCE[:8]}"
        files.write_start(directory, TrainingStart(job="jobs/job", notify_socket=str(self.paths.notify_socket)))
        (directory / "script").write_text(script)
        return directory


@contextmanager
def launcher_harness(directory: Path, marker: Path) -> Iterator[LauncherHarness]:
    """Makes a worker in `directory`; what is left of it is ended with what is marked by `marker`."""
    code = directory / "code"
    code.mkdir()
    (code / "scripted.py").write_text(SCRIPTED)
    (directory / "shm").mkdir()
    environment = {
        **os.environ,
        **process_cleanup.marker(marker),
        "PYTHONPATH": str(code),
        "ADJOURN_S3_SECRET_KEY": "hush",
        "AWS_SECRET": "hush",
    }
    paths = WorkerPaths.prepare(directory / "data", directory / "shm")
    yield LauncherHarness(paths=paths, environment=environment)
    pid = holder(paths.launcher_lock)
    left = [
        process for process in psutil.process_iter(["cmdline"]) if str(paths.data) in (process.info["cmdline"] or [])
    ]
    for process in left:
        process.kill()
    process_tree.end_marked(process_tree.mark(paths.data))
    paths.remove_volatile()
    assert not left, f"launcher {pid} was left running"


async def until(condition: Callable[[], Any]) -> Any:
    """Returns what the condition comes to once it is true."""
    deadline = time.monotonic() + DEADLINE
    while not (result := condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return result


async def ended(directory: Path) -> ProcessExit:
    result = await until(lambda: files.read_exit(directory))
    assert isinstance(result, ProcessExit)
    return result
