"""Work for storage beside training: which threads do it, and when it waits."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest

from adjourn_worker.host import kernel
from adjourn_worker.storage.background import Background
from adjourn_worker.storage.parts import PartStore
from adjourn_worker.storage.rests import Rests
from tests.harness.memory_objects import MemoryObjects


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def background() -> Iterator[Background]:
    made = Background(MemoryObjects(), lambda: [os.getpid()])
    yield made
    made.pool.shutdown()


async def test_work_gives_way_to_training_until_somebody_waits_for_it(background: Background) -> None:
    training, usual = [True], niceness()
    store = PartStore(MemoryObjects(), background=background)
    aside = store.beside(lambda: bool(training))
    assert await aside.run(niceness) == max(usual, kernel.NICENESS)
    assert await aside.run(lambda: os.sched_getscheduler(0)) == os.SCHED_BATCH
    assert await store.run(niceness) == usual  # what training waits for itself, a restore for instance
    async with aside.turn() as (objects, _):
        assert objects is background.objects
    training.clear()  # a pause is asked for, or the process has left
    assert await aside.run(niceness) == usual
    async with aside.turn() as (objects, _):
        assert objects is store.objects
    assert niceness() == usual


async def test_a_system_that_refuses_is_no_failure(monkeypatch: pytest.MonkeyPatch, background: Background) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    monkeypatch.setattr(kernel, "IOPRIO_SET", 999_999)
    store = PartStore(MemoryObjects(), background=background).beside(lambda: True)
    assert await store.run(lambda: "done") == "done"
    monkeypatch.setattr(kernel, "IOPRIO_SET", None)
    kernel.yield_to_others()


async def test_work_that_training_waits_for_rests_until_a_pause_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, background: Background
) -> None:
    training, rests = [True], asyncio.Event()
    store = PartStore(MemoryObjects(), background=background).beside(lambda: bool(training))

    def due(_: Rests) -> float:
        rests.set()
        return 3600.0

    monkeypatch.setattr(Rests, "due", property(due))
    resting = asyncio.create_task(store.run(niceness))
    other = asyncio.create_task(store.run(niceness))
    await rests.wait()
    assert not resting.done()
    assert not other.done()
    training.clear()
    assert [await resting, await other] == [niceness()] * 2
