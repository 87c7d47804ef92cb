"""An answer of events: its head, its keep-alives, its end, and readers who leave or do not read."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from adjourn.errors import AdjournError, ControlPlaneUnreachableError, NotFoundError
from adjourn.v1.checkpoint_service_pb2 import ReadCheckpointRequest, ReadCheckpointResponse
from adjourn.v1.job_service_pb2 import StreamLogsResponse, WatchJobsResponse
from adjourn.web.rest import downloads, sse
from adjourn.web.rest.sse import EventStream
from adjourn.web.rest.streams import identity_of, place_of
from adjourn.web.rest.transcoding import to_json


class Reader:
    """The other side of an answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.ended = False
        self.leaves = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        await self.reads.wait()
        self.body += message.get("body", b"")
        self.ended = not message.get("more_body", False)


@pytest.fixture
def reader() -> Reader:
    return Reader()


class Source:
    """A source of frames that says whether it was closed."""

    def __init__(self, *frames: bytes | AdjournError, stays: bool = False) -> None:
        self.frames, self.stays, self.closed = frames, stays, False

    async def open(self) -> AsyncGenerator[bytes, None]:
        try:
            for each in self.frames:
                if isinstance(each, AdjournError):
                    raise each
                yield each
            if self.stays:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def serve(source: Source, reader: Reader, closing: asyncio.Event | None = None) -> None:
    await EventStream(source.open(), closing or asyncio.Event()).serve(reader.receive, reader.send)


async def test_events_come_and_the_answer_ends_with_their_source(reader: Reader) -> None:
    await serve(Source(sse.frame("1", "a"), sse.frame("2"), sse.frame("3", "")), reader)
    assert (reader.status, reader.ended) == (200, True)
    assert reader.body == b"retry: 1000\n\nid: a\ndata: 1\n\ndata: 2\n\nid\ndata: 3\n\n"


async def test_what_ends_without_a_word_has_a_browser_stop_asking(reader: Reader) -> None:
    await serve(Source(), reader)
    assert (reader.status, reader.body) == (204, b"")


async def test_an_error_before_anything_has_a_status_of_its_own_unless_it_may_mend(reader: Reader) -> None:
    with pytest.raises(NotFoundError):
        await serve(Source(NotFoundError("no such job", job="jobs/a")), reader)
    assert reader.status == 0
    await serve(Source(ControlPlaneUnreachableError("away")), reader)
    assert reader.status == 200
    assert reader.body.startswith(b'retry: 1000\n\nevent: error\ndata: {"code": 14, "message": "away"')


async def test_an_error_later_is_the_last_event(reader: Reader) -> None:
    await serve(Source(sse.frame("1"), NotFoundError("gone", job="jobs/a")), reader)
    assert (reader.status, reader.ended) == (200, True)
    assert b'data: 1\n\nevent: error\ndata: {"code": 5, "message": "gone"' in reader.body


async def test_a_silent_stream_is_opened_and_kept_alive(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "OPEN_SECONDS", 0.01)
    monkeypatch.setattr(sse, "KEEPALIVE_SECONDS", 0.01)
    source = Source(stays=True)
    serving = asyncio.create_task(serve(source, reader))
    async with asyncio.timeout(10):
        while reader.body.count(b": still here\n\n") < 2:  # noqa: ASYNC110  # the reader is told nothing else
            await asyncio.sleep(0.001)
    assert reader.status == 200
    reader.leaves.set()
    await asyncio.wait_for(serving, 10)
    assert source.closed


async def test_a_gateway_that_goes_away_says_so(reader: Reader) -> None:
    closing = asyncio.Event()
    closing.set()
    source = Source(stays=True)
    await asyncio.wait_for(serve(source, reader, closing), 10)
    assert b'event: error\ndata: {"code": 14' in reader.body
    assert b"SHUTTING_DOWN" in reader.body
    assert source.closed


async def test_a_reader_that_takes_nothing_is_given_up(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STALL_SECONDS", 0.01)
    reader.reads.clear()
    source = Source(sse.frame("1"), stays=True)
    await asyncio.wait_for(serve(source, reader), 10)
    assert source.closed
    assert not reader.ended, "the answer is cut off"


async def test_a_call_whose_caller_leaves_is_cancelled(reader: Reader) -> None:
    cancelled = asyncio.Event()

    async def call() -> None:
        try:
            reader.leaves.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(sse.ReaderGone):
        await asyncio.wait_for(sse.unless_gone(reader.receive, call()), 10)
    assert cancelled.is_set()


@pytest.mark.parametrize("message", [WatchJobsResponse(), WatchJobsResponse(deleted="jobs/a")])
def test_a_token_stands_in_the_message_as_in_the_contract(message: WatchJobsResponse) -> None:
    whole = WatchJobsResponse()
    whole.CopyFrom(message)
    whole.resume_token = 'a"b'
    identity, data = sse.with_token(to_json(message), whole.resume_token).decode().splitlines()[:2]
    assert identity == 'id: a"b'
    assert json.loads(data.removeprefix("data: ")) == json.loads(to_json(whole))


def test_a_log_goes_on_where_a_message_ends() -> None:
    piece = StreamLogsResponse(attempt=2, offset=5, next_offset=9)
    end = StreamLogsResponse(attempt=2, next_offset=9, end=StreamLogsResponse.WHOLE)
    assert place_of(identity_of(piece, follow=True)) == (2, 9)
    assert place_of(identity_of(end, follow=True)) == (3, 0)
    assert identity_of(end, follow=False) == "end"


async def test_a_file_comes_as_it_is_and_one_that_breaks_is_not_whole(reader: Reader) -> None:
    async def pieces(*said: bytes | AdjournError) -> AsyncGenerator[ReadCheckpointResponse, None]:
        for each in said:
            if isinstance(each, AdjournError):
                raise each
            yield ReadCheckpointResponse(data=each)

    request = ReadCheckpointRequest(file='a"b/c')
    await downloads.serve(pieces(b"one", b"two"), request, reader.receive, reader.send)
    assert (reader.status, reader.body, reader.ended) == (200, b"onetwo", True)
    assert (b"content-disposition", b'attachment; filename="a_b_c"') in downloads.head(request.file)
    refused = Reader()
    with pytest.raises(NotFoundError):
        await downloads.serve(pieces(NotFoundError("no")), request, refused.receive, refused.send)
    assert refused.status == 0
    broken = Reader()
    with pytest.raises(ControlPlaneUnreachableError):
        await downloads.serve(pieces(b"x", ControlPlaneUnreachableError("x")), request, broken.receive, broken.send)
    assert (broken.body, broken.ended) == (b"x", False)
