"""A datagram socket that tells the agent of news from training processes and the launcher: fast, never relied upon."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Final, Self

BURST: Final = 64
"""Notifications that are taken for one."""


def notify(path: str) -> None:
    """Notifies the agent; does nothing if no one listens, or if notifications enough wait to be read."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(b"!", path)


class NotifySocket:
    """The agent's end: `async with NotifySocket(path) as notifications: await notifications.wait(1.0)`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._notified = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    async def __aenter__(self) -> Self:
        self._path.unlink(missing_ok=True)  # left by an agent that was killed
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
        except BaseException:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        self._notified.set()
        with contextlib.suppress(BlockingIOError):
            for _ in range(BURST):  # one who never stops must not keep us here
                self._socket.recv(16)

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - waiting is all it does
        """Returns True once there was a notification since the last call, False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._notified.wait()
        except TimeoutError:
            return False
        self._notified.clear()
        return True
