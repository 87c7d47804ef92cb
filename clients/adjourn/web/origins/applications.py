"""The applications that speak an origin's interface, each for a port of its own."""

from starlette.applications import Starlette
from starlette.routing import BaseRoute, WebSocketRoute

from adjourn.client import AsyncClient
from adjourn.web.origins import refusals
from adjourn.web.origins.created import Trained
from adjourn.web.origins.feed import Feed
from adjourn.web.origins.heimdall import Heimdall
from adjourn.web.origins.heimdall_frames import HeimdallFrames
from adjourn.web.origins.peft_studio import PeftStudio
from adjourn.web.origins.peft_studio_frames import PeftStudioFrames
from adjourn.web.origins.sockets import Socket


def heimdall(client: AsyncClient, trained: Trained, feed: Feed) -> Starlette:
    """Returns Heimdall's interface: calls at `/v1/training`, sockets at `/ws`; both under `/api` too."""
    socket = Socket(client, feed, HeimdallFrames)
    sockets = [
        route
        for place in ("", "/api/v1")
        for route in (
            WebSocketRoute(f"{place}/ws", socket.all_jobs),
            WebSocketRoute(f"{place}/ws/training/{{job_id}}", socket.one_job),
        )
    ]
    return application([*Heimdall(client, trained).routes(), *sockets])


def peft_studio(client: AsyncClient, trained: Trained, feed: Feed) -> Starlette:
    """Returns PEFT Studio's interface: calls at `/api/training`, sockets at `/ws/training/{job}`."""
    socket = Socket(client, feed, PeftStudioFrames)
    sockets = [WebSocketRoute("/ws/training/{job_id}", socket.one_job)]
    return application([*PeftStudio(client, trained).routes(), *sockets])


def application(routes: list[BaseRoute]) -> Starlette:
    return Starlette(routes=routes, exception_handlers=refusals.HANDLERS)
