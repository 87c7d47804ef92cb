"""PURE. The queued jobs in classes of equal needs: one look decides for every job of a class.

Holds of each job no more than the scheduler needs. Within a class the oldest job comes first. A job that waits before
its next attempt is in no class until then. It waits for a duration, counted on this process's monotonic clock from when
the job was first seen in the queue: wall clocks may be set, and differ.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition
from adjourn_control_plane.fleet.placement import Home, Needs, home, needs
from adjourn_control_plane.job.retries import delay, ready_time
from adjourn_control_plane.store.interface import JobName


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A queued job."""

    number: int
    needs: Needs
    home: Home | None
    """Where it left off. It decides nothing but which of the workers that have room is taken."""
    due: datetime
    """When it may be placed (UTC), by its record."""
    expected: datetime
    """When it will be (UTC): otherwise only if a clock was set."""
    ready: float
    """The same on the monotonic clock, in seconds."""
    reason: str
    """Of its UNPLACED condition; empty: it has none."""


@dataclass(slots=True)
class JobClass:
    """The jobs with equal needs that may be placed."""

    oldest: list[tuple[int, JobName]] = field(default_factory=list)
    """A heap; it may hold jobs that have left the class."""
    by_reason: dict[str, dict[JobName, None]] = field(default_factory=dict)
    """The jobs of the class, by the reason of their UNPLACED condition."""

    def __contains__(self, job: JobName) -> bool:
        return any(job in jobs for jobs in self.by_reason.values())


class Queue:
    """All queued jobs."""

    def __init__(self) -> None:
        self.waiting: dict[JobName, Waiting] = {}
        self.classes: dict[Needs, JobClass] = {}
        self.known: dict[Needs, Needs] = {}
        """One object for equal needs: 100,000 jobs must not cost the garbage collector more than their own number."""
        self.delayed: list[tuple[float, JobName]] = []
        """A heap of the jobs in no class; it may hold jobs that are gone."""

    def put(self, job: JobName, record: JobRecord, now: datetime, clock: float) -> bool:
        """Adds a queued job, or replaces its record; True if that may let it be placed.

        `now`: the time (UTC), and `clock` the same on the monotonic clock, in seconds.
        """
        condition = next((each for each in record.job.conditions if each.type == Condition.UNPLACED), Condition())
        wanted = needs(record)
        wanted = self.known.setdefault(wanted, wanted)
        due, left_off = ready_time(record), home(record)
        old = self.waiting.get(job)
        if old and (old.number, old.needs, old.home, old.due) == (record.number, wanted, left_off, due):
            self.explained(job, condition.reason)
            return False
        self.remove(job)
        wait = min(max(due - now, timedelta()), delay(record))  # longer: the clock was set back since it failed
        new = self.waiting[job] = Waiting(
            number=record.number,
            needs=wanted,
            home=left_off,
            due=due,
            expected=now + wait,
            ready=clock + wait.total_seconds(),
            reason=condition.reason,
        )
        if new.ready <= clock:
            self.enter(job, new)
        else:
            heapq.heappush(self.delayed, (new.ready, job))
        return True

    def enter(self, job: JobName, new: Waiting) -> None:
        entered = self.classes.setdefault(new.needs, JobClass())
        entered.by_reason.setdefault(new.reason, {})[job] = None
        heapq.heappush(entered.oldest, (new.number, job))

    def remove(self, job: JobName) -> None:
        """Removes a job, if it is there."""
        old = self.waiting.pop(job, None)
        if old and (known := self.classes.get(old.needs)):
            self.leave(known, old, job)

    def leave(self, known: JobClass, old: Waiting, job: JobName) -> None:
        jobs = known.by_reason.get(old.reason, {})
        jobs.pop(job, None)
        if not jobs:
            known.by_reason.pop(old.reason, None)
        if not known.by_reason:
            del self.classes[old.needs]
            self.known.pop(old.needs, None)

    def release(self, clock: float) -> None:
        """Puts the jobs that may be placed by now into their classes."""
        while self.delayed and self.delayed[0][0] <= clock:
            ready, job = heapq.heappop(self.delayed)
            known = self.waiting.get(job)
            if known and known.ready == ready:
                self.enter(job, known)

    def next_ready(self) -> float | None:
        """Returns when `release` has something to do, on the monotonic clock."""
        return self.delayed[0][0] if self.delayed else None

    def oldest(self, wanted: Needs) -> tuple[int, JobName] | None:
        """Returns number and name of the oldest job of a class."""
        known = self.classes.get(wanted)
        while known and known.oldest:
            if known.oldest[0][1] in known:
                return known.oldest[0]
            heapq.heappop(known.oldest)
        return None

    def explained(self, job: JobName, reason: str) -> None:
        """Notes the reason of a job's UNPLACED condition."""
        old = self.waiting[job]
        if old.reason == reason:
            return
        self.waiting[job] = replace(old, reason=reason)
        known = self.classes.get(old.needs)
        if known and job in known.by_reason.get(old.reason, {}):
            known.by_reason.setdefault(reason, {})[job] = None
            self.leave(known, old, job)

    def unexplained(self, wanted: Needs, reason: str, size: int) -> list[JobName]:
        """Returns up to `size` jobs of a class whose UNPLACED condition has another reason."""
        known = self.classes.get(wanted)
        if known is None or known.by_reason.keys() <= {reason}:
            return []
        others = (job for other, jobs in known.by_reason.items() if other != reason for job in jobs)
        return list(islice(others, size))

    def delayed_unexplained(self, size: int) -> Iterator[tuple[datetime, JobName]]:
        """Yields up to `size` jobs that wait before their next attempt and have no UNPLACED condition."""
        found = (
            (known.expected, job)
            for ready, job in self.delayed
            if (known := self.waiting.get(job)) and known.ready == ready and not known.reason
        )
        return islice(found, size)
