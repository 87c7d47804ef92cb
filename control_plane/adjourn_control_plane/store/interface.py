"""What the control plane asks of its store. `redis.py` and the tests' memory store pass the same contract tests.

A job is one record with a version. Every change is one compare-and-set. It writes the record, moves its index entries,
appends what happened and notifies listeners; or it does nothing. Nothing else writes jobs.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NewType, Protocol
from uuid import uuid4

from adjourn.internal.v1.record_pb2 import JobRecord, UnconfirmedRelease
from adjourn.v1.agent_service_pb2 import SeriesPart
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Drain, Worker

JobName = NewType("JobName", str)
"""`jobs/{job}`."""
JobUid = NewType("JobUid", str)
"""`Job.uid`."""
WorkerName = NewType("WorkerName", str)
"""`workers/{worker}`."""

EVENTS_KEPT = 10_000
"""Events of a job that are kept: the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesLimits:
    """How many resource samples, and how many step metrics, of a job are kept."""

    newest: int = 360
    """The newest are all kept."""
    older: int = 640
    """Of the others. Once they are more they are thinned to half of this number, evenly spread."""


SERIES_KEPT: Final = SeriesLimits()


REQUEST_MEMORY = timedelta(days=1)
REQUESTS_KEPT = 100_000
"""How long a request_id is remembered, and how many at most: the newest. That is more than one a second for a day."""

DELETED_KEPT = 100_000
"""Of how many jobs it is known that they were deleted: the newest, whatever a clock says. An attempt of one that is
heard of is stopped. Of a job that is not known any more nobody can say whether it was deleted: its attempt pauses."""


PURGE_AGAIN: Final = (timedelta(minutes=10), timedelta(days=1))
"""When the objects of a deleted job are looked for again: a worker that was out of reach may have saved meanwhile."""

FOLLOWED = timedelta(seconds=15)
"""For how long it is known that somebody follows a log; who does says so again and again."""
STREAM_MEMORY = timedelta(days=1)
"""For how long the number of a stream is known: longer than a replica is stopped that had an older one."""


class Conflict(Exception):
    """The record, or the worker's allocation, is no longer the one that was read. Read again, decide again."""


class Fenced(Conflict):
    """Another stream speaks for the worker by now, so what this one said is out of date. Do not try again."""


class BundlesRemoved(Conflict):
    """Bundles were removed since the job's was wanted. Want it again, and look for it again."""


class RequestSeen(Exception):
    """The request_id is known. `digest`: of the request that it was used for. `answer`: what was stored for it."""

    def __init__(self, digest: str, answer: Job) -> None:
        super().__init__(digest)
        self.digest = digest
        self.answer = answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A record as it was read."""

    record: JobRecord
    version: int
    """From 1, and growing with every change, though not by one. No two changes have the same version, not even of
    different jobs: a job that has the name of a deleted one cannot be mistaken for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The call that a change answers. It is remembered with its answer for REQUEST_MEMORY, among REQUESTS_KEPT."""

    id: str
    digest: str
    """Tells the request from another with the same id."""
    answer: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The jobs that a worker holds, and the version of that set."""

    worker: WorkerName
    version: int
    """Grows whenever a job comes to the worker, leaves it, or releases its slot, and whenever an attempt becomes, or
    ceases to be, unconfirmed there; to the `Changed.version` of that."""
    jobs: Sequence[Stored] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """An attempt, in `JobRecord.unconfirmed_releases`, that may live on a worker out of reach."""

    job: JobName
    entry: UnconfirmedRelease


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The stream of a worker's agent that a change comes from."""

    worker: WorkerName
    stream: str
    heartbeat: int | None = None
    """If set, the worker must not have spoken since: for what is concluded from its silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleMarks:
    """Bundles on their way out, each with a stamp: no two marks of a bundle have the same."""

    doomed: Mapping[str, int]
    """To be removed, unless somebody wants them."""
    removing: Mapping[str, int]
    """Being removed; until that is done nobody can use them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One atomic change of one job."""

    id: str = field(default_factory=lambda: uuid4().hex, compare=False)
    """Tells a repeat of this change from another; for the store alone."""
    job: JobName
    expected: int
    """Version that was read; 0: the job must not exist."""
    record: JobRecord | None
    """What to store; None deletes the job with all its series, and leaves a tombstone: its objects are to be purged.
    Its uid stays known."""
    events: Sequence[JobEvent] = ()
    epochs: Sequence[EpochMetrics] = ()
    """One value for each epoch: a later one replaces it."""
    checkpoints: Sequence[Checkpoint] = ()
    """Registered by this change; the same name again replaces."""
    retired: Sequence[str] = ()
    """Names of checkpoints that are checkpoints no more; what is known of them stays until `forget_retired`."""
    review: bool = False
    """Retention has to look at the job's checkpoints again. It has to anyway when one is registered."""
    request: Request | None = None
    allocation: Allocation | None = None
    """If set, the worker's allocation must still have this version."""
    fence: Fence | None = None
    """If set, this stream must still be the one that speaks for the worker."""
    wanted_at: int | None = None
    """Of a new job with a bundle: how many steps of removals there had been when it was wanted. None may have been
    since. To doom bundles is a step, and so is a claim."""

    def __post_init__(self) -> None:
        if self.record is None and self.expected == 0:
            raise ValueError(f"{self.job}: a deletion names the version that it deletes")
        if self.record is not None and self.record.job.name != self.job:
            raise ValueError(f"{self.job}: the record is of {self.record.job.name!r}")
        if self.record is not None and not self.record.job.uid:
            raise ValueError(f"{self.job}: the record has no uid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A worker as the store knows it."""

    worker: Worker
    """As its agent last described it; state, jobs and report_time are not kept here."""
    session: str
    """Of the agent process."""
    stream: str
    """Of its newest stream: only that one may speak."""
    connected: bool
    """A stream is open, as far as known, and what the worker said first on it has been taken in."""
    lost: bool
    """Not heard from for a lease."""
    heartbeat: int
    """Grows with every message of the agent."""
    report_time_ns: int
    """When the agent last spoke, by the store's clock, in nanoseconds since 1970. For display."""
    drain: Drain | None = None
    """An operator's order to become empty; it stays whatever becomes of agents and streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """An entry of the stream of all changes."""

    token: str
    """Position in the stream; resume after it."""
    job: JobName
    version: int
    """Of the record; of an allocation that changed, too."""
    state: Job.State.ValueType | None
    """In which the job was then; None: it was deleted."""
    workers: Sequence[WorkerName] = ()
    """Whose allocation changed."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Those that the job had until then, if it was deleted or got others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """An entry of the stream of all events."""

    token: str
    """Position in the stream; read on after it."""
    job: JobName
    uid: JobUid
    labels: Mapping[str, str]
    """Those that the job carries with that event."""
    event: JobEvent


@dataclass(frozen=True, slots=True, order=True)
class Tombstone:
    """A deleted job whose objects may not be gone yet."""

    uid: JobUid
    looks: int = 0
    """How often they were purged before."""


class TokenTooOld(Exception):
    """The stream no longer holds the entry of this token: start again from the current states."""


class JobStore(Protocol):
    """Jobs, their series, and workers. Every method raises StoreUnavailableError when the store cannot be reached."""

    async def get(self, job: JobName) -> Stored | None: ...

    async def commit(self, change: Change) -> int:
        """Carries the change out and returns the new version (0 after a deletion).

        Gives a new record its `number`. A change whose answer was lost can be repeated, as the same Change and within
        a minute: it is carried out once. Raises Conflict (Fenced and BundlesRemoved are some) or RequestSeen, having
        changed nothing.
        """
        ...

    async def answered(self, request_id: str) -> tuple[str, Job] | None:
        """Returns digest and answer of a remembered request."""
        ...

    async def settle(self, request_id: str, answer: Job) -> Job | None:
        """Replaces the answer of a remembered request by one that says more, the first time.

        Returns what is remembered then, which is what repeats get; None if the request is not remembered.
        """
        ...

    async def page(
        self, *, states: Sequence[Job.State.ValueType], labels: dict[str, str], size: int, before: int | None
    ) -> tuple[list[Stored], int | None]:
        """Returns up to `size` matching jobs, newest first, of a `number` below `before`; and where to go on.

        No states: in any state. Labels: with all of them. Nowhere to go on (None): that was all.
        """
        ...

    def queued(self) -> AsyncGenerator[list[Stored], None]:
        """Yields every job in QUEUED, in pages, newest first. What changes meanwhile may be missed."""
        ...

    async def allocation(self, worker: WorkerName) -> Allocation: ...

    async def unconfirmed(self, worker: WorkerName) -> list[Unconfirmed]:
        """Returns the attempts that a worker of this name had and that may live, whoever holds their jobs, by job.

        The same as before for as long as the version of the worker's allocation is.
        """
        ...

    async def events(self, job: JobName, *, after: int, size: int) -> list[JobEvent]:
        """Returns up to `size` events after sequence `after`, in order. The newest EVENTS_KEPT of a job are there."""
        ...

    async def epochs(self, job: JobName, *, after: int, size: int) -> list[EpochMetrics]:
        """Returns up to `size` epochs after epoch `after`, in order."""
        ...

    async def add_series(self, part: SeriesPart, fence: Fence) -> bool:
        """Adds to the samples and step metrics of a job, if the token has its uid. SeriesLimits say how many are kept.

        Of the steps that are there, those from the first of the new ones on are removed. The job's version stays, and
        nobody is notified. False, with nothing added: the job is another or gone, or another stream speaks for the
        worker.
        """
        ...

    async def samples(
        self, job: JobName, *, start: datetime | None = None, end: datetime | None = None
    ) -> list[ResourceSample]:
        """Returns the resource samples from `start` to `end`, both included to the millisecond, oldest first."""
        ...

    async def steps(self, job: JobName, *, start: int = 0, end: int | None = None) -> list[StepMetrics]:
        """Returns the step metrics from step `start` to `end`, both included, in order."""
        ...

    async def checkpoints(self, job: JobName, *, size: int, before: int | None = None) -> list[tuple[int, Checkpoint]]:
        """Returns up to `size` checkpoints, newest first, each with the number of its registration, from 1.

        `before`: only those of a lower number. What is registered meanwhile moves none of them.
        """
        ...

    async def checkpoint(self, job: JobName, name: str) -> Checkpoint | None:
        """Returns the checkpoint of full name `name`."""
        ...

    async def retired(self, job: JobName) -> list[Checkpoint]:
        """Returns checkpoints that were retired, and whose objects may not be gone."""
        ...

    async def forget_retired(self, job: JobName, names: Sequence[str]) -> None:
        """Notes that the objects of retired checkpoints are gone. May be repeated."""
        ...

    async def to_review(self, *, size: int) -> list[tuple[JobName, int]]:
        """Returns up to `size` jobs whose checkpoints are to be looked at, each with the version that asked for it."""
        ...

    async def reviewed(self, job: JobName, version: int) -> None:
        """Notes that a job was looked at; nothing, if a later version has asked for it since."""
        ...

    async def latest_token(self) -> str:
        """Returns the token of the newest change."""
        ...

    async def changes(self, after: str, *, size: int) -> list[Changed]:
        """Returns up to `size` changes after a token, oldest first. Does not wait.

        Raises TokenTooOld, and ValueError for what never was a token.
        """
        ...

    async def latest_event_token(self) -> str:
        """Returns the token of the newest event of all."""
        ...

    async def happened(self, after: str, *, size: int) -> list[Happened]:
        """Returns up to `size` events of all jobs after a token, in the order of their commits. Does not wait.

        "": from the oldest that is kept. As many are kept as changes. Raises TokenTooOld, and ValueError for what never
        was a token.
        """
        ...

    async def hold_delivery(self, holder: str, lease: timedelta) -> str | None:
        """Takes the lease on deliveries of events, or keeps it, for so long from now.

        Returns the token up to which they are delivered, "" before the first; None if another holder has the lease.
        """
        ...

    async def note_delivered(self, holder: str, token: str) -> bool:
        """Notes up to which token events are delivered; False, with nothing noted, if the holder has no lease."""
        ...

    async def release_delivery(self, holder: str) -> None:
        """Gives the lease back, if the holder has it."""
        ...

    def notifications(self) -> AsyncGenerator[tuple[JobName, WorkerName], None]:
        """Yields the job (and its worker, or "") of each change as it happens; may miss some, ends with the store only.

        A job that goes from one worker to another is yielded with each. Yields ("", worker) when a worker attaches, or
        is heard from after it was lost. Yields ("", "") when it begins to listen, at
        first and after a reconnect: before that, anything may have happened.
        """
        ...

    async def attach(self, worker: Worker, session: str, stream: str, *, opened: int = 0) -> bool:
        """Makes `stream`, never used before, the one that speaks for the worker. Its first heartbeat connects it.

        False, having changed nothing, if the name is that of an agent of another `instance` which is not lost, or whose
        jobs have not been taken from it. An agent without an instance is too old to tell: it keeps out nobody.

        Raises Fenced if it is out of date: a stream of the same instance with a higher number (`opened`, 0: not known)
        was attached within STREAM_MEMORY.
        """
        ...

    async def heartbeat(self, worker: Worker, stream: str, *, ready: bool = True) -> bool:
        """Notes a sign of life, and the worker's description.

        A worker that was lost is connected with the next one: what it says with this one comes first. Not `ready`: what
        it said last has not been taken in yet, and this does not connect it.
        False if another stream speaks for it by now, or none is known: attach again.
        """
        ...

    async def detach(self, worker: WorkerName, stream: str) -> None:
        """Notes that the stream ended; nothing, if another speaks for the worker by now."""
        ...

    async def mark_lost(self, worker: WorkerName, heartbeat: int) -> bool:
        """Marks the worker lost, unless it spoke after `heartbeat`; True if it is lost now."""
        ...

    async def sessions(self) -> list[Session]:
        """Returns every worker, by name. They are not read at one moment."""
        ...

    async def live_sessions(self) -> list[Session]:
        """Returns the workers that are not lost, by name; costs nothing for those that are."""
        ...

    async def session(self, worker: WorkerName) -> Session | None: ...

    async def order_drain(self, worker: WorkerName, drain: Drain | None) -> bool:
        """Keeps the order to drain a worker, unless it has one; None removes it. False if the worker is not known.

        Notifies as an attachment does. The order ends when the worker is forgotten.
        """
        ...

    async def lost_holders(self) -> list[WorkerName]:
        """Returns the lost workers that hold jobs; costs nothing for those that hold none."""
        ...

    async def forget(self, worker: WorkerName) -> bool:
        """Forgets a worker that is lost and holds no job; False if it is not lost, or holds one.

        One that is not known, and holds none, is forgotten already.
        """
        ...

    async def forget_lost(self, age: timedelta, *, size: int) -> list[WorkerName]:
        """Forgets up to `size` workers that have been lost for `age`, with no job held or unconfirmed; returns them."""
        ...

    async def tombstones(self, *, size: int = 1000) -> list[Tombstone]:
        """Returns the deleted jobs whose objects are to be purged; of those that are looked at again, up to `size`."""
        ...

    async def remove_tombstone(self, tombstone: Tombstone) -> None:
        """Notes that the objects of a deleted job are gone; its next tombstone is due as PURGE_AGAIN says.

        May be repeated. Nothing happens if somebody else has noted it.
        """
        ...

    async def add_tombstone(self, uid: JobUid) -> None:
        """Notes that a deleted job may have objects again: an attempt of it was heard of. May be repeated."""
        ...

    async def want_bundle(self, bundle: str) -> int | None:
        """Takes a bundle off those that are to be removed; returns how many steps of removals there have been.

        None: it is being removed right now.
        """
        ...

    async def bundle_marks(self) -> BundleMarks: ...

    async def doom_bundles(self, bundles: Sequence[str]) -> None:
        """Marks bundles as to be removed; those that are marked keep their stamps."""
        ...

    async def claim_bundle(self, bundle: str, stamp: int) -> int | None:
        """Begins to remove a bundle that is marked with this stamp still, and returns its new one; None: it is not."""
        ...

    async def bundle_removed(self, bundle: str, stamp: int) -> None:
        """Notes that a bundle is removed, unless it has another stamp by now: somebody else is at it, or was."""
        ...

    async def deleted(self, uids: Sequence[JobUid]) -> set[JobUid]:
        """Returns which of the uids are of jobs that were deleted: the newest DELETED_KEPT are known."""
        ...

    async def follow(self, job: JobName, uid: JobUid, worker: str) -> None:
        """Notes for FOLLOWED that somebody reads what a job prints as it comes; notifies its worker, if it is news."""
        ...

    async def followed(self, uids: Sequence[JobUid]) -> set[JobUid]:
        """Returns of which of these jobs somebody reads what they print."""
        ...

    async def aclose(self) -> None: ...
