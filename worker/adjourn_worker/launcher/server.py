"""The launcher: a small process that has loaded torch once and forks training processes, on request of the agent.

    python -m adjourn_worker.launcher DATA_DIRECTORY

A process of its own because gRPC must not be where forks are; one thread, no CUDA, no network, no secrets. It outlives
the agent, and as the parent it alone learns how each training process ended. Files in the attempt's directory are the
truth: `process` is written before the training process runs its first line, `exit` once all that it started is gone.

A launcher that was killed leaves its training processes without anyone to see how they end. The next launcher
ends them before it does anything else, so that no attempt can run twice.
"""

import argparse
import contextlib
import gc
import importlib
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError

from adjourn import frames, logs
from adjourn.internal.v1.trainer_pb2 import LauncherRequest, LauncherResponse
from adjourn_worker.attempt import training_log
from adjourn_worker.attempt.files import AttemptDamaged
from adjourn_worker.host.kernel import become_subreaper
from adjourn_worker.host.locks import take
from adjourn_worker.host.notify import notify
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.bootstrap import Entry
from adjourn_worker.launcher.process_table import ProcessTable, Refused
from adjourn_worker.paths import WorkerPaths

ENTRY: Final = "adjourn.training.process:main"
SOFTWARE: Final = "adjourn.training.state.environment:software_environment"
ENVIRONMENT: Final = {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OPENBLAS_NUM_THREADS": "1"}
"""What exact training needs, and what can only be set before Python, or CUDA, starts."""
ALREADY_RUNNING: Final = 3
"""Exit status: another launcher serves the data directory."""
SEND_SECONDS: Final = 1.0
REAP_SECONDS: Final = 10.0
"""How long to wait, when ending, for processes that were killed."""
RETRY_SECONDS: Final = 1.0
"""When to try again to record an end, if the disk is full."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Launcher:
    """Serves requests until SIGTERM or a Shutdown request."""

    def __init__(
        self, paths: WorkerPaths, entry: Entry, lock: int, environment: Mapping[str, str], log_bytes: int
    ) -> None:
        self.paths = paths
        self.table = ProcessTable(
            attempts_directory=paths.attempts, entry=entry, in_child=self.close_inherited, log_bytes=log_bytes
        )
        self.lock = lock
        self.log_bytes = log_bytes
        """Most bytes of our own log, too."""
        self.environment = environment
        """What the bits of a training here depend on."""
        self.selector = selectors.DefaultSelector()
        self.signals = socket.socketpair()
        """Reading and writing end."""
        self.received: dict[socket.socket, bytes] = {}
        """What each client has sent that is not yet a whole request."""
        self.ending = False

    def serve(self) -> None:
        """Returns after SIGTERM or a Shutdown request, when no training process is left."""
        listener = listen(self.paths.launcher_socket)
        self.watch_signals()
        self.selector.register(listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.signals[0], selectors.EVENT_READ, self.signalled)
        log.info("launcher_started", pid=os.getpid(), data=str(self.paths.data))
        while not self.ending:
            for key, _ in self.selector.select(RETRY_SECONDS if self.table.running else None):
                key.data(key.fileobj)
            self.table.reap()
            self.table.bound_logs()
            self.table.memory_kills.look()
            training_log.bound(self.paths.launcher_log, self.log_bytes)
        self.kill_all()
        self.paths.launcher_socket.unlink(missing_ok=True)
        log.info("launcher_ended", pid=os.getpid())

    def watch_signals(self) -> None:
        for end in self.signals:
            end.setblocking(False)
        signal.set_wakeup_fd(self.signals[1].fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the wakeup descriptor brings it into the loop
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def signalled(self, reader: socket.socket) -> None:
        numbers = reader.recv(4096)
        self.ending |= signal.SIGTERM in numbers or signal.SIGINT in numbers

    def accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        client.settimeout(SEND_SECONDS)
        self.received[client] = b""
        self.selector.register(client, selectors.EVENT_READ, self.on_request)

    def on_request(self, client: socket.socket) -> None:
        """Answers each complete request; disconnects a client that sends anything else."""
        try:
            chunk = client.recv(1 << 16)
            if not chunk:
                self.drop(client)
                return
            data = self.received[client] + chunk
            done = 0
            for request, end in frames.decode(LauncherRequest, data):
                done = end
                client.sendall(frames.encode(self.answer(request)))
            self.received[client] = data[done:]
        except (OSError, frames.FrameTooLong, DecodeError):
            self.drop(client)

    def drop(self, client: socket.socket) -> None:
        self.selector.unregister(client)
        del self.received[client]
        client.close()

    def answer(self, request: LauncherRequest) -> LauncherResponse:
        error = ""
        try:
            match request.WhichOneof("request"):
                case "launch":
                    self.table.launch(request.launch)
                case "kill":
                    self.table.kill(request.kill.directory)
                case "shutdown":
                    self.ending = True
                    self.kill_all()
                case "list":
                    self.table.reap()
                case _:
                    error = "the request is unknown to this launcher"
        except (Refused, OSError, AttemptDamaged) as problem:
            error = str(problem)
        return LauncherResponse(processes=self.table.processes, error=error, environment=self.environment)

    def kill_all(self) -> None:
        """Returns when all ends are recorded; gives up on what hangs in the kernel."""
        self.table.kill_all()
        deadline = time.monotonic() + REAP_SECONDS
        self.table.reap()
        while self.table.running and (left := deadline - time.monotonic()) > 0:
            select.select([self.signals[0]], [], [], min(left, RETRY_SECONDS))
            with contextlib.suppress(BlockingIOError):
                self.signals[0].recv(4096)
            self.table.reap()

    def close_inherited(self) -> None:
        """Closes, in a child, what is the launcher's, through the objects that own it.

        One of them might otherwise close a descriptor later that has got the same number.
        """
        signal.set_wakeup_fd(-1)
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self.selector.close()
        self.signals[1].close()
        os.close(self.lock)


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # left by a launcher that was killed: we hold the lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen()
    return listener


def load(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="adjourn_worker.launcher")
    parser.add_argument("data", type=Path, help="data directory of the worker")
    parser.add_argument("--entry", default=ENTRY, help="what a training process runs, module:function")
    parser.add_argument("--software", default=SOFTWARE, help="returns the software environment, module:function")
    parser.add_argument("--log-bytes", type=int, default=training_log.LIMIT, help="limit of a log")
    options = parser.parse_args(arguments)
    for name, value in ENVIRONMENT.items():
        if os.environ.get(name) != value:
            parser.error(f"{name} must be {value} in the environment before Python starts")
    logs.configure(os.environ.get("ADJOURN_LOG_FORMAT", "json"), service="launcher")
    paths = WorkerPaths.prepare(options.data)
    lock = take(paths.launcher_lock)
    if lock is None:
        sys.stderr.write(f"another launcher serves {paths.data}\n")
        return ALREADY_RUNNING
    mark = process_tree.mark(paths.data)
    if os.environ.get(process_tree.MARK) != mark:
        parser.error(f"{process_tree.MARK} must be {mark} in the environment")
    if left := process_tree.end_marked(mark):
        log.warning("orphans_ended", pids=left)
        notify(str(paths.notify_socket))  # the agent reads how its attempts are, and waits for an answer
    become_subreaper()
    os.chdir(paths.data)
    entry: Entry = load(options.entry)
    software: Callable[[], Mapping[str, str]] = load(options.software)
    launcher = Launcher(paths, entry, lock, software(), options.log_bytes)
    gc.collect()
    gc.freeze()  # so that a collection in a child copies none of these pages
    launcher.serve()
    return 0
