"""The gateway's process: settings, client, serve, drain."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from adjourn.client import AsyncClient
from adjourn.logs import configure
from adjourn.settings_reader import InvalidSettings
from adjourn.web.application import application
from adjourn.web.guard import Guard
from adjourn.web.settings import Settings

log = structlog.get_logger()

GRACE_SECONDS: Final = 5
"""How long calls may take to end once the gateway is told to."""


class AddressTakenError(OSError):
    """The address cannot be listened at."""


class Server(uvicorn.Server):
    """A server that leaves signals to this module."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(address: str) -> socket.socket:
    """Returns a socket that listens at `host:port`; raises AddressTakenError with the system's reason."""
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server(place, family=family)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]  # Python adds the address
        raise AddressTakenError(f"cannot listen at {address}: {why}") from None


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as opened:
        client = await opened.enter_async_context(AsyncClient(settings.address))
        app = application(client, settings)
        parts: list[tuple[str, ASGIApp]] = [(settings.listen, app), *origin_applications(client, settings)]
        sockets = [opened.enter_context(listening(listen)) for listen, _ in parts]
        servers = [server_of(part) for _, part in parts]
        pairs = zip(servers, sockets, strict=True)
        serving = [asyncio.create_task(each.serve(sockets=[listener])) for each, listener in pairs]
        stopping = asyncio.create_task(stop.wait())
        log.info("serving", listen=[listen for listen, _ in parts], control_plane=settings.address)
        await asyncio.wait({*serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        app.state.rest.closing.set()
        for each in servers:
            each.should_exit = True
        stopping.cancel()
        await asyncio.gather(*serving)
    log.info("drained")


def server_of(app: ASGIApp) -> Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws_max_size=1 << 16,
    )
    return Server(config)


def origin_applications(client: AsyncClient, settings: Settings) -> list[tuple[str, ASGIApp]]:
    """Returns the applications of the origins' interfaces that are asked for, and where each is to be served."""
    if not settings.heimdall and not settings.peft_studio:
        return []
    from adjourn.web.origins import applications
    from adjourn.web.origins.feed import Feed

    feed = Feed(client)
    made = ((settings.heimdall, applications.heimdall), (settings.peft_studio, applications.peft_studio))
    return [(listen, Guard(make(client, settings.trained, feed), settings)) for listen, make in made if listen]


def main() -> int:
    """Returns the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettings as error:
        for name, why in error.problems.items():
            print(f"{name} {why}", file=sys.stderr)  # noqa: T201  # there is no log yet
        return 2
    configure(settings.log_format, service="web")
    try:
        asyncio.run(serve(settings))
    except AddressTakenError as error:
        log.critical("cannot_serve", errors=[str(error)])
        return 1
    return 0
