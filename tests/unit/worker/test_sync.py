"""The agent's side of the stream, against a peer that does what a test wants."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from adjourn import errors
from adjourn.v1 import agent_service_pb2_grpc
from adjourn.v1.agent_service_pb2 import SynchronizeRequest, SynchronizeResponse
from adjourn_worker import sync as module
from adjourn_worker.sync import NameTaken, Stream, Superseded

LEASE = 0.3
"""The most seconds between two tries are a share of it."""
Requests = AsyncIterator[SynchronizeRequest]
Answers = AsyncIterator[SynchronizeResponse]
Behaviour = Callable[[Requests, Any], Answers]


def response(number: int = 0, *, interval: float = 0.05) -> SynchronizeResponse:
    made = SynchronizeResponse(sequence=1, acknowledged_report=number)
    made.sync_interval.FromTimedelta(timedelta(seconds=interval))
    return made


class Peer(agent_service_pb2_grpc.AgentServiceServicer):
    """A control plane; the last behaviour stays."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.streams = 0
        self.connections: list[str] = []
        """Where each stream came from."""
        self.ended = 0
        self.said: list[SynchronizeRequest] = []
        self.address = ""

    async def Synchronize(self, requests: Requests, context: Any) -> Answers:  # noqa: N802
        self.streams += 1
        self.connections.append(context.peer())
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]

        async def noted() -> Requests:
            async for request in requests:
                self.said.append(request)
                yield request

        try:
            async for answer in behaviour(noted(), context):
                yield answer
        finally:
            self.ended += 1


async def answer_each(requests: Requests, _: Any) -> Answers:
    async for _request in requests:
        yield response()


async def answer_once(requests: Requests, _: Any) -> Answers:
    await anext(requests)
    yield response(interval=600)


async def say_nothing_more(requests: Requests, _: Any) -> Answers:
    await anext(requests)
    yield response(interval=0.02)
    await asyncio.Event().wait()


async def supersede(requests: Requests, context: Any) -> Answers:
    await anext(requests)
    yield response()
    status = errors.SessionSupersededError("another agent speaks").to_status()
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(grpc.StatusCode.ABORTED, status.message, details)


async def refuse_the_name(requests: Requests, context: Any) -> Answers:
    await anext(requests)
    status = errors.WorkerNameTakenError("workers/w is another's").to_status()
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, status.message, details)
    yield response()


async def shut_down(requests: Requests, context: Any) -> Answers:
    await anext(requests)
    yield response()
    await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")


class Side:
    """The agent's side, and what it heard."""

    def __init__(self, address: str) -> None:
        self.stream = Stream(address, self.build_request, self.on_response, self.on_name_taken, lease=LEASE)
        self.heard: list[int] = []
        self.refusals: list[str] = []
        self.spoken = 0
        self.listening: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)

    def build_request(self) -> SynchronizeRequest:
        self.spoken += 1
        return SynchronizeRequest(session_id=str(self.spoken))

    def on_name_taken(self, message: str) -> None:
        self.refusals.append(message)

    async def on_response(self, heard: SynchronizeResponse) -> None:
        await self.listening()
        self.heard.append(heard.acknowledged_report)


@contextlib.asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[str]:
    """Yields where it serves."""
    server = grpc.aio.server()
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def running(side: Side) -> "AsyncIterator[asyncio.Task[None]]":
    task = asyncio.create_task(side.stream.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def connected(*behaviours: Behaviour) -> AsyncIterator[tuple[Peer, Side, "asyncio.Task[None]"]]:
    peer = Peer(*behaviours)
    async with serving(peer) as address:
        side = Side(address)
        async with running(side) as task:
            yield peer, side, task


@pytest.fixture(autouse=True)
def _soon_and_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has nobody given up because the machine is busy."""
    monkeypatch.setattr(module, "BACKOFF_FIRST", 0.01)
    monkeypatch.setattr(module, "SILENCE_INTERVALS", 1000)


Eventually = Callable[..., Awaitable[None]]


async def test_it_speaks_at_every_interval_and_hears_each_answer(eventually: Eventually) -> None:
    async with connected(answer_each) as (peer, side, _):
        await eventually(lambda: len(side.heard) > 3)
        assert peer.streams == 1
        assert side.stream.connected
        assert side.stream.interval == 0.05


async def test_a_response_is_acknowledged_once_it_was_acted_upon(eventually: Eventually) -> None:
    async def number(requests: Requests, _: Any) -> Answers:
        yield SynchronizeResponse(sequence=7)
        async for _request in requests:
            pass

    async with connected(number) as (peer, side, _task):
        held = asyncio.Event()

        async def listening() -> None:
            await held.wait()

        side.listening = listening
        side.stream.changed.set()
        await eventually(lambda: len(peer.said) > 1)
        assert {each.acknowledged_response for each in peer.said} == {0}
        held.set()  # it says so at once: what it does not hold is gone only then
        await eventually(lambda: peer.said[-1].acknowledged_response == 7)


async def test_it_speaks_soon_when_something_changed_but_not_for_each_change(eventually: Eventually) -> None:
    async def answer_rarely(requests: Requests, _: Any) -> Answers:
        async for _request in requests:
            yield response(interval=600)

    async with connected(answer_rarely) as (_, side, _task):
        await eventually(lambda: side.heard)
        began, before = time.monotonic(), side.spoken
        for _ in range(100):
            side.stream.changed.set()
            await asyncio.sleep(0)
        await eventually(lambda: side.spoken > before)
        assert side.spoken - before <= 1 + (time.monotonic() - began) / module.GAP


@pytest.mark.parametrize("end", [answer_once, shut_down])
async def test_it_comes_back_however_often_the_stream_ends(end: Behaviour, eventually: Eventually) -> None:
    async with connected(*[end] * 20, answer_each) as (peer, side, task):

        def speaking() -> bool:
            side.stream.changed.set()  # so that it writes just when the stream ends
            return peer.streams > 20 and side.stream.connected

        await eventually(speaking)
        assert not task.done()
        assert len(set(peer.connections)) == peer.streams, "another connection may lead to another control plane"


async def test_a_peer_that_is_alive_and_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    async with connected(say_nothing_more, answer_each) as (peer, side, _):
        with monkeypatch.context() as impatient:
            impatient.setattr(module, "SILENCE_INTERVALS", 5)
            await eventually(lambda: peer.streams > 1)
        await eventually(lambda: side.stream.connected)


async def test_it_finds_the_control_plane_that_answers_behind_a_name_of_several(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """The first can be reached, and cannot reach its store."""

    async def hold_on(_: Requests, __: Any) -> Answers:
        await asyncio.Event().wait()
        yield response()

    stuck, sound = Peer(hold_on), Peer(answer_each)
    async with serving(stuck) as first, serving(sound) as second:
        side = Side(f"ipv4:{first},{second}")
        side.stream.interval = 0.05
        with monkeypatch.context() as impatient:
            impatient.setattr(module, "SILENCE_INTERVALS", 5)
            async with running(side):
                await eventually(lambda: sound.streams)


async def test_superseded_it_does_not_come_back() -> None:
    async with connected(supersede, answer_each) as (peer, _, task):
        with pytest.raises(Superseded, match="another agent speaks"):
            await asyncio.wait_for(asyncio.shield(task), 20)
        assert peer.streams == 1


async def test_a_name_that_is_taken_is_told_and_tried_again(eventually: Eventually) -> None:
    async with connected(refuse_the_name, refuse_the_name, answer_each) as (peer, side, _):
        await eventually(lambda: peer.streams == 3 and side.stream.connected)
        assert side.refusals == ["workers/w is another's"] * 2


async def test_what_the_end_at_a_taken_name_raises_ends_it() -> None:
    async with connected(refuse_the_name, answer_each) as (peer, side, task):

        def give_up(message: str) -> None:
            raise NameTaken(message)

        side.stream.on_name_taken = give_up
        with pytest.raises(NameTaken, match="is another's"):
            await asyncio.wait_for(asyncio.shield(task), 20)
        assert peer.streams == 1


async def test_a_stream_that_is_to_be_opened_anew_brings_nothing_more(eventually: Eventually) -> None:
    async with connected(answer_each) as (peer, side, _):

        async def once() -> None:
            side.listening = lambda: asyncio.sleep(0)
            side.stream.reopen()

        side.listening = once
        await eventually(lambda: peer.streams == 2 and len(side.heard) > 1)


async def test_it_is_back_within_a_third_of_a_lease_however_long_it_was_away(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    waits: list[float] = []

    def longest(_least: float, most: float) -> float:
        waits.append(most)
        return most / 100

    monkeypatch.setattr("random.uniform", longest)
    side = Side("127.0.0.1:1")
    side.stream.lease = 60.0
    task = asyncio.create_task(side.stream.run())
    await eventually(lambda: len(waits) > 14)
    task.cancel()
    await asyncio.wait([task])
    assert waits == sorted(waits)
    assert max(waits) == 9.0, "a try takes as long, so that both are less than a third"


async def test_a_peer_whose_packets_vanish_is_tried_again_within_a_share_of_the_lease(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(module, "CONNECT_LEAST", 0.3)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (first, second):  # no more connections fit into its queue: a further SYN has no answer
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        side = Side(f"127.0.0.1:{full.getsockname()[1]}")
        began = time.monotonic()
        with capture_logs() as logs:
            task = asyncio.create_task(side.stream.run())
            await eventually(lambda: len(logs) > 2)
            assert time.monotonic() - began > 3 * 0.3  # each try has its time
            task.cancel()
            await asyncio.wait([task])
        assert all(entry["error"].startswith("UNAVAILABLE") for entry in logs)


class HundredAnswers:
    """A stub whose call brings a hundred answers while the first is listened to."""

    def __init__(self) -> None:
        self.listened_to, self.all_read = asyncio.Event(), asyncio.Event()

    def Synchronize(self) -> "HundredAnswers":  # noqa: N802
        return self

    async def __aiter__(self) -> Answers:
        yield response(0)
        await self.listened_to.wait()
        for number in range(1, 100):
            yield response(number)
        self.all_read.set()
        await asyncio.Event().wait()

    async def write(self, _: SynchronizeRequest) -> None:
        await asyncio.Event().wait()

    def cancel(self) -> None:
        pass


async def test_of_many_answers_only_the_newest_is_heard(eventually: Eventually) -> None:
    side, answers = Side(""), HundredAnswers()

    async def listen() -> None:
        answers.listened_to.set()
        await answers.all_read.wait()

    side.listening = listen
    task = asyncio.create_task(side.stream.synchronize(answers))
    try:
        await eventually(lambda: len(side.heard) > 1)
        assert side.heard == [0, 99]
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_end_of_a_stream_interrupts_nothing(eventually: Eventually) -> None:
    go_on = asyncio.Event()
    async with connected(answer_once, answer_each) as (peer, side, _):
        side.listening = lambda: wait(go_on)
        await eventually(lambda: peer.ended == 1 and side.stream.connected)
        assert side.heard == []
        before = side.spoken

        def speaks_into_the_void() -> bool:
            side.stream.changed.set()
            return side.spoken > before

        await eventually(speaks_into_the_void)
        go_on.set()
        await eventually(lambda: peer.streams == 2 and len(side.heard) > 1)


async def test_a_fault_in_what_is_done_about_an_answer_ends_it() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async with connected(answer_each) as (_, side, task):
        side.listening = fail
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(asyncio.shield(task), 20)


async def test_without_a_control_plane_it_keeps_trying() -> None:
    side = Side("127.0.0.1:1")
    task = asyncio.create_task(side.stream.run())
    done, _ = await asyncio.wait([task], timeout=0.5)
    assert not done
    assert not side.stream.connected
    task.cancel()
    await asyncio.wait([task])


async def wait(event: asyncio.Event) -> None:
    await event.wait()
