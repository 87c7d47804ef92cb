"""Each event once, in order: from now on, from a token, and across what is kept no more."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from adjourn import errors
from adjourn.v1.job_service_pb2 import JobEvent, WatchEventsRequest, WatchEventsResponse
from adjourn_control_plane.api import event_watch
from adjourn_control_plane.api.event_watch import EventWatch
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import change, created, there

A, B = JobName("jobs/a"), JobName("jobs/b")
Open = Callable[..., AsyncIterator[WatchEventsResponse]]


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    """Keeps ten events."""
    kept = MemoryStore(changes_kept=10)
    for name in (A, B):
        await created(kept, name, labels={"name": name[-1]})
    yield kept
    await kept.aclose()


@pytest.fixture
async def notifier(store: MemoryStore) -> AsyncIterator[Notifier]:
    notifier = Notifier(store)
    ringing = asyncio.create_task(notifier.run())
    yield notifier
    await store.aclose()
    await ringing


@pytest.fixture
async def watch(store: MemoryStore, notifier: Notifier) -> AsyncIterator[Open]:
    serving, opened = EventWatch(store, notifier), []

    def open_stream(**request: object) -> AsyncIterator[WatchEventsResponse]:
        stream = serving.follow(WatchEventsRequest(**request))  # type: ignore[arg-type]
        opened.append(stream)
        return stream

    yield open_stream
    for stream in opened:
        await stream.aclose()


async def tell(store: MemoryStore, job: JobName, sequence: int, kind: JobEvent.Type.ValueType = JobEvent.BEGAN) -> None:
    await store.commit(change(await there(store, job), events=[JobEvent(sequence=sequence, type=kind)]))


async def following(stream: AsyncIterator[WatchEventsResponse], count: int) -> list[tuple[str, int]]:
    """Returns the next events."""
    async with asyncio.timeout(10):
        found = [await anext(stream) for _ in range(count)]
    assert all(each.resume_token and each.HasField("event") for each in found)
    return [(each.job, each.event.sequence) for each in found]


async def test_it_begins_with_now_and_goes_on_from_a_token(store: MemoryStore, watch: Open) -> None:
    await tell(store, A, 1)
    stream = watch()
    first = await anext(stream)
    assert first.resume_token
    assert not first.HasField("event")
    await tell(store, A, 2)
    await tell(store, B, 1)
    assert await following(stream, 2) == [(A, 2), (B, 1)]
    await tell(store, A, 3)
    assert await following(stream, 1) == [(A, 3)]
    assert await following(watch(resume_token=first.resume_token), 3) == [(A, 2), (B, 1), (A, 3)]
    newest = await store.latest_event_token()
    assert await anext(watch(resume_token=newest)) == WatchEventsResponse(resume_token=newest), "it is live"


async def test_only_what_matches_comes(store: MemoryStore, watch: Open) -> None:
    streams = [watch(names=[B]), watch(labels={"name": "b"}), watch(types=[JobEvent.PAUSED])]
    for stream in streams:
        await anext(stream)
    await tell(store, A, 1)
    await tell(store, B, 1, JobEvent.PAUSED)
    await tell(store, A, 2)
    for stream in streams:
        assert await following(stream, 1) == [(B, 1)]


async def test_what_is_kept_no_more_is_a_gap_and_the_rest_follows(store: MemoryStore, watch: Open) -> None:
    start = (await anext(watch())).resume_token
    for sequence in range(1, 16):
        await tell(store, A, sequence)
    stream = watch(resume_token=start)
    gap = await anext(stream)
    assert (gap.gap, gap.resume_token, gap.HasField("event")) == (True, start, False)
    assert await following(stream, 10) == [(A, sequence) for sequence in range(6, 16)]


async def test_a_token_of_another_store_is_a_gap_too(store: MemoryStore, watch: Open) -> None:
    stream = watch(resume_token="99999-0")
    assert (await anext(stream)).gap
    await tell(store, A, 1)
    assert await following(stream, 1) == [(A, 1)]


async def test_who_is_far_behind_reads_from_the_store(
    store: MemoryStore, watch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_watch, "KEPT", 2)
    monkeypatch.setattr(event_watch, "BATCH", 3)
    start = (await anext(watch())).resume_token
    near = watch(resume_token=start)
    for sequence in range(1, 9):
        await tell(store, A, sequence)
        assert await following(near, 1) == [(A, sequence)]
    assert await following(watch(resume_token=start), 8) == [(A, sequence) for sequence in range(1, 9)]


async def test_a_silent_stream_shows_that_it_lives(
    store: MemoryStore, watch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_watch, "KEEPALIVE_SECONDS", 0)
    stream = watch(names=[B])
    await anext(stream)
    await tell(store, A, 1)
    newest = await store.latest_event_token()
    async with asyncio.timeout(10):
        while (shown := await anext(stream)).resume_token != newest:
            assert not shown.HasField("event")


async def test_it_ends_when_the_process_drains_and_refuses_what_is_no_token(
    store: MemoryStore, notifier: Notifier, watch: Open
) -> None:
    async with aclosing(EventWatch(store, notifier).follow(WatchEventsRequest())) as stream:
        await anext(stream)
        notifier.close()
        with pytest.raises(errors.ShuttingDownError):
            await anext(stream)
    with pytest.raises(errors.InvalidRequestError):
        await anext(watch(resume_token="now"))
