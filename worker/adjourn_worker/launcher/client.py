"""The agent's client of the launcher: starts it, asks it, and replaces it when it dies."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

import structlog
from google.protobuf.message import DecodeError

from adjourn import failpoints, frames
from adjourn.internal.v1.trainer_pb2 import (
    Kill,
    Launch,
    LauncherRequest,
    LauncherResponse,
    ListProcesses,
    Shutdown,
    TrainingProcess,
)
from adjourn_worker.attempt import files, training_log
from adjourn_worker.host.locks import holder, take
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.server import ALREADY_RUNNING, ENTRY, ENVIRONMENT, SOFTWARE
from adjourn_worker.paths import WorkerPaths

INHERITED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR"),
        *("LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"),
        *("ADJOURN_STACK_ID", "ADJOURN_LOG_FORMAT", failpoints.VARIABLE),
        *("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("NO_PROXY", "no_proxy"),
    }
)
"""Variables that launcher and training processes get; any other may be a secret."""
INHERITED_PREFIXES: Final = ("LC_", "CUDA", "NVIDIA", "NCCL_", "OMP_", "MKL_", "OPENBLAS_")
PROXIES: Final = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"})
"""Inherited unless they have a user or password in them."""

START_SECONDS: Final = 90.0
"""Importing torch from a cold disk takes a while."""
ANSWER_SECONDS: Final = 30.0
"""More than the launcher needs to end everything."""
PROBE_SECONDS: Final = 5.0
END_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.02

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class LauncherFailed(Exception):
    """No launcher could be started; the text has the end of its log."""


class LauncherGone(ConnectionError):
    """The launcher has ended, or does not answer."""


class LaunchRefused(Exception):
    """The launcher cannot do what it was asked; the text says why."""


class LauncherClient:
    """The launcher of a data directory, whichever process that is. `async with` it; leaving lets the launcher live."""

    def __init__(
        self,
        paths: WorkerPaths,
        environment: Mapping[str, str],
        *,
        entry: str = ENTRY,
        software: str = SOFTWARE,
        log_bytes: int = training_log.LIMIT,
        patience: float = START_SECONDS,
    ) -> None:
        self._paths = paths
        self._environment = launcher_environment(environment, paths)
        self._arguments = ("--entry", entry, "--software", software, "--log-bytes", str(log_bytes))
        self._log_bytes = log_bytes
        self._patience = patience
        self._connection: LauncherConnection | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = asyncio.Lock()
        self._over = False
        self.software: dict[str, str] = {}
        """What the bits of a training here depend on, as the launcher has answered; empty before that."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._connection:
            self._connection.close()
        if self._child and self._child.poll() is None:
            self._child.returncode = 0  # it is meant to outlive us; keeps Popen from warning of that

    async def start(self) -> None:
        """Makes sure that a launcher is there; raises LauncherFailed."""
        async with self._lock:
            if self._over:
                raise LauncherFailed("the launcher was shut down")
            if self._connection and not self._connection.lost.is_set():
                return
            connection, child = await self._find_or_start()
            if child:
                if self._child:
                    self._child.wait()  # the earlier one is gone, or this one would not have its lock
                self._child = child
            self._connection = connection

    async def keep(self) -> None:
        """Replaces the launcher whenever it dies; returns after `shutdown`. Raises LauncherFailed."""
        while not self._over:
            try:
                connection = await self._living()
                await connection.lost.wait()
                if not self._over:
                    log.warning("launcher_lost")
            except LauncherFailed:
                if not self._over:
                    raise

    async def launch(self, directory: Path, nonce: str) -> TrainingProcess:
        """Starts the training process of an attempt, or returns the one it has or had; raises LaunchRefused."""
        await self._ask(LauncherRequest(launch=Launch(directory=str(directory), nonce=nonce)))
        process = files.read_process(directory)
        if process is None:
            raise LaunchRefused(f"{directory} has no process, and has ended")
        return process

    async def kill(self, directory: Path) -> None:
        """SIGKILLs the training process of an attempt and all it started; its `exit` follows."""
        await self._ask(LauncherRequest(kill=Kill(directory=str(directory))))

    async def processes(self) -> list[TrainingProcess]:
        """Returns the training processes whose end is not yet recorded."""
        return list((await self._ask(LauncherRequest(list=ListProcesses()))).processes)

    async def exit_lost(self, process: TrainingProcess) -> bool:
        """Tells whether a process is gone and nobody saw it end: its launcher had died, so no `exit` will come."""
        if process_tree.alive(process) or process in await self.processes():
            return False
        return files.read_exit(Path(process.directory)) is None

    async def shutdown(self) -> None:
        """Ends all training, and the launcher; returns when it is gone. Starts none to do so."""
        self._over = True
        async with self._lock:
            if connection := await self._find():
                try:
                    await connection.ask(LauncherRequest(shutdown=Shutdown()))
                except LauncherGone as error:
                    log.warning("launcher_lost", error=str(error))
                connection.close()
            else:
                kill_holder(self._paths)  # it hangs, or has not begun to listen and so has nothing to end
            await until_gone(self._paths)
            if self._child:
                self._child.wait()
            await asyncio.to_thread(process_tree.end_marked, process_tree.mark(self._paths.data))

    async def _ask(self, request: LauncherRequest) -> LauncherResponse:
        """Asks, and if the launcher dies meanwhile asks the next one: every request may be repeated."""
        try:
            try:
                answer = await (await self._living()).ask(request)
            except LauncherGone:
                answer = await (await self._living()).ask(request)
        except LauncherGone as error:
            raise LauncherFailed(f"launchers keep dying: {error}") from error
        if answer.error:
            raise LaunchRefused(answer.error)
        return answer

    async def _living(self) -> "LauncherConnection":
        await self.start()
        assert self._connection
        return self._connection

    async def _find(self) -> "LauncherConnection | None":
        """Returns a connection to a launcher that answers."""
        try:
            connection = await LauncherConnection.open(self._paths.launcher_socket)
            answer = await connection.ask(LauncherRequest(list=ListProcesses()), patience=PROBE_SECONDS)
        except LauncherGone:
            return None
        self.software = dict(answer.environment)
        return connection

    async def _find_or_start(self) -> "tuple[LauncherConnection, subprocess.Popen[bytes] | None]":
        """Returns a connection to a launcher that answers, and its process if it was started here.

        Kills one that keeps the lock and has not answered for `patience` seconds. Raises LauncherFailed.
        """
        paths, patience = self._paths, self._patience
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        child: subprocess.Popen[bytes] | None = None
        connection: LauncherConnection | None = None
        try:
            while not (connection := await self._find()):
                if child and child.poll() not in (None, ALREADY_RUNNING) and not is_held(paths):
                    raise LauncherFailed(f"the launcher ended with {child.poll()}:\n{files.tail(paths.launcher_log)}")
                if loop.time() > deadline:
                    if child and holder(paths.launcher_lock) == child.pid:
                        raise LauncherFailed(f"no launcher after {patience:.0f} s:\n{files.tail(paths.launcher_log)}")
                    kill_holder(paths)
                    deadline = loop.time() + patience
                if child is None or child.poll() is not None:
                    child = self.spawn()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            if child and not connection:
                child.kill()
                child.wait()
        if child and holder(paths.launcher_lock) != child.pid:
            await asyncio.to_thread(child.wait)  # another came first
            child = None
        return connection, child

    def spawn(self) -> subprocess.Popen[bytes]:
        """Starts a launcher; it ends at once if another has the lock."""
        training_log.bound(self._paths.launcher_log, self._log_bytes)  # one that never gets to serve does not do it
        with self._paths.launcher_log.open("ab") as output:
            # Popen and not asyncio's: a transport that is closed or collected would kill the child.
            return subprocess.Popen(
                (sys.executable, "-m", "adjourn_worker.launcher", str(self._paths.data), *self._arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._paths.data,
                env=self._environment,
                start_new_session=True,
            )


class LauncherConnection(asyncio.Protocol):
    """A connection to a launcher: `await LauncherConnection.open(path)`, then `ask` until `lost`."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        """Set once the connection has ended, whoever ended it."""
        self._lock = asyncio.Lock()
        self._received = b""
        self._answer: asyncio.Future[LauncherResponse] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Raises LauncherGone if nobody listens."""
        try:
            _, connection = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        except OSError as error:
            raise LauncherGone(f"no launcher listens at {path}: {error.strerror}") from error
        return connection

    async def ask(self, request: LauncherRequest, patience: float = ANSWER_SECONDS) -> LauncherResponse:
        """Returns the answer; raises LauncherGone, after which the connection is of no more use."""
        async with self._lock:
            if self.lost.is_set() or not self._transport:
                raise LauncherGone("the launcher has ended")
            self._answer = asyncio.get_running_loop().create_future()
            try:
                self._transport.write(frames.encode(request))
                async with asyncio.timeout(patience):
                    return await self._answer
            except TimeoutError:
                raise LauncherGone(f"the launcher did not answer within {patience:.0f} s") from None
            finally:
                if not self._answer.done() or self._answer.cancelled():
                    self.close()  # a late answer would be taken for that to the next request
                self._answer = None

    def close(self) -> None:
        if self._transport:
            self._transport.abort()
        self.lost.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            answers = list(frames.decode(LauncherResponse, self._received))
        except (frames.FrameTooLong, DecodeError):
            self.close()
            return
        for answer, _ in answers:
            if self._answer and not self._answer.done():
                self._answer.set_result(answer)
        if answers:
            self._received = self._received[answers[-1][1] :]

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        if self._answer and not self._answer.done():
            self._answer.set_exception(LauncherGone("the launcher ended while it was asked"))


def launcher_environment(environment: Mapping[str, str], paths: WorkerPaths) -> dict[str, str]:
    """Returns the environment of a launcher: nothing that is not known to be harmless, and what exactness needs."""
    kept = {
        name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }
    for name in PROXIES & environment.keys():
        if has_credentials(environment[name]):
            log.warning("proxy_withheld", variable=name, why="it has a user or password; training code could read it")
        else:
            kept[name] = environment[name]
    return {**kept, **ENVIRONMENT, process_tree.MARK: process_tree.mark(paths.data)}


def pip_environment(environment: Mapping[str, str], paths: WorkerPaths) -> dict[str, str]:
    """Returns the environment of pip: that of a launcher, what settings pip has of its own, and the user's proxies."""
    own = {name: value for name, value in environment.items() if name.startswith("PIP_") or name in PROXIES}
    return {**launcher_environment(environment, paths), **own, "PYTHONNOUSERSITE": "1"}


def has_credentials(proxy: str) -> bool:
    """Tells whether a proxy's address has a user in it, or cannot be understood."""
    try:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    except ValueError:
        return True
    return "@" in parts.netloc


def is_held(paths: WorkerPaths) -> bool:
    """Tells whether some process has the launcher's lock."""
    lock = take(paths.launcher_lock)
    if lock is not None:
        os.close(lock)
    return lock is None


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
    while is_held(paths):
        if loop.time() > deadline:
            kill_holder(paths)
        await asyncio.sleep(POLL_SECONDS)
