"""What was found once, by the joined machine or in the wild, step by step: the shortest way there."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from adjourn.v1.job_pb2 import Condition, Job
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import Stored, WorkerName
from tests.harness.joined_machine import NAMES, JoinedMachine
from tests.harness.worker_model import Host


@pytest.fixture
def world() -> Iterator[JoinedMachine]:
    """One job that trains; at the end all is mended, and everything has to come to rest."""
    machine = JoinedMachine()
    machine.begin(seed=0, specs=[(9, 2)], turns=4)
    assert there(machine).record.job.state == Job.RUNNING
    yield machine
    machine.teardown()


def there(machine: JoinedMachine) -> Stored:
    (stored,) = machine.jobs()
    return stored


def its_host(machine: JoinedMachine) -> Host:
    return machine.hosts[there(machine).record.job.worker]


def cut_off(host: Host, *, cut: bool = True) -> None:
    host.cut_up = host.cut_down = cut


def conditions(machine: JoinedMachine) -> list[Condition.Type.ValueType]:
    return [each.type for each in there(machine).record.job.conditions]


def test_no_job_is_taken_from_a_worker_that_is_back(world: JoinedMachine) -> None:
    """A replica is held up between finding the worker lost and taking its job: it was CANCELLED, and its process lived
    on a worker that could be reached."""
    host = its_host(world)
    worker, process = WorkerName(host.name), host.alive()[0]
    cut_off(host)
    world.ask(NAMES[0], "cancel", Call())
    slow = world.replicas[1]
    go_on = asyncio.Event()

    async def late(*arguments: Any, **named: Any) -> Any:
        await go_on.wait()
        return await slow.updater.apply(*arguments, **named)

    session = world.run(world.store.session(worker))
    assert session
    host.well_since = None  # it was silent for a lease
    assert world.run(world.store.mark_lost(worker, session.heartbeat))
    slow.monitor.updater = SimpleNamespace(apply=late)  # type: ignore[assignment]
    slow.begin("take back", slow.monitor.take_back(worker))
    world.flow()
    cut_off(host, cut=False)
    assert host.agent
    world.open(host.agent, 0)
    host.agent.stream.arrive()
    world.flow()
    assert there(world).record.job.state == Job.CANCELLING
    go_on.set()
    world.flow()
    slow.monitor.updater = slow.updater
    assert (there(world).record.job.state, process.alive) == (Job.CANCELLING, True)
    world.turn()
    world.turn()
    assert (there(world).record.job.state, process.alive) == (Job.CANCELLED, False)
    assert conditions(world) == []


def test_a_pause_whose_worker_is_out_of_reach_has_no_release_time_until_the_process_is_gone(
    world: JoinedMachine,
) -> None:
    host = its_host(world)
    cut_off(host)
    world.ask(NAMES[0], "pause", Call())
    world.lose_silent()
    job = there(world).record.job
    assert (job.state, job.pause.HasField("release_time")) == (Job.PAUSED, False)
    assert host.alive()
    cut_off(host, cut=False)
    for _ in range(8):
        world.turn()
    job = there(world).record.job
    assert (job.state, job.pause.HasField("release_time")) == (Job.PAUSED, True)
    assert not host.alive()


def test_a_job_that_was_cancelled_and_deleted_out_of_reach_is_stopped(world: JoinedMachine) -> None:
    host = its_host(world)
    process = host.alive()[0]
    world.use_a_name_again(0, 0)
    assert process.alive
    world.turn(trains=False)
    world.turn(trains=False)
    assert not process.alive


def test_an_outage_of_ours_costs_no_attempt(world: JoinedMachine) -> None:
    world.outage(9)
    world.work(4)
    job = there(world).record.job
    assert (job.attempt, job.restart_count) == (1, 0)


def test_no_job_waits_because_the_clock_was_set_back(world: JoinedMachine) -> None:
    host = its_host(world)
    host.alive()[0].end(-11)
    world.turn()
    world.set_clock(-10)
    for number in range(2):
        world.restart_replica(number)
    world.work(4)
    assert there(world).record.job.attempt == 2


def test_the_successor_of_a_replaced_machine_waits_until_the_first_is_lost(world: JoinedMachine) -> None:
    """The control plane starts anew meanwhile: it counts a whole lease after its return, while the successor asks."""
    world.machine_fails("workers/a", "wipe")
    world.start_agent("workers/a")
    world.restart_replica(0)
    world.restart_replica(1)
    world.work(12)
    session = world.run(world.store.session(WorkerName("workers/a")))
    assert session
    assert session.worker.instance == world.hosts["workers/a"].worker.instance


def test_an_order_that_was_passed_over_for_a_newer_one_is_not_waited_for(world: JoinedMachine) -> None:
    """An agent is stopped while a job is given to it and taken from it again; its stream outlives all that."""
    host = its_host(world)
    other = world.hosts["workers/b" if host.name == "workers/a" else "workers/a"]
    assert other.agent
    world.machine_fails(host.name, "kill")
    while there(world).record.job.state != Job.QUEUED:
        world.turn(place=False)
    for _ in range(10):  # it waits before its next attempt
        world.turn(place=False)
    other.agent.stopped = True
    world.place(0)
    assert there(world).record.job.worker == other.name
    world.lose_silent()
    other.agent.stopped = False
    world.work(4)
    assert [entry.worker for entry in there(world).record.unconfirmed_releases] == [host.name]
