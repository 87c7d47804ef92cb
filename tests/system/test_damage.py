"""Objects of a checkpoint are lost or damaged in the storage: the job goes on from the one before, and says so."""

import json
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from adjourn.client import AsyncClient
from adjourn.local.stack import Stack
from adjourn.manifests import part_key
from adjourn.objects import S3Objects
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from tests.harness.checkpoint_objects import damage, keep_no_longer, manifest_key
from tests.harness.jobs import GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")
LIMIT = 64 << 20
Eventually = Callable[..., Awaitable[None]]


async def parts(objects: S3Objects, checkpoint: Checkpoint) -> list[str]:
    """Returns the digests of a checkpoint's parts."""
    manifest = json.loads(await objects.get(manifest_key(checkpoint), limit=LIMIT))
    return [part["digest"] for part in manifest["parts"]]


async def own_part(objects: S3Objects, client: AsyncClient, checkpoint: Checkpoint) -> str:
    """Returns the key of a part that no other checkpoint of the job has."""
    job = checkpoint.name.partition("/checkpoints/")[0]
    others = [found async for found in client.list_checkpoints(job) if found.name != checkpoint.name]
    shared = {part for other in others for part in await parts(objects, other)}
    own = next(part for part in await parts(objects, checkpoint) if part not in shared)
    return part_key(checkpoint.job_uid, own)


async def spoil(objects: S3Objects, key: str, how: str) -> None:
    data = await objects.get(key, limit=LIMIT)
    match how:
        case "flipped":
            await objects.put(key, data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            await objects.put(key, data[:-1])
        case "gone":
            assert await objects.delete_prefix(key) == 1


@pytest.mark.parametrize("what", ["part", "manifest"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
async def test_a_paused_job_whose_checkpoint_is_damaged_goes_on_from_the_one_before(
    gated_jobs: GatedJobs,
    uninterrupted: Outcome,
    objects: S3Objects,
    client: AsyncClient,
    stack: Stack,
    eventually: Eventually,
    what: str,
    how: str,
) -> None:
    gated = await gated_jobs.start(f"{what}-{how}", limit=2)
    await gated.durable(2)
    newest = await client.get_checkpoint((await gated.pause(3)).pause.checkpoint)
    await keep_no_longer(stack.directory.path / "workers", newest, eventually)
    key = manifest_key(newest) if what == "manifest" else await own_part(objects, client, newest)
    await spoil(objects, key, how)
    await client.resume_job(gated.name)
    gated.gate.open(4)
    job = await gated.pause(5)
    assert job.restart_count == 0
    first = job.past_pauses[0]
    assert (first.verdict, first.epoch) == (Pause.EXACT, 2)
    assert f"{newest.name} is damaged" in first.note
    assert first.lost_duration.ToTimedelta().total_seconds() > 0
    marked = await client.get_checkpoint(newest.name)
    assert key in marked.damage
    told = [event async for event in client.list_job_events(gated.name) if event.type == JobEvent.FELL_BACK]
    assert [(event.details["damaged"], event.details["epochs"]) for event in told] == [(newest.name, "1")]
    resting = await client.get_checkpoint(job.pause.checkpoint)
    assert not await damage(resting, partial(objects.get, limit=LIMIT))
    await client.resume_job(gated.name)
    await gated.finish()
    assert await gated.outcome() == uninterrupted


async def test_a_job_without_another_checkpoint_fails_and_goes_on_once_the_objects_are_back(
    gated_jobs: GatedJobs, uninterrupted: Outcome, objects: S3Objects, client: AsyncClient
) -> None:
    gated = await gated_jobs.start("mended")
    newest = await client.get_checkpoint((await gated.pause(1)).pause.checkpoint)
    key = manifest_key(newest)
    content = await objects.get(key, limit=LIMIT)
    await spoil(objects, key, "gone")
    await client.resume_job(gated.name)
    job = await gated.until(Job.FAILED)
    assert (job.failure.reason, job.progress.epoch) == ("CHECKPOINT_CORRUPT", 1)
    assert f"{key} is missing" in job.failure.message
    await objects.put(key, content)
    await client.resume_job(gated.name)
    await gated.finish()
    assert (await client.get_checkpoint(newest.name)).damage == ""
    assert await gated.outcome() == uninterrupted
