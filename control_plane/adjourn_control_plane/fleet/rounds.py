"""Runs the rounds of a controller: a round that fails is logged, and the next one comes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from adjourn import errors
from adjourn.objects import STORAGE_ERRORS
from adjourn_control_plane.aio import end

log = structlog.get_logger()

Work = Callable[[], Awaitable[None]]


async def attempt(controller: str, work: Work) -> None:
    """Runs one round. An outage is logged in a line, anything else with its traceback."""
    try:
        await work()
    except (errors.StoreUnavailableError, *STORAGE_ERRORS) as error:
        log.warning("controller_waits", controller=controller, error=error.message)
    except Exception:
        log.exception("controller_failed", controller=controller)


async def every(seconds: float, controller: str, work: Work) -> None:
    """Runs rounds until cancelled, with `seconds` of rest between them."""
    while True:
        await attempt(controller, work)
        await asyncio.sleep(seconds)


async def together(*loops: Coroutine[Any, Any, None]) -> None:
    """Runs loops until cancelled, then ends them for certain; a TaskGroup would cancel each of them only once."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end(*tasks)
