"""Training that makes no step any more, in a whole stack: found, told, ended, and what the job comes to."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Condition, Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from tests.harness.jobs import EPOCHS, GatedJob, GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]
LONG = 120.0
"""Longest to wait for what takes the limit and the grace, in seconds."""


def limited(policy: JobSpec.HangPolicy.ValueType) -> JobSpec:
    """Validation and saving count as well: on a busy machine they take a second or two."""
    return JobSpec(hang_timeout=Duration(seconds=8), hang_policy=policy)


def hangs(job: Job) -> bool:
    return any(each.type == Condition.HANGING and each.reason == "TRAINING_HANGS" for each in job.conditions)


def is_suspended(job: Job) -> bool:
    return any((each.type, each.reason) == (Condition.HANGING, "PROCESS_SUSPENDED") for each in job.conditions)


async def history(gated: GatedJob) -> list[JobEvent]:
    return [event async for event in gated.client.list_job_events(gated.name)]


async def log_of(stack: Stack, gated: GatedJob, attempt: int, eventually: Eventually) -> str:
    """Returns what an attempt printed, once that is put away."""
    name = f"workers/*/logs/{gated.name.removeprefix('jobs/')}-*-{attempt}-*.log"
    await eventually(lambda: list(stack.directory.path.glob(name)), seconds=LONG)
    (found,) = stack.directory.path.glob(name)
    return found.read_text()


async def test_training_that_hangs_is_ended_and_restarted_or_rests(
    stack: Stack, gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    """One job on each worker: what both wait for is the limit and the grace."""
    async with asyncio.TaskGroup() as both:
        both.create_task(is_restarted_and_ends_where_it_should(stack, gated_jobs, uninterrupted, eventually))
        both.create_task(a_pause_does_not_wait_for_it(stack, gated_jobs, uninterrupted, eventually))


async def is_restarted_and_ends_where_it_should(
    stack: Stack, gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    spec = limited(JobSpec.HANG_POLICY_UNSPECIFIED)
    gated = await gated_jobs.start("hangs", limit=EPOCHS, hang_in=4, hang_by="sleep", spec=spec)
    job = await gated.until(Job.SUCCEEDED, seconds=LONG)
    assert (job.attempt, job.restart_count) == (2, 0), "the epochs since have given the restart back"
    assert not job.conditions
    assert await gated.outcome() == uninterrupted
    events = await history(gated)
    told = [event for event in events if event.details.get("condition") == "HANGING"]
    assert [event.type for event in told] == [JobEvent.CONDITION_BEGAN, JobEvent.CONDITION_ENDED]
    began = told[0]
    assert "by the job's hang_timeout" in began.message
    (requeued,) = [event for event in events if event.type == JobEvent.REQUEUED]
    assert requeued.details["reason"] == "TRAINING_HANGS"
    log = await log_of(stack, gated, 1, eventually)
    assert "in sleep" in log
    assert "training has not got on for" in log


async def a_pause_does_not_wait_for_it(
    stack: Stack, gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    """Not even where a hang is only to be reported; it rests on the checkpoint before."""
    spec = limited(JobSpec.REPORT)
    gated = await gated_jobs.start("rests", limit=EPOCHS, hang_in=3, hang_by="sleep", spec=spec)
    hanging = await gated.until(hangs, seconds=LONG)
    assert (hanging.state, hanging.attempt) == (Job.RUNNING, 1)
    assert (await gated.client.pause_job(gated.name)).state == Job.PAUSING
    paused = await gated.until(Job.PAUSED, seconds=LONG)
    assert (paused.pause.epoch, paused.progress.epoch, paused.restart_count) == (2, 2, 0)
    assert paused.pause.checkpoint == paused.latest_checkpoint
    assert paused.pause.HasField("release_time")
    assert paused.pause.HasField("lost_duration")
    assert "TRAINING_HANGS" in (await history(gated))[-1].message
    assert "in sleep" in await log_of(stack, gated, 1, eventually)
    await gated.client.resume_job(gated.name)
    job = await gated.until(Job.SUCCEEDED, seconds=LONG)
    assert job.attempt == 2
    assert await gated.outcome() == uninterrupted


async def test_training_that_somebody_has_stopped_by_a_signal_goes_on_where_it_was(
    gated_jobs: GatedJobs, uninterrupted: Outcome
) -> None:
    spec = limited(JobSpec.HANG_POLICY_UNSPECIFIED)
    gated = await gated_jobs.start("stopped", limit=EPOCHS, hang_in=4, hang_by="stop", spec=spec)
    stopped = await gated.until(is_suspended, seconds=LONG)
    (message,) = [each.message for each in stopped.conditions]
    pid = re.search(r"pid (\d+)", message)
    assert pid
    os.kill(int(pid[1]), signal.SIGCONT)
    job = await gated.until(Job.SUCCEEDED, seconds=LONG)
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted
