"""Any process may die at any moment: the job ends where it would have ended, and the record says what it cost."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import psutil
import pytest
import pytest_asyncio

from adjourn.client import AsyncClient
from adjourn.local import process_cleanup, seaweed
from adjourn.local.process_cleanup import Role
from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from tests.harness.jobs import EPOCHS, GatedJob, GatedJobs, Outcome, Training
from tests.harness.memory_group import memory_group

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]


class Processes:
    """The processes of the stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def of(self, role: Role) -> list[psutil.Process]:
        return [process for kind, process in process_cleanup.find(self.stack.directory.path) if kind is role]

    def one(self, role: Role) -> psutil.Process:
        (process,) = self.of(role)
        return process

    @contextmanager
    def down(self, server: str) -> Iterator[None]:
        """Kills a server, which is started again afterwards."""
        supervisor = self.stack._supervisor
        supervisor.release(server)
        psutil.Process(supervisor.processes[server].pid).kill()
        try:
            yield
        finally:
            supervisor.revive(server)

    def agent(self, worker: str) -> psutil.Process:
        """Returns the agent of `workers/{worker}`."""
        name = worker.removeprefix("workers/")
        (process,) = (each for each in self.of(Role.AGENT) if each.environ().get("ADJOURN_WORKER") == name)
        return process


@pytest_asyncio.fixture(loop_scope="session")
async def processes(stack: Stack, client: AsyncClient) -> AsyncIterator[Processes]:
    """The processes of a stack that is whole, also afterwards."""
    await whole(client)
    yield Processes(stack)
    await whole(client)


async def whole(client: AsyncClient) -> None:
    """Returns when both workers take jobs."""
    async with asyncio.timeout(60):
        while [worker.state async for worker in client.list_workers()] != [Worker.ACTIVE] * 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
def checkpointed(gated_jobs: GatedJobs) -> Callable[[str], Awaitable[tuple[GatedJob, Training]]]:
    """Starts a job; it is in the middle of its third epoch, and the checkpoint of the second is registered."""

    async def start(name: str, **args: Any) -> tuple[GatedJob, Training]:
        gated = await gated_jobs.start(name, limit=2, **args)
        training = await gated.inside(3)
        await gated.durable(2)
        return gated, training

    return start


Checkpointed = Callable[..., Awaitable[tuple[GatedJob, Training]]]


async def test_training_is_killed(processes: Processes, checkpointed: Checkpointed, uninterrupted: Outcome) -> None:
    gated, training = await checkpointed("training-killed")
    psutil.Process(training.pid).kill()
    failed = await gated.until(lambda job: job.restart_count == 1)
    assert (failed.failure.reason, failed.progress.epoch) == ("PROCESS_KILLED", 2)
    assert (await gated.finish()).attempt == 2
    assert await gated.outcome() == uninterrupted


async def test_training_runs_out_of_memory(
    processes: Processes, checkpointed: Checkpointed, uninterrupted: Outcome
) -> None:
    """The kernel kills it, and nothing else of the worker; the failure says so."""
    gated, training = await checkpointed("out-of-memory", hoard_in=4)
    launcher = psutil.Process(training.pid).parent()
    assert launcher
    with memory_group(launcher.pid, training.pid, limit=64 << 20):
        gated.gate.open(3)
        failed = await gated.until(lambda job: job.restart_count == 1)
    assert (failed.failure.reason, failed.progress.epoch) == ("OUT_OF_MEMORY", 3)
    assert launcher.is_running()
    assert (await gated.finish()).attempt == 2
    assert await gated.outcome() == uninterrupted


async def test_an_agent_is_killed_and_its_training_goes_on(
    processes: Processes, checkpointed: Checkpointed, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated, training = await checkpointed("agent-killed")
    agent = processes.agent((await gated.get()).worker)
    agent.kill()
    gated.gate.open(4)
    await eventually(lambda: gated.gate.inside(5) == training)
    await gated.durable(4)
    assert processes.agent((await gated.get()).worker) != agent
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted


async def test_a_launcher_is_killed(
    processes: Processes, checkpointed: Checkpointed, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated, training = await checkpointed("launcher-killed")
    launcher = psutil.Process(training.pid).parent()
    assert launcher
    launcher.kill()
    await eventually(lambda: not training.lives())
    await gated.until(lambda job: job.restart_count == 1)
    assert (await gated.finish()).attempt == 2
    assert await gated.outcome() == uninterrupted


async def test_a_worker_is_killed_and_its_job_goes_on_elsewhere(
    stack: Stack, processes: Processes, checkpointed: Checkpointed, uninterrupted: Outcome
) -> None:
    gated, training = await checkpointed("worker-killed")
    before = (await gated.get()).worker
    assert training.pid in await stack.kill(before.removeprefix("workers/"))
    moved = await gated.until(lambda job: job.attempt == 2 and job.state == Job.RUNNING)
    stack.revive(before.removeprefix("workers/"))
    assert moved.worker not in ("", before)
    assert (moved.restart_count, moved.failure.reason) == (1, "WORKER_LOST")
    await gated.finish()
    assert await gated.outcome() == uninterrupted


@pytest.mark.parametrize("role", [Role.CONTROL_PLANE, Role.VALKEY])
async def test_training_does_not_notice(
    processes: Processes,
    checkpointed: Checkpointed,
    uninterrupted: Outcome,
    eventually: Eventually,
    client: AsyncClient,
    role: Role,
) -> None:
    gated, training = await checkpointed(f"without-{role.name.lower().replace('_', '-')}")
    known = {job.name: job.state async for job in client.list_jobs()}
    process = processes.one(role)
    process.kill()
    gated.gate.open(4)
    await eventually(lambda: gated.gate.inside(5) == training)
    await eventually(lambda: processes.of(role) not in ([], [process]))
    async with aclosing(client.watch_jobs(names=[gated.name])) as changes:
        await anext(changes)  # a watch tries until the control plane serves again
    await gated.durable(4)
    assert {job.name: job.state async for job in client.list_jobs()} == known
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted


async def test_a_pause_waits_for_the_object_store(
    processes: Processes, checkpointed: Checkpointed, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated, training = await checkpointed("without-s3")
    await gated.ask_for_pause(training)
    with processes.down(seaweed.NAME):
        gated.gate.open(3)
        await eventually(lambda: not training.lives())
        waiting = await gated.until(lambda job: job.pause.HasField("release_time"))
    assert waiting.state == Job.PAUSING
    assert not waiting.pause.HasField("pause_time")
    paused = await gated.until(Job.PAUSED, seconds=90)
    assert (paused.pause.epoch, paused.restart_count) == (3, 0)
    await gated.client.resume_job(gated.name)
    await gated.finish()
    assert await gated.outcome() == uninterrupted


@pytest.mark.usefixtures("undrained")
@pytest.mark.parametrize("ahead", [False, True])
async def test_an_agent_that_was_away_for_longer_than_its_lease_changes_nothing(
    processes: Processes,
    checkpointed: Checkpointed,
    uninterrupted: Outcome,
    eventually: Eventually,
    client: AsyncClient,
    ahead: bool,
) -> None:
    """Whether its training stood still meanwhile or came to the end: it has been replaced."""
    gated, training = await checkpointed(f"zombie-{ahead}".lower(), overlap=True)
    away = (await gated.get()).worker
    (other,) = [worker.name async for worker in client.list_workers() if worker.name != away]
    agent = processes.agent(away)
    agent.suspend()
    try:
        if ahead:
            await client.drain_worker(other)  # its successor is not to be let through the gate as well
            gated.gate.open(EPOCHS)
            await eventually(lambda: not training.lives())
            gated.gate.open(2)
            await client.undrain_worker(other)
        moved = await gated.until(lambda job: job.attempt == 2)
        assert (moved.restart_count, moved.failure.reason) == (1, "WORKER_LOST")
        if not ahead:
            await eventually(lambda: gated.gate.inside(3) not in (None, training))
    finally:
        agent.send_signal(signal.SIGCONT)
    if not ahead:
        await eventually(lambda: not training.lives())
        assert gated.gate.inside(3)
    await gated.until(lambda job: not job.conditions)  # what was away has told what it has
    job = await gated.finish()
    await whole(client)
    assert await gated.get() == job
    assert job.attempt == 2
    assert await gated.outcome() == uninterrupted
    made = [(checkpoint.attempt, checkpoint.epoch) async for checkpoint in client.list_checkpoints(gated.name)]
    assert made == sorted(made, reverse=True)
    assert all(attempt == (1 if epoch <= 2 else 2) for attempt, epoch in made)
