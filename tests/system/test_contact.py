"""Workers that do not hear the control plane, or slept: training rests where nobody counts on it any more."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from adjourn import bundles, reasons
from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from tests.harness.agents import alive
from tests.harness.cluster import Cluster
from tests.harness.fault_proxy import Way
from tests.harness.jobs import SCRIPT, GatedJobs

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]
LEASE_SECONDS = 6
STEPS = 100
"""A second's worth: what training may take between its agent's waking and being held still."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two workers whose leases are short, and out of contact after two of them."""
    environment = {
        "ADJOURN_SYNC_INTERVAL": "0.25",
        "ADJOURN_LEASE_DURATION": str(LEASE_SECONDS),
        "ADJOURN_OUT_OF_CONTACT_LEASES": "2",
    }
    async with Cluster(directory=tmp_path_factory.mktemp("cluster"), workers=2, environment=environment) as whole:
        yield whole


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster.address) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="session")
async def gated_jobs(client: AsyncClient, tmp_path: Path, eventually: Eventually) -> AsyncIterator[GatedJobs]:
    made = GatedJobs(client=client, directory=tmp_path, eventually=eventually)
    yield made
    await made.end()


async def test_an_agent_that_slept_holds_its_training_still_before_its_successor_is_doubled(
    cluster: Cluster, client: AsyncClient, tmp_path: Path, eventually: Eventually
) -> None:
    bundle = await client.upload_bundle(bundles.pack(SCRIPT.with_name("stepping.py")))
    spec = JobSpec(entry_point="stepping:main", bundle=bundle, total_epochs=2)
    spec.args.update({"counts": str(tmp_path)})
    job = await client.create_job(spec, job_id="asleep")

    def steps(process: str) -> int:
        return int((tmp_path / process).read_text())

    def others(*known: str) -> list[str]:
        return [path.name for path in tmp_path.iterdir() if path.name not in known and not path.suffix]

    await eventually(others)
    (first,) = others()
    worker = (await client.get_job(job.name)).worker.removeprefix("workers/")
    cluster.suspend(worker)
    try:
        await client.wait_job(job.name, until=lambda found: found.attempt == 2, timeout=60)
        await eventually(lambda: others(first))
        (second,) = others(first)
        cluster.link(worker).black_hole(*Way)  # nobody tells it yet
        before = steps(first)
    finally:
        cluster.go_on(worker)
    process = psutil.Process(int(first))
    await eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    taken = steps(first)
    assert taken - before < STEPS
    cluster.link(worker).heal()
    await eventually(lambda: not alive(int(first)))
    assert steps(first) == taken, "it was ended as it stood"
    went_on = steps(second)
    await eventually(lambda: steps(second) > went_on)
    assert [made async for made in client.list_checkpoints(job.name)] == []
    await client.cancel_job(job.name)
    await client.wait_job(job.name, until={Job.CANCELLED}, timeout=30)


async def test_without_a_control_plane_training_pauses_at_a_boundary_and_goes_on_from_it_at_no_cost(
    cluster: Cluster, gated_jobs: GatedJobs, client: AsyncClient, eventually: Eventually
) -> None:
    gated = await gated_jobs.start("alone", limit=1)
    training = await gated.inside(2)
    await gated.durable(1)
    cluster.down("control-plane-1")
    await eventually(training.is_to_pause, seconds=5 * LEASE_SECONDS)
    gated.gate.open(2)
    await eventually(lambda: not training.lives())
    cluster.up("control-plane-1")
    await gated.inside(3)
    job = await gated.get()
    assert (job.attempt, job.restart_count, job.progress.epoch) == (2, 0, 2)
    (event,) = [each async for each in client.list_job_events(gated.name) if each.type == JobEvent.REQUEUED]
    assert event.details["reason"] == reasons.WORKER_OUT_OF_CONTACT
    await gated.finish()
    assert [metrics.epoch async for metrics in client.list_epoch_metrics(gated.name)] == list(range(1, 9))
