"""Pauses change nothing: neither where a training ends, nor what its epochs came to (R3, R4, R8)."""

import pytest

from adjourn.v1.job_pb2 import Pause
from tests.harness.jobs import EPOCHS, GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_pause_in_every_epoch_changes_nothing(gated_jobs: GatedJobs, uninterrupted: Outcome) -> None:
    gated = await gated_jobs.start("every-epoch")
    for epoch in range(1, EPOCHS):
        paused = await gated.pause(epoch)
        assert not paused.worker
        await gated.client.resume_job(gated.name)
    await gated.ask_for_pause(await gated.inside(EPOCHS))

    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (EPOCHS, 0)
    assert job.pause.note == "the run finished first"
    assert not job.holds
    assert [pause.epoch for pause in job.past_pauses] == list(range(1, EPOCHS))
    assert {pause.verdict for pause in job.past_pauses} == {Pause.EXACT}
    for pause in job.past_pauses:
        phases = (
            *(pause.request_time, pause.boundary_time, pause.snapshot_time, pause.release_time, pause.pause_time),
            *(pause.resume_request_time, pause.resume_time),
        )
        moments = [phase.ToNanoseconds() for phase in phases]
        assert moments == sorted(moments)
    assert await gated.outcome() == uninterrupted
