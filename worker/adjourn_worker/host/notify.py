"""A datagram socket on which training processes and the launcher say "look": faster than asking, never relied upon."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Final, Self

BURST: Final = 64
"""Rings that are taken for one."""


def ring(path: str) -> None:
    """Rings a doorbell; one that is not there, or that has rung often enough, is left alone."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.setblocking(False)
        bell.sendto(b"!", path)


class NotifySocket:
    """The agent's end: `async with Doorbell(path) as bell: await bell.wait(1.0)`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rung = asyncio.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    async def __aenter__(self) -> Self:
        self._path.unlink(missing_ok=True)  # left by an agent that was killed
        try:
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
        except BaseException:
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._hear)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _hear(self) -> None:
        self._rung.set()
        with contextlib.suppress(BlockingIOError):
            for _ in range(BURST):  # one who never stops ringing must not keep us here
                self._socket.recv(16)

    async def wait(self, timeout: float) -> bool:  # noqa: ASYNC109 - waiting is all it does
        """Returns True as soon as it has rung since the last call, False after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True
