"""Pauses after the running step, or now: what callers are answered, and what many of them come to."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from adjourn import errors
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, LATEST, STEP, Job, PauseMode
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.control_planes import PATIENCE, Agent, Replica, checkpoint_of_epoch, refused, replica, status_of

JOB = "jobs/j"


def at(order: Assignment, phase: AssignmentStatus.Phase.ValueType, *, step: int) -> AssignmentStatus:
    """Returns the status of training amid its second epoch of 10 steps, each 1 s long."""
    status = status_of(order, phase, epoch=1)
    status.progress.step, status.progress.epoch_step = step, step - 10
    status.progress.active_duration.FromSeconds(step)
    status.progress.report_time.FromSeconds(5000 + step)
    return status


def saved(order: Assignment, step: int) -> Checkpoint:
    made = checkpoint_of_epoch(step // 10, order.token.attempt)
    made.name, made.step, made.epoch_step = f"{JOB}/checkpoints/{step}", step, step % 10
    made.active_duration.FromSeconds(step)
    return made


@asynccontextmanager
async def training(plane: Replica) -> AsyncIterator[tuple[Agent, Assignment]]:
    """The agent of a job that has a checkpoint of its first epoch, and is 4 steps further."""
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given(JOB)
        checkpoint = agent.report(JOB, order.token, checkpoint=saved(order, 10))
        await agent.say(at(order, AssignmentStatus.RUNNING, step=14), reports=(checkpoint,))
        await plane.until(lambda job: bool(job.latest_checkpoint) and job.state == Job.RUNNING)
        yield agent, order


def pausing(mode: PauseMode.ValueType, request_id: str = "") -> pb.PauseJobRequest:
    return pb.PauseJobRequest(name=JOB, mode=mode, request_id=request_id)


async def told(agent: Agent, mode: PauseMode.ValueType) -> Assignment:
    """Waits for the order to pause in a mode."""
    while (order := await agent.given(JOB, Assignment.PAUSE)).pause_mode != mode:
        pass
    return order


async def test_the_answer_says_what_is_given_up_and_the_end_says_it_again(plane: Replica) -> None:
    async with training(plane) as (agent, first):
        job = await plane.jobs.PauseJob(pausing(LATEST, "p"))
        assert (job.state, job.pause.mode, job.latest_checkpoint) == (Job.PAUSING, LATEST, f"{JOB}/checkpoints/10")
        assert (job.pause.lost_steps, job.pause.lost_duration.seconds) == (4, 4)
        order = await told(agent, LATEST)
        end = Exit(phase=AssignmentStatus.PAUSED, checkpoint=saved(first, 12).name, code=-9)
        reports = (
            agent.report(JOB, order.token, checkpoint=saved(first, 12)),
            agent.report(JOB, order.token, exit=end),
        )
        await agent.say(at(order, AssignmentStatus.PAUSED, step=15), reports=reports)
        rests = await plane.becomes(Job.PAUSED)
        assert (rests.pause.epoch, rests.pause.step, rests.pause.lost_steps) == (1, 12, 3)
        assert (rests.progress.step, rests.progress.epoch_step, rests.restart_count) == (12, 2, 0)
        assert await plane.jobs.PauseJob(pausing(LATEST, "p")) == job, "a repeat gets the first answer"


async def test_without_a_checkpoint_nothing_is_given_up(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        await agent.say(status_of(await agent.given(JOB)))
        await plane.becomes(Job.RUNNING)
        with refused(errors.NoCheckpointError) as caught:
            await plane.jobs.PauseJob(pausing(LATEST))
        assert caught.error.metadata["state"] == "RUNNING"
        held = await plane.jobs.HoldJobs(pb.HoldJobsRequest(all=True, mode=LATEST))
        (outcome,) = held.jobs
        assert (outcome.changed, outcome.reason, outcome.state) == (False, "NO_CHECKPOINT", Job.RUNNING)
        assert not (await plane.get()).holds


async def test_a_pause_after_the_step_is_not_waited_for(job_store: RedisStore) -> None:
    async with replica(job_store, patience=PATIENCE) as plane, training(plane) as (agent, _):
        async with asyncio.timeout(PATIENCE / 2):
            job = await plane.jobs.PauseJob(pausing(STEP))
        assert (job.state, job.pause.mode, job.pause.boundary_epoch) == (Job.PAUSING, STEP, 0)
        left = job.pause.predicted_boundary_time.ToDatetime() - job.pause.request_time.ToDatetime()
        assert left.total_seconds() == 1, "a step takes a second"
        assert (await told(agent, STEP)).generation == 2


@pytest.mark.parametrize("modes", list(itertools.permutations([EPOCH, STEP, LATEST])))
async def test_of_pauses_that_are_asked_for_at_once_the_earliest_counts(
    job_store: RedisStore, modes: tuple[PauseMode.ValueType, ...]
) -> None:
    async with replica(job_store) as one, replica(job_store) as two, training(one) as (agent, _):
        calls = [(one, two)[number % 2].jobs.PauseJob(pausing(mode)) for number, mode in enumerate(modes * 2)]
        answers = await asyncio.gather(*calls)
        assert {answer.state for answer in answers} == {Job.PAUSING}
        order = await told(agent, LATEST)
        job = await one.get()
        assert (job.pause.mode, len(job.holds), len(job.past_pauses)) == (LATEST, 1, 0)
        assert 2 <= order.generation <= 4, "each mode is ordered once at most"


async def test_a_pause_and_its_resume_at_once_leave_the_job_on_its_way_or_training(job_store: RedisStore) -> None:
    async with replica(job_store) as one, replica(job_store) as two, training(one) as (agent, first):
        paused = one.jobs.PauseJob(pausing(LATEST))
        resumed = two.jobs.ResumeJob(pb.ResumeJobRequest(name=JOB))
        await asyncio.gather(paused, resumed, return_exceptions=True)
        job = await one.get()
        assert job.state in (Job.PAUSING, Job.RUNNING)
        assert (job.state == Job.PAUSING) == bool(job.holds)
        end = Exit(phase=AssignmentStatus.PAUSED, checkpoint=saved(first, 10).name, code=-9)
        await agent.say(
            at(first, AssignmentStatus.PAUSED, step=14), reports=(agent.report(JOB, first.token, exit=end),)
        )
        # Without a hold it is queued, and at once given to the worker again.
        ended = (Job.PAUSED,) if job.holds else (Job.QUEUED, Job.STARTING)
        job = await one.until(lambda job: job.state in ended)
        assert (job.pause.lost_steps, job.restart_count) == (4, 0)


async def test_a_resume_after_the_kill_goes_on_from_the_checkpoint(plane: Replica) -> None:
    async with training(plane) as (agent, first):
        await plane.jobs.PauseJob(pausing(LATEST))
        order = await told(agent, LATEST)
        await agent.say(at(order, AssignmentStatus.PAUSING, step=15))
        await plane.until(lambda job: job.progress.step == 15)  # with that it has acknowledged the order
        job = await plane.jobs.ResumeJob(pb.ResumeJobRequest(name=JOB))
        assert job.state == Job.PAUSING, "it is killed"
        end = Exit(phase=AssignmentStatus.PAUSED, checkpoint=saved(first, 10).name, code=-9)
        exited = agent.report(JOB, order.token, exit=end)
        await agent.say(at(order, AssignmentStatus.PAUSED, step=15), reports=(exited,))
        again = await agent.given(JOB)
        assert (again.token.attempt, again.restore.name) == (2, f"{JOB}/checkpoints/10")
        assert (await plane.get()).pause.lost_steps == 5
