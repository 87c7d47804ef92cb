"""Ends tasks for certain."""

import asyncio
from typing import Any, Final

REPEAT_SECONDS: Final = 1.0


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits until they have ended, however they do.

    Once is not always enough: in Python 3.11 a cancellation that comes just as `asyncio.wait_for` finishes is lost
    (cpython issue 86296), and redis-py sends every command in one.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=REPEAT_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # looked at: who started the task has heard of it, or does not care
