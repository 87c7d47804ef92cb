"""What an agent does about a journal whose writer died at an awkward moment."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn_worker.journal import Journal
from tests.harness.agents import Bench, alive
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUNNING, STOPPED, SUCCEEDED = AssignmentStatus.RUNNING, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED


@asynccontextmanager
async def after(bench: Bench, job: Job, change: Callable[[HeldAssignment], None]) -> AsyncIterator[int]:
    """Has a job trained, changes what the journal says of it, and starts the next agent; yields the training's pid."""
    objects = MemoryObjects()
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        pid = bench.training(job)
    with Journal(bench.paths) as journal:
        (held,) = journal.held()
        change(held)
        journal.record(held, [])
    async with bench.agent(objects):
        yield pid


async def test_a_process_that_was_launched_and_not_journaled_is_adopted(bench: Bench) -> None:
    def change(held: HeldAssignment) -> None:
        held.ClearField("process")
        held.ClearField("events_offset")
        held.status.phase = AssignmentStatus.STARTING

    job = bench.job()
    async with after(bench, job, change) as pid:
        await bench.until_phase(job, RUNNING)
        job.do("epoch", "finish")
        await bench.until_forgotten(job)
        assert not alive(pid)
    assert bench.plane.epochs(job) == [1]
    assert bench.plane.exit(job).phase == SUCCEEDED
    assert bench.log(job).read_text().count("training in") == 1


async def test_a_process_that_was_to_be_stopped_and_was_not_is_stopped(bench: Bench) -> None:
    def change(held: HeldAssignment) -> None:
        held.assignment.target = Assignment.STOP
        held.assignment.generation = held.status.observed_generation = 2

    job = bench.job()
    async with after(bench, job, change) as pid:
        await bench.until_forgotten(job)
        assert not alive(pid)
    assert bench.plane.exit(job).phase == STOPPED


async def test_an_order_that_was_journaled_and_not_written_is_written(bench: Bench) -> None:
    def change(held: HeldAssignment) -> None:
        held.assignment.target = Assignment.PAUSE
        held.assignment.generation = held.status.observed_generation = 2

    job = bench.job()
    async with after(bench, job, change):
        job.do("epoch")
        await bench.until_forgotten(job)
    assert bench.plane.exit(job).phase == AssignmentStatus.PAUSED


async def test_what_was_over_and_not_put_away_is_put_away(bench: Bench) -> None:
    job = bench.job()
    bench.plane.keeping = True
    job.do("finish")
    async with bench.agent(MemoryObjects()):
        await bench.until_phase(job, SUCCEEDED)
        await bench.until(lambda: not bench.attempt(job).exists())
    snapshots = bench.paths.snapshot_directory(bench.attempt(job))
    for place in (bench.attempt(job), snapshots):
        place.mkdir()
    async with bench.agent(MemoryObjects()):
        await bench.until(lambda: not bench.attempt(job).exists() and not snapshots.exists())
        assert bench.plane.phase(job) == SUCCEEDED
        del bench.plane.assignments[job.name]
        await bench.until_forgotten(job)
    assert bench.held() == []


@pytest.mark.parametrize("lost", ["journal", "assignment"])
async def test_training_that_the_journal_does_not_know_is_ended(bench: Bench, lost: str) -> None:
    job = bench.job()
    async with bench.agent(MemoryObjects()):
        await bench.until_phase(job, RUNNING)
        pid = bench.training(job)
    del bench.plane.assignments[job.name]
    if lost == "journal":
        bench.paths.journal.unlink()
    else:
        with Journal(bench.paths) as journal:
            journal.forget(job.name, job.assignment.token)
    async with bench.agent(MemoryObjects()):
        assert not alive(pid)
        assert not bench.plane.phase(job)
        assert not bench.attempt(job).exists()
