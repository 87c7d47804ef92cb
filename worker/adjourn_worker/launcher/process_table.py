"""The training processes of a launcher: forked, ended and reaped."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from adjourn import failpoints
from adjourn.internal.v1.trainer_pb2 import Launch, TrainingProcess
from adjourn_worker.attempt import files, training_log
from adjourn_worker.host.notify import notify
from adjourn_worker.launcher import process_tree
from adjourn_worker.launcher.bootstrap import NO_ROOM, RAISED, Entry, become_training
from adjourn_worker.launcher.memory_kills import MemoryKills

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Refused(Exception):
    """A request that cannot be met; the text is the answer."""


@dataclass(slots=True, kw_only=True)
class Running:
    """A training process that has not been reaped."""

    process: TrainingProcess
    notify_socket: str
    killed: bool = False
    """As asked."""


@dataclass(slots=True, kw_only=True)
class ProcessTable:
    """The training processes of this process, which must be a subreaper."""

    attempts_directory: Path
    """Where the directories of attempts are; no other is touched."""
    entry: Entry
    in_child: Callable[[], None]
    """Runs first in each fork, to close what is the launcher's."""
    log_bytes: int
    """Most bytes that the log of a training process takes on the disk."""
    running: dict[int, Running] = field(default_factory=dict)
    """By pid."""
    memory_kills: MemoryKills = field(default_factory=MemoryKills)

    @property
    def processes(self) -> list[TrainingProcess]:
        return [item.process for item in self.running.values()]

    def launch(self, request: Launch) -> None:
        """Forks, unless the attempt has, or had, its process; raises Refused, AttemptDamaged, OSError."""
        directory = Path(request.directory)
        if directory.parent != self.attempts_directory:
            raise Refused(f"{directory} is not an attempt in {self.attempts_directory}")
        start = files.read_start(directory)
        if not start:
            raise Refused(f"{directory} has no file {files.START}")
        earlier = files.read_process(directory)
        if earlier and earlier.nonce != request.nonce:
            raise Refused(f"{directory} belongs to another nonce")
        if files.read_exit(directory) or earlier in self.processes:
            return
        if earlier:
            raise Refused(f"{directory} had process {earlier.pid} of an earlier launcher; its end is not recorded")
        began = time.monotonic()
        if not self.running:
            self.memory_kills.forget()
        process = self.fork(directory, request.nonce)
        self.running[process.pid] = Running(process=process, notify_socket=start.notify_socket)
        took = round(time.monotonic() - began, 4)
        log.info("training_launched", pid=process.pid, directory=directory.name, seconds=took)

    def fork(self, directory: Path, nonce: str) -> TrainingProcess:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        gate, opener = os.pipe()
        try:
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(opener)
                    self.in_child()
                    become_training(self.entry, directory, gate)
                finally:
                    os._exit(RAISED)
            try:
                failpoints.hit("launcher.forked")
                process = process_tree.identify(pid, directory, nonce)
                files.write_process(directory, process)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                (directory / files.PROCESS).unlink(missing_ok=True)
                raise
            os.write(opener, b"!")  # it is recorded, so it may begin
        finally:
            os.close(gate)
            os.close(opener)
        return process

    def kill(self, directory: str) -> None:
        for pid, item in self.running.items():
            if item.process.directory == directory:
                item.killed = True
                process_tree.end([pid])

    def kill_all(self) -> None:
        for item in self.running.values():
            item.killed = True
        process_tree.end(self.running)

    def reap(self) -> None:
        """Records the ends of training processes, each after ending what it left behind.

        A training process is reaped last. Until then no other can get its pid, and a full disk only means to try
        again.
        """
        ended = {pid: found for pid in self.running if (found := ended_child(os.P_PID, pid))}
        if ended:
            # The launcher has adopted the children of an ended process; those of a living one are its own.
            process_tree.end(process_tree.children(os.getpid()) - self.running.keys())
        for pid, found in ended.items():
            item = self.running[pid]
            directory = Path(item.process.directory)
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            out_of_memory = code == -signal.SIGKILL and not item.killed and self.memory_kills.lately()
            failpoints.hit("launcher.ended-before-record")
            try:
                files.write_exit(
                    directory, code=code, killed=item.killed, out_of_memory=out_of_memory, no_room=code == NO_ROOM
                )
            except OSError as error:
                log.warning("exit_not_recorded", pid=pid, error=str(error))
                if directory.exists():
                    continue
            os.waitpid(pid, 0)
            del self.running[pid]
            notify(item.notify_socket)
            log.info("training_ended", pid=pid, code=code, killed=item.killed, out_of_memory=out_of_memory)
        self.reap_adopted()

    def reap_adopted(self) -> None:
        """Forgets what became our child by losing its parent and has ended since."""
        while (found := ended_child(os.P_ALL, 0)) and found.si_pid not in self.running:
            os.waitpid(found.si_pid, 0)

    def bound_logs(self) -> None:
        """Keeps the logs of running training processes within their limit."""
        for item in self.running.values():
            for name in (files.LOG, files.DRILL_LOG):
                training_log.bound(Path(item.process.directory) / name, self.log_bytes)


def ended_child(kind: int, pid: int) -> os.waitid_result | None:
    """Returns how a child ended that is not yet reaped, and leaves it so."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(kind, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    return None
