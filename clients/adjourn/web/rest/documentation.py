"""The OpenAPI document, and a page to read and try it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

DOCUMENT: Final = Path(__file__).parent / "openapi.json"
VIEWER: Final = Path(__file__).parent / "viewer"
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""As of all else, but for styles: the viewer writes them into its elements."""


class Viewer(StaticFiles):
    """The viewer's files."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = CONTENT_SECURITY_POLICY
        return response


async def document(_: Request) -> FileResponse:
    return FileResponse(DOCUMENT, media_type="application/json")


async def with_slash(_: Request) -> RedirectResponse:
    return RedirectResponse("docs/")


def routes() -> Sequence[BaseRoute]:
    """Returns the routes, which come before those of the contract."""
    return (
        Route("/v1/openapi.json", document),
        Route("/v1/docs", with_slash),
        Mount("/v1/docs", app=Viewer(directory=VIEWER, html=True)),
    )
