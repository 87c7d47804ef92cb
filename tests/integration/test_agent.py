"""The agent with a real launcher, journal and control plane's stream; training is emulated, objects are in memory."""

import pytest

from adjourn.v1.agent_service_pb2 import AssignmentStatus
from tests.agents import Bench
from tests.memory_objects import MemoryObjects

STARTING, RUNNING, PAUSING = AssignmentStatus.STARTING, AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
PERSISTING, PAUSED, STOPPED = AssignmentStatus.PERSISTING, AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


async def test_a_job_runs_to_its_end_and_is_forgotten(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        snapshots = bench.places.snapshot_directory(bench.attempt(job))
        for epoch in (1, 2):
            job.do("epoch")
            await bench.until_durable(job, epoch)
        assert bench.plane.status(job).progress.epoch == 2
        assert (bench.attempt(job).exists(), snapshots.exists()) == (True, True)
        job.do("finish")
        await bench.until_forgotten(job)
    assert bench.plane.kinds(job) == ["epoch", "checkpoint", "epoch", "checkpoint", "checkpoint", "exit"]
    assert [report.sequence for report in bench.plane.of(job)] == [1, 2, 3, 4, 5, 6]
    how = bench.plane.of(job)[-1].exit
    assert (how.phase, how.checkpoint) == (SUCCEEDED, bench.plane.of(job)[-2].checkpoint.name)
    assert (bench.attempt(job).exists(), snapshots.exists()) == (False, False)
    assert bench.held() == []
    assert "training in a-1-" in bench.log(job).read_text()
