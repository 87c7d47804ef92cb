"""The stacks of a training process that hangs, written by itself to its log.

`adjourn.training.process` has faulthandler write them when STACKS_SIGNAL comes: C code, which needs neither the
interpreter's lock nor a thread that still runs Python. Its forks, the workers of data loaders among them, inherit that.
"""

import contextlib
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from adjourn.internal.v1.trainer_pb2 import TrainingProcess
from adjourn.pulse import STACKS_SIGNAL
from adjourn_worker.attempt import files
from adjourn_worker.launcher import process_tree

MOST_FORKS: Final = 32
"""Forks of a training process that are asked too."""
SETTLE_SECONDS: Final = 1.0
"""Longest that the stacks of one process are waited for, so that those of the next do not come between them."""
QUIET_SECONDS: Final = 0.05
CAUGHT: Final = "SigCgt:"
UNABLE: Final = {
    "D": ", which waits in the kernel: they follow if that ends",
    "T": ", which somebody has stopped by a signal: they follow if it goes on",
    "t": ", which a debugger has stopped: they follow if it goes on",
}
"""By the process state of proc(5)."""


def ask(process: TrainingProcess, directory: Path, why: str) -> list[int]:
    """Writes to the log why, then has the process and its forks write their stacks there; returns the pids asked.

    Who does not catch the signal is not asked: it would end. Takes some seconds. Raises OSError if the log cannot be
    written.
    """
    log = directory / files.LOG
    append(log, why)
    asked = [pid for pid in (process.pid, *forks(process.pid)) if request(pid, process, log)]
    if process.pid not in asked:
        append(log, f"process {process.pid} cannot write its stacks: it is gone, or does not catch the signal for that")
    return asked


def request(pid: int, process: TrainingProcess, log: Path) -> bool:
    """Has one process write its stacks; returns False if it would not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not catches(pid) or (pid == process.pid and not process_tree.alive(process)):
            return False
        name = "the training process" if pid == process.pid else "its fork"
        append(log, f"the stacks of {name}, pid {pid}{unable(pid)}:")
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, STACKS_SIGNAL)
        settle(log)
        return True
    finally:
        os.close(descriptor)


def forks(pid: int) -> list[int]:
    """Returns the processes below one that were forked from it, and execute what it executes."""
    try:
        below = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
    command = read(pid, "cmdline")
    return [each for each in below if command and read(each, "cmdline") == command][:MOST_FORKS]


def catches(pid: int) -> bool:
    """Returns whether a process has a handler for the signal."""
    caught = next((line for line in read(pid, "status").splitlines() if line.startswith(CAUGHT)), f"{CAUGHT} 0")
    return bool(int(caught.removeprefix(CAUGHT), 16) >> (STACKS_SIGNAL - 1) & 1)


def unable(pid: int) -> str:
    """Returns why a process cannot answer now; empty if it can."""
    return UNABLE.get(read(pid, "stat").rpartition(")")[2].strip()[:1], "")


def read(pid: int, name: str) -> str:
    """Returns a file of proc(5); empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def settle(log: Path) -> None:
    """Waits until nothing more is written to the log, for SETTLE_SECONDS at most."""
    deadline = time.monotonic() + SETTLE_SECONDS
    size = -1
    while (now := log.stat().st_size) != size and time.monotonic() < deadline:
        size = now
        time.sleep(QUIET_SECONDS)


def append(log: Path, text: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, f"\nadjourn: {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {text}\n".encode())
    finally:
        os.close(descriptor)
