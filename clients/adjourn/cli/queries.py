"""`adjourn list`, `get`, `events`, `metrics`, `workers`."""

from itertools import islice
from typing import Annotated

import typer

from adjourn.cli import arguments, job_view, output, tables
from adjourn.cli.connection import connect
from adjourn.cli.output import Format, Output
from adjourn.cli.selection import JobName
from adjourn.v1.job_pb2 import Job


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
    """Show a job: state, conditions, progress, its pause with phases and resources, earlier pauses."""
    with connect(ctx) as client:
        found = client.get_job(job)
    output.write([found], form, lambda: job_view.paused_run(found))


def events(ctx: typer.Context, job: JobName, *, form: Output = Format.TABLE) -> None:
    """List what happened to a job, oldest first, and who caused it."""
    with connect(ctx) as client:
        found = list(client.list_job_events(job))
    output.write(found, form, lambda: tables.event_table(found))


def metrics(ctx: typer.Context, job: JobName, *, form: Output = Format.TABLE) -> None:
    """Show the metrics of each epoch of a job."""
    with connect(ctx) as client:
        epochs = list(client.list_epoch_metrics(job))
    output.write(
        epochs, form, lambda: tables.epoch_tables(epochs, output.width()) if epochs else "no epoch has ended yet"
    )


def workers(ctx: typer.Context, *, form: Output = Format.TABLE) -> None:
    """List workers."""
    with connect(ctx) as client:
        found = list(client.list_workers())
    output.write(found, form, lambda: tables.worker_table(found) if found else "no worker has ever connected")
