"""One watch for many readers: nothing twice, nothing missing, and a list anew for those who are too far behind."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import pytest

from adjourn.errors import AdjournError, ControlPlaneUnreachableError, InvalidRequestError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent, WatchEventsResponse, WatchJobsResponse
from adjourn.web.rest import shared_watch
from adjourn.web.rest.shared_watch import SharedWatch, Watches


class Upstream:
    """A control plane that says what a test has it say."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Token of each stream that was opened."""
        self._said: asyncio.Queue[Any] = asyncio.Queue()

    async def open(self, token: str) -> AsyncGenerator[Any, None]:
        self.asked.append(token)
        while (said := await self._said.get()) is not None:
            if isinstance(said, AdjournError):
                raise said
            yield said

    def say(self, *messages: Any) -> None:
        for each in messages:
            self._said.put_nowait(each)

    def end(self) -> None:
        self._said.put_nowait(None)

    async def heard(self) -> None:
        while not self._said.empty():  # noqa: ASYNC110  # what takes it tells nobody
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)


class Reader:
    """Reads what a page gets, as it would: jobs by name, and the identity to come back with."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        self.frames = frames
        self.got: list[Any] = []
        self.last = ""
        self._waiting: list[tuple[Any, str | None]] = []

    async def next(self) -> Any:
        """Returns the data of the next event."""
        while not self._waiting:
            piece = (await asyncio.wait_for(anext(self.frames), 10)).decode()
            for event in piece.removesuffix("\n\n").split("\n\n"):
                lines = dict(line.partition(": ")[::2] for line in event.splitlines())
                self._waiting.append((json.loads(lines["data"]), lines.get("id")))
        data, identity = self._waiting.pop(0)
        self.last = self.last if identity is None else identity
        self.got.append(data)
        return data

    async def listed(self) -> set[str]:
        """Returns the jobs of a list, to its end."""
        names = set()
        while "job" in (data := await self.next()):
            names.add(f"{data['job']['name']} {data['job'].get('state', '')}".strip())
        assert data == {"resumeToken": self.last}
        return names


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def watch(upstream: Upstream) -> AsyncIterator[SharedWatch]:
    async for each in running(upstream, lists=True):
        yield each


@pytest.fixture
async def events(upstream: Upstream) -> AsyncIterator[SharedWatch]:
    async for each in running(upstream, lists=False):
        yield each


async def running(upstream: Upstream, *, lists: bool) -> AsyncIterator[SharedWatch]:
    watch = SharedWatch(upstream.open, lists=lists)
    task = asyncio.create_task(watch.run())
    yield watch
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def job(name: str, state: Job.State.ValueType = Job.QUEUED, token: str = "") -> WatchJobsResponse:
    return WatchJobsResponse(job=Job(name=f"jobs/{name}", state=state), resume_token=token)


def token(text: str) -> WatchJobsResponse:
    return WatchJobsResponse(resume_token=text)


def event(sequence: int) -> WatchEventsResponse:
    return WatchEventsResponse(job="jobs/a", event=JobEvent(sequence=sequence), resume_token=f"e{sequence}")


async def test_many_readers_have_one_stream(upstream: Upstream, watch: SharedWatch) -> None:
    readers = [Reader(watch.follow("")) for _ in range(50)]
    upstream.say(job("a"), job("b"), token("1"))
    for reader in readers:
        assert await reader.listed() == {"jobs/a QUEUED", "jobs/b QUEUED"}
    upstream.say(job("a", Job.RUNNING, "2"), WatchJobsResponse(deleted="jobs/b", resume_token="3"))
    for reader in readers:
        assert (await reader.next())["job"]["state"] == "RUNNING"
        assert await reader.next() == {"deleted": "jobs/b", "resumeToken": "3"}
        assert reader.last == "3"
    late = Reader(watch.follow(""))
    assert await late.listed() == {"jobs/a RUNNING"}
    assert late.last == "3"
    assert upstream.asked == [""]


async def test_who_comes_back_gets_what_was_missed_alone(upstream: Upstream, watch: SharedWatch) -> None:
    reader = Reader(watch.follow(""))
    upstream.say(job("a"), token("1"))
    await reader.listed()
    upstream.say(job("a", Job.STARTING, "2"), token("20"), job("a", Job.RUNNING, "3"))
    await upstream.heard()
    again = Reader(watch.follow(reader.last))
    assert [(await again.next())["resumeToken"] for _ in range(2)] == ["2", "3"]
    upstream.say(job("a", Job.PAUSED, "4"))
    assert (await again.next())["resumeToken"] == "4"


async def test_who_comes_back_from_elsewhere_has_the_list_anew(upstream: Upstream, watch: SharedWatch) -> None:
    upstream.say(job("a"), token("1"))
    reader = Reader(watch.follow("of another gateway"))
    assert await reader.next() == {}
    assert reader.last == "", "who leaves amid the list begins it again"
    assert await reader.listed() == {"jobs/a QUEUED"}


async def test_what_breaks_is_told_and_goes_on_where_it_was(upstream: Upstream, watch: SharedWatch) -> None:
    reader = Reader(watch.follow(""))
    upstream.say(job("a"), token("1"))
    await reader.listed()
    upstream.say(job("a", Job.STARTING, "2"))
    await reader.next()
    upstream.say(ControlPlaneUnreachableError("gone"))
    with pytest.raises(ControlPlaneUnreachableError):
        await reader.next()
    # Who comes while it is away waits for what the next try brings.
    early = asyncio.create_task(Reader(watch.follow(reader.last)).next())
    await upstream.heard()
    upstream.say(ControlPlaneUnreachableError("still gone"))
    with pytest.raises(ControlPlaneUnreachableError):
        await early
    again = Reader(watch.follow(reader.last))
    upstream.say(token("2"))
    assert await again.next() == {"resumeToken": "2"}, "nothing was missed, and it is live"
    upstream.say(job("a", Job.RUNNING, "3"))
    assert (await again.next())["job"]["state"] == "RUNNING"
    assert upstream.asked == ["", "2", "2"]


async def test_a_list_that_breaks_off_is_forgotten(upstream: Upstream, watch: SharedWatch) -> None:
    upstream.say(job("deleted-since"), ControlPlaneUnreachableError("gone"), job("a"), token("1"))
    await upstream.heard()
    assert await Reader(watch.follow("")).listed() == {"jobs/a QUEUED"}


async def test_a_replica_that_goes_away_is_replaced_without_a_word(upstream: Upstream, watch: SharedWatch) -> None:
    reader = Reader(watch.follow(""))
    upstream.say(token("1"))
    await reader.listed()
    upstream.end()
    upstream.say(token("1"), job("a", token="2"))
    assert (await reader.next())["job"]["name"] == "jobs/a"
    assert upstream.asked == ["", "1"]


async def test_a_list_that_upstream_begins_anew_is_begun_anew_for_all(upstream: Upstream, watch: SharedWatch) -> None:
    reader = Reader(watch.follow(""))
    upstream.say(job("a"), job("b"), token("1"))
    await reader.listed()
    upstream.say(WatchJobsResponse(), job("b"), token("90"))
    assert await reader.next() == {}
    assert await reader.listed() == {"jobs/b QUEUED"}
    upstream.say(WatchJobsResponse(), token("91"))
    assert await reader.next() == {}
    assert await reader.listed() == set()
    assert await Reader(watch.follow("1")).next() == {}, "what followed it then leads nowhere now"


async def test_a_slow_reader_has_the_list_anew_and_memory_stays(
    upstream: Upstream, watch: SharedWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "KEPT_MESSAGES", 10)
    slow, fast = Reader(watch.follow("")), Reader(watch.follow(""))
    upstream.say(job("a"), token("0"))
    for reader in (slow, fast):
        await reader.listed()
    for number in range(1, 101):
        upstream.say(job("a", token=str(number)))
        assert (await fast.next())["resumeToken"] == str(number)
    assert await slow.next() == {}
    assert await slow.listed() == {"jobs/a QUEUED"}
    assert slow.last == "100"
    kept = Reader(watch.follow("90"))
    assert [(await kept.next())["resumeToken"] for _ in range(10)] == [str(number) for number in range(91, 101)]
    assert await Reader(watch.follow("89")).next() == {}
    monkeypatch.setattr(shared_watch, "KEPT_BYTES", 0)
    upstream.say(job("a", token="101"))
    await fast.next()
    assert await Reader(watch.follow("100")).next() == {}


async def test_events_go_on_from_a_token_or_are_asked_for_elsewhere(upstream: Upstream, events: SharedWatch) -> None:
    upstream.say(WatchEventsResponse(resume_token="e0"))
    first = Reader(events.follow(""))
    assert await first.next() == {"resumeToken": "e0"}
    upstream.say(event(1), event(2))
    assert [(await first.next())["resumeToken"] for _ in range(2)] == ["e1", "e2"]
    again = Reader(events.follow("e0"))
    assert [(await again.next())["resumeToken"] for _ in range(2)] == ["e1", "e2"]
    from_now = Reader(events.follow(""))
    assert await from_now.next() == {"resumeToken": "e2"}
    assert upstream.asked == [""]


async def test_events_that_are_kept_no_more_are_asked_for_until_they_meet_those_that_are(
    upstream: Upstream, events: SharedWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_watch, "KEPT_SECONDS", 0.0)  # of those so far, nothing but the newest
    upstream.say(WatchEventsResponse(resume_token="e0"))
    first = Reader(events.follow(""))
    await first.next()
    for number in (1, 2, 3):
        upstream.say(event(number))
        assert (await first.next())["resumeToken"] == f"e{number}"
    monkeypatch.setattr(shared_watch, "KEPT_SECONDS", 60.0)
    late = Upstream()
    monkeypatch.setattr(events, "_upstream", late.open)
    behind = Reader(events.follow("e0"))
    late.say(event(1), event(2))
    assert [(await behind.next())["resumeToken"] for _ in range(3)] == ["e1", "e2", "e3"]
    upstream.say(event(4))
    assert (await behind.next())["resumeToken"] == "e4", "and from there on with all others"
    assert late.asked == ["e0"]
    cut_off = Reader(events.follow("e0"))
    late.say(event(1))
    late.end()
    assert (await cut_off.next())["resumeToken"] == "e1"
    with pytest.raises(ControlPlaneUnreachableError):
        await cut_off.next()


async def test_a_watch_that_is_refused_is_asked_for_again(upstream: Upstream) -> None:
    watches = Watches()
    upstream.say(InvalidRequestError({"names": "no"}))
    async with aclosing(watches.follow(b"key", lambda: SharedWatch(upstream.open, lists=True), "")) as frames:
        with pytest.raises(InvalidRequestError):
            await anext(frames)
    upstream.say(token("1"))
    async with aclosing(watches.follow(b"key", lambda: SharedWatch(upstream.open, lists=True), "")) as frames:
        assert b"resumeToken" in await anext(frames)
    await watches.aclose()


async def test_a_watch_ends_after_its_last_reader(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_watch, "LINGER_SECONDS", 0.0)
    watches = Watches()
    upstream.say(token("1"))

    async def reads() -> None:
        async with aclosing(watches.follow(b"key", lambda: SharedWatch(upstream.open, lists=True), "")) as frames:
            await anext(frames)

    async with aclosing(watches.follow(b"key", lambda: SharedWatch(upstream.open, lists=True), "")) as frames:
        await anext(frames)
        await reads()
        await asyncio.sleep(0)
        await reads()
    await reads()  # before it has ended
    assert len(upstream.asked) == 1
    await asyncio.sleep(0.01)
    upstream.say(token("1"))
    await reads()
    assert len(upstream.asked) == 2
    await watches.aclose()
