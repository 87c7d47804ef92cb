"""How the chaos asks control planes: any replica that answers, for as long as it takes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self, TypeVar

from google.rpc import code_pb2

from adjourn.client import AsyncClient
from adjourn.errors import AdjournError

T = TypeVar("T")
ANSWER_SECONDS: Final = 8.0
AGAIN_SECONDS: Final = 0.3
UNANSWERED: Final = frozenset({code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED, code_pb2.ABORTED})
"""Codes that say nothing about what became of a request, or ask for another attempt."""


class ControlPlanes:
    """Clients of every replica. An async context manager."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.clients = [AsyncClient(address, timeout=ANSWER_SECONDS) for address in addresses]
        self._open = AsyncExitStack()
        self._turn = 0

    async def __aenter__(self) -> Self:
        for client in self.clients:
            await self._open.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def ask(self, call: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Returns the first answer of any replica; raises the AdjournError that a replica answers with."""
        while True:
            self._turn += 1
            try:
                return await call(self.clients[self._turn % len(self.clients)])
            except AdjournError as error:
                if error.code not in UNANSWERED:
                    raise
            await asyncio.sleep(AGAIN_SECONDS)
