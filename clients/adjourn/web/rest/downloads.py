"""Files of checkpoints as plain bytes, from any byte on."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

from starlette.types import Receive, Send

from adjourn.v1.checkpoint_service_pb2 import ReadCheckpointRequest, ReadCheckpointResponse
from adjourn.web.rest.sse import ReaderGone, sent, unless_gone

MANIFEST: Final = "manifest.json"


def begin(request: ReadCheckpointRequest, headers: Mapping[str, str]) -> None:
    """Has a request begin where the header `Range: bytes=N-` says; other ranges may be passed over (RFC 9110)."""
    found = re.fullmatch(r"bytes=(\d{1,18})-", headers.get("range", "").strip(), re.ASCII)
    if found and not request.offset:
        request.offset = int(found[1])


async def serve(
    messages: AsyncGenerator[Any, None], request: ReadCheckpointRequest, receive: Receive, send: Send
) -> None:
    """Sends a file; raises AdjournError if it was refused before its first byte.

    One that breaks later ends without the last chunk, so that nobody takes it for whole; `Range` goes on with it.
    """
    with suppress(ReaderGone):
        await unless_gone(receive, pump(messages, request, send))


async def pump(messages: AsyncGenerator[Any, None], request: ReadCheckpointRequest, send: Send) -> None:
    async with aclosing(messages):
        first: ReadCheckpointResponse | None = await anext(messages, None)
        name = request.file or MANIFEST
        headers = [
            (b"content-type", b"application/json" if not request.file else b"application/octet-stream"),
            (
                b"content-disposition",
                b'attachment; filename="%s"' % re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).encode(),
            ),
        ]
        status = 200
        if request.offset:  # how long the file is, is not known: the range has no end
            status = 206
            headers.append((b"content-range", f"bytes {request.offset}-*/*".encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        message = first
        while message is not None:
            await sent(send({"type": "http.response.body", "body": message.data, "more_body": True}))
            message = await anext(messages, None)
        await send({"type": "http.response.body", "body": b""})
