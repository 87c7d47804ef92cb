"""`adjourn control-plane`, `adjourn worker` and `adjourn web`: the processes, with a few of their settings as options.

An option only sets the environment variable that it names; the process reads that, as without the command, and says
what is wrong with it. Keys and passwords have no options: all users of a machine can read the words of a command.
"""

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Final, NoReturn

import typer

ENVIRONMENT: Final = (
    "All other settings are environment variables: docs/settings.md has the table. "
    "Required here: ADJOURN_S3_ENDPOINT, ADJOURN_S3_BUCKET, ADJOURN_S3_ACCESS_KEY, ADJOURN_S3_SECRET_KEY"
)


def control_plane(
    listen: Annotated[
        str | None,
        typer.Option(help="Where to serve, host:port; else ADJOURN_LISTEN, else 127.0.0.1:7400.", metavar="HOST:PORT"),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(help="Prefix of all keys in Redis; else ADJOURN_NAMESPACE, else adjourn.", metavar="NAME"),
    ] = None,
) -> None:
    """Run one replica of the control plane, in the foreground. SIGTERM drains it."""
    become("adjourn_control_plane", {"ADJOURN_LISTEN": listen, "ADJOURN_NAMESPACE": namespace})


def worker(
    name: Annotated[
        str | None,
        typer.Option(help="What the worker is called; else ADJOURN_WORKER.", metavar="NAME"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Directory of its own on a disk that lasts; else ADJOURN_DATA.", metavar="DIRECTORY"),
    ] = None,
    control_plane: Annotated[
        str | None,
        typer.Option(
            help="The control plane; else ADJOURN_CONTROL_PLANE, else 127.0.0.1:7400.",
            metavar="HOST:PORT",
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="What jobs select workers by; may be repeated. In place of those in ADJOURN_LABELS.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    cpu_slots: Annotated[
        int | None,
        typer.Option(help="Jobs without a GPU that run at a time; else ADJOURN_CPU_SLOTS, else 1.", min=0),
    ] = None,
) -> None:
    """Run the agent of this machine, in the foreground. What SIGTERM does to training: ADJOURN_ON_TERM."""
    settings = {
        "ADJOURN_WORKER": name,
        "ADJOURN_DATA": data and os.path.abspath(data),  # noqa: PTH100 - a link is kept as it was written
        "ADJOURN_CONTROL_PLANE": control_plane,
        "ADJOURN_LABELS": ",".join(label) if label else None,
        "ADJOURN_CPU_SLOTS": None if cpu_slots is None else str(cpu_slots),
    }
    become("adjourn_worker", settings)


def web(
    ctx: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Where to serve, host:port; else ADJOURN_WEB_LISTEN, else 127.0.0.1:7480.", metavar="HOST:PORT"
        ),
    ] = None,
    heimdall: Annotated[
        str | None,
        typer.Option(
            help="Serve clients of Heimdall too, at a port or host:port; else ADJOURN_HEIMDALL_LISTEN, else not.",
            metavar="[HOST:]PORT",
        ),
    ] = None,
    peft_studio: Annotated[
        str | None,
        typer.Option(
            help="Serve clients of PEFT Studio too, at a port or host:port; else ADJOURN_PEFT_STUDIO_LISTEN, else not.",
            metavar="[HOST:]PORT",
        ),
    ] = None,
) -> None:
    """Run a gateway in the foreground: the web page, and the contract as HTTP and JSON. SIGTERM drains it."""
    settings = {
        "ADJOURN_WEB_LISTEN": listen,
        "ADJOURN_ADDRESS": str(ctx.obj),
        "ADJOURN_HEIMDALL_LISTEN": heimdall,
        "ADJOURN_PEFT_STUDIO_LISTEN": peft_studio,
    }
    become("adjourn.web", settings)


def become(module: str, settings: Mapping[str, str | None]) -> NoReturn:
    """Takes the module's process in place of this one, so that signals and the exit status are its own."""
    given = {name: value for name, value in settings.items() if value is not None}
    # -P: a module in the working directory must not be imported instead.
    os.execve(sys.executable, [sys.executable, "-P", "-m", module], {**os.environ, **given})  # noqa: S606
