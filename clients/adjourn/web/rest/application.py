"""Answers requests for paths of the contract; everything wrong becomes a `google.rpc.Status`."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

import structlog
from google.protobuf.descriptor import ServiceDescriptor
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adjourn.client import AsyncClient
from adjourn.errors import AdjournError, InternalError, InvalidRequestError, UploadStalledError
from adjourn.v1 import checkpoint_service_pb2, job_service_pb2, worker_service_pb2
from adjourn.v1.checkpoint_service_pb2 import ReadCheckpointRequest
from adjourn.web.rest import downloads, errors, sse, uploads
from adjourn.web.rest.calls import Caller, Calls
from adjourn.web.rest.streams import Streams
from adjourn.web.rest.transcoding import Route, routes, to_json

log = structlog.get_logger()

SERVICES: Final[Sequence[ServiceDescriptor]] = (
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"],
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
)
BUNDLES: Final = "/v1/bundles"
BODY_LIMIT_BYTES: Final = 4 << 20
"""As gRPC servers take by default."""
STALL_SECONDS: Final = 30.0
"""After so long without the next part of a body, the request is given up."""
STREAM_LIMIT: Final = 1000
LAST_EVENT_ID: Final = "last_event_id"


class Rest:
    """An ASGI application for all paths below `/v1`."""

    def __init__(self, client: AsyncClient) -> None:
        self.calls = Calls(client)
        self.streams = Streams(self.calls)
        self.routes = tuple(routes(SERVICES))
        self.closing = asyncio.Event()
        """Set when the gateway goes away: streams end."""
        self._open_streams = 0

    async def aclose(self) -> None:
        self.closing.set()
        await self.streams.watches.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._answer(scope, receive, noted)
        except AdjournError as error:
            if begun:
                raise  # the server cuts the answer off: what is there is not all
            await errors.response(error)(scope, receive, send)
        except sse.ReaderGone:
            log.debug("reader_gone", path=scope["path"])
        except Exception:
            log.exception("request_failed", path=scope["path"])
            if begun:
                raise
            await errors.response(InternalError("a fault of the gateway; its log has the traceback"))(
                scope, receive, send
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        caller = Caller.of(headers, (scope.get("client") or ("unknown",))[0])
        path = scope["raw_path"].partition(b"?")[0].decode("ascii", "replace")
        query = parse_qsl(scope["query_string"].decode("ascii", "replace"), keep_blank_values=True)
        if path == BUNDLES:
            await self._upload(scope, receive, send, headers, query, caller)
            return
        route, values = self._route(scope["method"], path)
        last, query = last_event(headers, query) if route.method.server_streaming else ("", query)
        body = json_of(await whole(receive, BODY_LIMIT_BYTES))
        request = route.request(values, query, body)
        if isinstance(request, ReadCheckpointRequest):
            await downloads.serve(self.calls.stream(route.method, request, caller), request, receive, send)
        elif route.method.server_streaming:
            await self._stream(route, request, caller, last, receive, send)
        else:
            answer = await sse.unless_gone(receive, self.calls.unary(route.method, request, caller))
            await Response(to_json(answer), media_type="application/json")(scope, receive, send)

    async def _stream(
        self, route: Route, request: Any, caller: Caller, last: str, receive: Receive, send: Send
    ) -> None:
        if self._open_streams >= STREAM_LIMIT:
            raise errors.TooManyStreamsError(
                f"{STREAM_LIMIT} streams are open here; close some, or ask another gateway"
            )
        self._open_streams += 1
        try:
            source = self.streams.open(route.method, request, caller, last)
            await sse.EventStream(source, self.closing).serve(receive, send)
        finally:
            self._open_streams -= 1

    def _route(self, verb: str, path: str) -> tuple[Route, dict[str, str]]:
        """Returns the route of a request, and the values in its path; raises NoSuchPathError, MethodRefusedError."""
        found = [(route, values) for route in self.routes if (values := route.template.match(path)) is not None]
        if any(route.template.verb for route, _ in found):  # `jobs/a:pause` is no name
            found = [(route, values) for route, values in found if route.template.verb]
        for route, values in found:
            if verb == route.verb or (verb == "HEAD" and route.verb == "GET" and not route.method.server_streaming):
                return route, values
        if not found:
            raise errors.NoSuchPathError(f"no call has the path {path}: /v1/docs lists them")
        allowed = ", ".join(dict.fromkeys(route.verb for route, _ in found))
        raise errors.MethodRefusedError(f"{path} is called with {allowed}, not {verb}", {"Allow": allowed})

    async def _upload(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        query: list[tuple[str, str]],
        caller: Caller,
    ) -> None:
        if scope["method"] != "POST":
            raise errors.MethodRefusedError(f"{BUNDLES} is called with POST", {"Allow": "POST"})
        if uploads.is_script(headers, query):
            script = await whole(receive, uploads.SCRIPT_LIMIT_BYTES)
            body = uploads.of_script(script, query)
        else:
            body = pieces(receive)
        answer = await self.calls.upload(uploads.METHOD, uploads.cut(body), caller)
        await Response(to_json(answer), media_type="application/json")(scope, receive, send)


async def pieces(receive: Receive) -> AsyncIterator[bytes]:
    """Yields a body as it comes; raises ReaderGone if the other side leaves before its end, and UploadStalledError."""
    while True:
        try:
            async with asyncio.timeout(STALL_SECONDS):
                message = await receive()
        except TimeoutError:
            raise UploadStalledError("the rest of the body did not come in time") from None
        if message["type"] == "http.disconnect":
            raise sse.ReaderGone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def whole(receive: Receive, limit: int) -> bytes:
    """Returns a body; raises BodyTooLargeError."""
    found = bytearray()
    async for piece in pieces(receive):
        found += piece
        if len(found) > limit:
            raise errors.BodyTooLargeError(f"the body may have {limit} bytes at most")
    return bytes(found)


def json_of(body: bytes) -> Any:
    """Returns the JSON of a body, None for an empty one; raises InvalidRequestError."""
    if not body.strip():
        return None
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=without_repeats)
    except RecursionError:
        raise InvalidRequestError({"body": "is nested too deep"}) from None
    except ValueError as error:
        raise InvalidRequestError({"body": f"is not JSON: {error}"}) from None


def without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def last_event(headers: Headers, query: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
    """Returns the identity of the last event that arrived, and the query without it."""
    given = [value for name, value in query if name == LAST_EVENT_ID]
    rest = [(name, value) for name, value in query if name != LAST_EVENT_ID]
    return headers.get("last-event-id") or next(iter(given), ""), rest
