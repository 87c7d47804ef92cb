"""Verbs about what runs: drained workers let their jobs go on elsewhere; a cancel that saves leaves a checkpoint."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from adjourn import reasons
from adjourn.client import AsyncClient
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Condition, Job, Pause
from adjourn.v1.worker_pb2 import Worker
from tests.harness.checkpoint_objects import damage
from tests.harness.jobs import GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]


@pytest.mark.usefixtures("undrained")
async def test_the_job_of_a_drained_worker_goes_on_elsewhere_by_itself(
    gated_jobs: GatedJobs, uninterrupted: Outcome, client: AsyncClient, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("drained", limit=2)
    training = await gated.inside(3)
    worker = (await gated.get()).worker

    async def drain() -> Job:
        await client.drain_worker(worker, reason="new disks")
        job = await gated.until(Job.PAUSING)
        await eventually(training.is_to_pause)
        return job

    job = await drain()
    assert (job.pause.cause, job.pause.reason, list(job.holds)) == (Pause.DRAINED, "new disks", [])
    assert (await client.undrain_worker(worker)).state == Worker.ACTIVE
    assert (await gated.until(Job.RUNNING)).attempt == 1
    await eventually(lambda: not training.is_to_pause())
    gated.gate.open(3)
    assert await gated.inside(4) == training
    await drain()
    gated.gate.open(4)
    job = await gated.until(lambda job: job.attempt == 2 and bool(job.pause.verdict))
    assert (job.state, job.worker not in ("", worker)) == (Job.RUNNING, True)
    assert (job.restart_count, list(job.holds)) == (0, [])
    assert (job.pause.cause, job.pause.epoch, job.pause.verdict) == (Pause.DRAINED, 4, Pause.EXACT)
    assert (await client.get_worker(worker)).state == Worker.DRAINED
    other = await gated_jobs.start("waits-for-room", limit=0)
    waiting = await other.until(lambda job: len(job.conditions) > 0)
    assert [(each.type, each.reason) for each in waiting.conditions] == [(Condition.UNPLACED, reasons.NO_CAPACITY)]
    await client.undrain_worker(worker)
    await other.inside(1)
    assert (await other.get()).worker == worker
    for each in (gated, other):
        await each.finish()
        assert await each.outcome() == uninterrupted


async def test_a_cancel_that_saves_leaves_the_checkpoint_of_its_boundary(
    gated_jobs: GatedJobs, uninterrupted: Outcome, client: AsyncClient, objects: S3Objects, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("cancelled-and-saved", limit=2)
    training = await gated.inside(3)
    assert (await client.cancel_job(gated.name, save_checkpoint=True)).state == Job.CANCELLING
    await eventually(training.is_to_pause)
    assert training.lives()
    gated.gate.open(3)
    job = await gated.until(Job.CANCELLED)
    assert not training.lives()
    assert (job.progress.epoch, job.restart_count) == (3, 0)
    saved = await client.get_checkpoint(job.latest_checkpoint)
    assert saved.epoch == 3
    assert dict(saved.component_digests) == await digests_of_epoch(3, client)
    assert not await damage(saved, partial(objects.get, limit=64 << 20))
    await client.resume_job(gated.name)
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (2, 0)
    assert await gated.outcome() == uninterrupted


async def digests_of_epoch(epoch: int, client: AsyncClient) -> dict[str, str]:
    """Returns the digests of the job that nothing happened to."""
    (twin,) = [found async for found in client.list_checkpoints("jobs/uninterrupted") if found.epoch == epoch]
    return dict(twin.component_digests)
