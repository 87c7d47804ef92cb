"""The agent tells at which epoch training pauses, as soon as that is certain and no sooner; training is emulated."""

from contextlib import closing

import pytest

from adjourn.shared_files import BoundaryFile
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.job_pb2 import JobSpec
from adjourn_worker.agent import Agent
from adjourn_worker.launcher import process_tree
from tests.harness.agents import AgentHarness
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUN, PAUSE = Assignment.RUN, Assignment.PAUSE
RUNNING, PAUSING = AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
PAUSED, FAILED = AssignmentStatus.PAUSED, AssignmentStatus.FAILED
EPOCHS = 5


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


async def running(harness: AgentHarness) -> Job:
    """Returns a job that trains, once it does."""
    job = harness.job(spec=JobSpec(total_epochs=EPOCHS))
    await harness.until_phase(job, RUNNING)
    return job


def said(harness: AgentHarness, job: Job, *, by: Agent | None = None) -> set[int]:
    """Returns the epochs that were told, 0 if none was, by all agents or one."""
    requests = [each for each in harness.plane.requests if by is None or each.session_id == by.session_id]
    return {each.pause_epoch for request in requests for each in request.assignments if each.job == job.name}


async def until_told(harness: AgentHarness, job: Job, epoch: int) -> None:
    await harness.until(lambda: harness.plane.status(job).pause_epoch == epoch)


async def until_deciding(harness: AgentHarness, job: Job) -> None:
    with closing(BoundaryFile(harness.attempt(job) / "boundary")) as file:
        await harness.until(lambda: (boundary := file.read()) and boundary.deciding)


async def pauses_untold(harness: AgentHarness, job: Job) -> None:
    """Asks for a pause; returns once the agent has had training's files read a few times, and has told no epoch."""
    harness.plane.set_target(job, PAUSE)
    await harness.until_phase(job, PAUSING)
    heard = len(harness.plane.requests)
    await harness.until(lambda: len(harness.plane.requests) > heard + 8)
    assert said(harness, job) == {0}


async def test_a_pause_within_an_epoch_is_told_at_once(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        job.do("epoch", "epoch")
        await harness.until_durable(job, 2)
        assert said(harness, job) == {0}
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 3)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert said(harness, job) == {0, 3}
    assert harness.plane.checkpoints(job)[-1].epoch == 3


async def test_a_pause_before_training_has_read_what_is_wanted_is_taken_there(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        job.do("open")
        await until_deciding(harness, job)
        await pauses_untold(harness, job)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert said(harness, job) == {0, 1}
    assert harness.plane.checkpoints(job)[-1].epoch == 1


async def test_a_pause_after_training_has_read_what_is_wanted_is_taken_an_epoch_later(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        job.do("open", "read", "step")
        with closing(BoundaryFile(harness.attempt(job) / "boundary")) as file:
            await harness.until((harness.attempt(job) / "pulse").exists)
            assert (boundary := file.read())
            assert boundary.deciding
        await pauses_untold(harness, job)
        job.do("epoch")
        await until_told(harness, job, 2)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert said(harness, job) == {0, 2}
    assert harness.plane.checkpoints(job)[-1].epoch == 2


async def test_of_training_that_is_gone_while_it_decides_no_epoch_is_told(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        job.do("open")
        await until_deciding(harness, job)
        await pauses_untold(harness, job)
        job.do("exit 3")
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == FAILED
    assert said(harness, job) == {0}


async def test_training_that_fails_on_its_way_takes_the_word_back(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 1)
        harness.plane.acknowledging = False
        job.do("fail")
        await harness.until_phase(job, FAILED)
        assert harness.plane.status(job).pause_epoch == 0


async def test_training_that_is_stopped_by_a_signal_keeps_what_was_told(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects) as agent:
        job = await running(harness)
        (runner,) = agent.runners.values()
        process_tree.hold([runner.held.process])
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 1)
        job.do("epoch")
        process_tree.let_go([runner.held.process])
        await harness.until_forgotten(job)
    assert said(harness, job) == {0, 1}
    assert harness.plane.checkpoints(job)[-1].epoch == 1


async def test_a_pause_that_is_taken_back_and_asked_again_is_told_anew(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 1)
        harness.plane.set_target(job, RUN)
        await until_told(harness, job, 0)
        await harness.until_told(job, RUN)
        job.do("epoch")
        await harness.until_durable(job, 1)
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 2)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert harness.plane.checkpoints(job)[-1].epoch == 2


async def test_a_pause_that_cannot_be_saved_is_told_at_the_next_boundary(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        job.do("fill")
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 1)
        job.do("epoch")
        await until_told(harness, job, 2)
        job.do("room", "epoch")
        await harness.until_forgotten(job)
    assert harness.plane.checkpoints(job)[-1].epoch == 2


async def test_the_next_agent_finds_out_anew(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        job.do("fill", "epoch")
        await harness.until(lambda: harness.plane.status(job).progress.epoch == 1)
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 2)
        job.do("epoch")
        await until_told(harness, job, 3)
    job.do("epoch")
    await harness.until_decides_at(job, 4)
    async with harness.agent(objects) as successor:
        await until_told(harness, job, 4)
        job.do("room", "epoch")
        await harness.until_forgotten(job)
    assert said(harness, job, by=successor) - {0} == {4}, "nothing of what the journal has"
    assert harness.plane.checkpoints(job)[-1].epoch == 4


async def test_in_its_last_epoch_training_is_known_to_finish_instead(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects):
        job = await running(harness)
        harness.plane.set_target(job, PAUSE)
        await until_told(harness, job, 1)
        job.do("finish")
        await harness.until_forgotten(job)
    assert EPOCHS in said(harness, job), "there is no boundary before the end"


@pytest.mark.parametrize("how", ["gone", "garbled"])
async def test_without_a_word_of_training_no_epoch_is_told(
    harness: AgentHarness, objects: MemoryObjects, how: str
) -> None:
    """The training process is of an older version, or its code has written into its file."""
    async with harness.agent(objects):
        job = await running(harness)
        if how == "gone":
            (harness.attempt(job) / "boundary").unlink()
        else:
            (harness.attempt(job) / "boundary").write_bytes((EPOCHS + 1 << 1).to_bytes(8, "little"))
        await pauses_untold(harness, job)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == PAUSED
