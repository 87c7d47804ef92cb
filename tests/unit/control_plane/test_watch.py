"""Each job once at the start, then its newest state after changes; and where to go on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent, WatchJobsRequest, WatchJobsResponse
from adjourn_control_plane.api import change_tail, event_watch
from adjourn_control_plane.api import watch as watching
from adjourn_control_plane.api.watch import Watch
from adjourn_control_plane.store.interface import Changed, JobName, JobStore, Stored
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import change, created, deletion, there

JOB = "jobs/a"


class Watcher:
    """Reads a stream to the end of what there is."""

    def __init__(self, store: JobStore, stream: AsyncIterator[WatchJobsResponse]) -> None:
        self.store = store
        self.stream = stream
        self.token = ""

    async def next(self) -> WatchJobsResponse:
        response = await asyncio.wait_for(anext(self.stream), 10)
        self.token = response.resume_token or self.token
        return response

    async def states(self, until: str = "") -> list[str]:
        """Returns what changed, up to a job's change or to the end of the first list."""
        found: list[str] = []
        while True:
            response = await self.next()
            if not response.HasField("job") and not response.deleted:
                return found
            name = response.deleted or response.job.name
            state = "deleted" if response.deleted else Job.State.Name(response.job.state)
            found.append(f"{name} {state}")
            if name == until:
                return found


Open = Callable[..., Awaitable[Watcher]]


@pytest.fixture
async def watch(memory_store: MemoryStore) -> AsyncIterator[Open]:
    notifier = Notifier(memory_store)
    ringing = asyncio.create_task(notifier.run())
    opened = []

    async def open_stream(store: JobStore = memory_store, **request: object) -> Watcher:
        stream = Watch(store, notifier).follow(WatchJobsRequest(**request))  # type: ignore[arg-type]
        opened.append(stream)
        return Watcher(store, stream)

    yield open_stream
    for stream in opened:
        await stream.aclose()
    await memory_store.aclose()
    await ringing


async def moved(store: MemoryStore, name: str, state: Job.State.ValueType) -> None:
    await store.commit(change(await there(store, JobName(name)), state=state))


async def test_each_job_once_then_the_place_to_go_on_from(memory_store: MemoryStore, watch: Open) -> None:
    await created(memory_store, "jobs/a")
    await created(memory_store, "jobs/b")
    watcher = await watch()
    first = await watcher.next()
    assert first.job.name == "jobs/b"
    assert first.job.etag
    assert not first.resume_token, "going on from here would leave out the rest of the list"
    assert await watcher.states() == ["jobs/a QUEUED"]
    assert watcher.token


async def test_a_change_is_told(memory_store: MemoryStore, watch: Open) -> None:
    await created(memory_store, JOB)
    watcher = await watch()
    await watcher.states()
    await moved(memory_store, JOB, Job.PAUSED)
    response = await watcher.next()
    assert (response.job.name, response.job.state) == (JOB, Job.PAUSED)
    assert response.resume_token


async def test_many_changes_of_a_job_become_one(memory_store: MemoryStore, watch: Open) -> None:
    await created(memory_store, JOB)
    watcher = await watch()
    await watcher.states()
    for state in (Job.STARTING, Job.RUNNING, Job.PAUSING, Job.PAUSED):
        await moved(memory_store, JOB, state)
    await created(memory_store, "jobs/last")
    assert await watcher.states(until="jobs/last") == [f"{JOB} PAUSED", "jobs/last QUEUED"]


async def test_going_on_after_a_break_tells_what_was_missed(memory_store: MemoryStore, watch: Open) -> None:
    await created(memory_store, JOB)
    await created(memory_store, "jobs/still")
    before = await watch()
    await before.states()
    await moved(memory_store, JOB, Job.PAUSED)
    await created(memory_store, "jobs/new")
    after = await watch(resume_token=before.token)
    assert await after.states(until="jobs/new") == [f"{JOB} PAUSED", "jobs/new QUEUED"]


async def test_a_deletion_is_told(memory_store: MemoryStore, watch: Open) -> None:
    job = await created(memory_store, JOB)
    watcher = await watch(names=[JOB])
    await watcher.states()
    other = await created(memory_store, "jobs/other")
    await memory_store.commit(deletion(other))
    await memory_store.commit(deletion(job))
    assert await watcher.states(until=JOB) == [f"{JOB} deleted"]


async def test_names_and_labels_choose(memory_store: MemoryStore, watch: Open) -> None:
    for name, team in (("jobs/a", "x"), ("jobs/b", "y"), ("jobs/c", "x")):
        await created(memory_store, name, labels={"team": team})
    named = await watch(names=["jobs/b", "jobs/c", "jobs/b", "jobs/no"])
    assert await named.states() == ["jobs/b QUEUED", "jobs/c QUEUED"]
    labelled = await watch(labels={"team": "x"})
    assert await labelled.states() == ["jobs/c QUEUED", "jobs/a QUEUED"]
    both = await watch(names=["jobs/a", "jobs/b"], labels={"team": "x"})
    assert await both.states() == ["jobs/a QUEUED"]
    for name in ("jobs/b", "jobs/c"):
        await moved(memory_store, name, Job.PAUSED)
    assert await labelled.states(until="jobs/c") == ["jobs/c PAUSED"]


async def test_a_token_that_was_trimmed_starts_again_with_the_current_jobs(watch: Open) -> None:
    store = MemoryStore(changes_kept=10)
    for number in range(20):
        await created(store, f"jobs/j{number}")
    watcher = await watch(store, resume_token="1-0")
    assert await watcher.next() == WatchJobsResponse(), "the list begins anew"
    assert len(await watcher.states()) == 20


async def test_a_stream_that_falls_behind_the_trimming_starts_again(watch: Open) -> None:
    store = MemoryStore(changes_kept=10)
    await created(store, JOB)
    watcher = await watch(store)
    await watcher.states()
    for number in range(30):
        await created(store, f"jobs/j{number}")
    assert await watcher.next() == WatchJobsResponse(), "the list begins anew"
    assert len(await watcher.states()) == 31


async def test_who_comes_back_and_has_missed_nothing_hears_that_it_is_live(
    memory_store: MemoryStore, watch: Open
) -> None:
    await created(memory_store, JOB)
    before = await watch()
    await before.states()
    after = await watch(resume_token=before.token)
    assert await after.next() == WatchJobsResponse(resume_token=before.token)


@pytest.mark.parametrize(
    "token", ["x", "1", "1-", "-1-0", "1-0-0", "01-0", "1-0\n", "99999999999999999999-0", "$", "+"]
)
async def test_what_never_was_a_token_is_refused(token: str, watch: Open) -> None:
    watcher = await watch(resume_token=token)
    with pytest.raises(errors.InvalidRequestError) as caught:
        await watcher.next()
    assert list(caught.value.violations) == ["resume_token"]


async def test_long_lists_come_in_batches(
    memory_store: MemoryStore, watch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BATCH", 3)
    names = [f"jobs/j{number}" for number in range(10)]
    for name in names:
        await created(memory_store, name)
    watcher = await watch()
    assert len(await watcher.states()) == 10
    for name in names:
        await moved(memory_store, name, Job.PAUSED)
    assert await watcher.states(until=names[-1]) == [f"{name} PAUSED" for name in names]


async def test_silence_is_broken_and_moves_the_token(
    memory_store: MemoryStore, watch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await created(memory_store, JOB)
    watcher = await watch(names=[JOB])
    await watcher.states()
    before = watcher.token
    await created(memory_store, "jobs/not-watched")
    monkeypatch.setattr(watching, "KEEPALIVE_SECONDS", 0.0)
    response = await watcher.next()
    assert not response.HasField("job")
    assert response.resume_token not in ("", before)


async def test_draining_ends_every_stream(memory_store: MemoryStore) -> None:
    notifier = Notifier(memory_store)
    stream = Watch(memory_store, notifier).follow(WatchJobsRequest())
    async with aclosing(stream):
        assert (await anext(stream)).resume_token
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        notifier.close()
        with pytest.raises(errors.ShuttingDownError):
            await asyncio.wait_for(waiting, 10)
    assert not notifier.subscriptions


async def test_an_outage_ends_the_stream_with_what_it_is(memory_store: MemoryStore, watch: Open) -> None:
    watcher = await watch()
    await watcher.states()
    memory_store.available = False
    memory_store.reconnect()
    with pytest.raises(errors.StoreUnavailableError):
        await watcher.next()
    memory_store.available = True


class Counting(MemoryStore):
    """Counts what watchers read."""

    def __init__(self, *, changes_kept: int = 100_000) -> None:
        super().__init__(changes_kept=changes_kept)
        self.calls, self.gets, self.tails = 0, 0, 0

    async def _reach(self) -> None:
        self.calls += 1
        await super()._reach()

    async def quiet(self) -> None:
        """Waits until nobody asks anything any more."""
        before = -1
        while before != self.calls:
            before = self.calls
            for _ in range(10):
                await asyncio.sleep(0)

    async def get(self, job: JobName) -> Stored | None:
        self.gets += 1
        return await super().get(job)

    async def changes(self, after: str, *, size: int) -> list[Changed]:
        found = await super().changes(after, size=size)
        self.tails += len(found)
        return found


async def test_draining_does_not_wait_for_a_watcher_that_always_has_changes(memory_store: MemoryStore) -> None:
    """Whoever was never done with the changes was never asked to leave (C23)."""
    await created(memory_store, JOB)
    notifier = Notifier(memory_store)
    stream = Watch(memory_store, notifier).follow(WatchJobsRequest())
    heard = 0

    async def listen() -> None:
        nonlocal heard
        async for _ in stream:
            await memory_store.commit(change(await there(memory_store, JobName(JOB))))
            heard += 1
            if heard == 10:
                notifier.close()

    async with aclosing(stream):
        with pytest.raises(errors.ShuttingDownError):
            await listen()
    assert heard == 10


async def test_a_deletion_is_told_to_those_who_could_have_seen_the_job(memory_store: MemoryStore, watch: Open) -> None:
    """A watcher by label was told of the deletion of jobs that it had never heard of (C22)."""
    mine = await created(memory_store, "jobs/mine", labels={"team": "x"})
    other = await created(memory_store, "jobs/other", labels={"team": "y"})
    await created(memory_store, "jobs/last", labels={"team": "x"})
    before = await watch(labels={"team": "x"})
    await before.states()
    for gone in (other, mine):
        await memory_store.commit(deletion(gone))
    expected = ["jobs/mine deleted", "jobs/last PAUSED"]
    await moved(memory_store, "jobs/last", Job.PAUSED)
    after = await watch(labels={"team": "x"}, resume_token=before.token)
    assert await before.states(until="jobs/last") == expected
    assert await after.states(until="jobs/last") == expected, "however it came to know of the job"


async def test_a_job_that_loses_its_label_is_sent_once_more(memory_store: MemoryStore, watch: Open) -> None:
    """Who watches by label would take it to be as it was, for ever."""
    for name in ("jobs/moved", "jobs/deleted", "jobs/last"):
        await created(memory_store, name, labels={"team": "x"})
    watcher = await watch(labels={"team": "x"})
    await watcher.states()
    for name in ("jobs/moved", "jobs/deleted"):
        moving = change(await there(memory_store, JobName(name)))
        assert moving.record
        moving.record.job.labels["team"] = "y"
        await memory_store.commit(moving)
        await moved(memory_store, name, Job.RUNNING)  # together they are one change to who comes late
    await memory_store.commit(deletion(await there(memory_store, JobName("jobs/deleted"))))
    await moved(memory_store, "jobs/last", Job.PAUSED)
    expected = ["jobs/moved RUNNING", "jobs/deleted deleted", "jobs/last PAUSED"]
    assert await watcher.states(until="jobs/last") == expected
    await moved(memory_store, "jobs/moved", Job.PAUSED)
    await moved(memory_store, "jobs/last", Job.RUNNING)
    assert await watcher.states(until="jobs/last") == ["jobs/last RUNNING"]


async def test_what_changed_is_read_once_for_all_watchers() -> None:
    """Each watcher read every job that changed (section 5.3)."""
    store = Counting()
    notifier = Notifier(store)
    ringing = asyncio.create_task(notifier.run())
    serving = Watch(store, notifier)
    jobs = [await created(store, f"jobs/j{number}", labels={"team": "x"}) for number in range(10)]
    streams = [serving.follow(WatchJobsRequest(labels={"team": "x"})) for _ in range(20)]
    named = [serving.follow(WatchJobsRequest(names=["jobs/j0"])) for _ in range(5)]
    watchers = [Watcher(store, stream) for stream in (*streams, *named)]
    for watcher in watchers:
        await watcher.states()
    reads = [asyncio.ensure_future(watcher.next()) for watcher in watchers]
    await store.quiet()
    store.gets = store.tails = 0
    for job in jobs[1:]:
        await store.commit(change(job, state=Job.PAUSED))
    await store.commit(change(jobs[0], state=Job.PAUSED))
    await asyncio.gather(*reads)
    for watcher in watchers[:20]:
        await watcher.states(until="jobs/j0")
    assert store.gets <= 10
    assert store.tails <= 10
    for stream in (*streams, *named):
        await stream.aclose()
    await store.aclose()
    await ringing


async def test_who_is_further_behind_than_the_tail_reads_from_the_store(
    memory_store: MemoryStore, watch: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_tail, "KEPT_CHANGES", 2)
    watcher = await watch()
    await watcher.states()
    for number in range(10):
        await created(memory_store, f"jobs/j{number}")
    assert await watcher.states(until="jobs/j9") == [f"jobs/j{number} QUEUED" for number in range(10)]


async def test_the_tail_keeps_no_more_bytes_than_it_may(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_tail, "KEPT_BYTES", 100)
    tail = change_tail.ChangeTail(memory_store)
    await tail.catch_up()
    for number in range(10):
        await created(memory_store, f"jobs/j{number}", labels={"padding": "x" * 30})
    updates = await tail.after("0-0")
    assert updates is not None
    for update in updates:
        job = await tail.read(update)
        assert job
        assert job.name == update.change.job
    assert 0 < len(tail.updates) < 10
    assert tail.bytes <= 100
    assert await tail.after("0-0") is None


@pytest.mark.parametrize(
    ("tail_of", "newest", "read"),
    [(change_tail.ChangeTail, "latest_token", "changes"), (event_watch.EventTail, "latest_event_token", "happened")],
)
async def test_what_a_watcher_does_not_come_to_read_before_it_leaves_the_next_one_reads(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch, tail_of: Any, newest: str, read: str
) -> None:
    job = await created(memory_store, JOB)
    tail, token = tail_of(memory_store), await getattr(memory_store, newest)()
    await tail.catch_up()
    reading = asyncio.Event()

    async def held(*_: object, **__: object) -> None:
        reading.set()
        await asyncio.Future()

    async with tail.lock:
        leaving, staying = (asyncio.create_task(tail.after(token)) for _ in range(2))
        await memory_store.commit(change(job, events=[JobEvent(sequence=1)]))
    with monkeypatch.context() as patched:
        patched.setattr(memory_store, read, held)
        await reading.wait()
        leaving.cancel()
    assert len(await staying) == 1


async def test_a_tail_that_began_anew_has_tokens_shown_to_the_store_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 3600)
    store = Counting(changes_kept=5)
    notifier = Notifier(store)
    serving = Watch(store, notifier)
    await created(store, JOB)
    stream = serving.follow(WatchJobsRequest())
    async with aclosing(stream):
        watcher = Watcher(store, stream)
        await watcher.states()
        waiting = asyncio.ensure_future(watcher.next())
        await store.quiet()
        for number in range(30):
            await created(store, f"jobs/j{number}")
        notifier.notify("")
        await waiting
        assert len(await watcher.states()) == 31, "all come again"
