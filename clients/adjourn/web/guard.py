"""What every answer says to browsers, and which requests of theirs are refused: those that another site has made.

Nobody is authenticated, so whoever reaches the gateway may do everything. A browser on the same machine reaches it for
any site that it shows: by a form, a script, a WebSocket, or a name of the site's own that suddenly means 127.0.0.1.
"""

import ipaddress
import socket
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from adjourn.web.rest import errors
from adjourn.web.settings import Settings

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """An ASGI middleware; the innermost application may set a header of its own in place of one here."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.hosts = settings.hosts | {"localhost", socket.gethostname().lower()}
        self.origins = settings.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "").lower()
        allowed = {"access-control-allow-origin": origin, "vary": "origin"} if origin in self.origins else {}

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                set_headers = MutableHeaders(scope=message)
                for name, value in {**HEADERS, **allowed}.items():
                    set_headers.setdefault(name, value)
            await send(message)

        if why := self.refusal(scope, headers):
            await self._refuse(why, scope, receive, guarded)
        elif scope["type"] == "http" and scope["method"] == "OPTIONS" and allowed:
            await guarded({"type": "http.response.start", "status": 204, "headers": preflight(headers)})
            await guarded({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, guarded if scope["type"] == "http" else send)

    def refusal(self, scope: Scope, headers: Headers) -> str:
        """Returns why a request is refused; empty: it is not."""
        host = headers.get("host", "").lower()
        name = host_name(host)
        if not (is_address(name) or name in self.hosts):
            return f"the host {name!r} is not this gateway: add it to ADJOURN_WEB_HOSTS if it is"
        origin = headers.get("origin", "").lower()
        if origin in self.origins:
            return ""
        changes = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        if changes and origin and origin.partition("://")[2] != host:
            return f"the page of {origin} is of another site: add it to ADJOURN_WEB_ORIGINS if it may call"
        if changes and not origin and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "the page that calls is of another site"
        return ""

    async def _refuse(self, why: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": why[:120]})
            return
        await errors.response(errors.ForeignRequestError(why))(scope, receive, send)


def host_name(host: str) -> str:
    """Returns a host without its port, and without brackets."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).strip("[]")


def is_address(name: str) -> bool:
    """Tells whether a host is an IP address: such a one belongs to no site that could have it mean another."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def preflight(headers: Headers) -> list[tuple[bytes, bytes]]:
    asked = headers.get("access-control-request-headers", "")
    return [
        (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
        (b"access-control-allow-headers", asked.encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
