"""A drill on a whole stack: asked for on the command line, told by the verdict, and gone with its training."""

import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from adjourn.client import AsyncClient
from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job

if TYPE_CHECKING:
    from tests.system.conftest import Ran

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPT = Path(__file__).parents[1] / "trainings" / "drilled.py"
WAIT_SECONDS = 60.0

Run = Callable[..., Awaitable["Ran"]]
Eventually = Callable[..., Awaitable[None]]


async def submit(run: Run, name: str, *words: str) -> None:
    asked = ("--epochs", "1000000", "--checkpoint-epochs", "0", "--arg", "seconds=0.05", "--drill", *words)
    ran = await run("adjourn", "submit", f"{SCRIPT}:main", "--job-id", name, *asked)
    assert ran.status == 0, ran


def attempts(stack: Stack, name: str) -> list[Path]:
    return sorted(stack.options.data.glob(f"**/attempts/{name}-*"))


def second_processes(stack: Stack, name: str) -> list[psutil.Process]:
    """Returns the processes that train in drills of a job."""
    return [each for each in psutil.process_iter(["cmdline"]) if drills(each.info["cmdline"] or (), stack, name)]


def drills(words: Any, stack: Stack, name: str) -> bool:
    place = f"{re.escape(str(stack.options.data))}.*/attempts/{name}-.*/drill"
    return "adjourn.training.replay" in words and any(re.fullmatch(place, word) for word in words)


async def test_a_drill_that_comes_to_the_same_bits_is_told_by_the_next_resume(
    stack: Stack, client: AsyncClient, run: Run, eventually: Eventually
) -> None:
    await submit(run, "drilled")

    def shown() -> bool:
        return any(
            "came to the same bits" in (attempt / "log").read_text(errors="replace")
            for attempt in attempts(stack, "drilled")
            if (attempt / "log").exists()
        )

    await eventually(shown, seconds=WAIT_SECONDS)
    assert (await run("adjourn", "pause", "drilled", "--wait")).status == 0
    resumed = await run("adjourn", "resume", "drilled", "--wait")
    assert resumed.out.splitlines()[-1] == "restored state: EXACT_REPLAYED", resumed
    told = (await run("adjourn", "get", "drilled")).out
    assert "EXACT_REPLAYED: every digest is equal, and a drill came to the same bits" in told
    assert "20 steps, once, in a second process" in told
    await client.cancel_job("drilled")


async def test_a_drill_ends_with_its_training_process(
    stack: Stack, client: AsyncClient, run: Run, eventually: Eventually
) -> None:
    await submit(run, "twofold", "--arg", "holds=true")
    await eventually(lambda: second_processes(stack, "twofold"), seconds=WAIT_SECONDS)
    (second,) = second_processes(stack, "twofold")
    os.kill(second.ppid(), signal.SIGKILL)

    def replaced() -> bool:
        """Tells whether the next attempt has a second process of its own, and the first is gone."""
        found = second_processes(stack, "twofold")
        return bool(found) and second not in found

    await eventually(replaced, seconds=WAIT_SECONDS)
    await client.cancel_job("twofold")
    await client.wait_job("twofold", until={Job.CANCELLED}, timeout=WAIT_SECONDS)
    assert second_processes(stack, "twofold") == []
