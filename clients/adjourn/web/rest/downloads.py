"""Files of checkpoints as plain bytes."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Final

from starlette.types import Receive, Send

from adjourn.v1.checkpoint_service_pb2 import ReadCheckpointRequest
from adjourn.web.rest.sse import ReaderGone, sent, unless_gone

MANIFEST: Final = "manifest.json"


async def serve(
    messages: AsyncGenerator[Any, None], request: ReadCheckpointRequest, receive: Receive, send: Send
) -> None:
    """Sends a file; raises AdjournError if it was refused before its first byte.

    One that breaks later ends without its last chunk, so that nobody takes it for whole; a request with `offset` goes
    on with it.
    """
    with suppress(ReaderGone):
        await unless_gone(receive, pump(messages, request, send))


async def pump(messages: AsyncGenerator[Any, None], request: ReadCheckpointRequest, send: Send) -> None:
    async with aclosing(messages):
        message = await anext(messages, None)
        await send({"type": "http.response.start", "status": 200, "headers": head(request.file)})
        while message is not None:
            await sent(send({"type": "http.response.body", "body": message.data, "more_body": True}))
            message = await anext(messages, None)
        await send({"type": "http.response.body", "body": b""})


def head(file: str) -> list[tuple[bytes, bytes]]:
    """Returns the headers for a file; an empty name is the manifest's."""
    name = re.sub(r"[^\w.-]", "_", file or MANIFEST, flags=re.ASCII)
    kind = "application/octet-stream" if file else "application/json"
    return [
        (b"content-type", kind.encode()),
        (b"content-disposition", f'attachment; filename="{name}"'.encode()),
        (b"cache-control", b"no-store"),
    ]
