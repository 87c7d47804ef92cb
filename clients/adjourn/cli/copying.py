"""`adjourn cp`: brings files that a run keeps with its checkpoints here."""

from pathlib import Path
from typing import Annotated

import typer

from adjourn import extras
from adjourn.cli import arguments, error_messages, formatting, output, phrases
from adjourn.cli.checkpoint_verbs import LATEST, Meter, Which, chosen, place
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Status


def copy(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="JOB:PATH", help="A file or directory in run.output_directory; JOB: for all of it.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file, or a directory.")] = Path(),
    which: Which = LATEST,
) -> None:
    """Copy what a run wrote to run.output_directory, as its newest checkpoint has it.

    A file that is there is replaced once the other has arrived and was verified.
    """
    job, colon, path = source.partition(":")
    if not (job and colon):
        arguments.wrong("JOB:PATH", f"{source!r} should be the name of a job, ':' and a path, such as digits:model.pt")
    if why := extras.missing("adjourn cp"):
        error_messages.print_error(why)
        raise typer.Exit(Status.REFUSED)
    from adjourn.export.errors import ExportRefused
    from adjourn.export.output_files import OutputFiles

    with connect(ctx) as client:
        checkpoint = chosen(client, job, which)
        here = OutputFiles(client, checkpoint)
        found = here.below(path)
        of = f"{formatting.short(checkpoint.name)}, {place(checkpoint)}"
        if not found:
            names = phrases.enumerated([file.path for file in here.files]) if here.files else "no files of its run"
            error_messages.print_error(
                f"there is no {path or 'file'} in {of}: it has {names}. What a run writes to run.output_directory is"
                " kept with its next checkpoint"
            )
            raise typer.Exit(Status.NOT_FOUND)
        name = path.strip("/").rpartition("/")[2]
        base = destination / name if name not in ("", ".") and destination.is_dir() else destination
        size = sum(file.size for file, _ in found)
        meter, arrived = Meter(size), 0

        def on_bytes(more: int) -> None:
            nonlocal arrived
            arrived += more
            meter(arrived)

        try:
            for file, inner in found:
                here.write(file, base / inner if inner else base, on_bytes)
        except ExportRefused as error:
            error_messages.print_error(str(error))
            raise typer.Exit(Status.REFUSED) from None
    count = f"{len(found)} files, " if len(found) > 1 else ""
    output.say(f"{base} has {name or 'the files'} of {of} ({count}{formatting.size(size)})")
