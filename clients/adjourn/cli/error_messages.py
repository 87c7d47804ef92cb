"""Turns an error into one line that says what is wrong and what to do."""

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

import typer
from typer.core import TyperGroup

from adjourn import errors
from adjourn.bundles import BundleInvalid
from adjourn.cli import exit_status, fields
from adjourn.cli.exit_status import Otherwise, Status
from adjourn.cli.formatting import printable
from adjourn.scripts.errors import ScriptInvalid

UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
"""What typer raises of a command line that is wrong; it exports only this child of it."""
TRACEBACK_VARIABLE: Final = "ADJOURN_TRACEBACK"

ADVICE: Final[Mapping[type[errors.AdjournError], str]] = {  # where the answer itself does not say what to do
    errors.ControlPlaneUnreachableError: "start one with `adjourn up`, or name it by --address or ADJOURN_ADDRESS",
    errors.NotFoundError: "`adjourn list` shows what there is",
    errors.InvalidRequestError: "nothing was changed",
    errors.JobFinishedError: "`adjourn get` tells how it ended",
    errors.JobCancellingError: "wait until it is CANCELLED; `adjourn resume` then goes on from its checkpoint",
    errors.JobHeldByWorkerError: "`adjourn pause --wait` it first, then `adjourn resume` it",
    errors.JobNotPausedError: "`adjourn get` shows where it stands",
    errors.StaleEtagError: "look at the job again, then repeat",
    errors.ContentionError: "try again",
    errors.WorkerInUseError: "`adjourn workers` shows its state and jobs",
    errors.TooManyUploadsError: "try again in a moment",
    errors.UploadStalledError: "submit it again",
    errors.TooManyReadsError: "try again in a moment",
    errors.CheckpointDamagedError: "`adjourn checkpoints` has older ones",
    errors.StoreUnavailableError: "running trainings go on; try again in a moment",
    errors.ObjectStoreUnavailableError: "try again in a moment",
    errors.ObjectStoreRefusedError: "the control plane's settings of object storage have to be mended",
    errors.ShuttingDownError: "try again in a moment",
    errors.DeadlineError: "see with `adjourn get` what became of it before you repeat it",
}


ADVICE_ON_WORKERS: Final = "`adjourn workers` shows what there is"


WAITING: Final = frozenset({"watch", "submit", "pause", "resume", "drain"})
"""Commands that may have waited for something when Ctrl-C came."""


class Commands(TyperGroup):
    """Commands whose errors are one line on standard error, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise interrupted(ctx) from None
        except typer.Abort as abort:  # what an inner command makes of Ctrl-C
            if isinstance(abort.__cause__, KeyboardInterrupt):
                raise interrupted(ctx) from None
            print_error("nothing was changed")
            status = Status.REFUSED
        except UsageError as error:
            print_error(usage(error))
            status = Status.USAGE
        except errors.AdjournError as error:
            print_error(sentence(error))
            status = exit_status.of(error)
        except Otherwise as end:
            print_error(str(end))
            status = end.status
        except ScriptInvalid as error:
            print_error(error.reason)
            status = Status.USAGE
        except BundleInvalid as error:
            print_error(f"cannot make a bundle: {error.reason}")
            status = Status.REFUSED
        raise typer.Exit(status)


def usage(error: Any) -> str:
    """Returns what is wrong with a command line, and which help says more."""
    said = " ".join(str(error.format_message()).split()).rstrip(".")
    return f"{said}; `{error.ctx.command_path} --help` tells more" if error.ctx else said


def interrupted(ctx: Any) -> typer.Exit:
    """Returns the end of a command after Ctrl-C; on a terminal the prompt begins on a line of its own."""
    if sys.stderr.isatty():
        typer.echo(err=True)
        if ctx.invoked_subcommand in WAITING:
            print_error("stopped looking; jobs, and what was asked for, go on")
    return typer.Exit(Status.INTERRUPTED)


def sentence(error: errors.AdjournError) -> str:
    """Returns what is wrong and what to do next."""
    if isinstance(error, errors.InternalError) and "error_id" in error.metadata:
        advice = f"the control plane's log has the traceback under error_id {error.metadata['error_id']}"
    else:
        advice = (
            ADVICE_ON_WORKERS
            if error.resource[0].endswith("/Worker") and isinstance(error, errors.NotFoundError)
            else ""
        )
        advice = advice or next((ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE), "")
    if isinstance(error, errors.InvalidRequestError) and error.violations:
        said = "; ".join(f"{fields.option(field)}: {why}" for field, why in error.violations.items())
    else:
        said = error.message
    message = " ".join(said.split()) or error.reason
    return f"{message}; {advice}" if advice and advice not in message else message


def print_error(text: str) -> None:
    typer.echo(f"adjourn: {printable(text)}", err=True)


def unexpected(error: Exception) -> int:
    """Prints an error that no command expects; returns the exit status."""
    if isinstance(error, OSError) and not os.environ.get(TRACEBACK_VARIABLE):
        print_error(f"{error.filename or 'the output'}: {error.strerror or error}")
    elif os.environ.get(TRACEBACK_VARIABLE):
        sys.excepthook(type(error), error, error.__traceback__)
    else:
        said = " ".join(str(error).split())
        print_error(f"internal error, {type(error).__name__}: {said}; {TRACEBACK_VARIABLE}=1 shows where")
    return Status.REFUSED


def ignore_unraisable(fault: "sys.UnraisableHookArgs") -> None:
    """Drops errors of destructors: Ctrl-C leaves objects half built, and their destructors fail."""
    if os.environ.get(TRACEBACK_VARIABLE):
        sys.__unraisablehook__(fault)
