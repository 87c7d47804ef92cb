"""`adjourn up`: the embedded stack in the foreground."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adjourn.cli import error_messages, output
from adjourn.local import s3_url, signals
from adjourn.local.data_directory import DirectoryDamagedError, DirectoryInUseError
from adjourn.local.managed_process import MissingServerError, ProgramError
from adjourn.local.ports import HOST
from adjourn.local.stack import Options, Origins, PortTakenError, Stack
from adjourn.objects import S3Settings


def parse_s3(url: str) -> S3Settings:
    try:
        return s3_url.parse(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def up(
    data: Annotated[Path, typer.Option(help="Where everything is kept.", file_okay=False)] = Path(".adjourn"),
    port: Annotated[
        int | None,
        typer.Option(help="Port of the control plane. [default: 7400, or another if that is taken]", min=1, max=65535),
    ] = None,
    web: Annotated[bool, typer.Option(help="Serve the page and HTTP.")] = True,
    web_port: Annotated[
        int | None,
        typer.Option(help="Port of the page and HTTP. [default: 7480, or another if that is taken]", min=1, max=65535),
    ] = None,
    origins: Annotated[
        bool,
        typer.Option(
            "--origins",
            help="Serve clients of Heimdall (port 8001) and of PEFT Studio (port 8000) too. What trains for them: "
            "ADJOURN_ORIGIN_JOB_*, else the digits example.",
        ),
    ] = False,
    workers: Annotated[int, typer.Option(help="How many workers.", min=1, max=64)] = 2,
    redis: Annotated[
        str | None,
        typer.Option(
            help="External Redis, redis://[:password@]host:port/0.", envvar="ADJOURN_REDIS_URL", metavar="URL"
        ),
    ] = None,
    s3: Annotated[
        S3Settings | None,
        typer.Option(
            help="External S3, http(s)://key:secret@host:port/bucket.",
            envvar="ADJOURN_S3_URL",
            parser=parse_s3,
            metavar="URL",
        ),
    ] = None,
) -> None:
    """Run Adjourn on this machine: Valkey, S3, control plane, workers, page. Ctrl-C ends it, a second one at once."""
    if origins and not web:
        raise typer.BadParameter("needs the gateway: leave --no-web out", param_hint="--origins")
    options = Options(
        data=data,
        workers=workers,
        port=port,
        web=web,
        web_port=web_port,
        origins=Origins() if origins else None,
        redis=redis,
        s3=s3,
    )
    try:
        signals.run(serve(options))
    except (ProgramError, DirectoryDamagedError, DirectoryInUseError, MissingServerError, PortTakenError) as error:
        error_messages.print_error(str(error))
        raise typer.Exit(1) from None
    except OSError as error:  # the data directory cannot be written, the disk is full
        error_messages.print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise typer.Exit(1) from None


async def serve(options: Options) -> None:
    """Runs a stack until cancelled."""
    stack = Stack(options, report=report)
    stack.report(f"starting in {stack.directory.path}")
    try:
        async with stack:
            with suppress(OSError, SystemExit):  # who reads it may be gone; it is served all the same
                output.show(overview(stack))
            await stack.serve()
    finally:
        stack.report("stopped")


def report(text: str) -> None:
    output.console().print(text, style="dim", soft_wrap=True)


def overview(stack: Stack) -> Panel:
    """Returns the addresses of the parts, and commands to go on with."""
    places = Table.grid(padding=(0, 2))
    places.add_row("control plane", stack.address)
    if stack.web:
        places.add_row("web page, HTTP", f"http://{stack.web}")
    if origins := stack.options.origins:
        places.add_row("Heimdall", f"http://{HOST}:{origins.heimdall}/v1/training")
        places.add_row("PEFT Studio", f"http://{HOST}:{origins.peft_studio}/api/training")
    places.add_row("workers", ", ".join(stack.workers))
    for name, place in stack.places().items():
        places.add_row(name, place)
    places.add_row("data, logs", f"{stack.directory.path}, {stack.directory.logs}")
    places.add_row()
    places.add_row("in another shell", Text(f"export ADJOURN_ADDRESS={stack.address}", style="bold"))
    places.add_row("", Text("adjourn submit adjourn.examples.digits:main --epochs 12", style="bold"))
    return Panel.fit(places, title="Adjourn is ready; Ctrl-C ends it", title_align="left")
