"""`adjourn logs`: what a job has printed, and what it prints."""

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from adjourn.cli import arguments, formatting, phrases
from adjourn.cli.connection import connect
from adjourn.cli.log_text import PlainText, TerminalText
from adjourn.cli.selection import JobName
from adjourn.v1.job_service_pb2 import StreamLogsResponse

if TYPE_CHECKING:
    from adjourn.client import Client


def logs(
    ctx: typer.Context,
    job: JobName,
    attempt: Annotated[
        int | None, typer.Option(help="Of this attempt, from 1; with --follow, from it on. None: the newest.", min=1)
    ] = None,
    tail: Annotated[int | None, typer.Option(help="Begin so many lines before the end.", min=0)] = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it prints, over its attempts, until it has ended.")
    ] = False,
) -> None:
    """Print what a job has printed, in its newest attempt if none is named.

    Each time that a job is handed to a worker is an attempt: after a pause, a failure, a lost worker. On a terminal its
    colours and progress bars are kept; elsewhere each line is printed as it came to be in the end.
    """
    arguments.refuse_out_of_range("--attempt", attempt)
    arguments.refuse_out_of_range("--tail", tail)
    with connect(ctx) as client:
        client.get_job(job)  # a control plane that is away is an error now
        printer = Printer(follow=follow)
        messages = client.stream_logs(job, attempt=attempt or 0, tail_lines=tail, follow=follow)
        try:
            with closing(messages):
                for message in messages:
                    printer.show(message)
        finally:
            printer.end_text()
        if not printer.printed and tail != 0:
            remark(nothing(client, job, attempt or 0))


class Printer:
    """Prints the messages of a stream."""

    def __init__(self, *, follow: bool) -> None:
        self.printed = False
        self._follow = follow
        self._attempt = 0
        self._text = TerminalText() if sys.stdout.isatty() else PlainText()

    def show(self, message: StreamLogsResponse) -> None:
        """Prints a piece of a log, and what is to be known beside it."""
        if message.attempt != self._attempt and self._attempt:
            self.end_text()
            remark(f"--- attempt {message.attempt} ---")
        self._attempt = message.attempt
        if message.left_out_bytes:
            self.end_text()
            left_out = f"{message.left_out_bytes} bytes are left out here"
            typer.secho(f"[adjourn: {left_out}; ADJOURN_LOG_BYTES of the worker limits a log]", dim=True)
        if message.data:
            self.printed = True
            write(self._text.feed(message.data))
        if message.end:
            self.end_text()
            if message.end == StreamLogsResponse.REST_MISSING:
                why = "its worker is out of reach, or has no storage"
                remark(f"--- the rest of attempt {message.attempt} is not stored: {why} ---")
            elif self._follow:
                remark(f"--- attempt {message.attempt} is over ---")

    def end_text(self) -> None:
        write(self._text.finish())


def write(text: str) -> None:
    if text:
        typer.echo(text.encode(sys.stdout.encoding or "utf-8", errors="replace"), nl=False)


def remark(text: str) -> None:
    """Says something that is not of the log: not on standard output, which may be a file."""
    typer.secho(text, dim=True, err=True)


def nothing(client: "Client", name: str, attempt: int) -> str:
    """Says why there is nothing to print."""
    job = client.get_job(name)
    short = formatting.short(job.name)
    if not job.attempt:
        return f"{short} has not begun: it is {phrases.state(job)}"
    asked = attempt or job.attempt
    earlier = f"; `adjourn logs {short} --attempt {asked - 1}` has the one before" if asked > 1 else ""
    return f"attempt {asked} of {short} has printed nothing that is stored{earlier}"
