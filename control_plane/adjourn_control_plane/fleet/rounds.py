"""Runs the rounds of a controller: a round that fails is logged, and the next one comes."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from adjourn import errors
from adjourn.objects import STORAGE_ERRORS

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
