"""Jobs for the tests of the store."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

from adjourn.internal.v1.record_pb2 import JobRecord, UnconfirmedRelease
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.store.interface import Allocation, Change, Fence, JobName, JobStore, Request, Stored


def record(
    job: JobName,
    *,
    state: Job.State.ValueType = Job.QUEUED,
    worker: str = "",
    released: bool = False,
    labels: Mapping[str, str] | None = None,
    uid: str = "",
    unconfirmed: Sequence[str] = (),
) -> JobRecord:
    """Returns the record of a job, by default with a uid of its own. `unconfirmed`: workers out of reach with it."""
    identity = uid or str(uuid4())
    return JobRecord(
        job=Job(name=job, uid=identity, state=state, worker=worker, labels=labels),
        released=released,
        unconfirmed_releases=[UnconfirmedRelease(worker=name) for name in unconfirmed],
    )


def creation(
    job: JobName,
    *,
    state: Job.State.ValueType = Job.QUEUED,
    worker: str = "",
    labels: Mapping[str, str] | None = None,
    request: Request | None = None,
) -> Change:
    return Change(job=job, expected=0, record=record(job, state=state, worker=worker, labels=labels), request=request)


async def created(
    store: JobStore,
    name: str,
    *,
    state: Job.State.ValueType = Job.QUEUED,
    worker: str = "",
    labels: Mapping[str, str] | None = None,
) -> Stored:
    """Stores a new job and reads it."""
    job = JobName(name)
    await store.commit(creation(job, state=state, worker=worker, labels=labels))
    return await there(store, job)


async def there(store: JobStore, job: JobName) -> Stored:
    stored = await store.get(job)
    assert stored is not None
    return stored


async def queued(store: JobStore) -> list[Stored]:
    """Returns every job in QUEUED, newest first."""
    return [stored async for page in store.queued() for stored in page]


def change(
    old: Stored,
    *,
    state: Job.State.ValueType | None = None,
    worker: str | None = None,
    released: bool | None = None,
    unconfirmed: Sequence[str] | None = None,
    allocation: Allocation | None = None,
    fence: Fence | None = None,
    request: Request | None = None,
    events: Sequence[JobEvent] = (),
    epochs: Sequence[EpochMetrics] = (),
    checkpoints: Sequence[Checkpoint] = (),
    retired: Sequence[str] = (),
    review: bool = False,
) -> Change:
    """Returns a change of what was read; what is not given stays."""
    new = JobRecord()
    new.CopyFrom(old.record)
    new.revision += 1
    if state is not None:
        new.job.state = state
    if worker is not None:
        new.job.worker = worker
    if released is not None:
        new.released = released
    if unconfirmed is not None:
        del new.unconfirmed_releases[:]
        new.unconfirmed_releases.extend(UnconfirmedRelease(worker=name) for name in unconfirmed)
    return Change(
        job=JobName(new.job.name),
        expected=old.version,
        record=new,
        allocation=allocation,
        fence=fence,
        request=request,
        events=events,
        epochs=epochs,
        checkpoints=checkpoints,
        retired=retired,
        review=review,
    )


def deletion(old: Stored) -> Change:
    return Change(job=JobName(old.record.job.name), expected=old.version, record=None)
