"""Control plane and store are away for longer than a lease, and come back in either order: nobody's lease ends."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adjourn.local import process_cleanup, valkey
from adjourn.local.managed_process import ManagedProcess
from adjourn.local.ports import free_ports
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.control_planes import LEASE, Agent, LeaseClock, Replica, replica, status_of

JOB = "jobs/j"
LATE = 1.3 * LEASE
"""How long after the return an agent is back: later than a lease, within the time that it is given."""


class Valkey:
    """A server of the test's own, to be stopped and started with what it keeps."""

    def __init__(self, child: ManagedProcess, url: str) -> None:
        self.child, self.url = child, url

    async def start(self) -> None:
        self.child.start()
        await self.child.until_ready()

    def kill(self) -> None:
        assert self.child.process is not None
        self.child.process.kill()
        self.child.process.wait()


@pytest.fixture
async def start(servers: Path, tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Valkey]]]:
    """Starts servers."""
    marker = process_cleanup.marker(servers)
    started: list[Valkey] = []

    async def new() -> Valkey:
        (port,) = free_ports(1)
        password = secrets.token_hex(8)
        directory = tmp_path / str(port)
        directory.mkdir()
        program = valkey.program(directory=directory, logs=directory, port=port, password=password, environment=marker)
        server = Valkey(ManagedProcess(program), valkey.url(port=port, password=password))
        started.append(server)
        await server.start()
        return server

    yield new
    for server in started:
        server.kill()


@pytest.fixture
async def server(start: Callable[[], Awaitable[Valkey]]) -> Valkey:
    return await start()


@asynccontextmanager
async def plane_on(server: Valkey, clock: LeaseClock) -> AsyncIterator[Replica]:
    async with RedisStore.connect(server.url, "outages") as store, replica(store, clock=clock) as plane:
        yield plane


async def trains(plane: Replica) -> Assignment:
    """A job trains; then its agent's stream breaks, as it does when the control plane goes away."""
    await plane.create()
    async with Agent(plane.address, instance="i") as agent:
        await agent.say()
        order = await agent.given(JOB)
        await agent.say(status_of(order))
        await plane.becomes(Job.RUNNING)
    return order


async def trains_on(plane: Replica, order: Assignment, clock: LeaseClock) -> None:
    """The agent comes back late, and nobody has taken its worker for lost meanwhile."""
    record = await plane.store.get(JobName(JOB))
    assert record
    await clock.passes(LATE)
    async with Agent(plane.address, instance="i") as agent:
        await agent.say(status_of(order, epoch=1))
        assert (await agent.given(JOB)).token == order.token
        await plane.worker_is(Worker.ACTIVE)
    job = await plane.get()
    assert (job.state, job.attempt, job.restart_count) == (Job.RUNNING, 1, 0)
    events = await plane.store.events(JobName(JOB), after=0, size=99)
    assert not [event for event in events if "not heard from" in event.message]


async def test_both_come_back_in_either_order(start: Callable[[], Awaitable[Valkey]]) -> None:
    """All at once, for they do little but wait."""
    async with asyncio.TaskGroup() as cases:
        for leases in (2, 4):
            cases.create_task(store_first_then_control_plane(await start(), leases))
            cases.create_task(control_plane_first_then_store(await start(), leases))


async def store_first_then_control_plane(server: Valkey, leases: int) -> None:
    clock = LeaseClock()
    async with plane_on(server, clock) as plane:
        order = await trains(plane)
    server.kill()
    await clock.passes(leases * LEASE)
    await server.start()
    async with plane_on(server, clock) as plane:
        await trains_on(plane, order, clock)


async def control_plane_first_then_store(server: Valkey, leases: int) -> None:
    clock = LeaseClock()
    async with plane_on(server, clock) as plane:
        order = await trains(plane)
    server.kill()
    await clock.passes(leases * LEASE)
    async with plane_on(server, clock) as plane:
        await clock.passes(LEASE)
        await server.start()
        await trains_on(plane, order, clock)


async def test_store_away_while_the_control_plane_waits_for_it(server: Valkey) -> None:
    clock = LeaseClock()
    async with plane_on(server, clock) as plane:
        order = await trains(plane)
        server.kill()
        await clock.passes(2 * LEASE)
        await server.start()
        await trains_on(plane, order, clock)


async def test_a_replica_restarts_beside_one_that_goes_on(server: Valkey) -> None:
    """The one that goes on counts: an agent that is back within its lease keeps its jobs, a silent one loses them."""
    clock = LeaseClock()
    async with plane_on(server, clock) as stays:
        async with plane_on(server, clock) as restarted:
            order = await trains(restarted)
        async with plane_on(server, clock) as restarted, Agent(restarted.address, instance="i") as agent:
            await agent.say(status_of(order))
            assert (await agent.given(JOB)).token == order.token
        with clock.running():
            await stays.becomes(Job.QUEUED)
