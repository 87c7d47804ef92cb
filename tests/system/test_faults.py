"""Networks that fail, and processes that die at the worst place: the job ends where it would have ended."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import Job
from tests.harness.cluster import Cluster
from tests.harness.jobs import EPOCHS, GatedJob, GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two control planes and two workers; leases so long that only a test that is about them sees one end."""
    timing = {"ADJOURN_SYNC_INTERVAL": "0.25", "ADJOURN_LEASE_DURATION": "8"}
    async with Cluster(
        directory=tmp_path_factory.mktemp("cluster"), control_planes=2, workers=2, environment=timing
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whose network is whole before and after a test."""
    yield whole_cluster
    whole_cluster.proxies.heal()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(whole_cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(whole_cluster.address) as connected:
        yield connected


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def uninterrupted(
    client: AsyncClient, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> Outcome:
    directory = tmp_path_factory.mktemp("uninterrupted")
    gated = await GatedJobs(client=client, directory=directory, eventually=eventually).start(
        "uninterrupted", limit=EPOCHS
    )
    await gated.finish()
    return await gated.outcome()


@pytest_asyncio.fixture(loop_scope="session")
async def gated_jobs(
    cluster: Cluster, client: AsyncClient, tmp_path: Path, eventually: Eventually
) -> AsyncIterator[GatedJobs]:
    made = GatedJobs(client=client, directory=tmp_path, eventually=eventually)
    yield made
    cluster.proxies.heal()
    await made.end()


async def test_storage_that_answers_with_errors_costs_a_pause_only_time(
    cluster: Cluster, gated_jobs: GatedJobs, uninterrupted: Outcome
) -> None:
    gated: GatedJob = await gated_jobs.start("s3-errors", limit=2)
    await gated.inside(3)
    for worker in ("worker-1", "worker-2"):
        link = cluster.link(f"{worker}/s3")
        link.befall("answer", share=0.3)
        link.befall("cut reply", "PUT", times=2)
        link.befall("cut request", "PUT", times=1)
        link.befall("repeat", "PUT", times=3)
        link.befall("half reply", "GET", times=2)
    await gated.pause(3)
    await gated.client.resume_job(gated.name)
    job = await gated.finish()
    assert (job.state, job.attempt, job.restart_count) == (Job.SUCCEEDED, 2, 0)
    assert await gated.outcome() == uninterrupted
