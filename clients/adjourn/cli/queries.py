"""`adjourn list`, `get`, `events`, `metrics`, `workers`."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from adjourn import extras
from adjourn.cli import arguments, chart, curves, figure, formatting, job_view, output, phrases, tables
from adjourn.cli.connection import connect
from adjourn.cli.output import Format, Output
from adjourn.cli.selection import JobName
from adjourn.cli.usage import USING, newest
from adjourn.v1.job_pb2 import Job

PLOT: Final = "--plot"
HERE: Final = "-"
"""Instead of a file: on the terminal."""


def list_jobs(
    ctx: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help="Only jobs in this state. Repeat it.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs that carry it. Repeat it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many, newest first.", min=1)] = None,
    *,
    form: Output = Format.TABLE,
) -> None:
    """List jobs, newest first."""
    states, labels = arguments.states(state or ()), arguments.pairs("--label", label or ())
    with connect(ctx) as client:
        jobs = list(islice(client.list_jobs(states=states, labels=labels), limit))
    nothing = "no such jobs" if states or labels else "no jobs yet; `adjourn submit --help` tells how to queue one"
    output.write(jobs, form, lambda: tables.job_table(jobs) if jobs else nothing)


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
    output.write([found], form, lambda: job_view.paused_run(found, uses=uses))


def events(ctx: typer.Context, job: JobName, *, form: Output = Format.TABLE) -> None:
    """List what happened to a job, oldest first, and who caused it."""
    with connect(ctx) as client:
        found = list(client.list_job_events(job))
    output.write(found, form, lambda: tables.event_table(found))


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
    form: Output = Format.TABLE,
) -> None:
    """Show the metrics of each epoch of a job, as a table or as curves."""
    file = picture(plot, force=force)
    with connect(ctx) as client:
        found = list(client.list_epoch_metrics(job))
        drawn = client.get_job(job) if plot and found else Job()
    if not (plot and found):
        output.write(
            found, form, lambda: tables.epoch_tables(found, output.width()) if found else "no epoch has ended yet"
        )
        return
    panels, marks = curves.panels(found), curves.marks(drawn, found)
    if file is None:
        output.show(chart.drawn(panels, marks, min(output.width(), chart.WIDEST)))
        return
    figure.save(file, f"{formatting.short(drawn.name)}: {phrases.epochs(drawn)}", panels, marks)
    output.say(f"{file} has {formatting.counted(len(panels), 'panel')} of {formatting.counted(len(found), 'epoch')}")


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
