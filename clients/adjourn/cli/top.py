"""`adjourn top`: what is used of workers, and jobs that have not ended; live on a terminal, once elsewhere."""

import sys
from contextlib import suppress
from datetime import UTC, datetime
from time import sleep
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from adjourn.cli import exit_status, formatting, live_view, output
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Status
from adjourn.cli.pace import Paces
from adjourn.cli.selection import ENDED
from adjourn.cli.usage import USING, Usage, newest
from adjourn.errors import AdjournError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from adjourn.client import Client

LOOK_SECONDS: Final = 2.0
ALL_LINES: Final = 100_000


def top(
    ctx: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print it once and leave, as without a terminal.")] = False,
) -> None:
    """Show what workers and jobs are doing: GPUs, CPUs and memory in use, progress, rate, time left. Ctrl-C ends it.

    For programs: `adjourn workers -o json` and `adjourn list -o json`.
    """
    with connect(ctx) as client:
        state = State(client)
        if once or not sys.stdout.isatty():
            for job in state.jobs:
                if job.state in USING and (sample := newest(client, job)):
                    state.usage.samples[job.name] = sample
            output.show(state.view(ALL_LINES))
            return
        screen = output.console()
        with (
            state.usage,
            suppress(KeyboardInterrupt),
            Live(get_renderable=lambda: state.view(screen.height), console=screen, screen=True, refresh_per_second=4),
        ):
            while True:
                sleep(LOOK_SECONDS)
                state.look_again()


class State:
    """What was found when it was last looked."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._paces = Paces()
        self._trouble = ""
        self.workers: list[Worker] = []
        self.jobs: list[Job] = []
        self.usage = Usage(client, lambda: self.jobs)
        self.look()

    def look(self) -> None:
        self.workers = list(self._client.list_workers())
        unfinished = [state for state in live_view.ORDER if state not in ENDED]
        self.jobs = list(self._client.list_jobs(states=unfinished))
        for job in self.jobs:
            self._paces.note(job)

    def look_again(self) -> None:
        """Looks, and keeps what was found last while nobody answers."""
        try:
            self.look()
            self._trouble = ""
        except AdjournError as error:
            if exit_status.of(error) != Status.UNAVAILABLE:
                raise
            self._trouble = f"{error.message}; what was known last is shown, and it is tried again"

    def view(self, height: int) -> RenderableType:
        trouble = [Text(formatting.printable(self._trouble), style="red")] if self._trouble else []
        now, lines = datetime.now(UTC), height - 2 * len(trouble)
        return Group(
            *trouble,
            live_view.top(self.workers, self.jobs, self._paces, self.usage.samples, now=now, height=lines),
        )
