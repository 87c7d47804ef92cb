"""A gateway in the tests' own process, on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from adjourn.client import AsyncClient
from adjourn.web.application import application
from adjourn.web.process import Server, listening
from adjourn.web.rest.application import Rest
from adjourn.web.settings import Settings
from tests.harness.control_planes import PATIENCE


@dataclass(frozen=True, kw_only=True)
class Event:
    """A server-sent event."""

    data: Any
    id: str | None = None
    """None: it has none; empty: it has the identity forgotten."""
    kind: str = "message"


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A gateway that serves; `http` sends requests to it."""

    address: str
    http: httpx.AsyncClient
    rest: Rest

    @asynccontextmanager
    async def events(self, path: str, **options: Any) -> AsyncIterator[AsyncIterator[Event]]:
        """Opens a stream; fails unless it is one."""
        async with self.http.stream("GET", path, timeout=httpx.Timeout(10, read=60), **options) as answer:
            if answer.status_code != 200:
                await answer.aread()
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield parsed(answer.aiter_lines())


async def parsed(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Yields the events of a stream as a browser reads them."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Event(data=json.loads(fields["data"]), id=fields.get("id"), kind=fields.get("event", "message"))
            fields = {}
        else:
            fields = {}


@asynccontextmanager
async def gateway(control_plane: str, *, settings: Settings | None = None) -> AsyncIterator[Gateway]:
    """Serves as `adjourn.web.process` does; drains in the end."""
    chosen = settings or Settings(listen="127.0.0.1:0", address=control_plane)
    with listening(chosen.listen) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with AsyncClient(control_plane) as client:
            app = application(client, chosen)
            server = Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                async with httpx.AsyncClient(base_url=f"http://{address}", timeout=PATIENCE, trust_env=False) as http:
                    yield Gateway(address=address, http=http, rest=app.state.rest)
            finally:
                app.state.rest.closing.set()
                server.should_exit = True
                await serving
