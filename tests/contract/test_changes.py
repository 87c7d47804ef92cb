"""The stream of changes, and notifications of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import Change, Conflict, JobName, JobStore, TokenTooOld, WorkerName
from tests.harness.store_records import change, created, creation, deletion, record, there

A, B = JobName("jobs/a"), JobName("jobs/b")
ONE, TWO = WorkerName("workers/one"), WorkerName("workers/two")
MANY = 350
"""Enough for a store that keeps about 100 changes to forget the first ones."""


async def follow(store: JobStore, token: str, size: int) -> tuple[list[str], str]:
    """Reads on from a token to the end, `size` at a time."""
    jobs: list[str] = []
    while changes := await store.changes(token, size=size):
        assert len(changes) <= size
        jobs += [each.job for each in changes]
        token = changes[-1].token
    return jobs, token


async def test_changes_come_in_order_from_any_token(store: JobStore) -> None:
    start = await store.latest_token()
    assert await store.changes(start, size=9) == []
    await created(store, "jobs/a")
    middle = await store.latest_token()
    await created(store, "jobs/b")
    await store.commit(change(await there(store, A), state=Job.RUNNING))
    await store.commit(deletion(await there(store, B)))
    for size in (1, 2, 9):
        assert await follow(store, start, size) == ([A, B, A, B], await store.latest_token())
        assert await follow(store, middle, size) == ([B, A, B], await store.latest_token())


async def test_what_was_refused_or_repeated_is_no_change(store: JobStore) -> None:
    birth = creation(A)
    await store.commit(birth)
    token = await store.latest_token()
    await store.commit(birth)
    with pytest.raises(Conflict):
        await store.commit(creation(A))
    assert await store.changes(token, size=9) == []


async def test_token_that_was_trimmed_is_too_old(forgetful_store: JobStore) -> None:
    store = forgetful_store
    start = await store.latest_token()
    await created(store, "jobs/a")
    first = await store.latest_token()
    version = 1
    for _ in range(MANY):
        version = await store.commit(Change(job=A, expected=version, record=record(A)))
    latest = await store.latest_token()
    for token in (start, first):
        with pytest.raises(TokenTooOld):
            await store.changes(token, size=9)
    assert await store.changes(latest, size=9) == []
    await created(store, "jobs/b")
    assert await follow(store, latest, 9) == ([B], await store.latest_token())


@pytest.mark.parametrize("token", ["1000-7", "18446744073709551615-0"])
async def test_token_of_another_time_line_is_too_old(store: JobStore, token: str) -> None:
    with pytest.raises(TokenTooOld):
        await store.changes(token, size=9)
    await created(store, "jobs/a")
    with pytest.raises(TokenTooOld):
        await store.changes(token, size=9)


NO_TOKENS = ["", "x", "1", "-", "+", "$", "1-", "1-2-3", "-1-0", "01-0", "1-18446744073709551616"]


@pytest.mark.parametrize("token", NO_TOKENS)
async def test_what_is_no_token_is_refused(store: JobStore, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        await store.changes(token, size=9)


async def heard(notifications: AsyncIterator[tuple[JobName, WorkerName]], count: int) -> list[tuple[str, str]]:
    async with asyncio.timeout(60):
        return [await anext(notifications) for _ in range(count)]


async def test_notifications_tell_of_the_job_and_of_each_worker(store: JobStore) -> None:
    notifications = store.notifications()
    async with aclosing(notifications):
        assert await heard(notifications, 1) == [("", "")]
        await created(store, "jobs/a")
        await store.commit(change(await there(store, A), worker=ONE))
        await store.commit(change(await there(store, A), released=True))
        await store.commit(change(await there(store, A), worker=TWO))
        await store.commit(change(await there(store, A), worker=""))
        await store.commit(deletion(await there(store, A)))
        received = await heard(notifications, 7)
    assert received[:3] == [(A, ""), (A, ONE), (A, ONE)]
    assert sorted(received[3:5]) == [(A, ONE), (A, TWO)]
    assert received[5:] == [(A, TWO), (A, "")]


async def test_notifications_reach_everybody_and_end_with_the_store(store: JobStore) -> None:
    listeners = [store.notifications() for _ in range(3)]
    for notifications in listeners:
        assert await heard(notifications, 1) == [("", "")]
    await created(store, "jobs/a")
    for notifications in listeners:
        assert await heard(notifications, 1) == [(A, "")]

    async def rest(notifications: AsyncIterator[tuple[JobName, WorkerName]]) -> list[tuple[JobName, WorkerName]]:
        return [each async for each in notifications]

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        waiting = [group.create_task(rest(notifications)) for notifications in listeners[:2]]
        await asyncio.sleep(0)
        await store.aclose()
    assert [task.result() for task in waiting] == [[], []]
    assert await rest(listeners[2]) == []


async def test_a_change_tells_the_state_and_whose_allocation_changed(store: JobStore) -> None:
    start = await store.latest_token()
    await created(store, "jobs/a", labels={"team": "x"})
    await store.commit(change(await there(store, A), state=Job.RUNNING, worker=ONE))
    await store.commit(change(await there(store, A)))  # progress, as it were
    await store.commit(change(await there(store, A), released=True))
    await store.commit(change(await there(store, A), worker=TWO))
    await store.commit(deletion(await there(store, A)))
    found = await store.changes(start, size=10)
    assert [(each.state, each.workers) for each in found] == [
        (Job.QUEUED, ()),
        (Job.RUNNING, (ONE,)),
        (Job.RUNNING, ()),
        (Job.RUNNING, (ONE,)),
        (Job.RUNNING, (ONE, TWO)),
        (None, (TWO,)),
    ]
    assert [dict(each.labels) for each in found] == [{}] * 5 + [{"team": "x"}]
    assert [each.version for each in found] == sorted(each.version for each in found)
    assert (await store.allocation(ONE)).version == found[4].version
    assert (await store.allocation(TWO)).version == found[5].version


async def test_a_change_of_labels_tells_those_before(store: JobStore) -> None:
    start = await store.latest_token()
    await created(store, "jobs/a", labels={"team": "x"})
    await store.commit(change(await there(store, A)))
    moved = change(await there(store, A))
    assert moved.record
    moved.record.job.labels["team"] = "y"
    await store.commit(moved)
    await store.commit(change(await there(store, A)))
    await store.commit(deletion(await there(store, A)))
    found = await store.changes(start, size=10)
    assert [dict(each.labels) for each in found] == [{}, {}, {"team": "x"}, {}, {"team": "y"}]


async def test_notifications_tell_of_workers_that_take_work_from_now_on(store: JobStore) -> None:
    notifications = store.notifications()
    async with aclosing(notifications):
        assert await heard(notifications, 1) == [("", "")]
        await store.attach(Worker(name=ONE), "session", "stream")
        await store.heartbeat(Worker(name=ONE), "stream")
        assert await heard(notifications, 1) == [("", ONE)]
        session = await store.session(ONE)
        assert session
        await store.mark_lost(ONE, session.heartbeat)
        await store.heartbeat(Worker(name=ONE), "stream")
        await store.heartbeat(Worker(name=ONE), "stream")
        assert await heard(notifications, 1) == [("", ONE)]
