"""`adjourn demo`: runs the demonstration on a stack of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from adjourn.cli import output
from adjourn.cli.exit_status import Status
from adjourn.client import AsyncClient
from adjourn.demo.printer import Printer
from adjourn.demo.scenario import DemoError, Scenario
from adjourn.demo.temporary_directory import temporary_directory
from adjourn.errors import AdjournError
from adjourn.local import services, signals
from adjourn.local.managed_process import MissingServerError, ProgramError
from adjourn.local.stack import Options, Stack

FAILURES = (AdjournError, ProgramError, DemoError, MissingServerError, OSError)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data directory, logs included.")] = False,
) -> None:
    """Pause a training three times, kill its worker, and compare the result with an uninterrupted run."""
    status = signals.run(play(keep=keep))
    raise typer.Exit(Status.INTERRUPTED if status is None else status)


async def play(*, keep: bool) -> int:
    """Returns the exit status: 0 only if the two runs are equal to the last bit."""
    printer = Printer(output.console())
    async with temporary_directory(keep=keep) as data:
        stack = Stack(Options(data=data), report=printer.step)
        try:
            printer.step(f"starting Valkey, S3, the control plane and {len(stack.workers)} workers in {data}")
            async with stack, AsyncClient(stack.address) as client:
                printer.step(f"ready at {stack.address}")
                comparison = await Scenario(stack, client, printer).run()
        except FAILURES as error:
            printer.failure(error, logs(stack))
            return 1
        printer.step("no process is left" + (f"; the data is in {data}" if keep else ""))
    printer.verdict(comparison)
    return 0 if comparison.exact else 1


def logs(stack: Stack) -> Iterator[Path]:
    """Yields the logs that may explain a failure."""
    ours = [services.CONTROL_PLANE, *stack.workers]
    yield from (stack.directory.logs / f"{name}.log" for name in ours)
    workers = stack.directory.path / "workers"
    yield from sorted([*workers.glob("*/attempts/*/log"), *workers.glob("*/logs/*/*.log")])
