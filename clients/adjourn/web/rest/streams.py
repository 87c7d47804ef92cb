"""What each stream of the contract becomes: shared watches, a job's output, a file."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from adjourn.errors import InvalidRequestError
from adjourn.v1.job_service_pb2 import StreamLogsRequest, StreamLogsResponse
from adjourn.web.rest import sse
from adjourn.web.rest.calls import Caller, Calls
from adjourn.web.rest.shared_watch import SharedWatch, Watches

GATEWAY: Final = Caller("http-gateway")
"""Who follows a watch that many share."""
ENDED: Final = "end"
"""Identity of the last message of a log: nothing follows it."""


class Streams:
    """Opens the streams of one gateway."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.watches = Watches()

    def open(self, method: MethodDescriptor, request: Message, caller: Caller, last: str) -> sse.Frames:
        """Returns the events of a stream, after the one of which `last` was the identity; empty: from the beginning."""
        if "resume_token" in method.input_type.fields_by_name:
            return self._watch(method, request, last)
        if isinstance(request, StreamLogsRequest):
            return self._logs(method, request, caller, last)
        return self._plain(method, request, caller)

    async def _watch(self, method: MethodDescriptor, request: Any, last: str) -> sse.Frames:
        token, request.resume_token = last or request.resume_token, ""
        key = f"{method.full_name} ".encode() + request.SerializeToString(deterministic=True)
        async with aclosing(self.watches.follow(key, self._shared(method, request), token)) as pieces:
            async for piece in pieces:
                yield piece

    def _shared(self, method: MethodDescriptor, request: Any) -> Callable[[], SharedWatch]:
        def upstream(token: str) -> AsyncGenerator[Any, None]:
            asked = type(request)()
            asked.CopyFrom(request)
            asked.resume_token = token
            return self.calls.stream(method, asked, GATEWAY)

        lists = "deleted" in method.output_type.fields_by_name  # what can be gone was there before
        return lambda: SharedWatch(upstream, lists=lists)

    async def _logs(
        self, method: MethodDescriptor, request: StreamLogsRequest, caller: Caller, last: str
    ) -> sse.Frames:
        if last == ENDED:
            return
        if last:
            request.attempt, request.offset = place_of(last)
            request.ClearField("tail_lines")
        async with aclosing(self.calls.stream(method, request, caller)) as messages:
            async for message in messages:
                yield sse.message_frame(message, identity_of(message, follow=request.follow))

    async def _plain(self, method: MethodDescriptor, request: Message, caller: Caller) -> sse.Frames:
        async with aclosing(self.calls.stream(method, request, caller)) as messages:
            async for message in messages:
                yield sse.message_frame(message)


def identity_of(message: StreamLogsResponse, *, follow: bool) -> str:
    """Returns where a log goes on after a message: attempt and byte."""
    if message.end and not follow:
        return ENDED
    return f"{message.attempt + 1}:0" if message.end else f"{message.attempt}:{message.next_offset}"


def place_of(identity: str) -> tuple[int, int]:
    """Returns attempt and byte; raises InvalidRequestError."""
    attempt, colon, offset = identity.partition(":")
    if not (colon and attempt.isdecimal() and offset.isdecimal() and max(len(attempt), len(offset)) < 16):
        raise InvalidRequestError({"last_event_id": "must be the identity of an event of this stream"})
    return int(attempt), int(offset)
