"""`adjourn events`: what happened to a job, as a table; and what happens to jobs, a line for each event."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from adjourn.cli import arguments, output, phrases, tables
from adjourn.cli.connection import connect
from adjourn.cli.logs import remark
from adjourn.cli.output import Format, Output
from adjourn.cli.selection import ENDED, JobNames, Label
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import WatchEventsResponse

if TYPE_CHECKING:
    from adjourn.client import Client


def events(
    ctx: typer.Context,
    jobs: JobNames = None,
    label: Label = None,
    *,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on with what happens; to several jobs too, or to all."),
    ] = False,
    resume_token: Annotated[
        str, typer.Option(metavar="TOKEN", help="With --follow: from there on, where an earlier one ended (-o json).")
    ] = "",
    form: Output = Format.TABLE,
) -> None:
    """List what happened to a job, oldest first, and who caused it; or follow what happens to jobs.

    With --follow, what happened to named jobs comes first, and it ends when all of them have ended; of others it begins
    now, and Ctrl-C ends it. For programs each event is then a document with the job and a token to go on from.
    """
    labels = arguments.pairs("--label", label or ())
    if not follow:
        if labels or resume_token:
            arguments.wrong("--label" if labels else "--resume-token", "is for --follow")
        if len(jobs or ()) != 1:
            arguments.wrong("JOB", "name one job, or give --follow for several or all of them")
        with connect(ctx) as client:
            found = list(client.list_job_events((jobs or [""])[0]))
        output.write(found, form, lambda: tables.event_table(found))
        return
    if form == Format.NAME:
        arguments.wrong("--output", "name does not say what happened; take table, json or yaml")
    with connect(ctx) as client:
        named = [client.get_job(name) for name in jobs or ()]
        if not named:
            next(client.list_jobs(labels=labels), None)  # a control plane that is away is an error now
            if sys.stderr.isatty():
                remark("--- from now on; Ctrl-C ends it ---")
        watch = client.watch_events(
            names=[job.name for job in named], labels=labels, resume_token=resume_token, tokens=True
        )
        with closing(watch) as messages:
            for message in told(client, messages, named, history=not resume_token):
                show(message, form)


def told(
    client: "Client", messages: Iterator[WatchEventsResponse], named: Sequence[Job], *, history: bool
) -> Iterator[WatchEventsResponse]:
    """Yields what messages tell, each event once; before that, if `history`, what happened to the named jobs.

    Ends when each named job has ended; without names never.
    """
    states = {job.name: job.state for job in named}
    known: dict[str, int] = {}
    """Sequence of the newest event of the history, by uid: a watch that began before it tells it once more."""
    caught_up = False
    for message in messages:
        if message.HasField("event"):
            states[message.job] = message.event.state
            if message.event.sequence > known.get(message.job_uid, 0):
                yield message
        elif message.gap:
            yield message
        elif not caught_up:  # the watch stands: what is not in the history by now will come
            caught_up = True
            for job in named if history else ():
                for event in client.list_job_events(job.name):
                    known[job.uid], states[job.name] = event.sequence, event.state
                    yield WatchEventsResponse(job=job.name, job_uid=job.uid, event=event)
        if named and caught_up and all(states[job.name] in ENDED for job in named):
            return


def show(message: WatchEventsResponse, form: Format) -> None:
    if form != Format.TABLE:
        output.emit(message, form)
    elif message.gap:
        remark("--- events are missing here: they are kept no more; `adjourn events JOB` has those of a job ---")
    else:
        output.say(phrases.event_line(message.job, message.event))
