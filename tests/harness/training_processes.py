"""Runs training processes as a launcher does, from attempt directories made by hand."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adjourn import frames, outputs, snapshots
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import Snapshot, TrainingEvent, TrainingStart
from adjourn.local import process_cleanup
from adjourn.shared_files import Control
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode
from adjourn.v1.usage_pb2 import EpochMetrics
from tests.harness.process_guard import guarded

TRAININGS = Path(__file__).parents[1] / "trainings"
DEADLINE_SECONDS = 60

FORK_LOOP = """
import atexit, gc, os, sys, time, types
from pathlib import Path
import adjourn_worker
from adjourn.training import drill, process
from adjourn.training.state.environment import software_environment

from tests.harness.spare_process import SpareProcess

software_environment()  # as the launcher does
for name in ("worker", "settings"):  # as if the launcher had modules of these names
    sys.modules[name] = types.ModuleType(name)
atexit.register(print, "the launcher's own callback")
gc.collect()
gc.freeze()  # as the launcher does

for line in sys.stdin:
    command, directory = line.split()
    directory = Path(directory)
    child = os.fork()
    if child == 0:
        log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        (directory / "work").mkdir(exist_ok=True)
        os.chdir(directory / "work")
        if command == "abandon" and os.fork():
            while not (directory / "orphan").exists():
                time.sleep(0.01)
            os._exit(0)
        (directory / "pid").write_text(str(os.getpid()))
        if command == "spare":
            drill.launched = SpareProcess().launched
        os._exit(process.main(directory))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a training process left behind."""

    directory: Path
    code: int
    events: list[TrainingEvent] = field(repr=False)

    @property
    def kinds(self) -> list[str | None]:
        return [event.WhichOneof("event") for event in self.events]

    @property
    def epochs(self) -> list[EpochMetrics]:
        return [event.epoch for event in self.events if event.HasField("epoch")]

    @property
    def values(self) -> dict[int, dict[str, float]]:
        """Metrics by epoch."""
        return {metrics.epoch: dict(metrics.values) for metrics in self.epochs}

    @property
    def snapshots(self) -> list[Snapshot]:
        return [event.snapshot for event in self.events if event.HasField("snapshot")]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the last snapshot."""
        return snapshots.component_digests(Path(self.snapshots[-1].directory))

    @property
    def last(self) -> TrainingEvent:
        return self.events[-1]

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


class TrainingProcesses:
    """One process that has imported torch, and forks a training process for each attempt."""

    def __init__(self, directory: Path, **variables: str) -> None:
        """`variables`: of the environment, beside those of the tests."""
        self._directory = directory
        self._attempts = 0
        self._process = subprocess.Popen(
            (sys.executable, "-c", FORK_LOOP),
            env={**os.environ, **process_cleanup.marker(directory), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._guard = guarded(directory)

    def __enter__(self) -> Self:
        self._guard.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            self._guard.__exit__(kind, error, traceback)

    def prepare(
        self,
        entry_point: str,
        *,
        epochs: int = 3,
        args: Mapping[str, Any] | None = None,
        restore: Attempt | None = None,
        order: DesiredState | None = None,
        anew: bool = False,
        **fields: Any,
    ) -> Path:
        """Makes the directory of an attempt. `anew`: the second process of its drill is one of its own, not a fork."""
        self._attempts += 1
        directory = self._directory / str(self._attempts)
        directory.mkdir()
        start = TrainingStart(
            job="jobs/test",
            attempt=self._attempts,
            code_directory=str(TRAININGS),
            snapshot_directory=str(directory / "snapshots"),
            notify_socket=str(directory / "nobody"),
            threads=1,
        )
        start.spec.entry_point = entry_point
        start.spec.total_epochs = epochs
        start.spec.seed = 7
        start.spec.args.update(dict(args or {}))
        if restore:
            start.restore_directory = restore.snapshots[-1].directory
            outputs.unpack(Path(start.restore_directory), directory / "output")  # as the agent does
            start.restore_digests.update(restore.digests)
        start.MergeFrom(TrainingStart(**fields))
        (directory / "start").write_bytes(start.SerializeToString())
        if not anew and (start.spec.drill_steps or "drill" in start.spec.args):
            (directory / "spare").touch()
        with closing(Control(directory / "control")) as control:
            control.write(order or DesiredState())
        return directory

    def run(self, entry_point: str, **fields: Any) -> Attempt:
        """Trains, and waits for the end."""
        return self.launch(self.prepare(entry_point, **fields))

    def launch(self, directory: Path) -> Attempt:
        return Attempt(
            directory=directory, code=self._command(how(directory), directory), events=read_events(directory)
        )

    @contextmanager
    def running(self, directory: Path) -> Iterator[Callable[[], Attempt]]:
        """Trains while the body runs; it gets a function that waits for the end. Kills what has not ended after it."""
        ended: list[Attempt] = []

        def wait() -> Attempt:
            if not ended:
                ended.append(Attempt(directory=directory, code=self._answer(), events=read_events(directory)))
            return ended[0]

        self._ask(how(directory), directory)
        try:
            yield wait
        finally:
            if not ended:
                until(lambda: (directory / "pid").exists() and (directory / "pid").read_text())
                with suppress(ProcessLookupError):
                    os.kill(int((directory / "pid").read_text()), signal.SIGKILL)
                wait()

    @contextmanager
    def abandoning(self, directory: Path) -> Iterator[Callable[[], None]]:
        """Trains while the body runs; it gets a function that lets the launcher of the training process die."""

        def abandon() -> None:
            (directory / "orphan").touch()
            self._answer()

        self._ask("abandon", directory)
        try:
            yield abandon
        finally:
            if not (directory / "orphan").exists():
                abandon()
            with suppress(ProcessLookupError):
                os.kill(int((directory / "pid").read_text()), signal.SIGKILL)

    def _command(self, command: str, directory: Path) -> int:
        self._ask(command, directory)
        return self._answer()

    def _ask(self, command: str, directory: Path) -> None:
        assert self._process.stdin
        print(command, directory, file=self._process.stdin, flush=True)

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def paused_at(self, entry_point: str, epoch: int, **fields: Any) -> Attempt:
        """Trains to the end of `epoch`, in as many attempts, each of which is paused at its first boundary."""
        attempt = None
        for _ in range(epoch):
            attempt = self.run(entry_point, restore=attempt, order=PAUSE, **fields)
        assert attempt
        return attempt


def how(directory: Path) -> str:
    return "spare" if (directory / "spare").exists() else "run"


PAUSE = DesiredState(generation=1, target=Assignment.PAUSE, mode=PauseMode.EPOCH)
PAUSE_AT_STEP = DesiredState(generation=1, target=Assignment.PAUSE, mode=PauseMode.STEP)


def failed(attempt: Attempt, reason: str) -> str:
    """Checks that the attempt failed for that reason; returns the message."""
    assert attempt.code == 1
    assert attempt.kinds[-1] == "failed"
    failure = attempt.last.failed
    assert failure.reason == reason
    assert failure.attempt == int(attempt.directory.name)
    assert failure.HasField("time")
    return failure.message


def read_events(directory: Path) -> list[TrainingEvent]:
    path = directory / "events"
    return [event for event, _ in frames.decode(TrainingEvent, path.read_bytes())] if path.exists() else []


def until(condition: Callable[[], object], *, seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)  # the process that is waited for needs the core
