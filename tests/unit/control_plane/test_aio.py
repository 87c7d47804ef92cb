"""Tasks end, even those that lose a cancellation."""

import asyncio

import pytest

from adjourn_control_plane import aio
from adjourn_control_plane.aio import end


async def test_what_sleeps_what_is_done_and_what_failed_are_ended_alike() -> None:
    async def fail() -> None:
        raise RuntimeError("looked at")

    tasks = [asyncio.create_task(work) for work in (asyncio.sleep(60), asyncio.sleep(0), fail())]
    await asyncio.wait(tasks[1:])
    await end(*tasks)
    assert tasks[0].cancelled()
    await end()


async def test_a_cancellation_that_was_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "REPEAT_SECONDS", 0.01)
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await asyncio.wait_for(end(task), 10)
    assert lost == 3
