"""A pause that is asked for at any moment is taken at the epoch that its answer names; epochs are short."""

import asyncio
import random
from pathlib import Path

import pytest

from adjourn.v1.job_pb2 import Job, JobSpec
from tests.harness.jobs import GatedJobs

pytestmark = pytest.mark.asyncio(loop_scope="session")

BRISK = Path(__file__).parents[1] / "trainings" / "brisk.py"
PAUSES = 24
PACE = 0.02
"""Seconds of an epoch: while a pause is on its way from the caller to training, a few end."""


async def test_a_pause_at_any_moment_is_taken_where_the_answer_names_it(gated_jobs: GatedJobs) -> None:
    gated = await gated_jobs.start(
        "any-moment", script=BRISK, epochs=1_000_000, spec=JobSpec(checkpoint_epochs=0), pace=PACE
    )
    moment, named = random.Random(11), 0
    for _ in range(PAUSES):
        await gated.until(Job.RUNNING)
        await asyncio.sleep(moment.uniform(0, 4 * PACE))
        asked = await gated.client.pause_job(gated.name)
        assert asked.state == Job.PAUSING
        paused = await gated.until(Job.PAUSED)
        assert paused.pause.request_time == asked.pause.request_time
        assert asked.pause.boundary_epoch in (0, paused.pause.epoch)
        named += asked.pause.boundary_epoch > 0
        await gated.client.resume_job(gated.name)
    assert named > PAUSES / 2, "a second is enough, unless the machine is busy with something else"
