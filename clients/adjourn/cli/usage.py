"""What jobs use just now, asked for in the background while a live view is shown."""

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from adjourn.errors import AdjournError, NotImplementedYetError
from adjourn.v1.job_pb2 import Job
from adjourn.v1.usage_pb2 import ResourceSample

if TYPE_CHECKING:
    from adjourn.client import Client

LOOK_SECONDS: Final = 3.0
MOST_JOBS: Final = 50
"""Of more jobs that train, the usage of the others is not asked for."""
USING: Final = (Job.RUNNING, Job.PAUSING, Job.STARTING, Job.CANCELLING)


class Usage:
    """The newest sample of each job that has a worker. A control plane that does not know of samples has none."""

    def __init__(self, client: "Client", jobs: Callable[[], Iterable[Job]]) -> None:
        self._client = client
        self._jobs = jobs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.samples: dict[str, ResourceSample] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=1)

    def _look(self) -> None:
        while not self._over.is_set():
            using = [job for job in self._jobs() if job.state in USING][:MOST_JOBS]
            try:
                found = {job.name: newest(self._client, job) for job in using}
            except AdjournError:  # the view itself says what is wrong, if it is more than that
                found = {}
            except ValueError:  # what gRPC raises of a client that was closed meanwhile
                if self._over.is_set():
                    return
                raise
            self.samples = {name: sample for name, sample in found.items() if sample}
            self._over.wait(LOOK_SECONDS)


def newest(client: "Client", job: Job) -> ResourceSample | None:
    """Returns what the job's attempt used last; None if nothing is known, as of an older control plane."""
    with suppress(NotImplementedYetError):
        samples = client.list_resource_samples(job.name, max_samples=2)
        return next((sample for sample in reversed(samples) if sample.attempt == job.attempt), None)
    return None
