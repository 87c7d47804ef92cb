"""Finds and ends the processes of a stack. All have its id in the variable ADJOURN_STACK_ID.

The id is a digest: it tells training code nothing of where the stack keeps its credentials. The environment of an agent
cannot be read by others of its user, so an agent has id and name on its command line as well.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from adjourn.local.managed_process import POLL_SECONDS

MARKER: Final = "ADJOURN_STACK_ID"


class Role(IntEnum):
    """Kind of a process of the stack; processes are ended in this order."""

    AGENT = 0
    TRAINING = 1
    WEB = 2
    CONTROL_PLANE = 3
    S3 = 4
    VALKEY = 5


GRACE: Final = {
    Role.AGENT: 4.0,
    Role.TRAINING: 2.0,
    Role.WEB: 2.0,
    Role.CONTROL_PLANE: 3.0,
    Role.S3: 1.0,
    Role.VALKEY: 3.0,
}
"""From SIGTERM to SIGKILL, in seconds. Valkey needs its time to complete its file."""


def role(argv: Sequence[str]) -> Role:
    """Returns the role that a command line shows; TRAINING includes launchers and processes of user code."""
    if argv and Path(argv[0]).name == "weed":
        return Role.S3
    if argv and Path(argv[0]).name.startswith("valkey-server"):
        return Role.VALKEY
    modules = {"adjourn_worker": Role.AGENT, "adjourn.web": Role.WEB, "adjourn_control_plane": Role.CONTROL_PLANE}
    named = [after for before, after in pairwise(argv) if before == "-m"]
    return modules.get(named[0], Role.TRAINING) if named else Role.TRAINING


def stack_id(stack: Path) -> str:
    """Returns the id of the stack with this data directory."""
    return hashlib.sha256(os.fsencode(stack.resolve())).hexdigest()[:32]


def marker(stack: Path) -> dict[str, str]:
    """Returns the variable by which the processes of a stack are found."""
    return {MARKER: stack_id(stack)}


def agent_options(stack_id: str, worker: str) -> tuple[str, ...]:
    """Returns options for Python, which ignores them, that tell an agent from others."""
    return "-X", f"adjourn_stack={stack_id}", "-X", f"adjourn_worker={worker}"


def find(stack: Path) -> Iterator[tuple[Role, psutil.Process]]:
    """Yields the live processes of the stack, without this process and its ancestors."""
    wanted = stack_id(stack)
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            if process.pid in ours or process.uids().effective != os.geteuid():
                continue
            if has(process, MARKER, wanted, "adjourn_stack") and process.status() != psutil.STATUS_ZOMBIE:
                yield role(process.cmdline()), process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def has(process: psutil.Process, variable: str, value: str, option: str) -> bool:
    """Tells whether a variable of a process, or where that cannot be read its option, has a value."""
    try:
        return process.environ().get(variable) == value
    except psutil.AccessDenied:
        return f"{option}={value}" in process.cmdline()


async def end(stack: Path, *, hurry: asyncio.Event | None = None) -> int:
    """Ends every process of the stack, role by role, and returns how many there were."""
    ended = set()
    for kind in Role:
        deadline = time.monotonic() + GRACE[kind]
        terminated: set[int] = set()
        # Search again each time: a launcher may have forked meanwhile.
        while processes := [process for found, process in find(stack) if found is kind]:
            late = time.monotonic() > deadline or (hurry is not None and hurry.is_set())
            for process in processes:
                ended.add(process.pid)
                try:
                    if late:
                        process.kill()
                    elif process.pid not in terminated:
                        terminated.add(process.pid)
                        process.terminate()
                except psutil.NoSuchProcess:
                    continue
            await asyncio.sleep(POLL_SECONDS)
    return len(ended)


async def kill(stack: Path, worker: str, directory: Path) -> list[int]:
    """Ends every process of one worker with SIGKILL and returns their ids."""
    killed: list[int] = []
    while processes := [process for _, process in find(stack) if belongs(process, worker, directory)]:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it has ended by itself, or with another one
                process.kill()
                killed.append(process.pid)
        await asyncio.sleep(POLL_SECONDS)
    return sorted(set(killed))


def belongs(process: psutil.Process, worker: str, directory: Path) -> bool:
    """Returns whether it is the agent or launcher of the worker, or was forked by the launcher."""
    try:
        return has(process, "ADJOURN_WORKER", worker, "adjourn_worker") or str(directory) in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
