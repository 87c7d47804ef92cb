"""Pausing, resuming, cancelling and deleting jobs, at every moment of their lives."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adjourn import errors
from adjourn.client import AsyncClient
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Job, JobSpec, Pause
from tests.harness.jobs import BEFORE_TRAINING, EPOCHS, GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]


async def test_a_pause_while_it_starts_takes_effect_after_the_first_epoch(
    gated_jobs: GatedJobs, uninterrupted: Outcome
) -> None:
    gated = await gated_jobs.start("starting", limit=BEFORE_TRAINING)
    await gated.ask_for_pause(await gated.inside(0))
    gated.gate.open(EPOCHS)
    paused = await gated.until(Job.PAUSED)
    assert (paused.progress.epoch, paused.attempt) == (1, 1)
    await gated.client.resume_job(gated.name)
    assert (await gated.finish()).attempt == 2
    assert await gated.outcome() == uninterrupted


async def test_a_queued_job_is_held_without_a_worker(gated_jobs: GatedJobs, uninterrupted: Outcome) -> None:
    blockers = [await gated_jobs.start(f"blocker-{number}") for number in (1, 2)]
    for blocker in blockers:
        await blocker.inside(1)
    gated = await gated_jobs.start("queued")
    paused = await gated.client.pause_job(gated.name)
    assert (paused.state, paused.attempt, paused.latest_checkpoint) == (Job.PAUSED, 0, "")
    await blockers[0].end()
    assert (await gated.get()).state == Job.PAUSED
    assert (await gated.client.resume_job(gated.name)).state == Job.QUEUED
    assert (await gated.finish()).attempt == 1
    assert await gated.outcome() == uninterrupted


async def test_a_pause_can_be_taken_back_before_the_boundary(
    gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("second-thoughts", limit=1)
    training = await gated.inside(2)
    await gated.ask_for_pause(training)
    resumed = await gated.client.resume_job(gated.name)
    assert (resumed.state, resumed.pause.note) == (Job.RUNNING, "resumed before the boundary")
    await eventually(lambda: not training.is_to_pause())
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted


async def test_a_resume_after_the_process_has_left_goes_on_from_its_checkpoint(
    gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("too-late", limit=1)
    training = await gated.inside(2)
    await gated.ask_for_pause(training)
    gated.gate.open(2)
    await eventually(lambda: not training.lives())
    await gated.client.resume_job(gated.name)
    job = await gated.finish()
    assert (job.attempt, job.restart_count, job.pause.epoch, job.pause.verdict) == (2, 0, 2, Pause.EXACT)
    assert await gated.outcome() == uninterrupted


async def test_pauses_and_resumes_in_quick_succession_leave_one_process(
    gated_jobs: GatedJobs, uninterrupted: Outcome
) -> None:
    """Two at a time would end the second with an error, and cost a restart."""
    gated = await gated_jobs.start("hesitant")
    for epoch in range(1, EPOCHS - 1):
        await gated.until(lambda job, epoch=epoch: job.progress.epoch >= epoch - 1)
        await gated.client.pause_job(gated.name)
        gated.gate.open(epoch)
        await gated.client.resume_job(gated.name)
    assert (await gated.finish()).restart_count == 0
    assert await gated.outcome() == uninterrupted


async def test_two_resumes_at_once_start_one_run(gated_jobs: GatedJobs, uninterrupted: Outcome) -> None:
    gated = await gated_jobs.start("twice")
    await gated.pause(1)
    gated.gate.open(BEFORE_TRAINING)  # or it could train before the second
    resumed = await asyncio.gather(*(gated.client.resume_job(gated.name) for _ in range(2)))
    assert {job.state for job in resumed} <= {Job.QUEUED, Job.STARTING}
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (2, 0)
    assert await gated.outcome() == uninterrupted


async def test_a_running_job_is_cancelled_and_can_be_taken_up_again(
    gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("cancelled", limit=2)
    training = await gated.inside(3)
    await gated.durable(2)
    assert (await gated.client.cancel_job(gated.name, reason="enough")).state == Job.CANCELLING
    cancelled = await gated.until(Job.CANCELLED)
    assert not training.lives()
    assert not cancelled.worker
    with pytest.raises(errors.JobFinishedError):
        await gated.client.pause_job(gated.name)
    assert (await gated.client.resume_job(gated.name)).state == Job.QUEUED
    assert (await gated.finish()).attempt == 2
    assert await gated.outcome() == uninterrupted


async def test_a_starting_job_is_cancelled_and_has_nothing_to_go_on_from(
    gated_jobs: GatedJobs, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("hardly-begun", limit=BEFORE_TRAINING)
    training = await gated.inside(0)
    await gated.client.cancel_job(gated.name)
    await gated.until(Job.CANCELLED)
    assert not training.lives()
    with pytest.raises(errors.NoCheckpointError):
        await gated.client.resume_job(gated.name)


async def test_a_job_is_deleted_with_its_objects_after_it_was_cancelled(
    gated_jobs: GatedJobs, objects: S3Objects, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("deleted")
    await gated.pause(1)
    with pytest.raises(errors.JobNotFinishedError) as refused:
        await gated.client.delete_job(gated.name)
    assert refused.value.metadata["state"] == "PAUSED"
    first = await gated.get()
    assert await objects.list(f"checkpoints/{first.uid}/")
    assert (await gated.client.cancel_job(gated.name)).state == Job.CANCELLED

    await gated.client.delete_job(gated.name)
    gated_jobs.made.remove(gated)
    with pytest.raises(errors.NotFoundError):
        await gated.get()
    gated_jobs.directory = gated_jobs.directory / "again"
    gated_jobs.directory.mkdir()
    again = await gated_jobs.start("deleted", limit=EPOCHS)
    job = await again.until(Job.SUCCEEDED)
    assert (job.attempt, job.uid == first.uid) == (1, False)

    async with asyncio.timeout(30):
        while await objects.list(f"checkpoints/{first.uid}/"):  # noqa: ASYNC110  # on another machine, as it were
            await asyncio.sleep(0.1)
    assert await objects.list(f"checkpoints/{job.uid}/manifests/"), "what has its name now keeps its own"


async def test_a_task_without_epochs_runs_and_can_only_be_cancelled(gated_jobs: GatedJobs, tmp_path: Path) -> None:
    gated = await gated_jobs.start("task", epochs=0, limit=BEFORE_TRAINING, spec=JobSpec(entry_point="mlp:task"))
    await gated.until(Job.RUNNING)
    with pytest.raises(errors.JobNotPausableError):
        await gated.client.pause_job(gated.name)
    assert (await gated.get()).state == Job.RUNNING
    await gated.client.cancel_job(gated.name)
    await gated.until(Job.CANCELLED)

    whole = await gated_jobs.start("whole-task", epochs=0, limit=EPOCHS, spec=JobSpec(entry_point="mlp:task"))
    assert (await whole.until(Job.SUCCEEDED)).attempt == 1


async def test_what_contradicts_the_state_is_refused_with_the_state(
    gated_jobs: GatedJobs, client: AsyncClient, uninterrupted: Outcome
) -> None:
    for verb in (client.pause_job, client.resume_job, client.cancel_job):
        with pytest.raises(errors.JobFinishedError) as refused:
            await verb("uninterrupted")
        assert refused.value.metadata["state"] == "SUCCEEDED"
        with pytest.raises(errors.NotFoundError):
            await verb("no-such-job")
    gated = await gated_jobs.start("running")
    await gated.inside(1)
    with pytest.raises(errors.JobNotPausedError) as early:
        await client.resume_job(gated.name)
    assert early.value.metadata["state"] == "RUNNING"
    assert "PAUSED" in early.value.metadata["allowed_states"]
    with pytest.raises(errors.JobNotFinishedError):
        await client.delete_job(gated.name)
