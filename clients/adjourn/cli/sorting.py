"""Lists of jobs in the order of one of their columns. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from adjourn.cli.selection import ENDED
from adjourn.v1.job_pb2 import Job

AGE: Final = "age"
KEYS: Final[Mapping[str, Callable[[Job], Any]]] = {
    AGE: lambda job: -job.create_time.ToNanoseconds(),
    "best": lambda job: job.progress.best.value if job.progress.HasField("best") else None,
    "epoch": lambda job: job.progress.epoch,
    "job": lambda job: job.name,
    "left": lambda job: job.progress.remaining_duration.ToNanoseconds() if has_time_left(job) else None,
    "loss": lambda job: job.progress.loss if job.progress.HasField("loss") else None,
    "model": lambda job: job.spec.model_name or None,
    "owner": lambda job: job.creator or None,
    "since": lambda job: -job.state_time.ToNanoseconds(),
    "state": lambda job: job.state,
    "trained": lambda job: job.progress.active_duration.ToNanoseconds(),
    "worker": lambda job: job.worker or None,
}
"""What jobs are sorted by, ascending, by the title of the column; what is None or NaN comes last. States come as in the
life of a job."""


def has_time_left(job: Job) -> bool:
    return job.progress.HasField("remaining_duration") and job.state not in ENDED


def ordered(jobs: Iterable[Job], column: str, *, reverse: bool) -> list[Job]:
    """Returns the jobs in the order of a column. Equal ones stay in the order that they came in."""
    key, jobs = KEYS[column], list(jobs)
    known = [job for job in jobs if is_known(key(job))]
    return sorted(known, key=key, reverse=reverse) + [job for job in jobs if not is_known(key(job))]


def is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
