"""The agent's connection to the launcher: one request at a time, and word of its end."""

import asyncio
from pathlib import Path
from typing import Final, Self

from google.protobuf.message import DecodeError

from adjourn import frames
from adjourn.internal.v1.trainer_pb2 import LauncherRequest, LauncherResponse

ANSWER_SECONDS: Final = 30.0
"""More than the launcher needs to end everything."""


class LauncherGone(ConnectionError):
    """The launcher has ended, or does not answer."""


class LauncherConnection(asyncio.Protocol):
    """A connection to a launcher: `await Link.open(path)`, then `ask` until `lost`."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        """Set once the connection has ended, whoever ended it."""
        self._turn = asyncio.Lock()
        self._received = b""
        self._answer: asyncio.Future[LauncherResponse] | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Raises LauncherGone if nobody listens."""
        try:
            _, link = await asyncio.get_running_loop().create_unix_connection(cls, str(path))
        except OSError as error:
            raise LauncherGone(f"no launcher listens at {path}: {error.strerror}") from error
        return link

    async def ask(self, request: LauncherRequest, patience: float = ANSWER_SECONDS) -> LauncherResponse:
        """Returns the answer; raises LauncherGone, after which the link is of no more use."""
        async with self._turn:
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
                    self.close()  # or a late answer would be taken for that to the next request
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
