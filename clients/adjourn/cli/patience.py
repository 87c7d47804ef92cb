"""How long a command waits for jobs: `--timeout` of every command that waits."""

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from adjourn.cli import arguments, formatting, output, phrases
from adjourn.cli.exit_status import Otherwise, Status
from adjourn.errors import DeadlineError, NotFoundError
from adjourn.v1.job_pb2 import Job

if TYPE_CHECKING:
    from adjourn.client import Client

Timeout = Annotated[
    str, typer.Option(metavar="TIME", help="Wait at most so long (90s, 10m); then the exit status is 6.")
]


class Patience:
    """How long a command waits, for all its jobs together."""

    def __init__(self, timeout: str, *, waits: bool, why_not: str = "is for --wait") -> None:
        if timeout and not waits:
            arguments.wrong("--timeout", why_not)
        span = arguments.duration("--timeout", timeout)
        self._end = None if span is None else monotonic() + span.ToTimedelta().total_seconds()

    @property
    def left(self) -> float | None:
        """Seconds that are left, more than none; None without an end."""
        return None if self._end is None else max(self._end - monotonic(), 0.001)

    @property
    def over(self) -> bool:
        return self._end is not None and monotonic() >= self._end

    def wait(self, client: "Client", job: Job, until: Callable[[Job], bool], *, tell: bool) -> Job:
        """Returns the job once `until` accepts it. Tells meanwhile what keeps it from that.

        Raises Otherwise at the end of patience, and if the job is deleted.
        """
        told = phrases.troubles(job)

        def over(now: Job) -> bool:
            nonlocal job, told
            job = now
            if until(now):
                return True
            if tell and phrases.troubles(now) not in ("", told):
                told = phrases.troubles(now)
                output.say(phrases.sentence(now))
            return False

        try:
            return client.wait_job(job.name, until=over, timeout=self.left)
        except DeadlineError:
            if not self.over:
                raise
            raise Otherwise(Status.TIMEOUT, unfinished(job)) from None
        except NotFoundError as error:
            raise Otherwise(Status.ENDED_OTHERWISE, error.message) from None


def unfinished(job: Job) -> str:
    """Says where a job stands that is not waited for any longer."""
    return f"{phrases.sentence(job)}; `adjourn watch {formatting.short(job.name)}` follows it"
