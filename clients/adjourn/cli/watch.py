"""`adjourn watch`: a live table on a terminal, a line for each change elsewhere."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from adjourn.cli import arguments, formatting, output, phrases
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Status
from adjourn.cli.output import Format, Output
from adjourn.cli.selection import ENDED, Label
from adjourn.cli.tables import job_table
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import WatchJobsResponse

if TYPE_CHECKING:
    from adjourn.client import Client


def watch(
    ctx: typer.Context,
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="JOB", help="Which jobs; none: all.", show_default=False)
    ] = None,
    label: Label = None,
    *,
    form: Output = Format.TABLE,
) -> None:
    """Watch jobs change, live; ends when every named job has ended, else with Ctrl-C.

    The exit status is 0 only if every named job SUCCEEDED. For programs, each change is a document.
    """
    labels = arguments.pairs("--label", label or ())
    if form == Format.NAME:
        arguments.wrong("--output", "name does not say what changed; take table, json or yaml")
    with connect(ctx) as client:
        names = [client.get_job(name).name for name in jobs or ()]
        if not names:
            next(client.list_jobs(labels=labels), None)  # a control plane that is away is an error now
        if form == Format.TABLE:
            found = follow(client, names, labels=labels, live=sys.stdout.isatty())
            for name in names:
                tell_failure(found.get(name))
        else:
            found = {}
            for change in until_ended(client, names, labels):
                keep(found, change)
                output.emit(change, form)
        if any(name not in found or found[name].state != Job.SUCCEEDED for name in names):
            raise typer.Exit(Status.ENDED_OTHERWISE)


def tell_failure(job: Job | None) -> None:
    """Says why a job failed, in full."""
    if job and job.state == Job.FAILED and job.failure.message:
        name, reason = formatting.short(job.name), formatting.printable(job.failure.reason)
        output.say(f"{name} failed ({reason}): {formatting.printable(job.failure.message)}")


def follow(
    client: "Client", names: Iterable[str], *, labels: Mapping[str, str] | None = None, live: bool
) -> dict[str, Job]:
    """Shows changes until every named job has ended or is gone; returns the newest of each."""
    jobs: dict[str, Job] = {}
    if live:
        with Live(job_table([]), console=output.console(), auto_refresh=False) as screen:
            for change in until_ended(client, names, labels or {}):
                keep(jobs, change)
                screen.update(job_table(jobs[name] for name in sorted(jobs)), refresh=True)
        return jobs
    printed: dict[str, tuple[object, ...]] = {}
    for change in until_ended(client, names, labels or {}):
        keep(jobs, change)
        job = change.job
        shown = (job.state, job.progress.epoch, job.worker, phrases.why(job))
        if change.deleted:
            output.say(f"{formatting.short(change.deleted)} was deleted")
        elif printed.get(job.name) != shown:  # not every step: it scrolls
            printed[job.name] = shown
            output.say(phrases.line(job))
    return jobs


def keep(jobs: dict[str, Job], change: WatchJobsResponse) -> None:
    if change.deleted:
        jobs.pop(change.deleted, None)
    else:
        jobs[change.job.name] = change.job


def until_ended(client: "Client", names: Iterable[str], labels: Mapping[str, str]) -> Iterator[WatchJobsResponse]:
    """Yields changes until every named job has ended or is gone; without names it never ends."""
    names = list(names)
    live = {name if "/" in name else f"jobs/{name}" for name in names}
    with closing(client.watch_jobs(names=names, labels=labels)) as changes:
        for change in changes:
            yield change
            if change.deleted or change.job.state in ENDED:
                live.discard(change.deleted or change.job.name)
            else:
                live.update({change.job.name} if names else ())  # a failed job can be resumed
            if names and not live:
                return
