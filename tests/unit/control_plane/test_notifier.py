"""Notifications from the store wake those who wait."""

import asyncio

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import created, creation


async def test_a_change_wakes_its_worker_and_who_hears_all(memory_store: MemoryStore) -> None:
    notifier = Notifier(memory_store)
    with (
        notifier.subscription("workers/a") as mine,
        notifier.subscription("workers/b") as other,
        notifier.subscription() as everything,
    ):
        running = asyncio.create_task(notifier.run())
        for subscription in (mine, other, everything):
            assert await notifier.wait(subscription, 10), "at the start anything may have happened"
        await created(memory_store, "jobs/j", state=Job.STARTING, worker="workers/a")
        assert await notifier.wait(mine, 10)
        assert await notifier.wait(everything, 10)
        assert not other.is_set()
        memory_store.reconnect()
        assert await notifier.wait(other, 10), "what happened during an outage may have been missed"
        await memory_store.aclose()
        await running


async def test_a_hint_before_the_wait_is_heard() -> None:
    notifier = Notifier(MemoryStore())
    with notifier.subscription() as subscription:
        notifier.notify("workers/a")
        assert await notifier.wait(subscription, 0)
        assert not await notifier.wait(subscription, 0), "once"


async def test_silence_is_no_error() -> None:
    notifier = Notifier(MemoryStore())
    with notifier.subscription("workers/a") as subscription:
        assert not await notifier.wait(subscription, 0.01)


async def test_subscriptions_end() -> None:
    notifier = Notifier(MemoryStore())
    with notifier.subscription("workers/a"), notifier.subscription("workers/a"):
        assert len(notifier.subscriptions) == 2
    assert not notifier.subscriptions


async def test_closing_ends_every_wait_at_once() -> None:
    notifier = Notifier(MemoryStore())
    with notifier.subscription("workers/a") as one, notifier.subscription() as other:
        waits = [asyncio.create_task(notifier.wait(subscription, 60)) for subscription in (one, other)]
        await asyncio.sleep(0)
        notifier.close()
        for wait in waits:
            with pytest.raises(errors.ShuttingDownError):
                await asyncio.wait_for(wait, 10)


async def test_a_deletion_is_a_change(memory_store: MemoryStore) -> None:
    await memory_store.commit(creation(JobName("jobs/j")))
    notifications = memory_store.notifications()
    assert await anext(notifications) == ("", "")
    await notifications.aclose()
