"""`adjourn watch`: a live table on a terminal, a line for each change elsewhere."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.console import RenderableType
from rich.live import Live

from adjourn.cli import arguments, formatting, live_view, output, phrases
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Otherwise, Status
from adjourn.cli.output import Format, Output
from adjourn.cli.pace import Paces
from adjourn.cli.patience import Patience, Timeout, unfinished
from adjourn.cli.selection import ENDED, JobNames, Label, together
from adjourn.cli.usage import Usage
from adjourn.errors import DeadlineError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import WatchJobsResponse

if TYPE_CHECKING:
    from adjourn.client import Client


def watch(
    ctx: typer.Context,
    jobs: JobNames = None,
    label: Label = None,
    *,
    timeout: Timeout = "",
    form: Output = Format.TABLE,
) -> None:
    """Watch jobs change, live; ends when every named job has ended, else with Ctrl-C.

    The exit status is 0 only if every named job SUCCEEDED. For programs, each change is a document.
    """
    labels = arguments.pairs("--label", label or ())
    if form == Format.NAME:
        arguments.wrong("--output", "name does not say what changed; take table, json or yaml")
    patience = Patience(timeout, waits=bool(jobs), why_not="is for jobs that are named")
    with connect(ctx) as client:
        names = [client.get_job(name).name for name in jobs or ()]
        if not names:
            next(client.list_jobs(labels=labels), None)  # a control plane that is away is an error now
        if form == Format.TABLE:
            found = follow(client, names, patience, labels=labels, live=sys.stdout.isatty())
            for name in names:
                tell_failure(found.get(name))
        else:
            found = {}
            for change in until_ended(client, names, labels, patience):
                keep(found, change)
                output.emit(change, form)
        if any(name not in found or found[name].state != Job.SUCCEEDED for name in names):
            raise typer.Exit(Status.ENDED_OTHERWISE)


def tell_failure(job: Job | None) -> None:
    """Says why a job failed, in full."""
    if job and job.state == Job.FAILED and job.failure.message:
        name, reason = formatting.short(job.name), formatting.printable(job.failure.reason)
        message = formatting.printable(job.failure.message)
        gap = "\n" if "\n" in message else " "
        output.say(f"{name} failed ({reason}):{gap}{message}")


def follow(
    client: "Client",
    names: Iterable[str],
    patience: Patience,
    *,
    labels: Mapping[str, str] | None = None,
    live: bool,
) -> dict[str, Job]:
    """Shows changes until every named job has ended or is gone; returns the newest of each. Raises Otherwise."""
    jobs: dict[str, Job] = {}
    changes = until_ended(client, names, labels or {}, patience)
    if live:
        show_live(jobs, client, changes)
        return jobs
    printed: dict[str, tuple[object, ...]] = {}
    for change in changes:
        keep(jobs, change)
        job = change.job
        shown = (job.state, job.progress.epoch, job.worker, phrases.why(job))
        if change.deleted:
            output.say(f"{formatting.short(change.deleted)} was deleted")
        elif printed.get(job.name) != shown:  # not every step: it scrolls
            printed[job.name] = shown
            output.say(phrases.line(job))
    return jobs


def show_live(jobs: dict[str, Job], client: "Client", changes: Iterable[WatchJobsResponse]) -> None:
    """Shows the newest of each job on the terminal until the changes end. Drawn by the clock: changes may be many."""
    paces, screen = Paces(), output.console()

    def view() -> RenderableType:
        found, now = list(jobs.values()), datetime.now(UTC)
        return live_view.watched(found, paces, usage.samples, now=now, height=screen.height - 1)

    with (
        Usage(client, lambda: list(jobs.values())) as usage,
        Live(get_renderable=view, console=screen, refresh_per_second=4, vertical_overflow="crop"),
    ):
        for change in changes:
            keep(jobs, change)
            if not change.deleted:
                paces.note(change.job)


def keep(jobs: dict[str, Job], change: WatchJobsResponse) -> None:
    if change.deleted:
        jobs.pop(change.deleted, None)
    else:
        jobs[change.job.name] = change.job


def until_ended(
    client: "Client", names: Iterable[str], labels: Mapping[str, str], patience: Patience
) -> Iterator[WatchJobsResponse]:
    """Yields changes until every named job has ended or is gone; without names it never ends.

    Raises Otherwise at the end of patience.
    """
    names = list(names)
    live = {name if "/" in name else f"jobs/{name}" for name in names}
    newest: dict[str, Job] = {}
    try:
        with closing(client.watch_jobs(names=names, labels=labels, timeout=patience.left)) as changes:
            for change in changes:
                yield change
                keep(newest, change)
                if change.deleted or change.job.state in ENDED:
                    live.discard(change.deleted or change.job.name)
                else:
                    live.update({change.job.name} if names else ())  # a failed job can be resumed
                if names and not live:
                    return
    except DeadlineError:
        if not patience.over:
            raise
        raise Otherwise(
            Status.TIMEOUT, not_ended([newest.get(name, Job(name=name)) for name in sorted(live)])
        ) from None


def not_ended(jobs: Sequence[Job]) -> str:
    if len(jobs) == 1 and jobs[0].state:
        return unfinished(jobs[0])
    return f"{together(job.name for job in jobs)} did not end in time; `adjourn watch` follows them"
