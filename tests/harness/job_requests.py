"""Requests of callers, each with an id of its own, and a job that they change."""

from uuid import uuid4

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn.v1.job_pb2 import EPOCH
from adjourn.v1.job_service_pb2 import PauseJobRequest
from adjourn_control_plane.job.events import CancelRequested, PauseRequested, Placed, ResumeRequested
from adjourn_control_plane.job.updater import Call, JobUpdater
from adjourn_control_plane.store.interface import JobName
from tests.harness.job_life import A
from tests.harness.memory_store import MemoryStore

JOB = JobName("jobs/j")
PAUSE = PauseRequested(actor="bob", mode=EPOCH, reason="")
RESUME = ResumeRequested(actor="bob")
CANCEL = CancelRequested(actor="bob", reason="")


def fresh(request_id: str | None = None, *, etag: str = "", name: str = JOB) -> Call:
    identity = uuid4().hex if request_id is None else request_id
    return Call.of(PauseJobRequest(name=name, request_id=identity, etag=etag), request_id=identity, etag=etag)


async def there(store: MemoryStore) -> JobRecord:
    stored = await store.get(JOB)
    assert stored
    return stored.record


async def place(updater: JobUpdater, worker: str = A) -> FencingToken:
    event = Placed(actor="control_plane", worker=worker, device_uuids=(), nonce=uuid4().hex)
    return (await updater.apply(JOB, event)).token
