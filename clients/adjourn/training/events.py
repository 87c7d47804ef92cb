"""What a training process tells: events to its agent, lines to its log."""

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from adjourn import frames
from adjourn.internal.v1.trainer_pb2 import TrainingEvent


class EventLog:
    """File `events`, to which frames are appended, and the agent's socket, to which a byte says "look".

    The file is the truth. The byte may be lost.
    """

    def __init__(self, path: Path, notify_socket: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._notify_socket = notify_socket
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def append(self, event: TrainingEvent) -> None:
        """Writes the event, with the time; raises OSError if the whole of it cannot be written, and writes none."""
        event.time.GetCurrentTime()
        frame = frames.encode(event)
        before = os.fstat(self._file).st_size
        if os.write(self._file, frame) != len(frame):  # a frame cut short would garble all that follow
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, "no room for an event")
        self.notify()

    def notify(self) -> None:
        """Has the agent look."""
        with contextlib.suppress(OSError):  # nobody listens, or its queue is full: it will look by itself
            self._socket.sendto(b"!", self._notify_socket)

    def close(self) -> None:
        self._socket.close()
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def log_line(text: str) -> None:
    """Writes a line to the log of the attempt, for people."""
    print(f"adjourn: {text}", file=sys.stderr, flush=True)  # noqa: T201
