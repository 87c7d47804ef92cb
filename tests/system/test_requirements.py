"""What a job requires is installed for it, on a whole stack; and the same versions again where it goes on."""

from pathlib import Path

import pytest

from adjourn import reasons
from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import Job, JobSpec, Pause
from tests.harness.jobs import SCRIPT, GatedJobs
from tests.harness.wheels import wheel

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEEDY = """
import tinyone
from mlp import Gate

def main(run):
    gate = Gate(run.args["gate"])
    for epoch in run.epochs():
        run.step()
        run.log(version=float(tinyone.version))
        gate.wait(epoch)
"""


async def test_a_run_has_the_versions_that_it_began_with_wherever_it_goes_on(
    gated_jobs: GatedJobs, client: AsyncClient, wheels: Path, tmp_path: Path, undrained: None
) -> None:
    wheel(wheels, "tinyone", "1.0")
    script = tmp_path / "needy.py"
    script.write_text(NEEDY)
    spec = JobSpec(requirements=["tinyone"])
    gated = await gated_jobs.start("with-packages", script=script, include=[SCRIPT], spec=spec)
    paused = await gated.pause(1)
    checkpoint = await client.get_checkpoint(paused.latest_checkpoint)
    assert checkpoint.environment["packages"] == "tinyone==1.0"
    wheel(wheels, "tinyone", "2.0")
    await client.drain_worker(paused.pause.from_worker)
    await client.resume_job(gated.name)
    done = await gated.finish()
    assert done.pause.verdict == Pause.EXACT
    assert done.pause.to_worker != done.pause.from_worker
    epochs = [metrics async for metrics in client.list_epoch_metrics(gated.name)]
    assert {metrics.values["version"] for metrics in epochs} == {1.0}


async def test_what_pip_cannot_install_fails_the_job_at_once(
    gated_jobs: GatedJobs, wheels: Path, tmp_path: Path
) -> None:
    wheel(wheels, "greedy", "1.0", requires=["numpy<1"])
    script = tmp_path / "needy.py"
    script.write_text(NEEDY)
    gated = await gated_jobs.start("greedy", script=script, include=[SCRIPT], spec=JobSpec(requirements=["greedy"]))
    failed = await gated.until(Job.FAILED)
    assert (failed.failure.reason, failed.attempt) == (reasons.REQUIREMENTS_NOT_INSTALLED, 1)
    assert "greedy 1.0 depends on numpy<1" in failed.failure.message
