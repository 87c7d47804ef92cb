"""The answer to a pause names the epoch at which training pauses, if its worker tells soon; else it claims nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.api import boundaries
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.control_planes import PATIENCE, Agent, Replica, checkpoint_of_epoch, replica, status_of

JOB = "jobs/j"
LONG = 3 * PATIENCE
"""Seconds: whoever waits for that has waited for what does not come."""
SHORT = 0.3
PAUSE = pb.PauseJobRequest(name=JOB, request_id="p")


@asynccontextmanager
async def training(store: RedisStore, patience: float = LONG) -> AsyncIterator[tuple[Replica, Agent, Assignment]]:
    """A control plane, and the agent of a job that trains."""
    async with replica(store, patience=patience) as plane:
        await plane.create()
        async with Agent(plane.address) as agent:
            await agent.say()
            order = await agent.given(JOB)
            await agent.say(status_of(order))
            await plane.becomes(Job.RUNNING)
            yield plane, agent, order


async def tells(agent: Agent, epoch: int, *, at: int = 0) -> Assignment:
    """Has the agent hear of a pause and tell at which epoch it will be; returns what it heard."""
    order = await agent.given(JOB, Assignment.PAUSE)
    await agent.say(pausing_at(order, epoch, at=at))
    return order


def pausing_at(order: Assignment, epoch: int, *, at: int = 0) -> AssignmentStatus:
    """Returns the status of training that pauses at an epoch, after `at` epochs."""
    status = status_of(order, AssignmentStatus.PAUSING, epoch=at)
    status.pause_epoch = epoch
    return status


async def answered(call: Any) -> Job:
    """Waits for an answer that is not to wait for what does not come."""
    async with asyncio.timeout(PATIENCE):
        job: Job = await call
    return job


async def test_the_answer_names_the_epoch_that_the_worker_tells(job_store: RedisStore) -> None:
    async with training(job_store) as (plane, agent, _):
        job, _ = await asyncio.gather(answered(plane.jobs.PauseJob(PAUSE)), tells(agent, 4))
        assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 4)
        now = await plane.get()
        assert now.pause.boundary_epoch == 4
        assert now.etag == job.etag, "the answer can be acted upon"
        again = await answered(plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB)))
        assert again.pause.boundary_epoch == 4, "another caller need not wait for what is known"


async def test_the_answer_predicts_when_the_epoch_that_it_names_will_end(job_store: RedisStore) -> None:
    async with training(job_store) as (plane, agent, order):
        first = EpochMetrics(epoch=1, active_duration=Duration(seconds=100))
        await agent.say(status_of(order, epoch=1), reports=(agent.report(JOB, order.token, epoch=first),))
        await plane.until(lambda job: job.progress.epoch == 1)
        job, _ = await asyncio.gather(answered(plane.jobs.PauseJob(PAUSE)), tells(agent, 3, at=1))
        stored = await plane.store.get(JobName(JOB))
        assert stored is not None
        left = job.pause.predicted_boundary_time.ToDatetime() - stored.record.progress_time.ToDatetime()
        assert left.total_seconds() == 200, "two epochs, from when it was told of the first"
        assert (await plane.get()).pause.predicted_boundary_time == job.pause.predicted_boundary_time


async def test_a_repeat_gets_the_first_answer_whatever_became_known_since(job_store: RedisStore) -> None:
    async with training(job_store) as (plane, agent, _):
        first, order = await asyncio.gather(answered(plane.jobs.PauseJob(PAUSE)), tells(agent, 4))
        await agent.say(pausing_at(order, 5))
        await plane.until(lambda job: job.pause.boundary_epoch == 5)
        assert await answered(plane.jobs.PauseJob(PAUSE)) == first


async def test_a_repeat_of_an_answer_that_named_nothing_names_nothing(job_store: RedisStore) -> None:
    async with training(job_store, SHORT) as (plane, agent, _):
        first = await answered(plane.jobs.PauseJob(PAUSE))
        assert (first.state, first.pause.boundary_epoch) == (Job.PAUSING, 0)
        await tells(agent, 4)
        await plane.until(lambda job: job.pause.boundary_epoch == 4)
        assert await answered(plane.jobs.PauseJob(PAUSE)) == first


async def test_a_repeat_that_overtakes_the_first_answer_gets_the_same(job_store: RedisStore) -> None:
    async with training(job_store) as (one, agent, _), replica(job_store, patience=SHORT) as two:
        first = asyncio.create_task(answered(one.jobs.PauseJob(PAUSE)))
        order = await agent.given(JOB, Assignment.PAUSE)
        impatient = await answered(two.jobs.PauseJob(PAUSE))
        assert impatient.pause.boundary_epoch == 0
        await agent.say(pausing_at(order, 4))
        assert await first == impatient, "one request has one answer"


async def test_calls_at_another_replica_than_the_agents_are_answered_too(job_store: RedisStore) -> None:
    async with training(job_store) as (_, agent, _), replica(job_store, patience=LONG) as other:
        calls = [other.jobs.PauseJob(pb.PauseJobRequest(name=JOB, request_id=f"p{i}")) for i in range(20)]
        *jobs, _ = await asyncio.gather(*map(answered, calls), tells(agent, 4))
        assert {job.pause.boundary_epoch for job in jobs if isinstance(job, Job)} == {4}


async def test_nobody_waits_for_a_worker_that_is_not_there(job_store: RedisStore) -> None:
    async with training(job_store) as (plane, agent, _):
        agent.call.cancel()
        await plane.worker_is(Worker.DISCONNECTED)
        job = await answered(plane.jobs.PauseJob(PAUSE))
        assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 0)


async def test_nobody_waits_for_training_that_has_not_begun(job_store: RedisStore) -> None:
    async with replica(job_store, patience=LONG) as plane:
        await plane.create()
        async with Agent(plane.address) as agent:
            await agent.say()
            order = await agent.given(JOB)
            await agent.say(status_of(order, AssignmentStatus.STARTING))
            job = await answered(plane.jobs.PauseJob(PAUSE))
            assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 0)


async def test_a_caller_is_answered_before_it_gives_up(job_store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundaries, "SHARE", SHORT / PATIENCE)
    async with training(job_store) as (plane, _, _):
        job = await plane.jobs.PauseJob(PAUSE, timeout=PATIENCE)
        assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 0)


async def test_a_pause_that_is_taken_back_meanwhile_is_not_waited_for(job_store: RedisStore) -> None:
    async with training(job_store) as (plane, agent, _):
        asked = asyncio.create_task(answered(plane.jobs.PauseJob(PAUSE)))
        await agent.given(JOB, Assignment.PAUSE)
        await plane.jobs.ResumeJob(pb.ResumeJobRequest(name=JOB))
        job = await asked
        assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 0)


async def test_a_pause_that_has_come_to_rest_meanwhile_is_named_by_its_checkpoint(job_store: RedisStore) -> None:
    async with training(job_store) as (plane, agent, order):
        asked = asyncio.create_task(answered(plane.jobs.PauseJob(PAUSE)))
        await agent.given(JOB, Assignment.PAUSE)
        saved = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(3))
        left = Exit(phase=AssignmentStatus.PAUSED, checkpoint=checkpoint_of_epoch(3).name)
        await agent.say(reports=(saved, agent.report(JOB, order.token, exit=left)))
        job = await asked
        assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 3)
        rests = await plane.becomes(Job.PAUSED)
        assert (rests.pause.epoch, rests.pause.boundary_epoch) == (3, 0)


async def test_a_replica_that_drains_says_that_the_pause_is_asked_for(job_store: RedisStore) -> None:
    async with training(job_store) as (_, agent, _), AsyncExitStack() as caller:
        async with replica(job_store, patience=LONG) as draining:
            channel = await caller.enter_async_context(grpc.aio.insecure_channel(draining.address))  # outlives it
            asked = asyncio.create_task(answered(JobServiceStub(channel).PauseJob(PAUSE)))
            await agent.given(JOB, Assignment.PAUSE)
        job = await asked
        assert (job.state, job.pause.boundary_epoch) == (Job.PAUSING, 0)
