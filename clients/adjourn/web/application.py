"""The gateway's application: guard, REST, page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from adjourn.client import AsyncClient
from adjourn.web import page
from adjourn.web.guard import Guard
from adjourn.web.rest import documentation
from adjourn.web.rest.application import Rest
from adjourn.web.settings import Settings


def application(client: AsyncClient, settings: Settings) -> Starlette:
    """Returns the application for a client, which stays open. `state.rest.closing` is set when streams are to end."""
    rest = Rest(client)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await rest.aclose()

    app = Starlette(
        routes=[
            WebSocketRoute("/{path:path}", no_socket),
            Route("/healthz", healthy),
            *documentation.routes(),
            Mount("/v1", app=rest, name="rest"),
            Mount("/", app=page.application(), name="page"),
        ],
        middleware=[Middleware(Guard, settings=settings)],
        lifespan=lifespan,
    )
    app.state.rest = rest
    return app


async def healthy(_: Request) -> PlainTextResponse:
    """Says that this process answers; what it asks may be away."""
    return PlainTextResponse("ok\n")


async def no_socket(socket: WebSocket) -> None:
    """Refuses a WebSocket: there are streams instead."""
    await socket.close()
