"""What callers get over the wire: answers, typed errors with their details, and nothing stored on bad input."""

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterable
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from adjourn import errors
from adjourn.channel import ACTOR_KEY, BUNDLE_LIMIT_BYTES, CHUNK_BYTES
from adjourn.v1 import checkpoint_service_pb2 as checkpoint_pb
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1 import worker_service_pb2 as worker_pb
from adjourn.v1.agent_service_pb2 import Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, LATEST, STEP, Job, JobSpec
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from control_plane.events import Placed
from control_plane.ledger import Ledger
from control_plane.redis_store import RedisStore
from control_plane.server import SERVICES
from control_plane.store import JobName, JobStore, Stored
from tests.memory_store import MemoryStore
from tests.replicas import Replica, refused, replica

SPEC = JobSpec(entry_point="train:main", total_epochs=3)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    async with RedisStore.connect(redis_url, f"calls-{uuid4().hex[:8]}") as store:
        yield store


@pytest.fixture
async def plane(store: RedisStore) -> AsyncIterator[Replica]:
    """Serves calls; nothing happens by itself."""
    async with replica(store, upkeep=False) as served:
        yield served


def creation(*, name: str = "", **fields: Any) -> pb.CreateJobRequest:
    return pb.CreateJobRequest(job_id=name, job=Job(spec=SPEC), **fields)


async def at_work(plane: Replica, name: str) -> Any:
    """Creates a job and hands it to a worker; returns its token."""
    await plane.jobs.CreateJob(creation(name=name))
    event = Placed(actor="test", worker="workers/a", device_uuids=(), nonce="n")
    return (await Ledger(plane.store).apply(JobName(f"jobs/{name}"), event)).token


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "fields"),
        [
            ({"entry_point": "no colon"}, ["job.spec.entry_point"]),
            ({"total_epochs": -1}, ["job.spec.total_epochs"]),
            ({"bundle": "bundles/xyz"}, ["job.spec.bundle"]),
            ({"bundle": f"bundles/{'0' * 64}"}, ["job.spec.bundle"]),
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

    @pytest.mark.parametrize(
        "name", ["", "j", "jobs/", "jobs/J", "workers/j", "jobs/a/b", "jobs/\x00", "x" * 1_000_000]
    )
    async def test_a_malformed_name_is_refused_by_every_call_that_takes_one(self, plane: Replica, name: str) -> None:
        for call, request in calls_by_name(plane, name):
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


def calls_by_name(plane: Replica, name: str) -> list[tuple[Any, Any]]:
    return [
        (plane.jobs.GetJob, pb.GetJobRequest(name=name)),
        (plane.jobs.PauseJob, pb.PauseJobRequest(name=name)),
        (plane.jobs.ResumeJob, pb.ResumeJobRequest(name=name)),
        (plane.jobs.CancelJob, pb.CancelJobRequest(name=name)),
        (plane.jobs.DeleteJob, pb.DeleteJobRequest(name=name)),
        (plane.jobs.ListEpochMetrics, pb.ListEpochMetricsRequest(parent=name)),
        (plane.checkpoints.ListCheckpoints, checkpoint_pb.ListCheckpointsRequest(parent=name)),
    ]


async def test_what_does_not_exist_is_not_found_everywhere(plane: Replica) -> None:
    for call, request in calls_by_name(plane, "jobs/no"):
        with refused(errors.NotFoundError) as caught:
            await call(request)
        assert caught.error.metadata == {"job": "jobs/no"}
    with refused(errors.NotFoundError):
        await plane.workers.GetWorker(worker_pb.GetWorkerRequest(name="workers/no"))
    with refused(errors.NotFoundError):
        await plane.checkpoints.GetCheckpoint(checkpoint_pb.GetCheckpointRequest(name="jobs/no/checkpoints/1"))


async def test_what_comes_later_says_so(plane: Replica) -> None:
    await plane.jobs.CreateJob(creation(name="j"))
    for call, request in (
        (plane.jobs.PauseJob, pb.PauseJobRequest(name="jobs/j", mode=STEP)),
        (plane.jobs.PauseJob, pb.PauseJobRequest(name="jobs/j", mode=LATEST)),
        (plane.jobs.CancelJob, pb.CancelJobRequest(name="jobs/j", save=EPOCH)),
        (plane.jobs.ListJobEvents, pb.ListJobEventsRequest(parent="jobs/j")),
        (plane.jobs.ListResourceSamples, pb.ListResourceSamplesRequest(parent="jobs/j")),
        (plane.checkpoints.PinCheckpoint, checkpoint_pb.PinCheckpointRequest(name="jobs/j/checkpoints/1")),
        (plane.checkpoints.UnpinCheckpoint, checkpoint_pb.UnpinCheckpointRequest(name="jobs/j/checkpoints/1")),
        (plane.workers.DrainWorker, worker_pb.DrainWorkerRequest(name="workers/a")),
        (plane.workers.UndrainWorker, worker_pb.UndrainWorkerRequest(name="workers/a")),
    ):
        with refused(errors.NotImplementedYetError) as caught:
            await call(request)
        assert "not there yet" in caught.error.message
    assert (await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))).state == Job.QUEUED


async def test_contradictions_carry_the_state_and_what_it_allows(plane: Replica) -> None:
    await plane.jobs.CreateJob(creation(name="j"))
    with refused(errors.JobNotPausedError) as caught:
        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/j"))
    assert caught.error.metadata == {"job": "jobs/j", "state": "QUEUED", "allowed_states": "PAUSING, PAUSED"}
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


class TestCreation:
    async def test_only_spec_and_labels_are_read(self, plane: Replica) -> None:
        given = Job(name="jobs/other", spec=SPEC, labels={"a": "b"}, state=Job.PAUSED, attempt=7, worker="workers/a")
        job = await plane.jobs.CreateJob(pb.CreateJobRequest(job_id="j", job=given), metadata=((ACTOR_KEY, "ann"),))
        assert (job.name, job.state, job.attempt, job.worker) == ("jobs/j", Job.QUEUED, 0, "")
        assert dict(job.labels) == {"a": "b"}
        assert job == await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))
        (created,) = await plane.store.events(JobName("jobs/j"), after=0, size=10)
        assert (created.type, created.actor) == ("CREATED", "ann")

    async def test_a_seed_and_a_name_are_chosen_and_kept(self, plane: Replica) -> None:
        first, second = [await plane.jobs.CreateJob(creation()) for _ in range(2)]
        assert first.name != second.name
        assert first.spec.HasField("seed")
        assert first.spec.seed != second.spec.seed
        assert 0 <= first.spec.seed < 1 << 53
        seeded = pb.CreateJobRequest(job=Job(spec=JobSpec(entry_point="m:f", seed=0)))
        assert (await plane.jobs.CreateJob(seeded)).spec.seed == 0

    async def test_an_id_is_taken_until_its_last_owner_is_purged(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        with refused(errors.AlreadyExistsError):
            await plane.jobs.CreateJob(creation(name="j"))
        await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j"))
        await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j"))
        with refused(errors.AlreadyExistsError) as caught:
            await plane.jobs.CreateJob(creation(name="j"))
        assert "still being deleted" in caught.error.message
        await plane.store.purged(JobName("jobs/j"))
        assert (await plane.jobs.CreateJob(creation(name="j"))).state == Job.QUEUED

    async def test_a_retry_gets_the_first_answer(self, plane: Replica) -> None:
        request = creation(request_id="r")
        first = await plane.jobs.CreateJob(request)
        await plane.jobs.CancelJob(pb.CancelJobRequest(name=first.name))
        assert await plane.jobs.CreateJob(request) == first
        answers = await asyncio.gather(*(plane.jobs.CreateJob(creation(request_id="many")) for _ in range(5)))
        assert all(answer == answers[0] for answer in answers)
        assert len((await plane.jobs.ListJobs(pb.ListJobsRequest())).jobs) == 2


class TestVerbs:
    async def test_a_retry_has_no_second_effect(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        pause = pb.PauseJobRequest(name="jobs/j", request_id="p", reason="lunch")
        first = await plane.jobs.PauseJob(pause)
        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/j", request_id="r"))
        assert await plane.jobs.PauseJob(pause) == first
        assert (await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))).state == Job.QUEUED
        for other in (
            pb.PauseJobRequest(name="jobs/j", request_id="p", reason="other"),
            pb.PauseJobRequest(name="jobs/j", request_id="r"),
        ):
            with refused(errors.RequestIdReusedError):
                await plane.jobs.PauseJob(other)

    async def test_a_deletion_can_be_repeated(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j"))
        for _ in range(2):
            await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j", request_id="d"))
        with refused(errors.NotFoundError):
            await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j", request_id="e"))

    async def test_a_stale_etag_is_aborted_and_nothing_done(self, plane: Replica) -> None:
        etag = (await plane.jobs.CreateJob(creation(name="j"))).etag
        paused = await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j", etag=etag))
        for call, request in (
            (plane.jobs.ResumeJob, pb.ResumeJobRequest(name="jobs/j", etag=etag)),
            (plane.jobs.CancelJob, pb.CancelJobRequest(name="jobs/j", etag=etag)),
            (plane.jobs.PauseJob, pb.PauseJobRequest(name="jobs/j", etag=etag)),
        ):
            with refused(errors.StaleEtagError):
                await call(request)
        assert await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j")) == paused

    async def test_who_asked_is_on_record(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        for metadata, actor in (((), "anonymous"), (((ACTOR_KEY, "x" * 1000),), "x" * 256)):
            request = pb.PauseJobRequest(name="jobs/j", reason="why")
            pause = (await plane.jobs.PauseJob(request, metadata=metadata)).pause
            assert (pause.actor, pause.reason) == (actor, "why")
            await plane.jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/j"))


class TestLists:
    async def test_jobs_by_page_state_and_label(self, plane: Replica) -> None:
        for number in range(7):
            labels = {"parity": "odd" if number % 2 else "even"}
            await plane.jobs.CreateJob(pb.CreateJobRequest(job_id=f"j{number}", job=Job(spec=SPEC, labels=labels)))
        for number in (1, 4):
            await plane.jobs.PauseJob(pb.PauseJobRequest(name=f"jobs/j{number}"))
        pages = [pb.ListJobsResponse(next_page_token="")]
        while not pages[1:] or pages[-1].next_page_token:
            request = pb.ListJobsRequest(page_size=3, page_token=pages[-1].next_page_token)
            pages.append(await plane.jobs.ListJobs(request))
        assert [[job.name for job in page.jobs] for page in pages[1:]] == [
            ["jobs/j6", "jobs/j5", "jobs/j4"],
            ["jobs/j3", "jobs/j2", "jobs/j1"],
            ["jobs/j0"],
        ]
        paused = await plane.jobs.ListJobs(pb.ListJobsRequest(states=[Job.PAUSED]))
        assert [job.name for job in paused.jobs] == ["jobs/j4", "jobs/j1"]
        odd = await plane.jobs.ListJobs(pb.ListJobsRequest(labels={"parity": "odd"}, states=[Job.QUEUED]))
        assert [job.name for job in odd.jobs] == ["jobs/j5", "jobs/j3"]
        assert (await plane.jobs.ListJobs(pb.ListJobsRequest(page_size=7))).next_page_token == ""

    async def test_epochs_and_checkpoints_by_page_the_last_one_without_a_token(self, plane: Replica) -> None:
        token = await at_work(plane, "j")
        ledger = Ledger(plane.store)
        for epoch in range(1, 5):
            metrics = EpochMetrics(epoch=epoch, values={"loss": 1 / epoch})
            await ledger.report(Report(sequence=2 * epoch, job="jobs/j", token=token, epoch=metrics), "workers/a")
            made = Checkpoint(name=f"jobs/j/checkpoints/{epoch}", epoch=epoch)
            await ledger.report(Report(sequence=2 * epoch + 1, job="jobs/j", token=token, checkpoint=made), "workers/a")
        first = await plane.jobs.ListEpochMetrics(pb.ListEpochMetricsRequest(parent="jobs/j", page_size=2))
        assert [each.epoch for each in first.epochs] == [1, 2]
        following = pb.ListEpochMetricsRequest(parent="jobs/j", page_size=2, page_token=first.next_page_token)
        second = await plane.jobs.ListEpochMetrics(following)
        assert ([each.epoch for each in second.epochs], second.next_page_token) == ([3, 4], "")
        request = checkpoint_pb.ListCheckpointsRequest(parent="jobs/j", page_size=2)
        newest = await plane.checkpoints.ListCheckpoints(request)
        assert [each.epoch for each in newest.checkpoints] == [4, 3]
        request.page_token = newest.next_page_token
        older = await plane.checkpoints.ListCheckpoints(request)
        assert ([each.epoch for each in older.checkpoints], older.next_page_token) == ([2, 1], "")
        name = older.checkpoints[0].name
        assert (
            await plane.checkpoints.GetCheckpoint(checkpoint_pb.GetCheckpointRequest(name=name))
        ) == older.checkpoints[0]

    async def test_workers_by_page_with_their_state_and_jobs(self, plane: Replica) -> None:
        for name in "abc":
            await plane.store.attach(Worker(name=f"workers/{name}", cpu_slots=1), "session", f"stream-{name}")
        await at_work(plane, "j")
        first = await plane.workers.ListWorkers(worker_pb.ListWorkersRequest(page_size=2))
        assert [each.name for each in first.workers] == ["workers/a", "workers/b"]
        second = await plane.workers.ListWorkers(
            worker_pb.ListWorkersRequest(page_size=2, page_token=first.next_page_token)
        )
        assert ([each.name for each in second.workers], second.next_page_token) == (["workers/c"], "")
        worker = await plane.workers.GetWorker(worker_pb.GetWorkerRequest(name="workers/a"))
        assert (worker.state, list(worker.jobs)) == (Worker.ACTIVE, ["jobs/j"])
        assert worker.HasField("report_time")


def packed(**files: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{name}.py")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


async def in_chunks(data: bytes, size: int = CHUNK_BYTES) -> AsyncIterator[pb.UploadBundleRequest]:
    for start in range(0, len(data), size):
        yield pb.UploadBundleRequest(chunk=data[start : start + size])


class TestBundles:
    async def test_the_same_bytes_have_the_same_name_and_can_be_used(self, plane: Replica) -> None:
        data = packed(train=b"def main(run): ...\n" + os.urandom(3 << 20).hex().encode())
        assert len(data) > CHUNK_BYTES
        bundle = (await plane.jobs.UploadBundle(in_chunks(data))).bundle
        assert (await plane.jobs.UploadBundle(in_chunks(data, size=100_000))).bundle == bundle
        spec = JobSpec(entry_point="train:main", bundle=bundle)
        job = await plane.jobs.CreateJob(pb.CreateJobRequest(job=Job(spec=spec)))
        assert job.spec.bundle == bundle

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"no archive", "not a gzip'ed tar"),
            (gzip.compress(b"no archive inside" * 100), "not a gzip'ed tar"),
            (packed(train=b"x" * 5000)[:-20], "not a gzip'ed tar"),
            (packed(), "no file"),
            (packed(**{"../evil": b""}), "leads out"),
        ],
    )
    async def test_what_is_no_bundle_is_refused_and_not_stored(self, plane: Replica, data: bytes, why: str) -> None:
        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.UploadBundle(in_chunks(data))
        assert isinstance(caught.error, errors.InvalidRequestError)
        assert why in caught.error.violations["chunk"]
        assert await plane.objects.list("") == {}

    async def test_an_empty_upload_is_refused(self, plane: Replica) -> None:
        with refused(errors.InvalidRequestError):
            await plane.jobs.UploadBundle(in_chunks(b""))

    async def test_too_much_is_refused_on_the_way(self, plane: Replica) -> None:
        sent = 0

        async def endless() -> AsyncIterator[pb.UploadBundleRequest]:
            nonlocal sent
            while sent < 2 * BUNDLE_LIMIT_BYTES:
                sent += CHUNK_BYTES
                yield pb.UploadBundleRequest(chunk=b"\0" * CHUNK_BYTES)

        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.UploadBundle(endless())
        assert str(BUNDLE_LIMIT_BYTES) in caught.error.message
        assert sent < 2 * BUNDLE_LIMIT_BYTES

    async def test_a_chunk_has_a_limit(self, plane: Replica) -> None:
        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.UploadBundle(in_chunks(b"\0" * (CHUNK_BYTES + 1), size=CHUNK_BYTES + 1))
        assert str(CHUNK_BYTES) in caught.error.message


class TestWatching:
    async def test_it_goes_on_where_it_broke_off(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/j"]))
        assert (await watch.read()).job.state == Job.QUEUED
        token = (await watch.read()).resume_token
        assert token
        watch.cancel()
        await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/j"], resume_token=token))
        response = await watch.read()
        assert (response.job.state, bool(response.resume_token)) == (Job.PAUSED, True)
        await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j"))
        assert (await watch.read()).job.state == Job.CANCELLED
        await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j"))
        assert (await watch.read()).deleted == "jobs/j"
        watch.cancel()

    async def test_it_goes_on_at_another_replica(self, plane: Replica, redis_url: str) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest())
        await watch.read()
        token = (await watch.read()).resume_token
        watch.cancel()
        async with replica(plane.store, upkeep=False) as other:
            watch = other.jobs.WatchJobs(pb.WatchJobsRequest(resume_token=token))
            await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j"))
            assert (await watch.read()).job.state == Job.PAUSED
            watch.cancel()


class Broken(MemoryStore):
    async def get(self, job: JobName) -> Stored | None:
        raise RuntimeError("the password is hunter2")


async def test_a_fault_of_ours_is_told_without_its_text() -> None:
    async with replica(Broken(), upkeep=False) as plane:
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


async def test_an_outage_of_the_store_is_unavailable_and_passes(memory_store: MemoryStore) -> None:
    async with replica(memory_store, upkeep=False) as plane:
        await plane.jobs.CreateJob(creation(name="j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest())
        await watch.read()
        memory_store.available = False
        memory_store.reconnect()
        for call, request in calls_by_name(plane, "jobs/j"):
            with refused(errors.StoreUnavailableError):
                await call(request)
        with refused(errors.StoreUnavailableError):
            await to_the_end(watch)
        memory_store.available = True
        assert (await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))).state == Job.QUEUED


async def services(plane: Replica) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(plane.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    response = await call.read()
    call.cancel()
    return {service.name for service in response.list_services_response.service}


async def test_reflection_lists_every_service(plane: Replica) -> None:
    assert await services(plane) >= {*SERVICES, "grpc.health.v1.Health"}


async def test_health_is_that_of_every_service(plane: Replica) -> None:
    stub = health_pb2_grpc.HealthStub(plane.channel)
    for name in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_draining_ends_streams_with_a_reason_to_come_back(memory_store: JobStore) -> None:
    async with replica(memory_store, upkeep=False) as plane:
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest())
        await watch.read()
        ending = asyncio.create_task(drained(watch))
        await asyncio.sleep(0)
    assert isinstance(await ending, errors.ShuttingDownError)


async def drained(watch: Any) -> errors.AdjournError:
    with refused(errors.ShuttingDownError) as caught:
        await to_the_end(watch)
    return caught.error


async def to_the_end(watch: Any) -> None:
    """Reads a stream until it raises what it ended with."""
    while await watch.read() is not grpc.aio.EOF:
        pass
