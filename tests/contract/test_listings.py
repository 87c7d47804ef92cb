"""Pages, the queue, and what a worker holds."""

import asyncio

import pytest

from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.store import redis
from adjourn_control_plane.store.interface import Allocation, Conflict, JobName, JobStore, Stored, WorkerName
from tests.harness.store_records import change, created, creation, deletion, queued, there

ONE, TWO = WorkerName("workers/one"), WorkerName("workers/two")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a few jobs be read in several parts."""
    monkeypatch.setattr(redis, "BATCH", 3)


def names(jobs: list[Stored]) -> list[str]:
    return [stored.record.job.name.removeprefix("jobs/") for stored in jobs]


async def listed(
    store: JobStore, size: int, states: list[Job.State.ValueType] | None = None, labels: dict[str, str] | None = None
) -> list[list[str]]:
    pages, before = [], None
    while True:
        page, before = await store.page(states=states or [], labels=labels or {}, size=size, before=before)
        pages.append(names(page))
        if before is None:
            return pages


async def test_pages_run_from_the_newest_to_the_oldest(store: JobStore) -> None:
    assert await listed(store, 2) == [[]]
    for name in "abcde":
        await created(store, f"jobs/{name}")
    assert await listed(store, 2) == [["e", "d"], ["c", "b"], ["a"]]
    assert await listed(store, 5) == [["e", "d", "c", "b", "a"]]
    assert await listed(store, 4) == [["e", "d", "c", "b"], ["a"]]


async def test_pages_of_several_states_are_in_one_order(store: JobStore) -> None:
    states = [Job.QUEUED, Job.RUNNING, Job.PAUSED]
    for i, name in enumerate("abcdefg"):
        await created(store, f"jobs/{name}", state=states[i % 3])
    assert await listed(store, 2, [Job.QUEUED, Job.PAUSED, Job.QUEUED]) == [["g", "f"], ["d", "c"], ["a"]]
    assert await listed(store, 9, [Job.RUNNING]) == [["e", "b"]]
    assert await listed(store, 9, [Job.FAILED]) == [[]]


async def test_pages_of_labels_are_full(store: JobStore) -> None:
    for i in range(12):
        await created(store, f"jobs/{i}", labels={"odd": str(i % 2), "third": str(i % 3)})
    assert await listed(store, 2, labels={"odd": "1"}) == [["11", "9"], ["7", "5"], ["3", "1"]]
    assert await listed(store, 9, labels={"odd": "0", "third": "0"}) == [["6", "0"]]
    assert await listed(store, 9, labels={"odd": "2"}) == [[]]


async def test_change_of_state_moves_a_job_between_lists(store: JobStore) -> None:
    old = await created(store, "jobs/a")
    for state in (Job.STARTING, Job.RUNNING, Job.PAUSING, Job.PAUSED, Job.QUEUED):
        await store.commit(change(old, state=state))
        old = await there(store, JobName("jobs/a"))
        for other in Job.State.values():
            assert await listed(store, 9, [other]) == [["a"] if other == state else []]


async def test_jobs_that_stay_are_on_exactly_one_page_while_others_change(store: JobStore) -> None:
    for i in range(20):
        await created(store, f"jobs/{i}", state=Job.QUEUED if i % 2 else Job.RUNNING)
    seen, before, turn = [], None, 0
    while True:
        page, before = await store.page(states=[Job.RUNNING], labels={}, size=2, before=before)
        seen += names(page)
        if before is None:
            break
        turn += 1
        await created(store, f"jobs/new-{turn}", state=Job.RUNNING)
        await store.commit(change(await there(store, JobName(f"jobs/{19 - 2 * turn}")), state=Job.RUNNING))
    stayed = [str(i) for i in range(18, -1, -2)]
    assert [name for name in seen if name in stayed] == stayed
    assert len(set(seen)) == len(seen)


async def test_queue_has_the_newest_first(store: JobStore) -> None:
    for name in "abcdefgh":
        await created(store, f"jobs/{name}")
    await store.commit(change(await there(store, JobName("jobs/b")), state=Job.RUNNING))
    await store.commit(change(await there(store, JobName("jobs/c")), state=Job.RUNNING))
    await store.commit(change(await there(store, JobName("jobs/c")), state=Job.QUEUED))  # has its old place again
    await store.commit(deletion(await there(store, JobName("jobs/d"))))
    assert names(await queued(store)) == ["h", "g", "f", "e", "c", "a"]


async def test_occupancy_changes_when_a_job_comes_leaves_or_releases(store: JobStore) -> None:
    empty = await store.allocation(ONE)
    assert (empty.version, list(empty.jobs)) == (0, [])

    seen = [empty.version]

    async def step(wanted: Stored, **what: object) -> Stored:
        await store.commit(change(wanted, **what))  # type: ignore[arg-type]
        seen.append((await store.allocation(ONE)).version)
        return await there(store, JobName("jobs/a"))

    job = await created(store, "jobs/a")
    job = await step(job, worker=ONE)
    job = await step(job, released=True)
    job = await step(job, state=Job.PAUSING)
    job = await step(job, worker=TWO)
    job = await step(job, worker="")
    job = await step(job, released=False)
    come, released, same_1, left, same_2, same_3 = seen[1:]
    assert 0 < come < released < left
    assert same_1 == released
    assert same_2 == same_3 == left
    assert not (await store.allocation(ONE)).jobs
    assert not (await store.allocation(TWO)).jobs


async def test_occupancy_has_the_jobs_of_the_worker(store: JobStore) -> None:
    for name, worker in {"a": ONE, "b": TWO, "c": ONE}.items():
        await created(store, f"jobs/{name}", worker=worker)
    assert names(list((await store.allocation(ONE)).jobs)) == ["a", "c"]
    jobs = list((await store.allocation(TWO)).jobs)
    assert jobs == [await there(store, JobName("jobs/b"))]


async def test_of_two_that_give_away_the_last_slot_one_wins(store: JobStore) -> None:
    waiting = [await created(store, f"jobs/{i}") for i in range(10)]
    free = await store.allocation(ONE)
    placements = [change(job, state=Job.STARTING, worker=ONE, allocation=free) for job in waiting]
    outcomes = await asyncio.gather(*(store.commit(each) for each in placements), return_exceptions=True)
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 9
    assert len((await store.allocation(ONE)).jobs) == 1
    assert len(await queued(store)) == 9


async def test_guard_speaks_of_its_worker_alone(store: JobStore) -> None:
    job = await created(store, "jobs/a")
    free = await store.allocation(ONE)
    await created(store, "jobs/b", worker=TWO)
    await store.commit(change(job, worker=ONE, allocation=free))
    with pytest.raises(Conflict):
        await store.commit(change(await there(store, JobName("jobs/a")), worker="", allocation=free))
    current = await store.allocation(ONE)
    await store.commit(change(await there(store, JobName("jobs/a")), worker="", allocation=current))
    assert not (await store.allocation(ONE)).jobs


async def test_guard_of_another_store_is_refused(store: JobStore) -> None:
    guarded = creation(JobName("jobs/a"), worker=ONE)
    job = await created(store, "jobs/b")
    with pytest.raises(Conflict):
        await store.commit(change(job, worker=ONE, allocation=Allocation(worker=ONE, version=7)))
    await store.commit(guarded)


async def test_a_worker_is_known_with_the_jobs_whose_attempts_may_live_on_it(store: JobStore) -> None:
    """Whoever has the job by then; the worker's allocation changes with them."""
    one, two = WorkerName("workers/1"), WorkerName("workers/2")
    job = await created(store, "jobs/a", worker=one)
    before = await store.allocation(one)
    await store.commit(change(job, worker="", unconfirmed=[one]))
    left = await store.allocation(one)
    assert (list(left.jobs), [each.job for each in await store.unconfirmed(one)]) == ([], ["jobs/a"])
    assert left.version > before.version
    token = await store.latest_token()
    job = await there(store, JobName("jobs/a"))
    await store.commit(change(job, worker=two, unconfirmed=[one, two]))
    (changed,) = await store.changes(token, size=9)
    assert set(changed.workers) == {two}
    assert (await store.allocation(one)).version == left.version, "nothing of it has changed"
    held = await store.allocation(two)
    assert [each.record.job.name for each in held.jobs] == ["jobs/a"]
    assert [(each.job, each.entry.worker) for each in await store.unconfirmed(two)] == [("jobs/a", two)]
    await store.commit(change(await there(store, JobName("jobs/a")), unconfirmed=[two]))
    assert await store.unconfirmed(one) == []
    assert (await store.allocation(one)).version > left.version
    await store.commit(deletion(await there(store, JobName("jobs/a"))))
    assert await store.unconfirmed(two) == []


async def test_an_allocation_changes_with_each_attempt_that_becomes_or_ceases_to_be_unconfirmed(
    store: JobStore,
) -> None:
    """Also if the job has others there: what was read of them for a version stays true for as long as that."""
    await created(store, "jobs/a")
    versions = [(await store.allocation(ONE)).version]
    for count in (1, 2, 1):
        await store.commit(change(await there(store, JobName("jobs/a")), unconfirmed=[ONE] * count))
        assert len(await store.unconfirmed(ONE)) == count
        versions.append((await store.allocation(ONE)).version)
    assert versions == sorted(set(versions))
