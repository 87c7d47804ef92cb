"""Sends the messages of a long answer to a caller that may stop reading."""

import asyncio
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from adjourn import errors

SILENCE_SECONDS: Final = 30.0
"""Longest wait for a caller to take the next message: one that does not read must not keep its place."""


async def send(context: grpc.aio.ServicerContext[Any, Any], message: Message, silence: float) -> None:
    """Sends a message; raises ReadStalledError if the caller does not take it within `silence` seconds."""
    try:
        async with asyncio.timeout(silence):
            await context.write(message)
    except TimeoutError:
        raise errors.ReadStalledError(f"nothing was read for {silence:g} s; read on from there") from None
