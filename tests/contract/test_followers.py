"""Who follows what a job prints is known for a while."""

import asyncio

import pytest

from adjourn_control_plane.store import interface, redis
from adjourn_control_plane.store.interface import JobName, JobStore, JobUid, WorkerName
from tests.harness import memory_store

A, B = JobUid("uid-a"), JobUid("uid-b")
JOB = JobName("jobs/a")


async def test_followed_is_what_somebody_has_said_to_follow(store: JobStore) -> None:
    assert await store.followed([]) == set()
    assert await store.followed([A, B]) == set()
    for _ in range(2):
        await store.follow(JOB, A, "workers/w")
        assert await store.followed([A, B]) == {A}
    await store.follow(JobName("jobs/b"), B, "")
    assert await store.followed([A, B]) == {A, B}


async def test_it_is_forgotten_unless_it_is_said_again(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis, memory_store):
        monkeypatch.setattr(module, "FOLLOWED", interface.FOLLOWED / 15)
    await store.follow(JOB, A, "")
    async with asyncio.timeout(60):
        while await store.followed([A]):  # noqa: ASYNC110  # it is the store's
            await asyncio.sleep(0.02)


async def test_the_worker_hears_of_it_once(store: JobStore) -> None:
    heard = store.notifications()
    assert await anext(heard) == ("", "")
    for _ in range(3):
        await store.follow(JOB, A, "workers/w")
    await store.follow(JOB, B, "workers/v")
    async with asyncio.timeout(60):
        assert await anext(heard) == (JOB, WorkerName("workers/w"))
        assert await anext(heard) == (JOB, WorkerName("workers/v"))
    await heard.aclose()
