"""Each job once at the start, then its newest state after changes; and where to go on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import WatchJobsRequest, WatchJobsResponse
from adjourn_control_plane.api import watch as watching
from adjourn_control_plane.api.watch import Watch
from adjourn_control_plane.store.interface import JobName, JobStore
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
    assert len(await watcher.states()) == 20


async def test_a_stream_that_falls_behind_the_trimming_starts_again(watch: Open) -> None:
    store = MemoryStore(changes_kept=10)
    await created(store, JOB)
    watcher = await watch(store)
    await watcher.states()
    for number in range(30):
        await created(store, f"jobs/j{number}")
    assert len(await watcher.states()) == 31


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
