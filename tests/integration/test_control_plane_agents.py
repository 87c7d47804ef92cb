"""Synchronize over the wire: what an agent is told, and what its reports do."""

import asyncio
import time

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

from adjourn import errors, reasons
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit, FencingToken, SeriesPart
from adjourn.v1.job_pb2 import Condition, Failure, Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet import session as sessions
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.job.events import Lost
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.store.interface import Allocation, JobName, JobStore, WorkerName
from tests.harness.control_planes import (
    PATIENCE,
    SETTINGS,
    Agent,
    Replica,
    checkpoint_of_epoch,
    refused,
    replica,
    status_of,
)
from tests.harness.memory_store import MemoryStore

JOB = "jobs/j"


async def test_a_job_from_the_queue_to_a_pause_and_on_to_its_end(plane: Replica) -> None:
    await plane.create(epochs=2)
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        assert (order.token.attempt, order.generation, order.spec.entry_point) == (1, 1, "train:main")
        assert not order.HasField("restore")
        await agent.say(status_of(order))
        assert (await plane.becomes(Job.RUNNING)).worker == "workers/a"

        pausing = await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
        assert pausing.state == Job.PAUSING
        order = await agent.given(JOB, Assignment.PAUSE)
        assert order.generation == 2
        left = Pause()
        left.release_time.GetCurrentTime()
        reports = (
            agent.report(JOB, order.token, epoch=EpochMetrics(epoch=1, active_duration=Duration(seconds=1))),
            agent.report(JOB, order.token, pause=left),
        )
        await agent.say(status_of(order, AssignmentStatus.PERSISTING, epoch=1), reports=reports)
        await agent.hears(lambda response: response.acknowledged_report == 2)
        assert (await plane.get()).state == Job.PAUSING, "no checkpoint yet, hence no pause"

        reports = (
            agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(1)),
            agent.report(
                JOB, order.token, exit=Exit(phase=AssignmentStatus.PAUSED, checkpoint=checkpoint_of_epoch(1).name)
            ),
        )
        await agent.say(status_of(order, AssignmentStatus.PAUSED, epoch=1), reports=reports)
        job = await plane.becomes(Job.PAUSED)
        assert (job.pause.checkpoint, job.progress.epoch, job.worker) == (checkpoint_of_epoch(1).name, 1, "")
        await agent.hears(lambda response: response.acknowledged_report == 4 and not response.assignments)
        await agent.say()

        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name=JOB))
        order = await agent.given(JOB)
        assert (order.token.attempt, order.restore.name, order.base) == (2, checkpoint_of_epoch(1).name, order.restore)
        reports = (
            agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(2, attempt=2)),
            agent.report(
                JOB, order.token, exit=Exit(phase=AssignmentStatus.SUCCEEDED, checkpoint=checkpoint_of_epoch(2, 2).name)
            ),
        )
        await agent.say(status_of(order, AssignmentStatus.SUCCEEDED, epoch=2), reports=reports)
        assert (await plane.becomes(Job.SUCCEEDED)).latest_checkpoint == checkpoint_of_epoch(2, 2).name


async def test_a_worker_with_many_large_jobs_is_told_of_all_of_them(
    plane: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of their specs are more than fits into a message, here a small one (C13)."""
    monkeypatch.setattr(sessions, "RESPONSE_BYTES", 64 << 10)
    names = [f"large-{number}" for number in range(64)]
    for name in names:
        await plane.create(name, args={"data": "x" * (4 << 10)})
    async with Agent(plane.address, cpu_slots=64) as agent:
        await agent.say()
        given: dict[str, AssignmentStatus] = {}
        while len(given) < 64:
            response = await agent.hears(lambda response: any(each.job not in given for each in response.assignments))
            for each in response.assignments:
                given[each.job] = AssignmentStatus(
                    job=each.job, token=each.token, observed_generation=1, phase=AssignmentStatus.STARTING
                )
            await agent.say(*given.values())
        assert set(given) == {f"jobs/{name}" for name in names}
        response = await agent.hears(lambda response: not any(each.HasField("spec") for each in response.assignments))
        assert len(response.assignments) == 64, "what the worker has is told, and not sent again in full"


async def test_the_agent_is_told_how_often_to_speak_and_hears_at_least_as_often(plane: Replica) -> None:
    async with Agent(plane.address) as agent:
        await agent.say()
        for _ in range(3):
            response = await agent.hears()
            assert response.sync_interval.ToMilliseconds() == 100
            assert response.lease_duration == Duration(seconds=3600)


async def test_repeated_reports_are_acknowledged_and_applied_once(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        reports = tuple(
            agent.report(JOB, order.token, epoch=EpochMetrics(epoch=epoch, active_duration=Duration(seconds=1)))
            for epoch in (1, 2)
        )
        for _ in range(3):
            await agent.say(status_of(order, epoch=2), reports=reports)
        await agent.hears(lambda response: response.acknowledged_report == 2)
        session = agent.session
    async with Agent(plane.address, session=session) as agent:
        await agent.say(status_of(order, epoch=2), reports=reports)
        await agent.hears(lambda response: response.acknowledged_report == 2)
    stored = await plane.store.get(JobName(JOB))
    assert stored
    assert len(stored.record.epoch_times) == 2
    assert len(await plane.store.epochs(JobName(JOB), after=0, size=10)) == 2


async def test_the_last_progress_comes_before_the_end_that_it_explains(plane: Replica) -> None:
    """The same exception at the same step three times: the step must be the one at which it was raised."""
    await plane.create()
    failure = Failure(reason=reasons.TRAINING_RAISED, message="ValueError: no")
    async with Agent(plane.address) as agent:
        await agent.say()
        for attempt in (1, 2, 3):
            order = await agent.given(JOB, attempt=attempt)
            ended = agent.report(JOB, order.token, exit=Exit(phase=AssignmentStatus.FAILED, code=1, failure=failure))
            status = status_of(order, AssignmentStatus.FAILED)
            status.progress.step = 7
            await agent.say(status, reports=(ended,))
        job = await plane.becomes(Job.FAILED)
        assert (job.restart_count, job.failure.message) == (2, failure.message)


async def test_the_older_of_two_agents_of_one_name_is_superseded(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as older, Agent(plane.address) as newer:
        await older.say()
        order = await older.given(JOB)
        await newer.say(status_of(order))
        with refused(errors.SessionSupersededError) as caught:
            await older.ended()
        assert caught.error.metadata == {"worker": "workers/a"}
        await newer.given(JOB)
        await plane.worker_is(Worker.ACTIVE)


async def test_a_newer_stream_of_the_same_agent_ends_the_older_without_blame(plane: Replica) -> None:
    async with Agent(plane.address) as first:
        await first.say()
        await first.hears()
        async with Agent(plane.address, session=first.session) as second:
            await second.say()
            with refused(errors.ShuttingDownError):
                await first.ended()
            await second.hears()
            await plane.worker_is(Worker.ACTIVE)


async def test_a_stale_token_is_stopped_and_its_reports_have_no_effect(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        token = FencingToken(attempt=1, nonce="0" * 32, job_uid=order.token.job_uid)
        stale = Assignment(job=JOB, token=token, generation=9)
        report = agent.report(JOB, stale.token, checkpoint=checkpoint_of_epoch(3))
        await agent.say(status_of(order), status_of(stale), reports=(report,))
        stop = await agent.given(JOB, Assignment.STOP)
        assert (stop.token, stop.generation) == (stale.token, 10)
        await agent.hears(lambda response: response.acknowledged_report == 1)
        assert (await agent.given(JOB)).token == order.token
    assert not (await plane.get()).latest_checkpoint


async def test_a_later_attempt_than_the_stores_is_adopted_with_all_it_reports(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        await agent.say(status_of(order))
        token = FencingToken(attempt=8, nonce="8" * 32, job_uid=order.token.job_uid)
        later = Assignment(job=JOB, token=token, generation=3)
        report = agent.report(JOB, later.token, checkpoint=checkpoint_of_epoch(3, attempt=8))
        await agent.say(status_of(later, epoch=3), reports=(report,))
        await agent.hears(lambda response: response.acknowledged_report == 1)
        assert (await agent.given(JOB)).token == later.token
    job = await plane.get()
    assert (job.attempt, job.latest_checkpoint, job.restart_count) == (8, checkpoint_of_epoch(3, attempt=8).name, 0)


async def lose(plane: Replica) -> None:
    """The worker is silent for a lease."""
    await plane.worker_is(Worker.DISCONNECTED)  # or it could be given the job again at once
    (held,) = (await plane.store.allocation(WorkerName("workers/a"))).jobs
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST, message="silent"))
    await JobUpdater(plane.store).apply(JobName(JOB), lost, token=held.record.token)


async def test_the_worker_of_a_deleted_job_does_not_take_over_the_job_that_has_its_name(plane: Replica) -> None:
    """It was out of reach while its job was deleted and another was created with the name (C1)."""
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        await agent.say(status_of(order))
        await plane.becomes(Job.RUNNING)
    await plane.jobs.CancelJob(pb.CancelJobRequest(name=JOB))
    await lose(plane)
    await plane.jobs.DeleteJob(pb.DeleteJobRequest(name=JOB))
    again = await plane.create()
    order.token.attempt = 9  # far ahead of the new job's
    async with Agent(plane.address) as agent:
        report = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(3, attempt=9))
        ended = agent.report(JOB, order.token, exit=Exit(phase=AssignmentStatus.SUCCEEDED, checkpoint=report.job))
        await agent.say(status_of(order), reports=(report, ended))
        assert (await agent.given(JOB, Assignment.STOP)).token == order.token
        await agent.hears(lambda response: response.acknowledged_report == ended.sequence)
    job = await plane.get()
    assert (job.uid, job.latest_checkpoint, job.HasField("end_time")) == (again.uid, "", False)
    assert job.attempt < 9


async def test_what_a_worker_finished_out_of_reach_counts(plane: Replica) -> None:
    """A partition of more than a lease, in which the run ends (C5)."""
    await plane.create(epochs=3)
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        await agent.say(status_of(order))
        await plane.becomes(Job.RUNNING)
    await lose(plane)
    assert (await plane.get()).state == Job.QUEUED
    async with Agent(plane.address, name="workers/b", cpu_slots=0) as agent:
        registered = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(3))
        exit_ = Exit(phase=AssignmentStatus.SUCCEEDED, checkpoint=checkpoint_of_epoch(3).name)
        over = status_of(order, AssignmentStatus.SUCCEEDED, epoch=3)
        await agent.say(over, reports=(registered, agent.report(JOB, order.token, exit=exit_)))
        job = await plane.becomes(Job.SUCCEEDED)
    assert (job.attempt, job.restart_count, job.latest_checkpoint) == (1, 0, checkpoint_of_epoch(3).name)


async def test_a_live_attempt_that_comes_back_goes_on_and_costs_nothing(plane: Replica) -> None:
    """A partition of more than a lease, while nobody else could take the job (C5)."""
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        await agent.say(status_of(order))
        await plane.becomes(Job.RUNNING)
    await lose(plane)
    async with Agent(plane.address) as agent:
        await agent.say(status_of(order))
        assert (await agent.given(JOB)).token == order.token
        job = await plane.becomes(Job.RUNNING)
    assert (job.attempt, job.restart_count) == (1, 0)


async def test_what_nobody_knows_is_paused_its_reports_taken_and_told_once(plane: Replica) -> None:
    token = FencingToken(attempt=2, nonce="0" * 32, job_uid="uid of another store")
    orphan = status_of(Assignment(job="jobs/orphan", token=token, generation=3))
    orphan.held_device_uuids.append("workers/a-0")
    with capture_logs() as logs:
        async with Agent(plane.address, gpus=2) as agent:
            await agent.say(orphan)
            order = await agent.given("jobs/orphan", Assignment.PAUSE)
            assert (order.generation, order.token) == (4, token)
            await plane.create(gpus=1)
            assert list((await agent.given(JOB)).device_uuids) == ["workers/a-1"], "the orphan has the other one"
            orphan.observed_generation = 4
            for _ in range(3):
                await agent.say(orphan)
                await agent.hears()
            assert (await agent.given("jobs/orphan", Assignment.PAUSE)).generation == 4
            orphan.phase = AssignmentStatus.PAUSED
            saved = agent.report("jobs/orphan", token, checkpoint=checkpoint_of_epoch(1))
            await agent.say(orphan, reports=(saved,))
            await agent.hears(
                lambda response: (
                    response.acknowledged_report == 1
                    and all(each.job != "jobs/orphan" for each in response.assignments)
                )
            )
    assert [entry["uid"] for entry in logs if entry["event"] == "orphan_paused"] == [token.job_uid]


@pytest.mark.parametrize("name_is_used_again", [False, True])
async def test_the_attempt_of_a_job_that_was_deleted_out_of_reach_is_stopped(
    plane: Replica, name_is_used_again: bool
) -> None:
    """It trained for ever; what it saved after the job's objects were purged stayed."""
    uid = (await plane.create()).uid
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        await agent.say(status_of(order))
        await plane.becomes(Job.RUNNING)
        session = await plane.store.session(WorkerName("workers/a"))
        assert session
    while not await plane.store.mark_lost(WorkerName("workers/a"), session.heartbeat):
        session = await plane.store.session(WorkerName("workers/a"))
        assert session
    await plane.becomes(Job.QUEUED)
    await plane.jobs.CancelJob(pb.CancelJobRequest(name=JOB))
    await plane.jobs.DeleteJob(pb.DeleteJobRequest(name=JOB))
    while await plane.store.tombstones():
        await Collector(plane.store, plane.objects, SETTINGS).purge()
    if name_is_used_again:
        await plane.create()
        await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
    key = f"checkpoints/{uid}/manifests/7"
    await plane.objects.put(key, b"saved after the purge")
    async with Agent(plane.address) as agent:
        await agent.say(status_of(order))
        stop = await agent.given(JOB, Assignment.STOP)
        assert stop.token == order.token
        await agent.say(status_of(stop, AssignmentStatus.STOPPED))
        await agent.hears(lambda response: not response.assignments)
    await Collector(plane.store, plane.objects, SETTINGS).purge()
    assert not await plane.objects.list(f"checkpoints/{uid}/")


async def test_a_draining_worker_is_given_nothing_new(plane: Replica) -> None:
    async with Agent(plane.address) as draining, Agent(plane.address, name="workers/b") as taking:
        await draining.say(draining=True)
        await draining.hears()
        await plane.create()
        await taking.say()
        await taking.given(JOB)
        assert list((await draining.hears()).assignments) == []
        await plane.worker_is(Worker.DRAINED)


async def test_what_a_draining_worker_does_not_take_on_goes_on_elsewhere_at_no_cost(plane: Replica) -> None:
    async with Agent(plane.address) as draining, Agent(plane.address, name="workers/b", cpu_slots=0) as taking:
        await draining.say()
        await taking.say()
        await plane.create()
        order = await draining.given(JOB)
        why = Failure(reason=reasons.WORKER_STOPPED, message="the worker was stopped with all it runs")
        ended = draining.report(JOB, order.token, exit=Exit(phase=AssignmentStatus.STOPPED, failure=why))
        await draining.say(status_of(order, AssignmentStatus.STOPPED), reports=(ended,), draining=True)
        await draining.hears(lambda response: response.acknowledged_report == 1 and not response.assignments)
        taking.cpu_slots = 1
        await taking.say()
        assert (await taking.given(JOB)).token.attempt == 2
        job = await plane.get()
        assert (job.restart_count, job.worker) == (0, "workers/b")
        assert not any(each.type == Condition.RELEASE_UNCONFIRMED for each in job.conditions)


async def test_gpus_are_handed_out_and_given_back(plane: Replica) -> None:
    for name in ("j", "k"):
        await plane.create(name, gpus=2)
    async with Agent(plane.address, cpu_slots=0, gpus=3) as agent:
        await agent.say()
        order = await agent.given(JOB)
        assert list(order.device_uuids) == ["workers/a-0", "workers/a-1"]
        await agent.say(status_of(order))
        await plane.jobs.CancelJob(pb.CancelJobRequest(name=JOB))
        await agent.given(JOB, Assignment.STOP)
        assert (await plane.get("jobs/k")).state == Job.QUEUED
        ended = agent.report(JOB, order.token, exit=Exit(phase=AssignmentStatus.STOPPED))
        await agent.say(status_of(order, AssignmentStatus.STOPPED), reports=(ended,))
        assert list((await agent.given("jobs/k")).device_uuids) == ["workers/a-0", "workers/a-1"]
    assert (await plane.get()).state == Job.CANCELLED


@pytest.mark.parametrize(
    ("name", "session", "fields"),
    [("w", "s", {"worker.name"}), ("workers/W", "", {"worker.name", "session_id"}), ("workers/w", "", {"session_id"})],
)
async def test_a_first_message_that_names_nobody_is_refused(
    plane: Replica, name: str, session: str, fields: set[str]
) -> None:
    async with Agent(plane.address, name=name, session=session) as agent:
        await agent.say()
        with refused(errors.InvalidRequestError) as caught:
            await agent.ended()
    assert isinstance(caught.error, errors.InvalidRequestError)
    assert set(caught.error.violations) == fields
    assert await plane.store.sessions() == []


async def test_a_stream_that_ends_before_its_first_message_ends_in_peace(plane: Replica) -> None:
    async with Agent(plane.address) as agent:
        await agent.call.done_writing()
        await agent.ended()


async def test_an_agent_that_ends_its_side_is_disconnected(plane: Replica) -> None:
    async with Agent(plane.address) as agent:
        await agent.say()
        await agent.hears()
        await agent.call.done_writing()
        await agent.ended()
    await plane.worker_is(Worker.DISCONNECTED)


class Broken(MemoryStore):
    async def allocation(self, worker: WorkerName) -> Allocation:
        raise RuntimeError("the password is hunter2")


async def test_a_fault_of_ours_ends_the_stream_without_its_text() -> None:
    broken: JobStore = Broken()
    with capture_logs() as logs:
        async with replica(broken, controllers=False) as plane, Agent(plane.address) as agent:
            await agent.say()
            with refused(errors.InternalError) as caught:
                await agent.ended()
    assert "hunter2" not in caught.error.message
    assert [entry["error_id"] for entry in logs if entry["event"] == "call_failed"] == [
        caught.error.metadata["error_id"]
    ]


async def test_memory_of_a_gpu_that_is_nearly_full_is_told_once_in_an_attempt(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        for epoch, used in enumerate((50, 96, 99), 1):
            sample = ResourceSample(time=Timestamp(seconds=int(time.time())))
            sample.gpus.add(index=1, memory_used_bytes=used, memory_total_bytes=100)
            part = SeriesPart(job=JOB, token=order.token, samples=[sample])
            await agent.say(status_of(order, epoch=epoch), series=(part,))
        await agent.say(status_of(order, epoch=4))
        async with asyncio.timeout(PATIENCE):
            while (await plane.get()).progress.epoch < 4:  # noqa: ASYNC110  # it is the server's
                await asyncio.sleep(0.02)
    listed = await plane.jobs.ListJobEvents(pb.ListJobEventsRequest(parent=JOB, page_size=100))
    messages = [event.message for event in listed.events if event.type == pb.JobEvent.GPU_MEMORY_NEARLY_FULL]
    assert messages == ["96 % of the memory of GPU 1 are in use"]


async def test_figures_of_a_job_are_listed_thinned_and_by_range(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        now = int(time.time())
        samples = [ResourceSample(time=Timestamp(seconds=now + second), memory_bytes=second) for second in range(9)]
        steps = [StepMetrics(step=step, loss=1 / step) for step in range(1, 10)]
        part = SeriesPart(job=JOB, token=order.token, samples=samples, steps=steps)
        late = SeriesPart(job=JOB, token=FencingToken(attempt=7, job_uid=order.token.job_uid), steps=steps[:1])
        await agent.say(status_of(order), series=(part, late))
        await plane.becomes(Job.RUNNING)
        async with asyncio.timeout(PATIENCE):
            while not (  # noqa: ASYNC110  # it is the server's
                found := await plane.jobs.ListStepMetrics(pb.ListStepMetricsRequest(parent=JOB))
            ).steps:
                await asyncio.sleep(0.02)
        assert list(found.steps) == steps
        few = await plane.jobs.ListStepMetrics(
            pb.ListStepMetricsRequest(parent=JOB, start_step=3, end_step=8, max_steps=2)
        )
        assert [each.step for each in few.steps] == [5, 8]
        all_of_them = await plane.jobs.ListResourceSamples(pb.ListResourceSamplesRequest(parent=JOB))
        assert list(all_of_them.samples) == samples
        asked = pb.ListResourceSamplesRequest(
            parent=JOB, start_time=samples[2].time, end_time=samples[6].time, max_samples=2
        )
        assert [each.memory_bytes for each in (await plane.jobs.ListResourceSamples(asked)).samples] == [3, 6]
    with refused(errors.InvalidRequestError):
        await plane.jobs.ListResourceSamples(pb.ListResourceSamplesRequest(parent=JOB, max_samples=-1))
    with refused(errors.InvalidRequestError):
        await plane.jobs.ListStepMetrics(pb.ListStepMetricsRequest(parent=JOB, end_step=-1))
