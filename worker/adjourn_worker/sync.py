"""The agent's side of Synchronize: one stream, opened again for as long as the agent lives.

Both directions carry whole states, so what was lost with a stream is sent again on the next. Training does not wait for
the control plane.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from adjourn import errors
from adjourn.channel import CLIENT_OPTIONS
from adjourn.v1.agent_service_pb2 import SynchronizeRequest, SynchronizeResponse
from adjourn.v1.agent_service_pb2_grpc import AgentServiceStub

log: structlog.stdlib.BoundLogger = structlog.get_logger()

FIRST_INTERVAL: Final = 2.0
"""Seconds between messages until the control plane has sent its interval."""
GAP: Final = 0.05
"""Least seconds between two messages: what changes together is sent together."""
SILENCE_INTERVALS: Final = 5
"""Intervals without a message after which the stream is given up; its peer may be alive and stuck."""
BACKOFF_FIRST: Final = 0.2
BACKOFF_MOST: Final = 10.0

Call: TypeAlias = "grpc.aio.StreamStreamCall[SynchronizeRequest, SynchronizeResponse]"


class Superseded(Exception):
    """Another agent speaks for this worker; this one must not come back."""


class Stream:
    """Sends what the worker has and receives what it should have."""

    def __init__(
        self,
        address: str,
        build_request: Callable[[], SynchronizeRequest],
        on_response: Callable[[SynchronizeResponse], Awaitable[None]],
    ) -> None:
        self.address = address
        self.build_request = build_request
        self.on_response = on_response
        self.changed = asyncio.Event()
        """Set it to have the worker's state sent soon."""
        self.connected = False
        self.interval = FIRST_INTERVAL

    async def run(self) -> None:
        """Keeps a stream open until cancelled; raises Superseded."""
        failures = 0
        while True:
            was_connected = False
            try:
                async with grpc.aio.insecure_channel(self.address, options=CLIENT_OPTIONS) as channel:
                    await self.synchronize(AgentServiceStub(channel))
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                give_up_if_superseded(error)
                log.warning("stream_broken", control_plane=self.address, error=describe(error), failures=failures)
            finally:
                was_connected, self.connected = self.connected, False
            failures = 0 if was_connected else failures + 1
            limit = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 10))
            await asyncio.sleep(random.uniform(0, limit))  # noqa: S311  # full jitter: agents must not come back as one

    async def synchronize(self, stub: Any) -> None:
        """Sends and receives until the stream ends; raises what ended it, TimeoutError after too long a silence.

        Responses are handled here and not in a task of the stream's, so that its end interrupts nothing. Of several
        that wait, only the newest is handled.
        """
        call: Call = stub.Synchronize()
        newest: list[SynchronizeResponse] = []
        received = asyncio.Event()

        async def read() -> None:  # on its own: a timeout around a read would leak the call (grpc issue 43360)
            async for response in call:
                newest[:] = [response]
                received.set()

        reader = asyncio.create_task(read())
        writer = asyncio.create_task(self.write(call))
        for task in (reader, writer):
            task.add_done_callback(lambda _: received.set())
        try:
            while not reader.done():
                async with asyncio.timeout(SILENCE_INTERVALS * self.interval):
                    await received.wait()
                received.clear()
                if newest:
                    await self.handle(newest.pop())
                if writer.done():
                    writer.result()
            reader.result()
        finally:
            call.cancel()
            for task in (reader, writer):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, *BROKEN):
                    await task

    async def write(self, call: Call) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):  # the stream has ended; the reader knows why
            while True:
                self.changed.clear()
                await call.write(self.build_request())
                await asyncio.sleep(GAP)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.interval):
                        await self.changed.wait()

    async def handle(self, response: SynchronizeResponse) -> None:
        if not self.connected:
            log.info("stream_up", control_plane=self.address)
        self.connected = True
        self.interval = response.sync_interval.ToTimedelta().total_seconds() or FIRST_INTERVAL
        await self.on_response(response)


BROKEN: Final = (grpc.aio.AioRpcError, grpc.aio.UsageError)
"""What a stream that is being given up may raise: it was raised once already, or is our own doing."""


def give_up_if_superseded(error: Exception) -> None:
    if isinstance(error, grpc.aio.AioRpcError):
        status = rpc_status.from_call(error)
        if status is not None and isinstance(errors.from_status(status), errors.SessionSupersededError):
            raise Superseded(status.message)


def describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return "the control plane is silent"
