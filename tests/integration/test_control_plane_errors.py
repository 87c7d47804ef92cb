"""What callers get for what cannot be: typed errors with their details, and nothing stored."""

import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from adjourn import bundles, errors
from adjourn import objects as objects_module
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1 import checkpoint_service_pb2 as checkpoint_pb
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1 import worker_service_pb2 as worker_pb
from adjourn.v1.job_pb2 import LATEST, STEP, Job, JobSpec
from adjourn_control_plane.store.interface import JobName, Stored
from tests.harness.control_planes import SPEC, Replica, creation, refused, replica, to_the_end
from tests.harness.memory_store import MemoryStore


@pytest.fixture
def plane(idle_plane: Replica) -> Replica:
    return idle_plane


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "fields"),
        [
            ({"entry_point": "no colon"}, ["job.spec.entry_point"]),
            ({"total_epochs": -1}, ["job.spec.total_epochs"]),
            ({"bundle": "bundles/xyz"}, ["job.spec.bundle"]),
            ({"entry_point": "", "total_epochs": -3, "seed": -1}, None),
        ],
    )
    async def test_a_spec_that_cannot_be_is_answered_field_by_field_and_not_stored(
        self, plane: Replica, change: dict[str, Any], fields: list[str] | None
    ) -> None:
        spec = JobSpec()
        spec.CopyFrom(SPEC)
        for field, value in change.items():
            setattr(spec, field, value)
        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.CreateJob(pb.CreateJobRequest(job_id="j", job=Job(spec=spec), request_id="r"))
        assert isinstance(caught.error, errors.InvalidRequestError)
        assert list(caught.error.violations) == (fields or [f"job.spec.{field}" for field in change])
        assert (await plane.jobs.ListJobs(pb.ListJobsRequest())).jobs == []
        assert await plane.store.latest_token() == "0-0"

    async def test_a_job_whose_code_is_not_there_is_not_stored(self, plane: Replica) -> None:
        bundle = f"bundles/{'0' * 64}"
        spec = JobSpec(entry_point="m:f", total_epochs=1, bundle=bundle)
        with refused(errors.BundleMissingError) as caught:
            await plane.jobs.CreateJob(pb.CreateJobRequest(job_id="j", job=Job(spec=spec), request_id="r"))
        assert caught.error
        assert caught.error.metadata["bundle"] == bundle
        assert await plane.store.latest_token() == "0-0"

    @pytest.mark.parametrize(
        "name", ["", "j", "jobs/", "jobs/J", "workers/j", "jobs/a/b", "jobs/\x00", "x" * 1_000_000]
    )
    async def test_a_malformed_name_is_refused_by_every_call_that_takes_one(self, plane: Replica, name: str) -> None:
        for call, request in plane.calls_on(name):
            with refused(errors.InvalidRequestError) as caught:
                await call(request)
            assert isinstance(caught.error, errors.InvalidRequestError)
            assert set(caught.error.violations) <= {"name", "parent"}

    async def test_huge_input_is_answered_with_its_field_all_the_same(self, plane: Replica) -> None:
        long = "x" * 1_000_000
        with refused(errors.InvalidRequestError):
            await plane.jobs.CreateJob(pb.CreateJobRequest(job_id=long, job=Job(spec=JobSpec(entry_point=long))))
        with refused(errors.InvalidRequestError):
            await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j", etag=long, request_id=long, reason=long))
        with refused(errors.InvalidRequestError):
            await anext(aiter(plane.jobs.WatchJobs(pb.WatchJobsRequest(names=["wrong"] * 10_000))))
        with refused(errors.InvalidRequestError):
            await anext(aiter(plane.jobs.WatchJobs(pb.WatchJobsRequest(resume_token=long))))
        with refused(errors.InvalidRequestError):
            await plane.jobs.ListJobs(pb.ListJobsRequest(states=[77] * 10_000))  # type: ignore[list-item]

    async def test_the_details_are_standard_ones(self, plane: Replica) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await plane.jobs.CreateJob(creation(name="UPPER"))
        status = rpc_status.from_call(caught.value)
        assert status is not None
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert unpack(status.details, info)
        assert unpack(status.details, bad)
        assert (info.reason, info.domain) == ("INVALID_REQUEST", "adjourn.v1")
        assert [violation.field for violation in bad.field_violations] == ["job_id"]

    async def test_pages_states_and_tokens_are_checked(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        for request in (
            pb.ListJobsRequest(page_size=-1),
            pb.ListJobsRequest(page_token="x"),
            pb.ListJobsRequest(states=[99]),  # type: ignore[list-item]
        ):
            with refused(errors.InvalidRequestError):
                await plane.jobs.ListJobs(request)
        with refused(errors.InvalidRequestError):
            await plane.jobs.ListEpochMetrics(pb.ListEpochMetricsRequest(parent="jobs/j", page_token="-1"))
        with refused(errors.InvalidRequestError):
            await plane.workers.ListWorkers(worker_pb.ListWorkersRequest(page_size=-1))
        with refused(errors.InvalidRequestError):
            await plane.checkpoints.ListCheckpoints(
                checkpoint_pb.ListCheckpointsRequest(parent="jobs/j", page_token="x")
            )
        with refused(errors.InvalidRequestError) as caught:
            await anext(aiter(plane.jobs.WatchJobs(pb.WatchJobsRequest(resume_token="nonsense"))))
        assert isinstance(caught.error, errors.InvalidRequestError)
        assert list(caught.error.violations) == ["resume_token"]


def unpack(details: Iterable[any_pb2.Any], into: Any) -> bool:
    return any(detail.Unpack(into) for detail in details)


async def test_what_does_not_exist_is_not_found_everywhere(plane: Replica) -> None:
    for call, request in plane.calls_on("jobs/no"):
        with refused(errors.NotFoundError) as caught:
            await call(request)
        assert caught.error.metadata == {"job": "jobs/no"}
    with refused(errors.NotFoundError):
        await plane.workers.GetWorker(worker_pb.GetWorkerRequest(name="workers/no"))
    with refused(errors.NotFoundError):
        await plane.checkpoints.GetCheckpoint(checkpoint_pb.GetCheckpointRequest(name="jobs/no/checkpoints/1"))


async def test_a_mode_that_nobody_knows_or_that_saves_nothing_is_refused(plane: Replica) -> None:
    await plane.jobs.CreateJob(creation(name="j"))
    with refused(errors.InvalidRequestError) as unknown:
        await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j", mode=17))  # type: ignore[arg-type]
    assert "is 17" in unknown.error.message
    for mode, saves in ((LATEST, True), (STEP, False)):
        with refused(errors.InvalidRequestError):
            await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j", mode=mode, save_checkpoint=saves))
    assert (await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))).state == Job.QUEUED


async def test_contradictions_carry_the_state_and_what_it_allows(plane: Replica) -> None:
    await plane.jobs.CreateJob(creation(name="j"))
    with refused(errors.JobNotPausedError) as caught:
        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/j"))
    allowed = "PAUSING, PAUSED, CANCELLED, FAILED"
    assert caught.error.metadata == {"job": "jobs/j", "state": "QUEUED", "allowed_states": allowed}
    with refused(errors.JobNotFinishedError):
        await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j"))
    await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j"))
    with pytest.raises(grpc.aio.AioRpcError) as answer:
        await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j"))
    status = rpc_status.from_call(answer.value)
    assert status is not None
    failure = error_details_pb2.PreconditionFailure()
    assert unpack(status.details, failure)
    assert [(each.type, each.subject) for each in failure.violations] == [("JOB_FINISHED", "jobs/j")]
    with refused(errors.NoCheckpointError):
        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/j"))


async def test_a_task_without_epochs_is_not_pausable(plane: Replica) -> None:
    await plane.jobs.CreateJob(pb.CreateJobRequest(job_id="t", job=Job(spec=JobSpec(entry_point="m:f"))))
    with refused(errors.JobNotPausableError):
        await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/t"))


class Broken(MemoryStore):
    async def get(self, job: JobName) -> Stored | None:
        raise RuntimeError("the password is hunter2")


async def test_a_fault_of_ours_is_told_without_its_text() -> None:
    async with replica(Broken(), controllers=False) as plane:
        with capture_logs(processors=[merge_contextvars]) as logs, refused(errors.InternalError) as caught:
            await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))
        with capture_logs(), refused(errors.InternalError) as streamed:
            await plane.jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/j"])).read()
    for error in (caught.error, streamed.error):
        assert "hunter2" not in error.message + str(error.metadata)
    (entry,) = [entry for entry in logs if entry["event"] == "call_failed"]
    assert entry["error_id"] == caught.error.metadata["error_id"]
    assert entry["method"] == "/adjourn.v1.JobService/GetJob"
    assert isinstance(entry["exc_info"], RuntimeError)


@pytest.mark.parametrize(
    ("variable", "value", "kind", "says"),
    [
        ("ADJOURN_S3_SECRET_KEY", "wrong", errors.ObjectStoreRefusedError, "AccessDenied"),
        ("ADJOURN_S3_BUCKET", "not-there", errors.ObjectStoreRefusedError, "NoSuchBucket"),
        ("ADJOURN_S3_ENDPOINT", "http://127.0.0.1:1", errors.ObjectStoreUnavailableError, "refused"),
    ],
)
async def test_object_storage_that_refuses_is_told_from_one_that_is_away(
    memory_store: MemoryStore,
    s3_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    kind: type[errors.AdjournError],
    says: str,
) -> None:
    monkeypatch.setattr(objects_module, "BACKOFF_MOST", 0.0)
    settings = S3Settings.from_environment({**s3_environment, variable: value})
    code = bundles.pack(Path(__file__))
    spec = JobSpec(entry_point="train:main", total_epochs=3, bundle=f"bundles/{hashlib.sha256(code).hexdigest()}")

    async def chunks() -> AsyncIterator[pb.UploadBundleRequest]:
        yield pb.UploadBundleRequest(chunk=code)

    async with S3Objects(settings) as objects, replica(memory_store, objects=objects, controllers=False) as plane:
        with refused(kind) as caught:
            await plane.jobs.CreateJob(pb.CreateJobRequest(job=Job(spec=spec)))
        assert says in str(caught.error)
        assert caught.error.metadata["bucket"] == settings.bucket
        if variable != "ADJOURN_S3_BUCKET":  # SeaweedFS makes a bucket for whoever writes to it and may
            with refused(kind):
                await plane.jobs.UploadBundle(chunks())
        assert (await plane.jobs.ListJobs(pb.ListJobsRequest())).jobs == []


async def test_an_outage_of_the_store_is_unavailable_and_passes(memory_store: MemoryStore) -> None:
    async with replica(memory_store, controllers=False) as plane:
        await plane.jobs.CreateJob(creation(name="j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest())
        await watch.read()
        memory_store.available = False
        memory_store.reconnect()
        for call, request in plane.calls_on("jobs/j"):
            with refused(errors.StoreUnavailableError):
                await call(request)
        with refused(errors.StoreUnavailableError):
            await to_the_end(watch)
        memory_store.available = True
        assert (await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))).state == Job.QUEUED
