"""A drill: a second process goes on from a snapshot for a few steps, and has to come to the bits of the first.

So it shows what no list of things to look for can foresee: state in C code, in a thread, in an environment variable or
a file, and code that does not come to the same bits twice. The second process is begun anew, not forked: what the first
one has in its memory, it has not. It has a directory of its own, with the files of an attempt (`replay` is what it
runs), and tells nobody but the first.

Both compare at a place that nothing but steps decides: the step that is so many behind the snapshot; or the end of an
epoch without steps, or of the run, if that comes first. Digests are those of the live state, with gradients that wait.
The place in the data is not among them, since a resumed run may tell the same place in other words: other batches show
in the state. The first process goes on at once, and looks at later boundaries whether the second is done.
"""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from google.protobuf.message import DecodeError

from adjourn import frames, outputs, reasons, snapshots
from adjourn.internal.v1.trainer_pb2 import Drilled, Snapshot, TrainingEvent, TrainingStart
from adjourn.training.events import log_line
from adjourn.v1.job_pb2 import Failure

NOWHERE: Final = -1
"""No number of steps."""
RESTORE: Final = "restore"
WORK: Final = "work"
OUTPUT: Final = "output"
LOG: Final = "log"
CODE: Final = "code"
"""Directory of the attempt with the code as it went along, which training has not changed."""
RESERVE_BYTES: Final = 256 << 20
"""Room that is left on the disk for others."""
END_SECONDS: Final = 120.0
"""Longest wait for the second process at the end of a run that has itself taken half of that to the compared step."""
LAST_LINES: Final = 5
LAST_BYTES: Final = 4096
DIVERGED: Final = frozenset(
    {reasons.RESTORE_DIVERGED, reasons.STATE_MISMATCH, reasons.UNTRACKED_STATE, reasons.STATE_NOT_RESTORABLE}
)
"""Failures of the second process that say what a resumed run would lack. Others say nothing of the state."""


class SecondProcess(Protocol):
    """A child of this process, which leads a process group."""

    @property
    def pid(self) -> int: ...

    def wait(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a drill has shown."""

    difference: str
    """What of the second process was not as in the first; empty: both came to the same bits."""


class Drill:
    """The drill of an attempt, on the side of the training process; inert if the job has none."""

    def __init__(self, start: TrainingStart, directory: Path, environment: Mapping[str, str], *, known: bool) -> None:
        """`known`: the outcome of an earlier drill of the job is known. `directory` is made when it is needed.

        `environment` is that of this process without the job's own variables, which the second one sets itself.
        """
        self.step = start.drill_step or NOWHERE
        """Steps in all at which this process is to be compared."""
        self._steps = start.spec.drill_steps
        self._known = known
        self.due = self._steps > 0 and not known
        """Whether a second process is to go on from the next snapshot."""
        self._start = start
        self._directory = directory
        self._code = directory.parent / CODE
        self._environment = environment
        self._made = time.monotonic()
        self._process: SecondProcess | None = None
        self._from = ""
        self._here: Drilled | None = None
        self.patience = END_SECONDS
        """Seconds for which the end of the run waits for the second process."""

    def ask(self, steps: int) -> None:
        """Makes a drill due, for user code; not in the second process, and not if there is one or its outcome known."""
        if not (self._steps or self._known or self.wanted):
            self._steps, self.due = steps, True

    @property
    def wanted(self) -> bool:
        """Whether this process is to be compared, and has not come there."""
        return self.step != NOWHERE

    @property
    def runs(self) -> bool:
        """Whether the second process runs; its end is left for `stop` to reap, so that its pid stays its own."""
        if self._process is None:
            return False
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # user code has waited for any child
            return False

    @property
    def open(self) -> bool:
        """Whether there is a second process that was not judged; it may have ended just now."""
        return self._process is not None

    def begin(self, snapshot: Snapshot) -> None:
        """Copies a snapshot, which may be one amid an epoch, and has a second process go on from it.

        Where that cannot be, there is no drill.
        """
        self.due = False
        step = snapshot.progress.step + self._steps
        try:
            self._copy(snapshot)
            self._write_start(snapshot, step)
            self._process = launched(self._directory, self._environment)
        except OSError as error:
            self._remove()
            log_line(f"there is no drill: {error}")
            return
        self.step = step
        self._from = f"epoch {snapshot.progress.epoch}, step {snapshot.progress.step}"
        log_line(f"a drill has begun: a second process trains from {self._from} to step {step}")

    def compare_with(self, here: Drilled) -> None:
        """Keeps how the first process stands where it is compared."""
        self.step, self._here = NOWHERE, here
        self.patience = max(END_SECONDS, 2 * (time.monotonic() - self._made))

    def outcome(self) -> Outcome | None:
        """Returns what the drill has shown, once; None: nothing, or nothing yet."""
        if self._process is None or self._here is None or self.runs:
            return None
        told = final_event(self._directory / "events")
        try:
            if told.HasField("drilled"):
                found = difference(self._here, told.drilled)
                if not found:
                    log_line(f"the drill from {self._from} came to the same bits at step {self._here.step}")
                return Outcome(difference=found and f"from {self._from}, {found}")
            if told.failed.reason in DIVERGED:
                why = f"{told.failed.reason}: {told.failed.message}"
                return Outcome(difference=f"from {self._from}, the second process could not go on. {why}")
            log_line(
                f"the drill from {self._from} shows nothing, as its second process failed. {self._end(told.failed)}"
            )
            return None
        finally:
            self.stop()

    def stop(self, *, again: bool = True) -> None:
        """Ends the second process with what it has started, and removes its files.

        A drill that is unfinished is due `again`.
        """
        if self._process is None:
            return
        self.due = again and self.runs
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = self._here = None
        self.step = NOWHERE
        self._remove()

    def _copy(self, snapshot: Snapshot) -> None:
        room = shutil.disk_usage(self._directory.parent).free
        size = snapshot.size_bytes + sum(path.stat().st_size for path in self._code.rglob("*"))
        if room < size + RESERVE_BYTES:
            raise OSError(
                errno.ENOSPC,
                f"a copy of the snapshot and the code takes {size:,} bytes, and there is room for {room:,}",
            )
        (self._directory / RESTORE).mkdir(parents=True)
        if self._code.is_dir():
            shutil.copytree(self._code, self._directory / WORK)
        else:
            (self._directory / WORK).mkdir()
        for name in (snapshots.STATE, snapshots.TENSORS):
            shutil.copyfile(Path(snapshot.directory) / name, self._directory / RESTORE / name)
        outputs.unpack(Path(snapshot.directory), self._directory / OUTPUT)
        for name in outputs.FILES:
            if (Path(snapshot.directory) / name).exists():
                shutil.copyfile(Path(snapshot.directory) / name, self._directory / RESTORE / name)

    def _write_start(self, snapshot: Snapshot, step: int) -> None:
        start = TrainingStart(
            job=self._start.job,
            job_uid=self._start.job_uid,
            attempt=self._start.attempt,
            spec=self._start.spec,
            code_directory=str(self._directory / WORK) if self._code.is_dir() else self._start.code_directory,
            restore_directory=str(self._directory / RESTORE),
            restore_digests=snapshot.live_digests,
            threads=self._start.threads,
            device_uuids=self._start.device_uuids,
            drill_step=step,
            output_bytes=self._start.output_bytes,
            data_directory=self._start.data_directory,
            site_packages=self._start.site_packages,
        )
        start.spec.checkpoint_epochs = 0
        for field in ("drill_steps", "checkpoint_steps", "checkpoint_interval"):
            start.spec.ClearField(field)
        (self._directory / "start").write_bytes(start.SerializeToString())

    def _end(self, failure: Failure) -> str:
        """Says how the second process ended that did not come to the place."""
        if failure.reason:
            return f"{failure.reason}: {failure.message}"
        text = b""
        with contextlib.suppress(OSError), (self._directory / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_BYTES))
            text = log.read()
        lines = text.decode(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"It {self._how()}. The last lines of its log:", *lines])

    def _how(self) -> str:
        assert self._process
        try:
            found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "ended, nobody knows how"
        if found and found.si_code != os.CLD_EXITED:
            return f"was ended by {signal.Signals(found.si_status).name}"
        return f"left with exit code {found.si_status if found else 'unknown'}"

    def _remove(self) -> None:
        if self._directory.is_dir():
            shutil.rmtree(self._directory, ignore_errors=True)


def launched(directory: Path, environment: Mapping[str, str]) -> SecondProcess:
    """Begins a second process, in a process group of its own."""
    with (directory / LOG).open("wb") as log:
        return subprocess.Popen(
            (sys.executable, "-P", "-m", "adjourn.training.replay", str(directory)),
            cwd=directory / WORK,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def final_event(path: Path) -> TrainingEvent:
    """Returns what the second process has said in the end; user code that catches everything may train on after it.

    Returns an empty event if there is none that can be read.
    """
    with contextlib.suppress(OSError, DecodeError, frames.FrameTooLong):
        for event, _ in frames.decode(TrainingEvent, path.read_bytes()):
            if event.HasField("drilled") or event.HasField("failed"):
                return event
    return TrainingEvent()


def difference(here: Drilled, there: Drilled) -> str:
    """Returns what of the second process is not as in the first; empty if nothing is."""
    if (here.epoch, here.step) != (there.epoch, there.step):
        return (
            f"the second process came to its end after {there.epoch} epochs and {there.step} steps, the first after"
            f" {here.epoch} and {here.step}"
        )
    names = sorted(here.digests.keys() | there.digests.keys())
    different = [name for name in names if here.digests.get(name) != there.digests.get(name)]
    if not different:
        return ""
    equal = ", ".join(name for name in names if name not in different) or "nothing"
    return f"at step {here.step}, {', '.join(different)} differ; equal are {equal}"
