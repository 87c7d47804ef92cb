"""How many steps a second jobs take, from what they report. Pure: the times are those of the reports."""

from collections import defaultdict, deque
from typing import Final, NamedTuple

from adjourn.v1.job_pb2 import Job

WINDOW_SECONDS: Final = 30.0


class Report(NamedTuple):
    """Where an attempt was at a time of its worker's clock."""

    attempt: int
    seconds: float
    step: int


def follows(last: Report, new: Report) -> bool:
    """Returns whether a report goes on where the last one was: the same attempt, soon, and not behind it."""
    return last.attempt == new.attempt and last.step <= new.step and new.seconds - last.seconds <= WINDOW_SECONDS


class Paces:
    """The reports of the last half minute, by job."""

    def __init__(self) -> None:
        self._reports: defaultdict[str, deque[Report]] = defaultdict(deque)

    def note(self, job: Job) -> None:
        if not job.progress.HasField("report_time"):
            return
        reports = self._reports[job.name]
        new = Report(job.attempt, job.progress.report_time.ToNanoseconds() / 1e9, job.progress.step)
        if reports and not follows(reports[-1], new):
            reports.clear()
        if not reports or new.step > reports[-1].step:
            reports.append(new)
        while len(reports) > 2 and new.seconds - reports[1].seconds > WINDOW_SECONDS:
            reports.popleft()

    def of(self, job: Job) -> float | None:
        """Returns the steps a second of the last half minute, else of all its training; None if it does not train."""
        if job.state != Job.RUNNING:
            return None
        reports = self._reports[job.name]
        if len(reports) > 1 and reports[-1].seconds > reports[0].seconds:
            return (reports[-1].step - reports[0].step) / (reports[-1].seconds - reports[0].seconds)
        trained = job.progress.active_duration.ToNanoseconds() / 1e9
        between = job.progress.step - 1  # the first step comes at once, whatever the pace
        return between / trained if trained and between > 0 else None
