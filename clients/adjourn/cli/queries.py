"""`adjourn list`, `paused`, `get`, `metrics`, `workers`."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import RenderableType
from typer.core import TyperCommand

from adjourn import extras
from adjourn.cli import arguments, chart, curves, figure, formatting, job_view, output, phrases, sorting, tables
from adjourn.cli.connection import connect
from adjourn.cli.output import Format, Output
from adjourn.cli.selection import JobName
from adjourn.cli.usage import USING, newest
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent

if TYPE_CHECKING:
    from adjourn.client import Client

PLOT: Final = "--plot"
HERE: Final = "-"
"""Instead of a file: on the terminal."""
MOST_STEPS: Final = 1000
"""As many as a control plane answers with."""


def list_jobs(
    ctx: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help="Only jobs in this state. Repeat it.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs that carry it. Repeat it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many, the first ones.", min=1)] = None,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help=f"In ascending order of {', '.join(sorting.KEYS)}.")
    ] = sorting.AGE,
    *,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="In descending order.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="Every column, whether there is room or not.")] = False,
    form: Output = Format.TABLE,
) -> None:
    """List jobs, newest first unless they are sorted otherwise."""
    states, labels = arguments.states(state or ()), arguments.pairs("--label", label or ())
    if sort not in sorting.KEYS:
        arguments.wrong("--sort", f"{sort!r} is none of {', '.join(sorting.KEYS)}")
    with connect(ctx) as client:
        found = client.list_jobs(states=states, labels=labels)
        in_order = found if sort == sorting.AGE and not reverse else sorting.ordered(found, sort, reverse=reverse)
        jobs = list(islice(in_order, limit))
    nothing = "no such jobs" if states or labels else "no jobs yet; `adjourn submit --help` tells how to queue one"
    output.write(jobs, form, lambda: tables.job_table(jobs) if jobs else nothing, wide=wide)


def paused(
    ctx: typer.Context,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs that carry it. Repeat it.")
    ] = None,
    *,
    form: Output = Format.TABLE,
) -> None:
    """List jobs that rest, or are about to: since when, by whom and why, where they stand, what they used."""
    labels = arguments.pairs("--label", label or ())
    with connect(ctx) as client:
        jobs = list(client.list_jobs(states=(Job.PAUSING, Job.PAUSED), labels=labels))
    output.write(jobs, form, lambda: tables.paused_table(jobs) if jobs else "no job is paused")


def get(ctx: typer.Context, job: JobName, *, form: Output = Format.TABLE) -> None:
    """Show a job: state, conditions, progress, what it uses, its pause with phases and resources, earlier pauses."""
    with connect(ctx) as client:
        found = client.get_job(job)
        uses = newest(client, found) if form == Format.TABLE and found.state in USING else None
        stopped = cancellation(client, found) if form == Format.TABLE else None
    output.write([found], form, lambda: job_view.paused_run(found, uses=uses, stopped=stopped))


def cancellation(client: "Client", job: Job) -> JobEvent | None:
    """Returns who asked for the end of a job that is stopped for good, and why; None of any other."""
    if job.state not in (Job.CANCELLING, Job.CANCELLED):
        return None
    asked = (event for event in client.list_job_events(job.name) if event.type == JobEvent.CANCEL_REQUESTED)
    return max(asked, key=lambda event: event.sequence, default=None)


class Metrics(TyperCommand):
    """The command, with an option whose file may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(arguments.with_value(args, PLOT, HERE, is_file)))


def is_file(word: str) -> bool:
    """Returns whether a word is a file rather than the name of a job, which has no point."""
    return "." in word


def metrics(
    ctx: typer.Context,
    job: JobName,
    *,
    plot: Annotated[
        str,
        typer.Option(
            PLOT,
            metavar="[FILE]",
            help="Draw curves, with pauses and new attempts marked: into FILE.png or FILE.svg, else here.",
            show_default=False,
        ),
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="What it showed as it trained, by step: 1000 at most, evenly spread.")
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """Show the metrics of each epoch of a job, or of its steps, as a table or as curves."""
    file = picture(plot, force=force)
    with connect(ctx) as client:
        series = Steps(client, job) if steps else Epochs(client, job)
        drawn = client.get_job(job) if plot and series.found else Job()
    if not (plot and series.found):
        output.write(series.found, form, lambda: series.table(output.width()) if series.found else series.nothing)
        return
    panels, marks = curves.panels(series.values()), series.marks(drawn)
    if file is None:
        output.show(chart.drawn(panels, marks, min(output.width(), chart.WIDEST)))
        return
    figure.save(file, f"{formatting.short(drawn.name)}: {phrases.epochs(drawn)}", panels, marks)
    count = formatting.counted(len(series.found), marks.axis)
    output.say(f"{file} has {formatting.counted(len(panels), 'panel')} of {count}")


class Epochs:
    """What each epoch of a job came to."""

    nothing = "no epoch has ended yet"

    def __init__(self, client: "Client", job: str) -> None:
        self.found = list(client.list_epoch_metrics(job))

    def table(self, width: int) -> RenderableType:
        return tables.epoch_tables(self.found, width)

    def values(self) -> list[curves.Values]:
        return curves.of_epochs(self.found)

    def marks(self, job: Job) -> curves.Marks:
        return curves.marks(job, self.found)


class Steps:
    """What a job showed of itself as it trained."""

    nothing = "no step is known yet: they are told every 5 s or so"

    def __init__(self, client: "Client", job: str) -> None:
        self.found = client.list_step_metrics(job, max_steps=MOST_STEPS)

    def table(self, width: int) -> RenderableType:
        return tables.step_tables(self.found, width)

    def values(self) -> list[curves.Values]:
        return curves.of_steps(self.found)

    def marks(self, job: Job) -> curves.Marks:
        return curves.step_marks(job, self.found)


def picture(plot: str, *, force: bool) -> Path | None:
    """Returns the file to draw into, None to draw here; a usage error if that cannot be."""
    if plot in ("", HERE):
        return None
    file = Path(plot)
    if not plot.lower().endswith(figure.SUFFIXES):
        arguments.wrong(PLOT, f"{plot} should end in .png or .svg")
    if file.exists() and not force:
        arguments.wrong(PLOT, f"{file} is there; --force replaces it")
    if not file.resolve().parent.is_dir():
        arguments.wrong(PLOT, f"there is no directory {file.resolve().parent}")
    if why := extras.missing("adjourn metrics --plot FILE"):
        arguments.wrong(PLOT, why)
    return file


def workers(ctx: typer.Context, *, form: Output = Format.TABLE) -> None:
    """List workers."""
    with connect(ctx) as client:
        found = list(client.list_workers())
    output.write(found, form, lambda: tables.worker_table(found) if found else "no worker has ever connected")
