"""What callers get over the wire: jobs, checkpoints, workers, page by page; each request once."""

import asyncio
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adjourn import errors
from adjourn.channel import ACTOR_KEY
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1 import checkpoint_service_pb2 as checkpoint_pb
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1 import worker_service_pb2 as worker_pb
from adjourn.v1.agent_service_pb2 import Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, JobSpec, Pause
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.job.events import Placed
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.server import SERVICES
from adjourn_control_plane.store.interface import Change, JobName, WorkerName
from tests.harness.control_planes import SPEC, Agent, Replica, creation, refused
from tests.harness.store_records import change, created


@pytest.fixture
def plane(idle_plane: Replica) -> Replica:
    return idle_plane


async def at_work(plane: Replica, name: str) -> Any:
    """Creates a job and hands it to a worker; returns its token."""
    await plane.jobs.CreateJob(creation(name=name))
    event = Placed(actor="test", worker="workers/a", device_uuids=(), nonce="n")
    return (await JobUpdater(plane.store).apply(JobName(f"jobs/{name}"), event)).token


class TestCreation:
    async def test_only_spec_and_labels_are_read(self, plane: Replica) -> None:
        given = Job(name="jobs/other", spec=SPEC, labels={"a": "b"}, state=Job.PAUSED, attempt=7, creator="eva")
        job = await plane.jobs.CreateJob(pb.CreateJobRequest(job_id="j", job=given), metadata=((ACTOR_KEY, "ann"),))
        assert (job.name, job.state, job.attempt, job.creator) == ("jobs/j", Job.QUEUED, 0, "ann")
        assert dict(job.labels) == {"a": "b"}
        assert job == await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))
        (created,) = await plane.store.events(JobName("jobs/j"), after=0, size=10)
        assert (created.type, created.actor) == (pb.JobEvent.CREATED, "ann")

    async def test_a_seed_and_a_name_are_chosen_and_kept(self, plane: Replica) -> None:
        first, second = [await plane.jobs.CreateJob(creation()) for _ in range(2)]
        assert first.name != second.name
        assert first.spec.HasField("seed")
        assert first.spec.seed != second.spec.seed
        assert 0 <= first.spec.seed < 1 << 53
        seeded = pb.CreateJobRequest(job=Job(spec=JobSpec(entry_point="m:f", seed=0)))
        assert (await plane.jobs.CreateJob(seeded)).spec.seed == 0

    async def test_a_name_is_free_at_once_when_its_job_is_deleted_and_a_uid_never_used_again(
        self, plane: Replica
    ) -> None:
        first = await plane.jobs.CreateJob(creation(name="j"))
        with refused(errors.AlreadyExistsError):
            await plane.jobs.CreateJob(creation(name="j"))
        await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j"))
        await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j"))
        again = await plane.jobs.CreateJob(creation(name="j"))
        assert again.state == Job.QUEUED
        assert UUID(first.uid) != UUID(again.uid)

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


class TestUpdates:
    def update(self, *fields: str, request_id: str = "", **job: Any) -> pb.UpdateJobRequest:
        return pb.UpdateJobRequest(
            job=Job(name="jobs/j", **job), update_mask=FieldMask(paths=fields), request_id=request_id
        )

    async def test_only_the_fields_of_the_mask_are_taken_over_and_it_is_on_record(self, plane: Replica) -> None:
        before = await plane.jobs.CreateJob(creation(name="j"))
        spec = JobSpec(total_epochs=9, max_restarts=7, entry_point="other:main")
        request = self.update("labels", "spec.total_epochs", spec=spec, labels={"a": "b"})
        after = await plane.jobs.UpdateJob(request, metadata=((ACTOR_KEY, "ann"),))
        assert (after.spec.total_epochs, dict(after.labels)) == (9, {"a": "b"})
        assert (after.spec.entry_point, after.spec.HasField("max_restarts")) == (SPEC.entry_point, False)
        assert after.etag != before.etag
        listed = await plane.jobs.ListJobEvents(pb.ListJobEventsRequest(parent="jobs/j"))
        assert [(event.type, event.actor) for event in listed.events][1:] == [(pb.JobEvent.UPDATED, "ann")]
        found = await plane.jobs.ListJobs(pb.ListJobsRequest(labels={"a": "b"}))
        assert [job.name for job in found.jobs] == ["jobs/j"]

    async def test_a_stale_etag_is_aborted_and_a_retry_has_no_second_effect(self, plane: Replica) -> None:
        etag = (await plane.jobs.CreateJob(creation(name="j"))).etag
        request = self.update("labels", labels={"a": "1"}, etag=etag, request_id="u")
        first = await plane.jobs.UpdateJob(request)
        with refused(errors.StaleEtagError):
            await plane.jobs.UpdateJob(self.update("labels", labels={"a": "2"}, etag=etag))
        await plane.jobs.UpdateJob(self.update("labels", labels={"a": "3"}))
        assert await plane.jobs.UpdateJob(request) == first
        assert (await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j"))).labels["a"] == "3"

    @pytest.mark.parametrize(
        ("fields", "job", "wrong"),
        [
            ([], {}, "update_mask"),
            (["spec.seed"], {"spec": JobSpec(seed=1)}, "update_mask"),
            (["state"], {"state": Job.SUCCEEDED}, "update_mask"),
            (["*"], {}, "update_mask"),
            (["labels"], {"labels": {"no key": ""}}, "job.labels['no key']"),
            (["spec.max_restarts"], {"spec": JobSpec(max_restarts=-1)}, "job.spec.max_restarts"),
            (["spec.total_epochs"], {"spec": JobSpec(total_epochs=1)}, "job.spec.total_epochs"),
            (["labels"], {"name": "j"}, "job.name"),
        ],
    )
    async def test_what_cannot_be_changed_is_refused_by_field(
        self, plane: Replica, fields: list[str], job: dict[str, Any], wrong: str
    ) -> None:
        created = await plane.jobs.CreateJob(creation(name="j"))
        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.UpdateJob(
                pb.UpdateJobRequest(job=Job(**{"name": "jobs/j", **job}), update_mask=FieldMask(paths=fields))
            )
        assert isinstance(caught.error, errors.InvalidRequestError)
        assert list(caught.error.violations) == [wrong]
        assert await plane.jobs.GetJob(pb.GetJobRequest(name="jobs/j")) == created

    async def test_a_job_on_a_worker_gets_no_more_epochs(self, plane: Replica) -> None:
        await at_work(plane, "j")
        with refused(errors.JobHeldByWorkerError):
            await plane.jobs.UpdateJob(self.update("spec.total_epochs", spec=JobSpec(total_epochs=9)))
        after = await plane.jobs.UpdateJob(self.update("spec.max_restarts", spec=JobSpec(max_restarts=0)))
        assert after.spec.max_restarts == 0


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
        updater = JobUpdater(plane.store)
        for epoch in range(1, 5):
            metrics = EpochMetrics(epoch=epoch, values={"loss": 1 / epoch})
            await updater.report(Report(sequence=2 * epoch, job="jobs/j", token=token, epoch=metrics), "workers/a")
            made = Checkpoint(name=f"jobs/j/checkpoints/{epoch}", epoch=epoch)
            await updater.report(
                Report(sequence=2 * epoch + 1, job="jobs/j", token=token, checkpoint=made), "workers/a"
            )
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
            worker = Worker(name=f"workers/{name}", cpu_slots=1)
            await plane.store.attach(worker, "session", f"stream-{name}")
            await plane.store.heartbeat(worker, f"stream-{name}")
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

    async def test_events_by_page_oldest_first(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j", reason="lunch"), metadata=((ACTOR_KEY, "ann"),))
        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name="jobs/j"))
        first = await plane.jobs.ListJobEvents(pb.ListJobEventsRequest(parent="jobs/j", page_size=2))
        request = pb.ListJobEventsRequest(parent="jobs/j", page_token=first.next_page_token)
        second = await plane.jobs.ListJobEvents(request)
        events = [*first.events, *second.events]
        assert second.next_page_token == ""
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert [event.type for event in events] == [
            pb.JobEvent.CREATED,
            pb.JobEvent.PAUSE_REQUESTED,
            pb.JobEvent.PAUSED,
            pb.JobEvent.RESUME_REQUESTED,
        ]
        assert (events[2].actor, events[2].state) == ("ann", Job.PAUSED)

    async def test_a_token_of_another_query_is_refused_by_every_list(self, plane: Replica) -> None:
        for name in "ab":
            await plane.jobs.CreateJob(pb.CreateJobRequest(job_id=name, job=Job(spec=SPEC, labels={"x": "y"})))
        token = (await plane.jobs.ListJobs(pb.ListJobsRequest(page_size=1))).next_page_token
        for call, request in (
            (plane.jobs.ListJobs, pb.ListJobsRequest(labels={"x": "y"}, page_token=token)),
            (plane.jobs.ListJobs, pb.ListJobsRequest(states=[Job.QUEUED], page_token=token)),
            (plane.jobs.ListJobEvents, pb.ListJobEventsRequest(parent="jobs/a", page_token=token)),
            (plane.jobs.ListEpochMetrics, pb.ListEpochMetricsRequest(parent="jobs/a", page_token=token)),
            (
                plane.checkpoints.ListCheckpoints,
                checkpoint_pb.ListCheckpointsRequest(parent="jobs/a", page_token=token),
            ),
            (plane.workers.ListWorkers, worker_pb.ListWorkersRequest(page_token=token)),
        ):
            with refused(errors.InvalidRequestError) as caught:
                await call(request)
            assert isinstance(caught.error, errors.InvalidRequestError)
            assert list(caught.error.violations) == ["page_token"]

    async def test_five_hundred_jobs_of_the_largest_size_are_listed_within_the_limit_of_a_message(
        self, plane: Replica
    ) -> None:
        text = "x" * (250 << 10)
        pause = Pause(reason="y" * 1024, actor="z" * 256, checkpoint="jobs/j/checkpoints/1", from_worker="workers/a")
        for number in range(500):
            record = JobRecord(job=Job(name=f"jobs/j{number}", state=Job.QUEUED, past_pauses=[pause] * 100))
            record.job.spec.args["text"] = text
            record.job.uid = f"{number:032x}"
            await plane.store.commit(Change(job=JobName(record.job.name), expected=0, record=record))
        names: list[str] = []
        request = pb.ListJobsRequest(page_size=500)
        async with grpc.aio.insecure_channel(plane.address) as channel:  # with gRPC's own limit, 4 MiB
            stub: Any = JobServiceStub(channel)
            while not names or request.page_token:
                page = await stub.ListJobs(request)
                names += [job.name for job in page.jobs]
                request.page_token = page.next_page_token
        assert names == [f"jobs/j{number}" for number in range(499, -1, -1)]


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


A = WorkerName("workers/a")


async def test_a_worker_that_is_lost_and_holds_nothing_can_be_deleted(plane: Replica) -> None:
    store, workers = plane.store, plane.workers
    delete = worker_pb.DeleteWorkerRequest(name=A)
    await store.attach(Worker(name=A), "session", "stream")
    await store.heartbeat(Worker(name=A), "stream")
    job = await created(store, "jobs/j", state=Job.RUNNING, worker=A)
    with refused(errors.WorkerInUseError) as caught:
        await workers.DeleteWorker(delete)
    assert caught.error.metadata == {"worker": A, "state": "ACTIVE", "allowed_states": "LOST"}
    session = await store.session(A)
    assert session
    await store.mark_lost(A, session.heartbeat)
    with refused(errors.WorkerInUseError) as caught:
        await workers.DeleteWorker(delete)
    assert "holds 1 jobs" in caught.error.message
    await store.commit(change(job, state=Job.QUEUED, worker=""))
    await workers.DeleteWorker(delete)
    for call, request in ((workers.GetWorker, worker_pb.GetWorkerRequest(name=A)), (workers.DeleteWorker, delete)):
        with refused(errors.NotFoundError):
            await call(request)


async def test_a_name_that_is_none_is_refused(plane: Replica) -> None:
    with refused(errors.InvalidRequestError):
        await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name="a"))


async def test_a_worker_that_was_deleted_comes_back_as_a_new_one(plane: Replica) -> None:
    async with Agent(plane.address) as agent:
        await agent.say()
        await agent.hears()
        await plane.worker_is(Worker.ACTIVE)
        session = await plane.store.session(A)
        assert session
        await plane.store.mark_lost(A, session.heartbeat)
        await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A))
        with refused(errors.ShuttingDownError):
            await agent.ended()
    async with Agent(plane.address, session=agent.session) as agent:
        await agent.say()
        await agent.hears()
        await plane.worker_is(Worker.ACTIVE)
