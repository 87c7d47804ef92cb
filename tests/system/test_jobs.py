"""Pausing, resuming, cancelling and deleting jobs, at every moment of their lives."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adjourn import errors
from adjourn.client import AsyncClient
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Job, Pause
from tests.harness.jobs import BEFORE_TRAINING, EPOCHS, Outcome, Trials

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]


async def test_a_pause_while_it_starts_takes_effect_after_the_first_epoch(
    trials: Trials, uninterrupted: Outcome
) -> None:
    trial = await trials.start("starting", limit=BEFORE_TRAINING)
    await trial.ask_for_pause(await trial.inside(0))
    trial.gate.open(EPOCHS)
    paused = await trial.until(Job.PAUSED)
    assert (paused.progress.epoch, paused.attempt) == (1, 1)
    await trial.client.resume_job(trial.name)
    assert (await trial.finish()).attempt == 2
    assert await trial.outcome() == uninterrupted


async def test_a_queued_job_is_held_without_a_worker(trials: Trials, uninterrupted: Outcome) -> None:
    blockers = [await trials.start(f"blocker-{number}") for number in (1, 2)]
    for blocker in blockers:
        await blocker.inside(1)
    trial = await trials.start("queued")
    paused = await trial.client.pause_job(trial.name)
    assert (paused.state, paused.attempt, paused.latest_checkpoint) == (Job.PAUSED, 0, "")
    await blockers[0].end()
    assert (await trial.get()).state == Job.PAUSED
    assert (await trial.client.resume_job(trial.name)).state == Job.QUEUED
    assert (await trial.finish()).attempt == 1
    assert await trial.outcome() == uninterrupted


async def test_a_pause_can_be_taken_back_before_the_boundary(
    trials: Trials, uninterrupted: Outcome, eventually: Eventually
) -> None:
    trial = await trials.start("second-thoughts", limit=1)
    training = await trial.inside(2)
    await trial.ask_for_pause(training)
    resumed = await trial.client.resume_job(trial.name)
    assert (resumed.state, resumed.pause.note) == (Job.RUNNING, "resumed before the boundary")
    await eventually(lambda: not training.is_to_pause())
    job = await trial.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await trial.outcome() == uninterrupted


async def test_a_resume_after_the_process_has_left_goes_on_from_its_checkpoint(
    trials: Trials, uninterrupted: Outcome, eventually: Eventually
) -> None:
    trial = await trials.start("too-late", limit=1)
    training = await trial.inside(2)
    await trial.ask_for_pause(training)
    trial.gate.open(2)
    await eventually(lambda: not training.lives())
    await trial.client.resume_job(trial.name)
    job = await trial.finish()
    assert (job.attempt, job.restart_count, job.pause.epoch, job.pause.verdict) == (2, 0, 2, Pause.EXACT)
    assert await trial.outcome() == uninterrupted


async def test_pauses_and_resumes_in_quick_succession_leave_one_process(trials: Trials, uninterrupted: Outcome) -> None:
    """Two at a time would end the second with an error, and cost a restart."""
    trial = await trials.start("hesitant")
    for epoch in range(1, EPOCHS - 1):
        await trial.until(lambda job, epoch=epoch: job.progress.epoch >= epoch - 1)
        await trial.client.pause_job(trial.name)
        trial.gate.open(epoch)
        await trial.client.resume_job(trial.name)
    assert (await trial.finish()).restart_count == 0
    assert await trial.outcome() == uninterrupted


async def test_two_resumes_at_once_start_one_run(trials: Trials, uninterrupted: Outcome) -> None:
    trial = await trials.start("twice")
    await trial.pause(1)
    resumed = await asyncio.gather(*(trial.client.resume_job(trial.name) for _ in range(2)))
    assert {job.state for job in resumed} <= {Job.QUEUED, Job.STARTING}
    job = await trial.finish()
    assert (job.attempt, job.restart_count) == (2, 0)
    assert await trial.outcome() == uninterrupted


async def test_a_running_job_is_cancelled_and_can_be_taken_up_again(
    trials: Trials, uninterrupted: Outcome, eventually: Eventually
) -> None:
    trial = await trials.start("cancelled", limit=2)
    training = await trial.inside(3)
    await trial.durable(2)
    assert (await trial.client.cancel_job(trial.name, reason="enough")).state == Job.CANCELLING
    cancelled = await trial.until(Job.CANCELLED)
    assert not training.lives()
    assert not cancelled.worker
    with pytest.raises(errors.JobFinishedError):
        await trial.client.pause_job(trial.name)
    assert (await trial.client.resume_job(trial.name)).state == Job.QUEUED
    assert (await trial.finish()).attempt == 2
    assert await trial.outcome() == uninterrupted


async def test_a_starting_job_is_cancelled_and_has_nothing_to_go_on_from(
    trials: Trials, eventually: Eventually
) -> None:
    trial = await trials.start("hardly-begun", limit=BEFORE_TRAINING)
    training = await trial.inside(0)
    await trial.client.cancel_job(trial.name)
    await trial.until(Job.CANCELLED)
    assert not training.lives()
    with pytest.raises(errors.NoCheckpointError):
        await trial.client.resume_job(trial.name)


async def test_a_job_is_deleted_with_its_objects_after_it_was_cancelled(
    trials: Trials, objects: S3Objects, eventually: Eventually
) -> None:
    trial = await trials.start("deleted")
    await trial.pause(1)
    with pytest.raises(errors.JobNotFinishedError) as refused:
        await trial.client.delete_job(trial.name)
    assert refused.value.metadata["state"] == "PAUSED"
    first = await trial.get()
    assert await objects.list(f"checkpoints/{first.uid}/")
    assert (await trial.client.cancel_job(trial.name)).state == Job.CANCELLED

    await trial.client.delete_job(trial.name)
    trials.made.remove(trial)
    with pytest.raises(errors.NotFoundError):
        await trial.get()
    trials.directory = trials.directory / "again"
    trials.directory.mkdir()
    again = await trials.start("deleted", limit=EPOCHS)
    job = await again.until(Job.SUCCEEDED)
    assert (job.attempt, job.uid == first.uid) == (1, False)

    async with asyncio.timeout(30):
        while await objects.list(f"checkpoints/{first.uid}/"):  # noqa: ASYNC110  # on another machine, as it were
            await asyncio.sleep(0.1)
    assert await objects.list(f"checkpoints/{job.uid}/manifests/"), "what has its name now keeps its own"


async def test_a_task_without_epochs_runs_and_can_only_be_cancelled(trials: Trials, tmp_path: Path) -> None:
    trial = await trials.start("task", epochs=0, limit=BEFORE_TRAINING)
    await trial.until(Job.RUNNING)
    with pytest.raises(errors.JobNotPausableError):
        await trial.client.pause_job(trial.name)
    assert (await trial.get()).state == Job.RUNNING
    await trial.client.cancel_job(trial.name)
    await trial.until(Job.CANCELLED)

    whole = await trials.start("whole-task", epochs=0, limit=EPOCHS)
    assert (await whole.until(Job.SUCCEEDED)).attempt == 1


async def test_what_contradicts_the_state_is_refused_with_the_state(
    trials: Trials, client: AsyncClient, uninterrupted: Outcome
) -> None:
    for verb in (client.pause_job, client.resume_job, client.cancel_job):
        with pytest.raises(errors.JobFinishedError) as refused:
            await verb("uninterrupted")
        assert refused.value.metadata["state"] == "SUCCEEDED"
        with pytest.raises(errors.NotFoundError):
            await verb("no-such-job")
    trial = await trials.start("running")
    await trial.inside(1)
    with pytest.raises(errors.JobNotPausedError) as early:
        await client.resume_job(trial.name)
    assert early.value.metadata["state"] == "RUNNING"
    assert "PAUSED" in early.value.metadata["allowed_states"]
    with pytest.raises(errors.JobNotFinishedError):
        await client.delete_job(trial.name)
