"""Hints from the store ring the bells of those who wait."""

import asyncio

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.notifier import Wakeups
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import created, creation


async def test_a_change_rings_for_its_worker_and_for_who_hears_all(memory_store: MemoryStore) -> None:
    wakeups = Wakeups(memory_store)
    with wakeups.bell("workers/a") as mine, wakeups.bell("workers/b") as other, wakeups.bell() as everything:
        running = asyncio.create_task(wakeups.run())
        for bell in (mine, other, everything):
            assert await wakeups.wait(bell, 10), "at the start anything may have happened"
        await created(memory_store, "jobs/j", state=Job.STARTING, worker="workers/a")
        assert await wakeups.wait(mine, 10)
        assert await wakeups.wait(everything, 10)
        assert not other.is_set()
        memory_store.reconnect()
        assert await wakeups.wait(other, 10), "what happened during an outage may have been missed"
        await memory_store.aclose()
        await running


async def test_a_bell_that_rang_before_the_wait_is_heard() -> None:
    wakeups = Wakeups(MemoryStore())
    with wakeups.bell() as bell:
        wakeups.ring("workers/a")
        assert await wakeups.wait(bell, 0)
        assert not await wakeups.wait(bell, 0), "once"


async def test_silence_is_no_error() -> None:
    wakeups = Wakeups(MemoryStore())
    with wakeups.bell("workers/a") as bell:
        assert not await wakeups.wait(bell, 0.01)


async def test_bells_are_given_back() -> None:
    wakeups = Wakeups(MemoryStore())
    with wakeups.bell("workers/a"), wakeups.bell("workers/a"):
        assert len(wakeups.bells) == 2
    assert not wakeups.bells


async def test_closing_ends_every_wait_at_once() -> None:
    wakeups = Wakeups(MemoryStore())
    with wakeups.bell("workers/a") as one, wakeups.bell() as other:
        waits = [asyncio.create_task(wakeups.wait(bell, 60)) for bell in (one, other)]
        await asyncio.sleep(0)
        wakeups.close()
        for wait in waits:
            with pytest.raises(errors.ShuttingDownError):
                await asyncio.wait_for(wait, 10)


async def test_a_deletion_is_a_change(memory_store: MemoryStore) -> None:
    await memory_store.commit(creation(JobName("jobs/j")))
    hints = memory_store.hints()
    assert await anext(hints) == ("", "")
    await hints.aclose()
