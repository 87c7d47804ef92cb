"""Pauses amid an epoch, and pauses that give up what no checkpoint has: with the whole stack and real training."""

import pytest
import pytest_asyncio

from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import LATEST, STEP, Job, JobSpec, Pause
from tests.harness.jobs import GatedJob, GatedJobs, Outcome
from tests.harness.training_processes import TRAININGS

pytestmark = pytest.mark.asyncio(loop_scope="session")

PACED = TRAININGS / "paced.py"
EPOCHS = 3
PACE = 0.5
"""Seconds a step, of which an epoch has six."""


@pytest_asyncio.fixture(loop_scope="session")
async def twin(gated_jobs: GatedJobs, request: pytest.FixtureRequest) -> Outcome:
    """What the training comes to if nothing happens to it."""
    name = request.node.name.replace("_", "-")[-40:].strip("-")
    gated = await gated_jobs.start(f"twin-{name}", script=PACED, epochs=EPOCHS, pace=0)
    await gated.until(Job.SUCCEEDED)
    return await gated.outcome()


async def amid(gated: GatedJob, epoch: int) -> Job:
    """Returns the job once it is amid the epoch after `epoch`, and has the checkpoint of that one."""
    await gated.durable(epoch)
    return await gated.until(lambda job: job.progress.epoch == epoch and job.progress.epoch_step >= 2)


async def test_a_job_pauses_amid_an_epoch_and_goes_on_there_to_the_same_bits(
    gated_jobs: GatedJobs, client: AsyncClient, twin: Outcome
) -> None:
    gated = await gated_jobs.start("paused-at-a-step", script=PACED, epochs=EPOCHS, pace=PACE)
    await amid(gated, 1)
    asked = await client.pause_job(gated.name, mode=STEP)
    assert (asked.state, asked.pause.mode, asked.pause.boundary_epoch) == (Job.PAUSING, STEP, 0)
    job = await gated.until(Job.PAUSED)
    checkpoint = await client.get_checkpoint(job.pause.checkpoint)
    assert 2 <= checkpoint.epoch_step < 6
    assert (checkpoint.epoch, checkpoint.step) == (1, 6 + checkpoint.epoch_step)
    assert (job.pause.step, job.progress.epoch_step) == (checkpoint.step, checkpoint.epoch_step)
    assert not job.pause.HasField("lost_duration")
    await client.resume_job(gated.name)
    job = await gated.until(Job.SUCCEEDED)
    assert (job.attempt, job.restart_count, job.pause.verdict) == (2, 0, Pause.EXACT)
    assert await gated.outcome() == twin


async def test_a_job_gives_up_what_no_checkpoint_has_and_ends_with_the_same_bits(
    gated_jobs: GatedJobs, client: AsyncClient, twin: Outcome
) -> None:
    gated = await gated_jobs.start("paused-now", script=PACED, epochs=EPOCHS, pace=PACE)
    await amid(gated, 1)
    asked = await client.pause_job(gated.name, mode=LATEST)
    assert asked.state == Job.PAUSING
    assert asked.pause.lost_steps >= 2
    job = await gated.until(Job.PAUSED)
    assert (job.pause.epoch, job.pause.step, job.progress.epoch_step) == (1, 6, 0)
    assert job.pause.lost_steps >= asked.pause.lost_steps
    assert job.pause.lost_duration.ToTimedelta().total_seconds() >= PACE
    assert (job.restart_count, job.HasField("failure")) == (0, False)
    assert job.pause.HasField("release_time")
    await client.resume_job(gated.name)
    job = await gated.until(Job.SUCCEEDED)
    assert (job.attempt, job.restart_count, job.pause.verdict) == (2, 0, Pause.EXACT)
    assert await gated.outcome() == twin


async def test_what_was_saved_amid_an_epoch_is_not_given_up(gated_jobs: GatedJobs, client: AsyncClient) -> None:
    spec = JobSpec(checkpoint_epochs=0, checkpoint_steps=2)
    gated = await gated_jobs.start("saved-amid", script=PACED, epochs=EPOCHS, spec=spec, pace=PACE)
    await gated.until(lambda job: bool(job.latest_checkpoint) and job.progress.step >= 3)
    await client.pause_job(gated.name, mode=LATEST)
    job = await gated.until(Job.PAUSED)
    assert job.pause.step >= 2
    assert job.pause.step % 2 == 0
    assert job.pause.lost_steps <= 4, "one of two slots is free for each second step"
