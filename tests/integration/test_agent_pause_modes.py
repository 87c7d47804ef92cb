"""Pauses after the running step, and pauses that kill training at once; training is emulated."""

import asyncio

import pytest

from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.job_pb2 import LATEST, STEP, JobSpec
from adjourn_worker.journal import Journal
from tests.harness.agents import AgentHarness, alive
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUN, PAUSE = Assignment.RUN, Assignment.PAUSE
RUNNING, PAUSING, PERSISTING = AssignmentStatus.RUNNING, AssignmentStatus.PAUSING, AssignmentStatus.PERSISTING
PAUSED, STOPPED, SUCCEEDED = AssignmentStatus.PAUSED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED
EPOCHS = 5


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


async def running(harness: AgentHarness, *commands: str) -> Job:
    """Returns a job that trains, once it has begun."""
    job = harness.job(spec=JobSpec(total_epochs=EPOCHS))
    await harness.until_phase(job, RUNNING)
    job.do(*commands)
    return job


def steps(harness: AgentHarness, job: Job) -> list[tuple[int, int, int]]:
    return [(each.epoch, each.step, each.epoch_step) for each in harness.plane.checkpoints(job)]


def named(harness: AgentHarness, job: Job) -> set[int]:
    """Returns the epochs at which the job was said to pause; 0: none."""
    said = (each for request in harness.plane.requests for each in request.assignments)
    return {each.pause_epoch for each in said if each.job == job.name}


async def test_a_pause_after_the_step_is_taken_amid_the_epoch(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        job = await running(harness, "epoch")
        await harness.until_durable(job, 1)
        harness.plane.set_target(job, PAUSE, STEP)
        await harness.until_phase(job, PAUSING)
        job.do("half")
        await harness.until_forgotten(job)
        rested = harness.plane.exit(job)
        assert (rested.phase, rested.checkpoint) == (PAUSED, harness.plane.checkpoints(job)[-1].name)
        assert (steps(harness, job), named(harness, job)) == ([(1, 10, 0), (1, 15, 5)], {0})
        again = harness.job(attempt=2, spec=JobSpec(total_epochs=EPOCHS), restore=harness.plane.checkpoints(job)[-1])
        await harness.until_phase(again, RUNNING)
        again.do("epoch", "finish")
        await harness.until_forgotten(again)
    assert steps(harness, again)[0] == (2, 20, 0), "it went on where it was"


async def test_a_pause_becomes_earlier_on_its_way(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        job = await running(harness, "epoch")
        await harness.until_durable(job, 1)
        harness.plane.set_target(job, PAUSE)
        await harness.until(lambda: harness.plane.status(job).pause_epoch == 2)
        harness.plane.set_target(job, PAUSE, STEP)
        await harness.until(lambda: harness.plane.status(job).observed_generation == job.assignment.generation)
        assert harness.plane.status(job).pause_epoch == 0, "what was named holds no more"
        await harness.until_told(job, PAUSE, STEP)
        job.do("half")
        await harness.until_forgotten(job)
    assert steps(harness, job)[-1] == (1, 15, 5)


async def test_training_is_killed_at_once_and_rests_on_its_newest_checkpoint(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness, "epoch", "half")
        await harness.until(lambda: steps(harness, job) == [(1, 10, 0), (1, 15, 5)])
        pid = harness.training(job)
        harness.plane.set_target(job, PAUSE, LATEST)
        await harness.until_forgotten(job)
        assert not alive(pid)
    rested = harness.plane.exit(job)
    assert (rested.phase, rested.checkpoint) == (PAUSED, harness.plane.checkpoints(job)[-1].name)
    assert not rested.HasField("failure")
    (pause,) = [report.pause for report in harness.plane.of(job) if report.HasField("pause")]
    assert pause.HasField("release_time")
    assert not pause.HasField("boundary_time")


async def test_a_job_that_loads_its_checkpoint_rests_on_it_again(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        job = await running(harness, "epoch")
        await harness.until_durable(job, 1)
        harness.plane.set_target(job, PAUSE, LATEST)
        await harness.until_forgotten(job)
        (checkpoint,) = harness.plane.checkpoints(job)
        again = harness.job(attempt=2, hand_out=False, spec=JobSpec(total_epochs=EPOCHS), restore=checkpoint)
        harness.plane.set_target(again, PAUSE, LATEST)
        await harness.until_forgotten(again)
    assert (harness.plane.exit(again).phase, harness.plane.exit(again).checkpoint) == (PAUSED, checkpoint.name)
    assert not harness.log(again).exists(), "nothing was launched"


async def test_without_a_checkpoint_it_is_stopped_without_one(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        harness.plane.set_target(job, PAUSE, LATEST)
        await harness.until_forgotten(job)
    assert (harness.plane.exit(job).phase, harness.plane.exit(job).checkpoint) == (STOPPED, "")


class Gated(MemoryObjects):
    """Object storage that takes nothing until it is `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()

    async def put(self, key: str, data: bytes) -> bool:
        await self.open.wait()
        return await super().put(key, data)


async def test_a_run_that_has_finished_first_has_succeeded(harness: AgentHarness) -> None:
    objects = Gated()  # or the attempt would be gone before anybody looks
    async with harness.agent(objects):
        job = await running(harness, "epoch", "finish")
        await harness.until(lambda: "finished" in harness.written(job))
        harness.plane.set_target(job, PAUSE, LATEST)
        await harness.until(lambda: harness.plane.status(job).observed_generation == job.assignment.generation)
        objects.open.set()
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == SUCCEEDED


async def test_a_snapshot_on_its_way_is_made_durable_by_the_next_agent(
    harness: AgentHarness, s3_environment: dict[str, str]
) -> None:
    await harness.launcher()
    agent = await harness.process()  # storage refuses
    job = await running(harness, "half")
    await harness.until(lambda: "snapshot" in harness.written(job))
    harness.plane.set_target(job, PAUSE, LATEST)
    await harness.until_phase(job, PERSISTING)
    await harness.kill(agent)
    await harness.process(**s3_environment)
    await harness.until_forgotten(job)
    (checkpoint,) = harness.plane.checkpoints(job)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.epoch_step) == (0, 5, 5)
    assert (harness.plane.exit(job).phase, harness.plane.exit(job).checkpoint) == (PAUSED, checkpoint.name)


async def test_a_process_that_was_to_be_killed_and_was_not_is_killed_by_the_next_agent(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    """Also if the pause was taken back meanwhile: it was journaled that its work is given up."""
    async with harness.agent(objects):
        job = await running(harness, "epoch")
        await harness.until_durable(job, 1)
        pid = harness.training(job)
    (held,) = await asyncio.to_thread(harness.held)
    held.given_up = True
    held.assignment.generation = held.status.observed_generation = 2
    with Journal(harness.paths) as journal:
        journal.record(held, [])
    assert alive(pid)
    job.assignment.generation = 2
    harness.plane.set_target(job, RUN)
    async with harness.agent(objects):
        await harness.until_forgotten(job)
        assert not alive(pid)
    assert (harness.plane.exit(job).phase, harness.plane.exit(job).HasField("failure")) == (PAUSED, False)
