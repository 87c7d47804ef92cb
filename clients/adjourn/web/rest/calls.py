"""Calls of the contract by their descriptors: any method, with the caller's name and deadline."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import uuid4

import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from adjourn.channel import ACTOR_KEY
from adjourn.client import AsyncClient, calls
from adjourn.errors import InvalidRequestError

TIMEOUT_HEADER: Final = "grpc-timeout"
LONGEST_SECONDS: Final = 300.0
UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
REQUEST_ID: Final = "request_id"
"""Field of calls that may be repeated."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and how long they wait."""

    actor: str
    """Recorded, not checked."""
    seconds: float = calls.CALL_SECONDS

    @classmethod
    def of(cls, headers: Mapping[str, str], peer: str) -> "Caller":
        """Reads the headers `adjourn-actor` and `grpc-timeout`, which Envoy passes on as well.

        Without a name the caller is `http@` and the address of the other side. Raises InvalidRequestError.
        """
        actor = headers.get(ACTOR_KEY, "").strip() or f"http@{peer}"
        seconds = calls.CALL_SECONDS
        if text := headers.get(TIMEOUT_HEADER, "").strip():
            found = re.fullmatch(r"(\d{1,8})([HMSmun])", text, re.ASCII)
            if not found:
                raise InvalidRequestError({TIMEOUT_HEADER: "must be as gRPC writes it: 5S, 500m"})
            seconds = min(int(found[1]) * UNITS[found[2]], LONGEST_SECONDS)
        return cls(re.sub(r"[^ -~]", "?", actor), seconds)  # all that gRPC's metadata may have

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((ACTOR_KEY, self.actor),)


class Calls:
    """Makes calls over the channel of a client."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def unary(self, method: MethodDescriptor, request: Message, caller: Caller) -> Message:
        """Returns the answer of a method; raises a class of `adjourn.errors`.

        A `request_id` that is left out is filled in: the channel repeats calls that found nobody.
        """
        if REQUEST_ID in method.input_type.fields_by_name and not getattr(request, REQUEST_ID):
            setattr(request, REQUEST_ID, str(uuid4()))
        call = self.client.channel.unary_unary(path(method), serialized, parser(method))
        try:
            return cast(Message, await call(request, timeout=caller.seconds, metadata=caller.metadata))
        except grpc.RpcError as error:
            raise calls.typed(error, self.client.address) from error

    async def upload(self, method: MethodDescriptor, messages: AsyncIterator[Message], caller: Caller) -> Message:
        """Returns the answer to a stream of messages; raises a class of `adjourn.errors`."""
        call = self.client.channel.stream_unary(path(method), serialized, parser(method))(
            timeout=max(calls.UPLOAD_SECONDS, caller.seconds), metadata=caller.metadata
        )
        try:
            async for message in messages:
                with suppress(asyncio.InvalidStateError):  # it is refused already; what comes is passed over
                    await call.write(message)
            await call.done_writing()
            return cast(Message, await call)
        except grpc.RpcError as error:
            raise calls.typed(error, self.client.address) from error
        finally:
            call.cancel()

    async def stream(self, method: MethodDescriptor, request: Message, caller: Caller) -> AsyncGenerator[Any, None]:
        """Yields the messages of one stream; raises a class of `adjourn.errors` when it breaks."""
        call = self.client.channel.unary_stream(path(method), serialized, parser(method))
        stream = call(request, metadata=caller.metadata)
        try:
            async for message in stream:
                yield message
        except grpc.RpcError as error:
            raise calls.typed(error, self.client.address) from error
        finally:
            stream.cancel()


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def serialized(message: Message) -> bytes:
    return message.SerializeToString()


def parser(method: MethodDescriptor) -> Any:
    return GetMessageClass(method.output_type).FromString
