"""Finds the launcher of a data directory or starts one, and tells when it is gone."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from adjourn.internal.v1.trainer_pb2 import LauncherRequest, ListProcesses
from adjourn_worker.attempt.files import tail
from adjourn_worker.host.locks import holder, take
from adjourn_worker.launcher.link import LauncherConnection, LauncherGone
from adjourn_worker.launcher.server import ENVIRONMENT, TAKEN
from adjourn_worker.paths import WorkerPaths

INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"),
        *("LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
        *("ADJOURN_STACK", "ADJOURN_LOG_FORMAT"),
        *("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }
)
"""Variables that launcher and training processes get; any other may be a secret."""
INHERITED_PREFIXES: Final = ("LC_", "CUDA", "NVIDIA", "NCCL_", "OMP_", "MKL_", "OPENBLAS_")

PROBE_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
END_SECONDS: Final = 10.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class LauncherFailed(Exception):
    """No launcher could be started; the text has the end of its log."""


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a launcher: nothing that is not known to be harmless."""
    kept = {
        name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    return {**kept, **ENVIRONMENT}


async def find(paths: WorkerPaths) -> LauncherConnection | None:
    """Returns a connection to a launcher that answers."""
    try:
        link = await LauncherConnection.open(paths.launcher_socket)
        await link.ask(LauncherRequest(list=ListProcesses()), patience=PROBE_SECONDS)
    except LauncherGone:
        return None
    return link


async def find_or_start(
    paths: WorkerPaths, environment: Mapping[str, str], entry: str, patience: float
) -> tuple[LauncherConnection, subprocess.Popen[bytes] | None]:
    """Returns a connection to a launcher that answers, and its process if it was started here.

    One that keeps the lock and does not answer for `patience` seconds hangs, and is killed. Raises LauncherFailed.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    child: subprocess.Popen[bytes] | None = None
    link: LauncherConnection | None = None
    try:
        while not (link := await find(paths)):
            if child and child.poll() not in (None, TAKEN):
                raise LauncherFailed(f"the launcher ended with {child.poll()}:\n{tail(paths.launcher_log)}")
            if loop.time() > deadline:
                if child and holder(paths.launcher_lock) == child.pid:
                    raise LauncherFailed(f"no launcher after {patience:.0f} s:\n{tail(paths.launcher_log)}")
                kill_holder(paths)
                deadline = loop.time() + patience
            if child is None or child.poll() == TAKEN:
                child = start(paths, environment, entry)
            await asyncio.sleep(POLL_SECONDS)
    finally:
        if child and not link:
            child.kill()
            child.wait()
    if child and holder(paths.launcher_lock) != child.pid:
        await asyncio.to_thread(child.wait)  # it came second
        child = None
    return link, child


def start(paths: WorkerPaths, environment: Mapping[str, str], entry: str) -> subprocess.Popen[bytes]:
    with paths.launcher_log.open("ab") as output:
        # Popen and not asyncio's: a transport that is closed or collected would kill the child.
        return subprocess.Popen(
            (sys.executable, "-m", "adjourn_worker.launcher", str(paths.data), "--entry", entry),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=paths.data,
            env=inherited(environment),
            start_new_session=True,
        )


def kill_holder(paths: WorkerPaths) -> None:
    """Ends the launcher that has the lock."""
    pid = holder(paths.launcher_lock)
    with contextlib.suppress(OSError):
        if pid and b"adjourn_worker.launcher" in Path(f"/proc/{pid}/cmdline").read_bytes():  # not another of its pid
            log.warning("launcher_killed", pid=pid)
            os.kill(pid, signal.SIGKILL)


async def until_gone(paths: WorkerPaths) -> None:
    """Returns when no process is the launcher; kills one that takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + END_SECONDS
    while (lock := take(paths.launcher_lock)) is None:
        if loop.time() > deadline:
            kill_holder(paths)
        await asyncio.sleep(POLL_SECONDS)
    os.close(lock)
