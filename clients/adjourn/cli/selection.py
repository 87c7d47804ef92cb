"""The jobs that a command is about: named, or by label. One question for all of them, one outcome for each."""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from adjourn import errors
from adjourn.cli import arguments, completion, error_messages, exit_status, formatting
from adjourn.cli.exit_status import Otherwise, Status
from adjourn.v1.job_pb2 import Hold, Job

if TYPE_CHECKING:
    from adjourn.client import Client

ENDED: Final = frozenset({Job.SUCCEEDED, Job.FAILED, Job.CANCELLED})
NAMED_IN_A_QUESTION: Final = 6

JobName = Annotated[
    str,
    typer.Argument(metavar="JOB", help="The job, `x` or `jobs/x`.", show_default=False, autocompletion=completion.jobs),
]
JobNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="JOB", help="The jobs, `x` or `jobs/x`.", show_default=False, autocompletion=completion.jobs
    ),
]
Label = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Jobs that carry it. Repeat it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal nothing is asked anyway.")]

Applies = Callable[[Job], bool]
T = TypeVar("T")


def can_pause(job: Job) -> bool:
    """Returns whether a pause of the job would change something."""
    return job.state not in (*ENDED, Job.CANCELLING) and not held(job)


def can_resume(job: Job) -> bool:
    """Returns whether the job is one that its user paused."""
    return job.state in (Job.PAUSED, Job.PAUSING) and held(job)


def can_cancel(job: Job) -> bool:
    return job.state not in (*ENDED, Job.CANCELLING)


def can_delete(job: Job) -> bool:
    return job.state in ENDED


def held(job: Job) -> bool:
    return any(hold.kind == Hold.USER for hold in job.holds)


def chosen(client: "Client", jobs: Sequence[str] | None, label: Sequence[str] | None, applies: Applies) -> list[str]:
    """Returns the names of the jobs: those that are named, or those that carry the labels and for which `applies`.

    A usage error unless it is said which; NotFoundError if no job with the labels is left.
    """
    if bool(jobs) == bool(label):
        arguments.wrong("JOB", "name jobs, or give --label" if not jobs else "name jobs or give --label, not both")
    if jobs:
        return list(dict.fromkeys(jobs))
    found = list(client.list_jobs(labels=arguments.pairs("--label", label or ())))
    names = [job.name for job in found if applies(job)]
    if not names:
        left = f"; {len(found)} carry it in a state that leaves nothing to do" if found else ""
        raise errors.NotFoundError(f"no such job carries {', '.join(label or ())}{left}")
    return names


def confirm(question: Callable[[], str], *, yes: bool) -> None:
    """Asks for a confirmation on a terminal; scripts are not asked. An empty question is not asked."""
    if not yes and interactive() and (words := question()):
        typer.confirm(words, abort=True, err=True)


def interactive() -> bool:
    return sys.stdin.isatty()


def together(names: Iterable[str]) -> str:
    """Returns the names for a question: all of a few, some and how many of more."""
    short = [formatting.short(name) for name in names]
    if len(short) <= NAMED_IN_A_QUESTION:
        return ", ".join(short)
    return f"{len(short)} jobs ({', '.join(short[:NAMED_IN_A_QUESTION])}, ...)"


class Outcomes:
    """What became of each of several jobs: an error of one leaves the others alone."""

    def __init__(self) -> None:
        self._statuses: set[Status] = set()

    def each(self, items: Iterable[T], act: Callable[[T], Status]) -> None:
        """Calls `act` for each, and prints its error. Stops where nobody answers."""
        for item in items:
            try:
                self._statuses.add(act(item))
            except errors.ControlPlaneUnreachableError:
                raise
            except Otherwise as end:
                error_messages.print_error(str(end))
                self._statuses.add(end.status)
            except errors.AdjournError as error:
                error_messages.print_error(error_messages.sentence(error))
                self._statuses.add(exit_status.of(error))

    def read(self, client: "Client", names: Iterable[str]) -> list[Job]:
        """Returns the jobs that there are."""
        found: list[Job] = []

        def read(name: str) -> Status:
            found.append(client.get_job(name))
            return Status.DONE

        self.each(names, read)
        return found

    def leave(self) -> None:
        """Leaves with the status of what did not work: its own if there is one kind of it, else REFUSED."""
        failed = self._statuses - {Status.DONE}
        if failed:
            raise typer.Exit(failed.pop() if len(failed) == 1 else Status.REFUSED)
