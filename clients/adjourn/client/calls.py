"""The metadata of every call, and the conversion of gRPC errors to `adjourn.errors`."""

import getpass
import os
import socket
from collections.abc import Iterable
from typing import Final, Protocol, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from adjourn.channel import ACTOR_KEY, DEFAULT_ADDRESS
from adjourn.errors import AdjournError, from_status

CALL_SECONDS: Final = 10.0
"""Deadline of a call that is answered once, retries included."""
UPLOAD_SECONDS: Final = 120.0
PATIENCE_SECONDS: Final = 60.0
"""How long a watch tries to reconnect."""
STATUS_KEY: Final = "grpc-status-details-bin"


class Paged(Protocol):
    """A request for one page of a list."""

    page_token: str


class Page(Protocol):
    """An answer that holds one page."""

    next_page_token: str


def default_address() -> str:
    """Returns the address of the control plane for a client that is given none, as the command line does."""
    return os.environ.get("ADJOURN_ADDRESS") or DEFAULT_ADDRESS


def caller() -> tuple[tuple[str, str], ...]:
    """Returns the metadata that names the caller, as `user@host`. It is recorded, not checked."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        user = "unknown"
    actor = f"{user}@{socket.gethostname()}"
    return ((ACTOR_KEY, actor.encode("ascii", "replace").decode("ascii")),)


def typed(error: grpc.RpcError, address: str) -> AdjournError:
    """Returns the error of `adjourn.errors` for a failed call."""
    trailing = cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
    for key, value in trailing:
        if key == STATUS_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break  # not from one of ours; the code still tells something
    return from_status(plain_status(error, address))


def plain_status(error: grpc.RpcError, address: str) -> status_pb2.Status:
    """Returns a status for an error that gRPC itself made, with a readable message."""
    said = error.details() or error.code().name
    if "Failed parsing HTTP/2" in said or "http2 header with status" in said:
        message = f"what answers at {address} is no control plane: it does not speak gRPC"
        return status_pb2.Status(code=code_pb2.UNAVAILABLE, message=message)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            # CANCELLED is what a server that is going away leaves of its streams; ours end without an error.
            # The cause comes last: "...; last error: ...: Connection refused", or "[...: Domain name not found]".
            cause = said.rpartition(": ")[2].rstrip("]")
            message = f"no control plane answers at {address} ({cause})"
            return status_pb2.Status(code=code_pb2.UNAVAILABLE, message=message)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            message = f"no answer from {address} in time; the call may still take effect"
        case grpc.StatusCode.UNIMPLEMENTED:
            message = f"{address} does not know this call ({said})"
        case _:
            message = said
    number, _ = error.code().value
    return status_pb2.Status(code=number, message=message)
