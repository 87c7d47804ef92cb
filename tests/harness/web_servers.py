"""Web applications that serve in the tests' own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from adjourn.local.ports import HOST


class Server(uvicorn.Server):
    """Leaves signals to the tests."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served(application: ASGIApp) -> AsyncIterator[str]:
    """Serves at a free port; gives `host:port`."""
    listening = socket.create_server((HOST, 0))
    config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=5, ws="websockets-sansio")
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"{HOST}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listening.close()
