"""`adjourn checkpoints`, and `adjourn checkpoint show`, `pin`, `unpin`, `export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adjourn import extras
from adjourn.cli import arguments, error_messages, formatting, output, tables
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Status
from adjourn.cli.output import Format, Output
from adjourn.cli.selection import JobName
from adjourn.cli.verbs import Reason
from adjourn.errors import NoCheckpointError, NotFoundError
from adjourn.v1.checkpoint_pb2 import Checkpoint

if TYPE_CHECKING:
    from adjourn.client import Client

LATEST: Final = "latest"
FORMATS: Final = ("safetensors", "torch")

app = typer.Typer(
    help="Look at a job's checkpoints, say which to keep, take one elsewhere.",
    short_help="Look at checkpoints, keep and export them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Which = Annotated[
    str, typer.Option("--checkpoint", metavar="WHICH", help="latest, an epoch (its end), or a name from the list.")
]


def list_checkpoints(ctx: typer.Context, job: JobName, *, form: Output = Format.TABLE) -> None:
    """List a job's checkpoints, newest first, and why each is kept."""
    with connect(ctx) as client:
        found = list(client.list_checkpoints(job))
    output.write(found, form, lambda: tables.checkpoint_list(found) if found else "no checkpoint yet")


@app.command("show")
def show(ctx: typer.Context, job: JobName, which: Which = LATEST, *, form: Output = Format.TABLE) -> None:
    """Show one checkpoint: where it is, what it is, why it is kept."""
    with connect(ctx) as client:
        found = chosen(client, job, which)
    output.write([found], form, lambda: tables.checkpoint_details(found))


@app.command("pin")
def pin(
    ctx: typer.Context,
    job: JobName,
    which: Which = LATEST,
    reason: Reason = "",
) -> None:
    """Keep a checkpoint until it is unpinned or its job is deleted."""
    with connect(ctx) as client:
        found = client.pin_checkpoint(chosen(client, job, which).name, reason=reason)
        output.say(f"{formatting.short(found.name)}, {place(found)}, is pinned")


@app.command("unpin")
def unpin(ctx: typer.Context, job: JobName, which: Which = LATEST) -> None:
    """Take a pin back."""
    with connect(ctx) as client:
        found = client.unpin_checkpoint(chosen(client, job, which).name)
        reasons = tables.kept_as(found)
        output.say(
            f"{formatting.short(found.name)}, {place(found)}, is not pinned"
            + (f"; it is kept as {reasons}" if reasons else "")
        )


@app.command("export")
def export(
    ctx: typer.Context,
    job: JobName,
    file: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="safetensors (tensors only) or torch.")],
    which: Which = LATEST,
    component: Annotated[
        str, typer.Option(metavar="NAME", help="Only what was tracked by this name, such as model.")
    ] = "",
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
) -> None:
    """Write a checkpoint into a file that plain PyTorch code loads without Adjourn.

    All of it is verified. FILE is there in the end, whole, or it is not.
    """
    if form not in FORMATS:
        arguments.wrong("--format", f"{form!r} is neither {' nor '.join(FORMATS)}")
    if file.exists() and not force:
        arguments.wrong("--output", f"{file} is there; --force replaces it")
    if not file.resolve().parent.is_dir():
        arguments.wrong("--output", f"there is no directory {file.resolve().parent}")
    if why := extras.missing("adjourn checkpoint export"):
        error_messages.print_error(why)
        raise typer.Exit(Status.REFUSED)
    with connect(ctx) as client:
        checkpoint = chosen(client, job, which)
        from adjourn.export import file as exported  # torch: seconds, for nothing if there is no such checkpoint
        from adjourn.export.errors import ExportRefused

        try:
            left_out = exported.export(
                client, checkpoint, file, form=form, component=component, on_bytes=Meter(checkpoint.size_bytes)
            )
        except ExportRefused as error:
            error_messages.print_error(str(error))
            raise typer.Exit(Status.REFUSED) from None
    beside = f"; {left_out} values that are no tensors are left out" if left_out else ""
    output.say(
        f"{file} has {component or 'the state'} of {formatting.short(checkpoint.name)}, {place(checkpoint)}, step"
        f" {checkpoint.step}{beside}"
    )


def chosen(client: "Client", job: str, which: str) -> Checkpoint:
    """Returns the checkpoint that is meant; raises NotFoundError, NoCheckpointError."""
    if which == LATEST:
        found = client.get_job(job)
        if not found.latest_checkpoint:
            raise NoCheckpointError(f"{found.name} has no checkpoint yet", job=found.name)
        return client.get_checkpoint(found.latest_checkpoint)
    for each in client.list_checkpoints(job):
        epoch = "" if each.epoch_step else str(each.epoch)  # amid the next one it is not the epoch's
        if which in (epoch, each.name, formatting.short(each.name)):
            return each
    raise NotFoundError(f"{job} has no checkpoint {which}; `adjourn checkpoints` shows those that it has")


def place(checkpoint: Checkpoint) -> str:
    """Says after which epoch a checkpoint was taken, or within which."""
    return f"within epoch {checkpoint.epoch + 1}" if checkpoint.epoch_step else f"after epoch {checkpoint.epoch}"


class Meter:
    """Shows on a terminal how much has arrived."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = ""

    def __call__(self, size: int) -> None:
        text = f"{formatting.percent(100 * size / max(self._total, 1))} of {formatting.size(self._total)}"
        if sys.stderr.isatty() and text != self._shown:
            self._shown = text
            typer.echo(f"\r{text}\033[K" + ("\r\033[K" if size >= self._total else ""), err=True, nl=False)
