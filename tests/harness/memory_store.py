"""A store in memory: what `RedisStore` is to the control plane, for tests; both pass the tests in `contract`."""

import asyncio
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeVar

from adjourn.errors import StoreUnavailableError
from adjourn.series import thinned
from adjourn.v1.agent_service_pb2 import SeriesPart
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Drain, Worker
from adjourn_control_plane.store import redis_codec as values
from adjourn_control_plane.store.interface import (
    DELETED_KEPT,
    EVENTS_KEPT,
    FOLLOWED,
    PURGE_AGAIN,
    REQUESTS_KEPT,
    SERIES_KEPT,
    Allocation,
    BundleMarks,
    BundlesRemoved,
    Change,
    Changed,
    Conflict,
    Fence,
    Fenced,
    Happened,
    JobName,
    JobUid,
    RequestSeen,
    SeriesLimits,
    Session,
    Stored,
    TokenTooOld,
    Tombstone,
    Unconfirmed,
    WorkerName,
)

Notification = tuple[JobName, WorkerName]
Kept = TypeVar("Kept")
PAGE = 200
"""Jobs that `queued` yields at a time."""


@dataclass
class Entry:
    """A job and its series; messages as bytes, so that nobody changes them from outside."""

    number: int
    version: int = 0
    record: bytes = b""
    state: Job.State.ValueType = Job.STATE_UNSPECIFIED
    worker: str = ""
    released: bool = False
    unconfirmed: Mapping[str, bytes] = field(default_factory=dict)
    """By worker."""
    events: list[bytes] = field(default_factory=list)
    events_trimmed: int = 0
    epochs: dict[int, bytes] = field(default_factory=dict)
    samples: dict[int, bytes] = field(default_factory=dict)
    """By ms since 1970, in order."""
    steps: dict[int, bytes] = field(default_factory=dict)
    """By step, in order."""
    checkpoints: dict[str, bytes] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    """Of registrations, by the checkpoint's name; those of retired ones stay taken."""
    retired: dict[str, bytes] = field(default_factory=dict)
    review: int = 0
    """Version that asked for a look at the checkpoints; 0: none."""

    def read(self) -> Stored:
        return values.stored([self.record, b"%d" % self.version, b"%d" % self.number])


def within(series: Mapping[int, bytes], low: int | None, high: int | None) -> list[bytes]:
    return [row for at, row in series.items() if (low is None or at >= low) and (high is None or at <= high)]


def entries_after(stream: deque[Kept], newest: int, token: str, size: int) -> list[Kept]:
    """Returns what comes after a token in a stream whose newest entry has the number `newest`."""
    if not values.is_token(token):
        raise ValueError(f"{token!r} is no token of this store")
    position = int(token.split("-", maxsplit=1)[0])
    kept_from = newest - len(stream) + 1
    if not kept_from - 1 <= position <= newest:
        raise TokenTooOld(token)
    start = position - kept_from + 1
    return list(islice(stream, start, start + size))


def nanoseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1e9)


class MemoryStore:
    """A JobStore. Every call lets others run first, as a call to a server does, and is then carried out in one go."""

    def __init__(
        self,
        *,
        changes_kept: int = 100_000,
        events_kept: int = EVENTS_KEPT,
        series: SeriesLimits = SERIES_KEPT,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.available = True
        """False: every call raises StoreUnavailableError."""
        self._now_ns = now_ns
        self._events_kept = events_kept
        self._series = series
        self._version = 0
        self._position = 0
        """How many changes there were."""
        self._entries: dict[JobName, Entry] = {}
        self._done: dict[str, int] = {}
        self._requests: dict[str, tuple[str, bytes]] = {}
        self._settled: set[str] = set()
        self._occupancy: dict[str, int] = {}
        self._changes: deque[Changed] = deque(maxlen=changes_kept)
        self._happened: deque[Happened] = deque(maxlen=changes_kept)
        self._delivery = ("", 0)
        """Who has the lease on deliveries of events, and until when, in nanoseconds."""
        self._delivered = ""
        self._events = 0
        """How many events there were."""
        self._queued: dict[int, JobName] = {}
        self._queue: list[int] = []
        """Numbers of the queued jobs, in order."""
        self._holding: dict[str, dict[JobName, None]] = {}
        """The jobs of each worker that holds any."""
        self._unconfirmed: dict[str, dict[JobName, bytes]] = {}
        """The attempts that a worker has not said are gone, by job."""
        self._lost: dict[str, int] = {}
        """When each lost worker was lost, in nanoseconds."""
        self._followed: dict[JobUid, int] = {}
        """Until when, in nanoseconds."""
        self._tombstones: set[JobUid] = set()
        self._later: dict[Tombstone, int] = {}
        """Tombstones that are due at some time, in nanoseconds."""
        self._doomed: dict[str, int] = {}
        self._removing: dict[str, int] = {}
        self._steps = 0
        """Stamps of bundles."""
        self._deleted: dict[JobUid, None] = {}
        """Deleted jobs, the newest last."""
        self._sessions: dict[str, Session] = {}
        self._attached: set[str] = set()
        self._opened: dict[str, int] = {}
        """The number of the newest stream of each instance."""
        self._listeners: dict[asyncio.Queue[Notification | None], None] = {}

    async def get(self, job: JobName) -> Stored | None:
        await self._reach()
        entry = self._entries.get(job)
        return entry.read() if entry else None

    async def commit(self, change: Change) -> int:
        await self._reach()
        if change.id in self._done:
            return self._done[change.id]
        old = self._entries.get(change.job)
        self._check(change, old)
        self._version += 1
        new = self._write(change, old)
        workers = {old.worker if old else "", new.worker if new else ""} - {""}
        before, after = (each.unconfirmed if each else {} for each in (old, new))
        doubted = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        labels = [dict(each.read().record.job.labels) if each else {} for each in (old, new)]
        touched = old is None or new is None or (old.worker, old.released) != (new.worker, new.released)
        allocations = (workers if touched else set()) | doubted
        for worker in allocations:
            self._occupancy[worker] = self._version
        self._index(change.job, old, new)
        if change.request:
            self._requests[change.request.id] = (change.request.digest, values.encoded(change.request.answer))
            while len(self._requests) > REQUESTS_KEPT:
                del self._requests[next(iter(self._requests))]
        self._done[change.id] = new.version if new else 0
        self._note_events(change)
        self._position += 1
        self._changes.append(
            Changed(
                token=f"{self._position}-0",
                job=change.job,
                version=self._version,
                state=new.state if new else None,
                workers=tuple(sorted(WorkerName(worker) for worker in allocations)),
                labels=labels[0] if labels[0] != labels[1] else {},
            )
        )
        for worker in sorted(workers) or [""]:
            self._tell(change.job, WorkerName(worker))
        return self._done[change.id]

    def _note_events(self, change: Change) -> None:
        if change.record is None:
            return
        job = change.record.job
        for event in change.events:
            self._events += 1
            self._happened.append(
                Happened(
                    token=f"{self._events}-0",
                    job=change.job,
                    uid=JobUid(job.uid),
                    labels=dict(job.labels),
                    event=JobEvent.FromString(values.encoded(event)),
                )
            )

    def _check(self, change: Change, old: Entry | None) -> None:
        if change.request and change.request.id in self._requests:
            digest, answer = self._requests[change.request.id]
            raise RequestSeen(digest, Job.FromString(answer))
        fence = change.fence
        session = self._sessions.get(fence.worker) if fence else None
        if fence and (session is None or session.stream != fence.stream):
            raise Fenced(fence.worker)
        if fence and session and fence.heartbeat not in (None, session.heartbeat):
            raise Fenced(fence.worker)
        if (old.version if old else 0) != change.expected:
            raise Conflict(change.job)
        guard = change.allocation
        if guard and self._occupancy.get(guard.worker, 0) != guard.version:
            raise Conflict(guard.worker)
        if change.wanted_at not in (None, self._steps):
            raise BundlesRemoved(change.job)

    def _write(self, change: Change, old: Entry | None) -> Entry | None:
        record = change.record
        if record is None:
            assert old
            del self._entries[change.job]
            uid = JobUid(old.read().record.job.uid)
            self._tombstones.add(uid)
            self._deleted = dict.fromkeys([*self._deleted, uid][-DELETED_KEPT:])
            return None
        new = replace(
            old or Entry(number=self._version),
            version=self._version,
            record=values.encoded(record),
            state=record.job.state,
            worker=record.job.worker,
            released=record.released,
            unconfirmed=values.unconfirmed_by_worker(record),
        )
        new.events = [*new.events, *(values.encoded(event) for event in change.events)]
        new.events_trimmed += max(len(new.events) - self._events_kept, 0)
        new.events = new.events[-self._events_kept :]
        new.epochs = new.epochs | {metrics.epoch: values.encoded(metrics) for metrics in change.epochs}
        fresh = [each.name for each in change.checkpoints if each.name not in new.checkpoints]
        new.checkpoints = {**new.checkpoints, **{each.name: values.encoded(each) for each in change.checkpoints}}
        new.numbers = {
            **new.numbers,
            **{name: len(new.numbers) + 1 + place for place, name in enumerate(dict.fromkeys(fresh))},
        }
        gone = [name for name in change.retired if name in new.checkpoints]
        new.retired = {**new.retired, **{name: new.checkpoints[name] for name in gone}}
        new.checkpoints = {name: row for name, row in new.checkpoints.items() if name not in gone}
        if fresh or change.retired or change.review:
            new.review = new.version
        self._entries[change.job] = new
        return new

    def _index(self, job: JobName, old: Entry | None, new: Entry | None) -> None:
        if old and old.state == Job.QUEUED:
            del self._queued[old.number]
            del self._queue[bisect_left(self._queue, old.number)]
        if new and new.state == Job.QUEUED:
            self._queued[new.number] = job
            insort(self._queue, new.number)
        if old and old.worker:
            del self._holding[old.worker][job]
            if not self._holding[old.worker]:
                del self._holding[old.worker]
        if new and new.worker:
            self._holding.setdefault(new.worker, {})[job] = None
        for worker in old.unconfirmed if old else ():
            del self._unconfirmed[worker][job]
            if not self._unconfirmed[worker]:
                del self._unconfirmed[worker]
        for worker, attempts in new.unconfirmed.items() if new else ():
            self._unconfirmed.setdefault(worker, {})[job] = attempts

    async def answered(self, request_id: str) -> tuple[str, Job] | None:
        await self._reach()
        if request_id not in self._requests:
            return None
        digest, answer = self._requests[request_id]
        return digest, Job.FromString(answer)

    async def settle(self, request_id: str, answer: Job) -> Job | None:
        await self._reach()
        if request_id not in self._requests:
            return None
        digest, kept = self._requests[request_id]
        if request_id not in self._settled:
            self._settled.add(request_id)
            kept = values.encoded(answer)
            self._requests[request_id] = digest, kept
        return Job.FromString(kept)

    async def page(
        self, *, states: Sequence[Job.State.ValueType], labels: dict[str, str], size: int, before: int | None
    ) -> tuple[list[Stored], int | None]:
        await self._reach()
        found = [
            item
            for item in reversed(self._by_number())
            if (before is None or item.record.number < before)
            and (not states or item.record.job.state in states)
            and labels.items() <= dict(item.record.job.labels).items()
        ]
        return found[:size], found[size - 1].record.number if len(found) > size else None

    async def queued(self) -> AsyncGenerator[list[Stored], None]:
        await self._reach()
        end = len(self._queue)
        while end:
            numbers = self._queue[max(end - PAGE, 0) : end]
            yield [self._entries[self._queued[number]].read() for number in reversed(numbers)]
            await self._reach()
            end = bisect_left(self._queue, numbers[0])

    async def allocation(self, worker: WorkerName) -> Allocation:
        await self._reach()
        held = (self._entries[name].read() for name in self._holding.get(worker, ()))
        jobs = sorted(held, key=lambda item: item.record.number)
        return Allocation(worker=worker, version=self._occupancy.get(worker, 0), jobs=jobs)

    async def unconfirmed(self, worker: WorkerName) -> list[Unconfirmed]:
        await self._reach()
        return values.unconfirmed({job.encode(): kept for job, kept in self._unconfirmed.get(worker, {}).items()})

    def _by_number(self) -> list[Stored]:
        return [entry.read() for entry in sorted(self._entries.values(), key=lambda entry: entry.number)]

    async def events(self, job: JobName, *, after: int, size: int) -> list[JobEvent]:
        await self._reach()
        entry = self._entries.get(job)
        if entry is None:
            return []
        first = max(after - entry.events_trimmed, 0)
        return [JobEvent.FromString(event) for event in entry.events[first : first + size]]

    async def epochs(self, job: JobName, *, after: int, size: int) -> list[EpochMetrics]:
        await self._reach()
        entry = self._entries.get(job)
        found = sorted(epoch for epoch in entry.epochs if epoch > after)[:size] if entry else []
        return [EpochMetrics.FromString(entry.epochs[epoch]) for epoch in found] if entry else []

    async def add_series(self, part: SeriesPart, fence: Fence) -> bool:
        await self._reach()
        session, entry = self._sessions.get(fence.worker), self._entries.get(JobName(part.job))
        if entry is None or session is None or session.stream != fence.stream:
            return False
        if entry.read().record.job.uid != part.token.job_uid:
            return False
        samples = entry.samples | {
            values.since_1970(each.time.ToDatetime(UTC)): values.encoded(each) for each in part.samples
        }
        first = part.steps[0].step if part.steps else None
        steps = {step: row for step, row in entry.steps.items() if first is None or step < first}
        steps |= {each.step: values.encoded(each) for each in part.steps}
        # An entry of its own, as for a change: a copy of the store that was kept stays as it was.
        self._entries[JobName(part.job)] = replace(entry, samples=self._kept(samples), steps=self._kept(steps))
        return True

    def _kept(self, series: dict[int, bytes]) -> dict[int, bytes]:
        found, newest, older = sorted(series.items()), self._series.newest, self._series.older
        if len(found) > newest + older:
            found = [*thinned(found[:-newest], max(older // 2, 1), lambda item: item[0]), *found[-newest:]]
        return dict(found)

    async def samples(
        self, job: JobName, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[ResourceSample]:
        await self._reach()
        low = values.since_1970(start) if start is not None else None
        high = values.since_1970(end) if end is not None else None
        return [ResourceSample.FromString(row) for row in within(self._series_of(job).samples, low, high)]

    async def steps(self, job: JobName, *, start: int = 0, end: int | None = None) -> list[StepMetrics]:
        await self._reach()
        return [StepMetrics.FromString(row) for row in within(self._series_of(job).steps, start, end)]

    def _series_of(self, job: JobName) -> Entry:
        return self._entries.get(job) or Entry(number=0)

    async def checkpoints(self, job: JobName, *, size: int, before: int | None = None) -> list[tuple[int, Checkpoint]]:
        await self._reach()
        entry = self._entries.get(job)
        newest = [(entry.numbers[name], row) for name, row in entry.checkpoints.items()][::-1] if entry else []
        below = [(number, row) for number, row in newest if before is None or number < before]
        return [(number, Checkpoint.FromString(row)) for number, row in below[:size]]

    async def checkpoint(self, job: JobName, name: str) -> Checkpoint | None:
        await self._reach()
        entry = self._entries.get(job)
        return Checkpoint.FromString(entry.checkpoints[name]) if entry and name in entry.checkpoints else None

    async def retired(self, job: JobName) -> list[Checkpoint]:
        await self._reach()
        entry = self._entries.get(job)
        return [Checkpoint.FromString(row) for row in entry.retired.values()] if entry else []

    async def forget_retired(self, job: JobName, names: Sequence[str]) -> None:
        await self._reach()
        if entry := self._entries.get(job):
            entry.retired = {name: row for name, row in entry.retired.items() if name not in names}

    async def to_review(self, *, size: int) -> list[tuple[JobName, int]]:
        await self._reach()
        asked = sorted((entry.review, job) for job, entry in self._entries.items() if entry.review)
        return [(job, version) for version, job in asked[:size]]

    async def reviewed(self, job: JobName, version: int) -> None:
        await self._reach()
        entry = self._entries.get(job)
        if entry and entry.review <= version:
            entry.review = 0

    async def latest_token(self) -> str:
        await self._reach()
        return f"{self._position}-0"

    async def changes(self, after: str, *, size: int) -> list[Changed]:
        await self._reach()
        return entries_after(self._changes, self._position, after, size)

    async def latest_event_token(self) -> str:
        await self._reach()
        return f"{self._events}-0"

    async def happened(self, after: str, *, size: int) -> list[Happened]:
        await self._reach()
        oldest = f"{self._events - len(self._happened)}-0"
        return entries_after(self._happened, self._events, after or oldest, size)

    async def hold_delivery(self, holder: str, lease: timedelta) -> str | None:
        await self._reach()
        current, until = self._delivery
        if current not in ("", holder) and until > self._now_ns():
            return None
        self._delivery = holder, self._now_ns() + nanoseconds(lease)
        return self._delivered

    async def note_delivered(self, holder: str, token: str) -> bool:
        await self._reach()
        current, until = self._delivery
        if current != holder or until <= self._now_ns():
            return False
        self._delivered = token
        return True

    async def release_delivery(self, holder: str) -> None:
        await self._reach()
        if self._delivery[0] == holder:
            self._delivery = "", 0

    async def notifications(self) -> AsyncGenerator[Notification, None]:
        listener: asyncio.Queue[Notification | None] = asyncio.Queue()
        self._listeners[listener] = None
        try:
            yield JobName(""), WorkerName("")
            while (notification := await listener.get()) is not None:
                yield notification
        finally:
            self._listeners.pop(listener, None)

    def reconnect(self) -> None:
        """Tells who listens that anything may have happened."""
        self._tell(JobName(""), WorkerName(""))

    def _tell(self, job: JobName, worker: WorkerName) -> None:
        for listener in self._listeners:
            listener.put_nowait((job, worker))

    async def attach(self, worker: Worker, session: str, stream: str, *, opened: int = 0) -> bool:
        await self._reach()
        old = self._sessions.get(worker.name)
        another = old is not None and old.worker.instance not in ("", worker.instance)
        if old and another and (not old.lost or worker.name in self._holding):
            return False
        if stream in self._attached:
            return True
        if opened and worker.instance:
            if opened < self._opened.get(worker.instance, 0):
                raise Fenced(worker.name)
            self._opened[worker.instance] = opened
        self._attached.add(stream)
        if another and self._version:
            self._version += 1
            self._occupancy[worker.name] = self._version
        self._lost.pop(worker.name, None)
        self._sessions[worker.name] = Session(
            worker=self._described(worker),
            session=session,
            stream=stream,
            connected=False,
            lost=False,
            heartbeat=old.heartbeat + 1 if old else 1,
            report_time_ns=self._now_ns(),
            drain=old.drain if old else None,
        )
        return True

    async def order_drain(self, worker: WorkerName, drain: Drain | None) -> bool:
        await self._reach()
        old = self._sessions.get(worker)
        if old is None:
            return False
        kept = (old.drain or Drain.FromString(drain.SerializeToString())) if drain is not None else None
        self._sessions[worker] = replace(old, drain=kept)
        self._tell(JobName(""), worker)
        return True

    async def heartbeat(self, worker: Worker, stream: str, *, ready: bool = True) -> bool:
        await self._reach()
        old = self._sessions.get(worker.name)
        if old is None or old.stream != stream:
            return False
        if old.lost:
            del self._lost[worker.name]
        elif ready and not old.connected:
            self._tell(JobName(""), WorkerName(worker.name))
        self._sessions[worker.name] = replace(
            old,
            worker=self._described(worker),
            connected=not old.lost and (ready or old.connected),
            lost=False,
            heartbeat=old.heartbeat + 1,
            report_time_ns=self._now_ns(),
        )
        return True

    async def detach(self, worker: WorkerName, stream: str) -> None:
        await self._reach()
        old = self._sessions.get(worker)
        if old and old.stream == stream:
            self._sessions[worker] = replace(old, connected=False)

    async def mark_lost(self, worker: WorkerName, heartbeat: int) -> bool:
        await self._reach()
        old = self._sessions.get(worker)
        if old and old.heartbeat == heartbeat and not old.lost:
            old = self._sessions[worker] = replace(old, lost=True)
            self._lost[worker] = self._now_ns()
        return bool(old and old.lost)

    async def sessions(self) -> list[Session]:
        await self._reach()
        return [self._sessions[worker] for worker in sorted(self._sessions)]

    async def live_sessions(self) -> list[Session]:
        return [session for session in await self.sessions() if not session.lost]

    async def lost_holders(self) -> list[WorkerName]:
        await self._reach()
        return sorted(WorkerName(worker) for worker in self._holding if worker in self._lost)

    async def forget(self, worker: WorkerName) -> bool:
        await self._reach()
        session = self._sessions.get(worker)
        if (session and not session.lost) or worker in self._holding:
            return False
        for kept in (self._sessions, self._lost, self._occupancy):
            kept.pop(worker, None)
        return True

    async def forget_lost(self, age: timedelta, *, size: int) -> list[WorkerName]:
        before = self._now_ns() - nanoseconds(age)
        old = [
            WorkerName(worker)
            for worker, since in self._lost.items()
            if since <= before and worker not in self._unconfirmed
        ][:size]
        return [worker for worker in old if await self.forget(worker)]

    async def session(self, worker: WorkerName) -> Session | None:
        await self._reach()
        return self._sessions.get(worker)

    def _described(self, worker: Worker) -> Worker:
        return Worker.FromString(values.described(worker))

    async def tombstones(self, *, size: int = 1000) -> list[Tombstone]:
        await self._reach()
        latest = self._now_ns() + nanoseconds(max(PURGE_AGAIN))
        self._later = {tombstone: min(time, latest) for tombstone, time in self._later.items()}
        due = sorted((time, tombstone) for tombstone, time in self._later.items() if time <= self._now_ns())
        return sorted([*map(Tombstone, self._tombstones), *(tombstone for _, tombstone in due[:size])])

    async def remove_tombstone(self, tombstone: Tombstone) -> None:
        await self._reach()
        uid, looks = tombstone.uid, tombstone.looks
        there = self._later.pop(tombstone, None) is not None if looks else uid in self._tombstones
        if not looks:
            self._tombstones.discard(uid)
        if there and looks < len(PURGE_AGAIN):
            self._later[Tombstone(uid, looks + 1)] = self._now_ns() + nanoseconds(PURGE_AGAIN[looks])

    async def add_tombstone(self, uid: JobUid) -> None:
        await self._reach()
        self._tombstones.add(uid)

    async def follow(self, job: JobName, uid: JobUid, worker: str) -> None:
        is_news = not await self.followed([uid])
        self._followed[uid] = self._now_ns() + nanoseconds(FOLLOWED)
        if is_news and worker:
            self._tell(job, WorkerName(worker))

    async def followed(self, uids: Sequence[JobUid]) -> set[JobUid]:
        await self._reach()
        return {uid for uid in uids if self._followed.get(uid, 0) > self._now_ns()}

    async def want_bundle(self, bundle: str) -> int | None:
        await self._reach()
        if bundle in self._removing:
            return None
        self._doomed.pop(bundle, None)
        return self._steps

    async def bundle_marks(self) -> BundleMarks:
        await self._reach()
        return BundleMarks(doomed=dict(self._doomed), removing=dict(self._removing))

    async def doom_bundles(self, bundles: Sequence[str]) -> None:
        await self._reach()
        self._steps += 1
        for bundle in bundles:
            if bundle not in self._removing:
                self._doomed.setdefault(bundle, self._steps)

    async def claim_bundle(self, bundle: str, stamp: int) -> int | None:
        await self._reach()
        if stamp != self._doomed.get(bundle, self._removing.get(bundle)):
            return None
        self._steps += 1
        self._doomed.pop(bundle, None)
        self._removing[bundle] = self._steps
        return self._steps

    async def bundle_removed(self, bundle: str, stamp: int) -> None:
        await self._reach()
        if self._removing.get(bundle) == stamp:
            del self._removing[bundle]

    async def deleted(self, uids: Sequence[JobUid]) -> set[JobUid]:
        await self._reach()
        return self._deleted.keys() & uids

    async def aclose(self) -> None:
        for listener in self._listeners:
            listener.put_nowait(None)

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if not self.available:
            raise StoreUnavailableError("The store is unavailable: the test took it away", store="memory")
