"""The command `adjourn`.

`--help` and bad usage load neither grpc nor torch: each command imports what it needs when it runs.
"""

import sys
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from adjourn import __version__, extras
from adjourn.channel import DEFAULT_ADDRESS
from adjourn.cli import (
    arguments,
    checkpoint_verbs,
    completion,
    copying,
    error_messages,
    events,
    fleet_verbs,
    help_texts,
    logs,
    queries,
    servers,
    submit,
    top,
    verbs,
    watch,
)
from adjourn.cli.exit_status import Status

SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["--help", "-h"]}

app = typer.Typer(
    cls=error_messages.Commands,
    help="Pause a training job at any moment and resume it later, on any worker, bit for bit.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)

app.command("submit", cls=submit.Submit)(submit.submit)
app.command("list")(queries.list_jobs)
app.command("get")(queries.get)
app.command("watch")(watch.watch)
app.command("logs")(logs.logs)
app.command("top")(top.top)
app.command("paused")(queries.paused)
app.command("pause")(verbs.pause)
app.command("resume")(verbs.resume)
app.command("cancel")(verbs.cancel)
app.command("update")(verbs.update)
app.command("delete")(verbs.delete)
app.command("events")(events.events)
app.command("metrics", cls=queries.Metrics)(queries.metrics)
app.command("checkpoints")(checkpoint_verbs.list_checkpoints)
app.command("cp")(copying.copy)
app.command("workers")(queries.workers)
app.command("hold")(fleet_verbs.hold)
app.command("release")(fleet_verbs.release)
app.command("drain")(fleet_verbs.drain)
app.command("undrain")(fleet_verbs.undrain)
app.command("delete-worker")(fleet_verbs.delete_worker)
app.command("completion")(completion.completion)
app.add_typer(checkpoint_verbs.app, name="checkpoint")
app.command("control-plane", epilog=f"{servers.ENVIRONMENT}, ADJOURN_REDIS_URL.")(servers.control_plane)
app.command("worker", epilog=f"{servers.ENVIRONMENT}.")(servers.worker)
app.command("web", epilog="All other settings are environment variables: docs/settings.md has the table.")(servers.web)


PASSED_ON: Final[dict[str, Any]] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("up", context_settings=PASSED_ON)
def up(ctx: typer.Context) -> None:
    """Run Adjourn on this machine: Valkey, S3, control plane, workers, page. Ctrl-C ends all of it."""
    require_extras("up")
    from adjourn.cli.up import up as command

    pass_on(ctx, command)


@app.command("demo", context_settings=PASSED_ON)
def demo(ctx: typer.Context) -> None:
    """Watch a training be paused, lose its worker, and end as if nothing had happened."""
    require_extras("demo")
    from adjourn.cli.demo import demo as command

    pass_on(ctx, command)


help_texts.dress(app)
help_texts.dress(checkpoint_verbs.app, "checkpoint ")


def require_extras(command: str) -> None:
    """Leaves with a line that says what to install, if the client alone is installed."""
    if why := extras.missing(f"adjourn {command}"):
        error_messages.print_error(why)
        raise typer.Exit(Status.REFUSED)


def pass_on(ctx: typer.Context, command: Callable[..., None]) -> None:
    """Runs a command whose module, options included, is loaded only now."""
    inner = typer.Typer(
        rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, context_settings=SETTINGS
    )
    inner.command(epilog=help_texts.epilog(help_texts.COMMANDS[str(ctx.info_name)]))(command)
    if status := inner(args=ctx.args, prog_name=f"adjourn {ctx.info_name}", standalone_mode=False):
        raise typer.Exit(status)


def print_version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"adjourn {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    address: Annotated[
        str, typer.Option(help="The control plane, host:port.", envvar="ADJOURN_ADDRESS")
    ] = DEFAULT_ADDRESS,
    *,
    version: Annotated[  # noqa: ARG001 - its callback does all
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            is_eager=True,
            callback=lambda value: print_version(asked=value),
        ),
    ] = False,
) -> None:
    ctx.obj = arguments.address(address)


def main() -> None:
    """Runs the command line; every failure is a line on standard error and an exit status."""
    sys.unraisablehook = error_messages.ignore_unraisable
    completion.prepare()
    try:
        app()
    except Exception as error:  # noqa: BLE001 - the last resort: one line, and the traceback on request
        sys.exit(error_messages.unexpected(error))
