"""A worker whose disk is really full: nothing is lost, and it goes on as soon as there is room."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio

from adjourn import reasons
from adjourn.client import AsyncClient
from adjourn.pulse import Phase
from adjourn.shared_files import PulseFile
from adjourn.v1.job_pb2 import Condition, Job
from adjourn.v1.worker_pb2 import Worker
from tests.harness.cluster import Cluster
from tests.harness.jobs import EPOCHS, GatedJobs
from tests.harness.small_disk import SmallDisk

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]
ROOMY = 1024
"""Megabytes: twice the reserve, and some more."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """The disk of the worker."""
    if not SmallDisk.MOUNTABLE:
        pytest.skip("only root can mount a file system")
    disk = SmallDisk(tmp_path / "cluster" / "workers" / "worker-1")
    disk.resize(megabytes=ROOMY)
    yield disk
    disk.unmount()


@pytest_asyncio.fixture(loop_scope="session")
async def client(disk: SmallDisk) -> AsyncIterator[AsyncClient]:
    """Of a cluster with one worker."""
    timing = {"ADJOURN_SYNC_INTERVAL": "0.25", "ADJOURN_LEASE_DURATION": "6"}
    async with (
        Cluster(directory=disk.place.parents[1], environment=timing) as cluster,
        AsyncClient(cluster.address) as connected,
    ):
        yield connected
        disk.resize(megabytes=ROOMY)


@pytest_asyncio.fixture(loop_scope="session")
async def gated_jobs(client: AsyncClient, tmp_path: Path, eventually: Eventually) -> AsyncIterator[GatedJobs]:
    made = GatedJobs(client=client, directory=tmp_path, eventually=eventually)
    yield made
    await made.end()


async def test_training_on_a_full_disk_waits_and_goes_on_once_there_is_room(
    disk: SmallDisk, client: AsyncClient, gated_jobs: GatedJobs, eventually: Eventually
) -> None:
    twin = await gated_jobs.start("uninterrupted", limit=EPOCHS)
    await twin.finish()
    gated = await gated_jobs.start("full", limit=2)
    training = await gated.inside(3)
    await gated.durable(2)
    disk.fill()
    gated.gate.open(EPOCHS)
    with closing(PulseFile(training.attempt / "pulse")) as pulse:
        await eventually(lambda: (now := pulse.read()) and now.phase == Phase.WAITING)
    async with asyncio.timeout(30):
        while not (worker := await client.get_worker("worker-1")).conditions:  # noqa: ASYNC110  # it is told at a look
            await asyncio.sleep(0.05)
    assert [(each.type, each.reason) for each in worker.conditions] == [(Condition.DISK_FULL, reasons.NO_SPACE)]
    assert worker.state == Worker.ACTIVE
    disk.resize(megabytes=8)
    job = await gated.until(Job.SUCCEEDED)
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == await twin.outcome()
    next_one = await gated_jobs.start("next", limit=EPOCHS)
    waiting = await next_one.until(lambda job: len(job.conditions) > 0)
    assert [(each.type, each.reason) for each in waiting.conditions] == [(Condition.UNPLACED, reasons.NO_SPACE)]
    disk.resize(megabytes=ROOMY)
    assert (await next_one.until(Job.SUCCEEDED)).attempt == 1
    assert await next_one.outcome() == await twin.outcome()
