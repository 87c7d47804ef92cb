"""Pauses amid an epoch, and pauses that give up what no checkpoint has: with the whole stack and real training."""

import pytest
import pytest_asyncio

from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import LATEST, STEP, Job, JobSpec, Pause
from tests.harness.jobs import GatedJob, GatedJobs, Outcome, Training
from tests.harness.training_processes import TRAININGS

pytestmark = pytest.mark.asyncio(loop_scope="session")

PACED = TRAININGS / "paced.py"
EPOCHS = 2
STEPS = 6
"""Of an epoch."""
PACE = 1.1
"""Seconds a step; of each second step the control plane keeps the progress."""


@pytest_asyncio.fixture(loop_scope="session")
async def twin(gated_jobs: GatedJobs, request: pytest.FixtureRequest) -> Outcome:
    """What the training comes to if nothing happens to it."""
    name = request.node.name.replace("_", "-")[-40:].strip("-")
    gated = await gated_jobs.start(f"twin-{name}", script=PACED, epochs=EPOCHS, limit=EPOCHS * STEPS)
    await gated.until(Job.SUCCEEDED)
    return await gated.outcome()


async def amid(gated: GatedJob) -> Training:
    """Returns the process once it is in its ninth step, the third of an epoch, and has the checkpoint of the first."""
    await gated.eventually(lambda: gated.gate.inside(9))
    await gated.durable(1)
    training = gated.gate.inside(9)
    assert training
    return training


async def test_a_job_pauses_amid_an_epoch_and_goes_on_there_to_the_same_bits(
    gated_jobs: GatedJobs, client: AsyncClient, twin: Outcome
) -> None:
    gated = await gated_jobs.start("paused-at-a-step", script=PACED, epochs=EPOCHS, limit=8)
    process = await amid(gated)
    asked = await client.pause_job(gated.name, mode=STEP)
    assert (asked.state, asked.pause.mode, asked.pause.boundary_epoch) == (Job.PAUSING, STEP, 0)
    await gated.eventually(process.is_to_pause)
    gated.gate.open(EPOCHS * STEPS)
    job = await gated.until(Job.PAUSED)
    checkpoint = await client.get_checkpoint(job.pause.checkpoint)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.epoch_step) == (1, 9, 3)
    assert (job.pause.step, job.progress.epoch_step) == (checkpoint.step, checkpoint.epoch_step)
    assert not job.pause.HasField("lost_duration")
    await client.resume_job(gated.name)
    job = await gated.until(Job.SUCCEEDED)
    assert (job.attempt, job.restart_count, job.pause.verdict) == (2, 0, Pause.EXACT)
    assert await gated.outcome() == twin


async def test_a_job_gives_up_what_no_checkpoint_has_and_ends_with_the_same_bits(
    gated_jobs: GatedJobs, client: AsyncClient, twin: Outcome
) -> None:
    gated = await gated_jobs.start("paused-now", script=PACED, epochs=EPOCHS, limit=8, pace=PACE, paced=[7, 8])
    await amid(gated)
    await gated.until(lambda job: job.progress.step == 8)
    asked = await client.pause_job(gated.name, mode=LATEST)
    assert asked.state == Job.PAUSING
    assert asked.pause.lost_steps == 2
    job = await gated.until(Job.PAUSED)
    assert (job.pause.epoch, job.pause.step, job.progress.epoch_step) == (1, 6, 0)
    assert job.pause.lost_steps == 2
    assert job.pause.lost_duration.ToTimedelta().total_seconds() >= PACE
    assert (job.restart_count, job.HasField("failure")) == (0, False)
    assert job.pause.HasField("release_time")
    gated.gate.open(EPOCHS * STEPS)
    await client.resume_job(gated.name)
    job = await gated.until(Job.SUCCEEDED)
    assert (job.attempt, job.restart_count, job.pause.verdict) == (2, 0, Pause.EXACT)
    assert await gated.outcome() == twin


async def test_what_was_saved_amid_an_epoch_is_not_given_up(gated_jobs: GatedJobs, client: AsyncClient) -> None:
    spec = JobSpec(checkpoint_epochs=0, checkpoint_steps=2)
    gated = await gated_jobs.start("saved-amid", script=PACED, epochs=EPOCHS, spec=spec, limit=3, pace=PACE)
    await gated.until(lambda job: bool(job.latest_checkpoint) and job.progress.step == 3)
    asked = await client.pause_job(gated.name, mode=LATEST)
    assert asked.pause.lost_steps == 1
    job = await gated.until(Job.PAUSED)
    assert (job.pause.step, job.pause.lost_steps) == (2, 1)
