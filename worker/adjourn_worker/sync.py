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
"""Seconds; twice that after each failure, up to a share of the lease."""
RECONNECT_SHARE: Final = 0.15
"""Share of a lease that a try to connect may take at most, and the wait after it. So an agent is back within a third of
a lease once the control plane can be reached, the first messages included, and loses no job by its own slowness."""
CONNECT_LEAST: Final = 1.0
"""Seconds that a try to connect may take, however short the lease."""

Call: TypeAlias = "grpc.aio.StreamStreamCall[SynchronizeRequest, SynchronizeResponse]"


class Superseded(Exception):
    """Another agent speaks for this worker; this one must not come back."""


class NameTaken(Exception):
    """Another agent, of another data directory, speaks for the worker; this one holds nothing, and must end."""


class Stream:
    """Sends what the worker has and receives what it should have."""

    def __init__(
        self,
        address: str,
        build_request: Callable[[], SynchronizeRequest],
        on_response: Callable[[SynchronizeResponse], Awaitable[None]],
        on_name_taken: Callable[[str], None],
        *,
        lease: float,
    ) -> None:
        self.address = address
        self.build_request = build_request
        self.on_response = on_response
        self.on_name_taken = on_name_taken
        """Called with what the control plane says when it refuses the worker's name; what it raises ends `run`."""
        self.lease = lease
        """Seconds of silence after which the control plane takes the worker for lost, as it has said last."""
        self.reopening = False
        self.received = asyncio.Event()
        """Set when the open stream has brought something, or ended."""
        self.changed = asyncio.Event()
        """Set it to have the worker's state sent soon."""
        self.connected = False
        self.number = 0
        """Of the newest stream. Set it to where the numbers of this process begin."""
        self.interval = FIRST_INTERVAL
        self.acted_upon = 0
        """Sequence of the newest response of the open stream that `on_response` has dealt with."""

    async def run(self) -> None:
        """Keeps a stream open until cancelled; raises Superseded, and what `on_name_taken` raises."""
        failures = 0
        while True:
            was_connected = False
            try:
                async with grpc.aio.insecure_channel(self.address, options=self.options()) as channel:
                    await self.synchronize(AgentServiceStub(channel))
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                self.heed(error)
                log.warning("stream_broken", control_plane=self.address, error=describe(error), failures=failures)
            finally:
                was_connected, self.connected = self.connected, False
            failures = 0 if was_connected else failures + 1
            limit = min(RECONNECT_SHARE * self.lease, BACKOFF_FIRST * 2 ** min(failures, 10))
            await asyncio.sleep(random.uniform(0, limit))  # noqa: S311  # full jitter: agents must not come back as one

    def options(self) -> list[tuple[str, Any]]:
        """Returns a channel's options: those of every client, and how long a try to connect may take.

        Each channel has a connection of its own. It would else be given the one that it has just given up, to a control
        plane that may be stuck, as gRPC shares connections within a process.
        """
        seconds = max(CONNECT_LEAST, RECONNECT_SHARE * self.lease)
        own = {"grpc.min_reconnect_backoff_ms": int(1000 * seconds), "grpc.use_local_subchannel_pool": 1}
        return [*(dict(CLIENT_OPTIONS) | own).items()]

    def reopen(self) -> None:
        """Has the stream given up for a new one: what it still brings is from before."""
        self.reopening = True
        self.received.set()

    def heed(self, error: Exception) -> None:
        """Acts on a refusal that another try does not mend by itself; raises Superseded."""
        status = rpc_status.from_call(error) if isinstance(error, grpc.aio.AioRpcError) else None
        match errors.from_status(status) if status is not None else None:
            case errors.SessionSupersededError() as refusal:
                raise Superseded(refusal.message)
            case errors.WorkerNameTakenError() as refusal:
                self.on_name_taken(refusal.message)

    async def synchronize(self, stub: Any) -> None:
        """Sends and receives until the stream ends; raises what ended it, TimeoutError after too long a silence.

        Responses are handled here and not in a task of the stream's, so that its end interrupts nothing. Of several
        that wait, only the newest is handled.
        """
        self.number += 1
        call: Call = stub.Synchronize()
        newest: list[SynchronizeResponse] = []
        received = self.received = asyncio.Event()
        self.reopening = False
        self.acted_upon = 0

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
                if self.reopening:
                    return
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
                request = self.build_request()
                request.acknowledged_response = self.acted_upon
                await call.write(request)
                await asyncio.sleep(GAP)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.interval):
                        await self.changed.wait()

    async def handle(self, response: SynchronizeResponse) -> None:
        if not self.connected:
            log.info("stream_up", control_plane=self.address)
        self.connected = True
        self.interval = response.sync_interval.ToTimedelta().total_seconds() or FIRST_INTERVAL
        self.lease = response.lease_duration.ToTimedelta().total_seconds() or self.lease
        await self.on_response(response)
        if not self.acted_upon:
            self.changed.set()  # what the worker does not hold is gone once it answers a response of this stream
        self.acted_upon = response.sequence


BROKEN: Final = (grpc.aio.AioRpcError, grpc.aio.UsageError)
"""What a stream that is being given up may raise: it was raised once already, or is our own doing."""


def describe(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return "the control plane is silent"
