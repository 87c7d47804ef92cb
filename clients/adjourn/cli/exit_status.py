"""The exit statuses of the command line. Scripts may rely on them: docs/cli.md has the table. Pure."""

from enum import IntEnum

from google.rpc import code_pb2

from adjourn import errors


class Status(IntEnum):
    """What became of a command."""

    DONE = 0
    """Done; what was to be waited for came."""
    REFUSED = 1
    """Refused, failed, or not done to every one of several jobs."""
    USAGE = 2
    """The command line itself is wrong."""
    NOT_FOUND = 3
    """There is no job, worker or checkpoint of that name."""
    UNAVAILABLE = 4
    """Nobody answers, or not now: the same command can succeed later."""
    ENDED_OTHERWISE = 5
    """What was to be waited for will not come: the job failed, was stopped or deleted."""
    TIMEOUT = 6
    """What was to be waited for has not come within --timeout."""
    INTERRUPTED = 130
    """Ctrl-C."""


class Otherwise(Exception):
    """What was waited for does not come."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def of(error: errors.AdjournError) -> Status:
    """Returns the status of a command that ends with this error."""
    if isinstance(error, errors.NotFoundError):
        return Status.NOT_FOUND
    if error.code in (code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED) or error.retry_delay is not None:
        return Status.UNAVAILABLE
    return Status.REFUSED
