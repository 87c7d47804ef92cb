"""Data that a job names by URI, on a whole stack: the same again after a pause, on another worker, or none."""

from pathlib import Path

import pytest

from adjourn import reasons
from adjourn.client import AsyncClient
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Job, Pause
from tests.harness.jobs import SCRIPT, GatedJobs

pytestmark = pytest.mark.asyncio(loop_scope="session")

SOURCED = """
from mlp import Gate
from torch import nn, optim, tensor

def main(run):
    gate = Gate(run.args["gate"])
    root = run.data(run.args["uri"])
    numbers = tensor([float(line) for file in sorted(root.iterdir()) for line in file.read_text().split()])
    model = nn.Linear(1, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        for batch in run.loader(numbers, batch_size=2):
            loss = model(batch[:, None]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
        gate.wait(epoch)
"""


async def test_a_run_goes_on_elsewhere_with_the_data_that_it_had_or_not_at_all(
    gated_jobs: GatedJobs, client: AsyncClient, objects: S3Objects, tmp_path: Path, undrained: None
) -> None:
    script = tmp_path / "sourced.py"
    script.write_text(SOURCED)
    uri = f"s3://{objects.bucket}/data/numbers/"
    await objects.put("data/numbers/a", b"1\n2\n")
    await objects.put("data/numbers/b", b"3\n4\n")
    gated = await gated_jobs.start("with-data", script=script, include=[SCRIPT], uri=uri)
    paused = await gated.pause(1)
    await client.drain_worker(paused.pause.from_worker)
    await objects.put("data/numbers/b", b"3\n5\n")
    await client.resume_job(gated.name)
    failed = await gated.until(Job.FAILED)
    assert (failed.failure.reason, failed.restart_count) == (reasons.DATA_CHANGED, 0)
    assert uri in failed.failure.message
    await objects.put("data/numbers/b", b"3\n4\n")
    await client.resume_job(gated.name)
    done = await gated.finish()
    assert done.pause.verdict == Pause.EXACT
    assert done.pause.to_worker != done.pause.from_worker


async def test_what_is_not_there_or_not_for_jobs_fails_the_job_at_once(
    gated_jobs: GatedJobs, objects: S3Objects, tmp_path: Path
) -> None:
    script = tmp_path / "sourced.py"
    script.write_text(SOURCED)
    for name, key, reason in (
        ("missing-data", "data/none/", reasons.DATA_MISSING),
        ("forbidden-data", "checkpoints/", reasons.DATA_REFUSED),
    ):
        uri = f"s3://{objects.bucket}/{key}"
        gated = await gated_jobs.start(name, script=script, include=[SCRIPT], uri=uri)
        failed = await gated.until(Job.FAILED)
        assert (failed.failure.reason, failed.attempt) == (reason, 1)
        assert uri in failed.failure.message
