"""Turns signals into cancellation, so that `async with` ends what it started in every case."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Final, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[None, None, T]) -> T | None:
    """Runs `work`. Each SIGINT, SIGTERM or SIGHUP cancels it; returns None if that ended it."""
    return asyncio.run(_interruptible(work))


async def _interruptible(work: Coroutine[None, None, T]) -> T | None:
    task = asyncio.current_task()
    assert task
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        task.cancel()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        if interrupted:
            return None
        raise
