"""`adjourn demo`: the demonstration, from an empty directory to the verdict."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from adjourn.cli import failures, output
from adjourn.client import AsyncClient
from adjourn.demo.narrator import Narrator
from adjourn.demo.place import place
from adjourn.demo.story import DemoError, Story
from adjourn.errors import AdjournError
from adjourn.local import interruption, services
from adjourn.local.child import ChildError, MissingServerError
from adjourn.local.stack import Options, Stack

FAILURES = (AdjournError, ChildError, DemoError, MissingServerError, OSError)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data directory, logs included.")] = False,
) -> None:
    """Pause a training three times, kill its worker, and compare the result with an uninterrupted run."""
    status = interruption.run(play(keep=keep))
    raise typer.Exit(failures.INTERRUPTED if status is None else status)


async def play(*, keep: bool) -> int:
    """Returns the exit status: 0 only if the two runs are equal to the last bit."""
    narrator = Narrator(output.console())
    async with place(keep=keep) as data:
        stack = Stack(Options(data=data), report=narrator.step)
        try:
            narrator.step(f"starting Valkey, S3, the control plane and {len(stack.workers)} workers in {data}")
            async with stack, AsyncClient(stack.address) as client:
                narrator.step(f"ready at {stack.address}")
                verdict = await Story(stack, client, narrator).tell()
        except FAILURES as error:
            narrator.failure(error, logs(stack))
            return 1
        narrator.step("no process is left" + (f"; the data is in {data}" if keep else ""))
    narrator.verdict(verdict)
    return 0 if verdict.exact else 1


def logs(stack: Stack) -> Iterator[Path]:
    """Yields the logs that may tell why something failed."""
    ours = [services.CONTROL_PLANE, *stack.workers]
    yield from (stack.directory.logs / f"{name}.log" for name in ours)
    workers = stack.directory.path / "workers"
    yield from sorted([*workers.glob("*/attempts/*/log"), *workers.glob("*/logs/*/*.log")])
