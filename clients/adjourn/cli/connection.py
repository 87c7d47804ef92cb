"""The client of one command."""

import os
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from adjourn.client import Client


def connect(ctx: typer.Context) -> "Client":
    """Returns a client of the control plane that --address or ADJOURN_ADDRESS names."""
    return client(str(ctx.obj))


def client(address: str, **options: Any) -> "Client":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # we print errors ourselves; read when grpc is imported
    from adjourn.client import Client  # grpc: not needed for --help

    return Client(address, **options)
