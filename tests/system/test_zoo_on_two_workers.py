"""Trainings as people write them are cut at random steps, go on on the other worker, and end with the same bits.

`make test` cuts a part of the zoo at two steps each, `make zoo` all of it at five.
"""

import asyncio
import os
import random
from collections.abc import Mapping
from typing import Final

import pytest

from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import STEP, Job, JobSpec, Pause
from tests.harness import zoo
from tests.harness.jobs import GatedJob, GatedJobs
from tests.harness.training_processes import TRAININGS

pytestmark = pytest.mark.asyncio(loop_scope="session")

SEED: Final = os.environ.get("ZOO_SEED", "")
"""Of the whole zoo; empty: a part of it is cut."""
CUTS: Final = 5 if SEED else 2
WAIT_SECONDS: Final = 60
TRAINED: Final = random.Random(SEED).sample(zoo.NAMES, len(zoo.NAMES) if SEED else 6)
PAIRS: Final = [TRAINED[first : first + 2] for first in range(0, len(TRAINED), 2)]
"""What trains at a time: as many as there are workers, each with one slot."""


async def start(gated_jobs: GatedJobs, name: str, *, kind: str, cuts: list[int] | None = None) -> GatedJob:
    return await gated_jobs.start(
        f"zoo-{name}-{kind}".replace("_", "-"),
        script=TRAININGS / "zoo_process.py",
        include=[zoo.ZOO],
        epochs=zoo.EPOCHS,
        spec=JobSpec(entry_point="zoo_process:job", checkpoint_epochs=0, max_restarts=0),
        training=name,
        workers=list(zoo.WORKERS),
        cuts=cuts or [],
    )


async def succeeded(gated: GatedJob) -> Job:
    job = await gated.until({Job.SUCCEEDED, Job.FAILED}, seconds=WAIT_SECONDS)
    assert job.state == Job.SUCCEEDED, job.failure
    return job


async def cut(gated: GatedJob, number: int) -> Job:
    """Pauses a job where it is to be cut next, and returns what it was there; returns how it has ended, if it has."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (gated.gate.directory / f"cut-{number}").exists():
            job = await gated.get()
            if job.state in (Job.SUCCEEDED, Job.FAILED):
                return job
            await asyncio.sleep(0.02)
    job = await gated.client.pause_job(gated.name, mode=STEP)
    await gated.until({Job.PAUSED, Job.SUCCEEDED, Job.FAILED}, seconds=WAIT_SECONDS)
    return job


async def resume_elsewhere(client: AsyncClient, paused: Mapping[str, str]) -> None:
    """Resumes one or two jobs, each on another worker than the one that it was on."""
    for number, (name, worker) in enumerate(paused.items()):
        if number == 0:  # the second finds the first on its worker
            await client.drain_worker(worker)
        await client.resume_job(name)
        placed = await client.wait_job(name, until=lambda job: bool(job.worker), timeout=WAIT_SECONDS)
        assert placed.worker != worker
        if number == 0:
            await client.undrain_worker(worker)


@pytest.mark.usefixtures("undrained")
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_cut_anywhere_it_goes_on_on_the_other_worker_to_the_same_bits(
    gated_jobs: GatedJobs, client: AsyncClient, pair: list[str]
) -> None:
    whole = {name: await start(gated_jobs, name, kind="whole") for name in pair}
    steps = {name: (await succeeded(gated)).progress.step for name, gated in whole.items()}
    draws = {name: random.Random(SEED + name).sample(range(1, steps[name]), CUTS) for name in pair}
    jobs = {name: await start(gated_jobs, name, kind="cut", cuts=sorted(draws[name])) for name in pair}
    amid = set()
    for number in range(CUTS):
        paused = {}
        for name, gated in jobs.items():
            before, job = await cut(gated, number), await gated.get()
            if job.state == Job.PAUSED:
                paused[gated.name] = before.worker
                amid |= {name} if job.progress.epoch_step else set()
        await resume_elsewhere(client, paused)
    for name, gated in jobs.items():
        job = await succeeded(gated)
        resumed = [pause for pause in (*job.past_pauses, job.pause) if pause.HasField("resume_time")]
        assert (job.attempt, job.restart_count) == (len(resumed) + 1, 0)
        assert resumed
        assert {pause.verdict for pause in resumed} == {Pause.EXACT}, resumed
        assert await gated.outcome() == await whole[name].outcome()
    assert amid == set(pair) - set(zoo.ONLY_AFTER_EPOCHS)
