"""What was found once, by the joined machine or in the wild, step by step: the shortest way there."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from adjourn import reasons
from adjourn.manifests import manifest_key
from adjourn.v1.job_pb2 import Condition, Job
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import Stored, WorkerName
from tests.harness.joined_machine import JoinedMachine
from tests.harness.joined_world import LEASE, NAMES, TURN_SECONDS, TWIN
from tests.harness.worker_model import PATIENCE, Host


@pytest.fixture(autouse=True)
def _leaves_no_garbage() -> Iterator[None]:
    """Coroutines that nobody awaits any more end here, and not while a failure is written down (CPython 106905)."""
    yield
    gc.collect()


@pytest.fixture
def world() -> Iterator[JoinedMachine]:
    """One job that trains; at the end all is mended, and everything has to come to rest."""
    machine = JoinedMachine()
    machine.begin(seed=0, specs=[(9, 2, False)], turns=4)
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


def until(machine: JoinedMachine, so: Callable[[], bool], *, steps: int = 1) -> None:
    """Lets everything go on until something is so."""
    for _ in range(60):
        machine.look()
        if so():
            return
        machine.turn(steps=steps)
    assert so()


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
    world.open(host.agent, 0).arrive()
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
    world.turn(steps=0)
    world.turn(steps=0)
    assert not process.alive


@pytest.mark.parametrize("store_first", [True, False])
@pytest.mark.parametrize("hangs", [False, True])
def test_an_outage_of_ours_costs_no_attempt(world: JoinedMachine, *, store_first: bool, hangs: bool) -> None:
    """Agents try less and less often meanwhile; their last call may hang, and takes most of a lease to be given up."""
    for training in its_host(world).alive():
        training.hung = True  # it must not end meanwhile
    world.outage(5, store_first=store_first, hangs=list(world.hosts) if hangs else [])
    world.work(8)
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
    """An agent comes to nothing while a job is given to it and taken from it again; its stream outlives all that."""
    host = its_host(world)
    other = world.hosts["workers/b" if host.name == "workers/a" else "workers/a"]
    assert other.agent
    world.machine_fails(host.name, "kill")
    while there(world).record.job.state != Job.QUEUED:
        world.turn(place=False)
    for _ in range(10):  # it waits before its next attempt
        world.turn(place=False)
    world.place(0)
    assert there(world).record.job.worker == other.name
    while there(world).record.job.worker:
        other.well_since = None
        world.turn(only=())
    world.work(4)
    assert [entry.worker for entry in there(world).record.unconfirmed_releases] == [host.name]


def instance(machine: JoinedMachine, worker: str) -> str:
    """Names the machine that speaks for a worker."""
    session = machine.run(machine.store.session(WorkerName(worker)))
    assert session
    return str(session.worker.instance)


def test_the_second_agent_of_a_name_launches_nothing_until_the_first_is_lost(world: JoinedMachine) -> None:
    first, second = its_host(world), world.hosts[TWIN]
    assert first.name == second.name
    world.start_agent(TWIN)
    world.work(3)
    assert (instance(world, first.name), second.trainings) == (first.worker.instance, {})
    world.machine_fails("workers/a", "kill")  # so that the job has nowhere else to go
    cut_off(first)
    world.lose_silent()
    world.turn()
    job = there(world).record.job
    assert (instance(world, first.name), job.attempt) == (second.worker.instance, 2)
    cut_off(first, cut=False)
    world.work(3)
    assert (instance(world, first.name), there(world).record.job.attempt) == (second.worker.instance, 2)
    assert Condition.RELEASE_UNCONFIRMED in conditions(world)
    assert first.alive()


def test_nothing_is_gone_because_of_a_message_that_a_stopped_replica_had_received(world: JoinedMachine) -> None:
    """The replica is stopped before the stream of that message speaks for the worker; the attempt came meanwhile."""
    host = world.hosts["workers/b"]
    world.machine_fails("workers/a", "kill")
    host.alive()[0].end(-11)
    until(world, lambda: not host.agent or not host.agent.runners)
    assert host.agent
    world.replicas[0].gate.open.clear()
    world.open(host.agent, 0).arrive()
    until(world, lambda: bool(host.alive()))
    (process,) = host.alive()
    cut_off(host)
    until(world, lambda: Condition.RELEASE_UNCONFIRMED in conditions(world))
    world.continue_replica(0)
    world.look()
    assert Condition.RELEASE_UNCONFIRMED in conditions(world)
    assert process.alive


def test_a_gpu_is_offered_again_though_another_machine_of_its_name_has_left_an_attempt_too(
    world: JoinedMachine,
) -> None:
    """Its own is known to be gone, the other's is not: the scheduler took the GPU for busy for ever."""
    world.create(epochs=30, restarts=3, gpus=1, hang="own pace")
    first, second = world.hosts["workers/b"], world.hosts[TWIN]

    def attempt() -> int:
        return next(each.record.job.attempt for each in world.jobs() if each.record.job.name == NAMES[1])

    until(world, lambda: attempt() == 1)
    world.start_agent(TWIN)
    cut_off(first)
    until(world, lambda: attempt() == 2)
    cut_off(first, cut=False)
    cut_off(second)
    until(world, lambda: attempt() == 3)
    assert instance(world, first.name) == first.worker.instance


def test_an_attempt_that_finds_the_manifest_of_somebody_else_ends(world: JoinedMachine) -> None:
    host = its_host(world)
    process = host.alive()[0]
    world.write_as_another("workers/b", 0)
    until(world, lambda: not process.alive)
    until(world, lambda: there(world).record.job.attempt == 2)
    assert there(world).record.job.failure.reason == reasons.FENCED


@pytest.fixture
def long_world() -> Iterator[JoinedMachine]:
    """One job that trains for long on the only worker that is there."""
    machine = JoinedMachine()
    machine.machine_fails("workers/a", "kill")
    machine.begin(seed=0, specs=[(60, 2, False)], turns=4)
    assert there(machine).record.job.state == Job.RUNNING
    yield machine
    machine.teardown()


def test_a_worker_out_of_contact_pauses_at_its_boundary_and_keeps_what_it_has(long_world: JoinedMachine) -> None:
    host = its_host(long_world)
    process = host.alive()[0]
    cut_off(host)
    long_world.work(int(PATIENCE * LEASE / TURN_SECONDS) + 4)
    assert (process.alive, process.final) == (False, True)
    assert there(long_world).record.job.state == Job.QUEUED
    cut_off(host, cut=False)
    long_world.work(4)
    record = there(long_world).record
    assert record.restored_checkpoint == record.checkpoint.name or record.checkpoint.step > process.progress.step
    assert record.checkpoint.step >= process.progress.step
    assert (record.job.attempt, record.job.restart_count) == (2, 0)


@pytest.mark.parametrize("hears_first", [False, True])
def test_an_agent_that_slept_holds_its_training_still_until_it_is_told(
    world: JoinedMachine, *, hears_first: bool
) -> None:
    """`hears_first`: what had arrived before it slept is handled before it looks at its clock."""
    host = its_host(world)
    process = host.alive()[0]
    assert host.agent
    assert host.agent.link
    host.agent.link.speak()
    host.agent.link.arrive()
    world.flow()
    host.agent.link.deliver()
    assert host.agent.inbox
    world.stop_agent("workers/b")
    until(world, lambda: there(world).record.job.attempt == 2, steps=0)
    world.continue_agent("workers/b", hears_first=hears_first)
    assert (process.alive, process.stopped) == (True, True)
    steps = process.progress.step
    until(world, lambda: not process.alive)
    assert process.progress.step == steps, "it was killed as it stood"


def test_what_was_said_before_a_second_sleep_lets_nothing_go(world: JoinedMachine) -> None:
    """The agent had heard what is meant, and slept again before the attempt's task came to it."""
    host = its_host(world)
    process = host.alive()[0]
    assert host.agent
    for last in (False, True):
        world.stop_agent("workers/b")
        for _ in range(6):
            world.turn(steps=0, place=False)
        world.continue_agent("workers/b")
        assert (process.alive, process.stopped) == (True, True)
        if not last:
            stream = world.open(host.agent, 0)
            stream.arrive()
            world.flow()
            stream.deliver()
            host.agent.does(host.agent.hear(*host.agent.inbox.pop()))
            assert any(not runner.inbox.empty() for runner in host.agent.runners.values())
    until(world, lambda: not process.stopped)


def test_what_was_handed_out_before_a_sleep_is_not_launched_after_it_until_that_is_said(world: JoinedMachine) -> None:
    world.machine_fails("workers/a", "kill")
    host = its_host(world)
    host.alive()[0].end(-11)
    world.objects.away = True  # so that the next attempt cannot be prepared
    until(world, lambda: there(world).record.job.attempt == 2)
    world.turn()
    world.stop_agent("workers/b")
    for _ in range(6):
        world.turn(place=False)
    world.objects.away = False
    world.continue_agent("workers/b")
    world.agent_works(host)
    assert host.alive() == []
    until(world, lambda: there(world).record.job.state == Job.RUNNING)


def test_time_in_which_training_is_held_still_is_no_hang(long_world: JoinedMachine) -> None:
    long_world.work(11)
    host = its_host(long_world)
    process = host.alive()[0]
    until(long_world, lambda: process.progress.epoch_step == 1)
    long_world.stop_agent("workers/b")
    for _ in range(6):
        long_world.turn(steps=0)
    cut_off(host)
    long_world.continue_agent("workers/b")
    assert process.stopped
    until(long_world, lambda: not process.stopped)
    until(long_world, lambda: not process.alive)
    assert process.final, "it has paused by itself"


def test_a_pause_does_not_wait_for_training_that_hangs(world: JoinedMachine) -> None:
    """Whatever the policy of its job."""
    world.machine_fails("workers/a", "kill")
    world.create(epochs=9, restarts=2, gpus=0, hang="report")
    host = world.hosts["workers/b"]
    until(world, lambda: len(host.alive()) == 2)
    (process,) = [each for each in host.alive() if each.assignment.job == NAMES[1]]
    until(world, lambda: process.progress.epoch == 2)
    process.hung = True
    world.work(30)
    assert process.alive
    world.ask(NAMES[1], "pause", Call())
    until(world, lambda: not process.alive)


def test_training_that_hangs_is_ended_and_goes_on_from_its_checkpoint(world: JoinedMachine) -> None:
    host = its_host(world)
    process = host.alive()[0]
    world.turn()
    process.hung = True
    until(world, lambda: not process.alive)
    until(world, lambda: there(world).record.job.attempt == 2)
    job = there(world).record.job
    assert (job.restart_count, job.failure.reason) == (1, reasons.TRAINING_HANGS)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_pause_whose_checkpoint_is_damaged_falls_back_to_the_newest_that_is_whole(
    world: JoinedMachine, damaged: int
) -> None:
    until(world, lambda: there(world).record.checkpoint.epoch >= 3)
    world.ask(NAMES[0], "pause", Call())
    until(world, lambda: there(world).record.job.state == Job.PAUSED)
    before = there(world).record
    for name in manifests(world)[:damaged]:
        world.objects.damage(name, "flip")
    world.ask(NAMES[0], "resume", Call())
    until(world, lambda: there(world).record.checkpoint.epoch == before.checkpoint.epoch - damaged)
    until(world, lambda: there(world).record.job.state == Job.RUNNING)
    assert there(world).record.job.restart_count == 0


def manifests(machine: JoinedMachine) -> list[str]:
    """Returns where the manifests of a job's checkpoints are, the newest first."""
    found = machine.run(machine.store.checkpoints(NAMES[0], size=100))
    return [manifest_key(each.job_uid, each.name.rpartition("/")[2]) for _, each in found]


def test_a_checkpoint_that_was_put_back_is_called_damaged_no_longer(world: JoinedMachine) -> None:
    world.ask(NAMES[0], "pause", Call())
    until(world, lambda: there(world).record.job.state == Job.PAUSED)
    damaged = manifests(world)
    for name in damaged:
        world.objects.damage(name, "remove")
    world.ask(NAMES[0], "resume", Call())
    until(world, lambda: there(world).record.job.state == Job.FAILED)
    assert there(world).record.checkpoint.damage
    for name in damaged:
        world.objects.put_back(name)
    world.ask(NAMES[0], "resume", Call())
    until(world, lambda: there(world).record.job.state == Job.RUNNING)
    assert not there(world).record.checkpoint.damage


def test_what_no_store_knows_is_paused_and_kept(world: JoinedMachine) -> None:
    """The store is set back to before a job was created, whose training runs."""
    world.set_store_back(back=False)
    world.create(epochs=60, restarts=2, gpus=1, hang="own pace")
    world.work(4)
    (process,) = [each for host in world.hosts.values() for each in host.alive() if each.assignment.job == NAMES[1]]
    world.set_store_back(back=True)
    world.created = 1
    world.create(epochs=3, restarts=2, gpus=1, hang="own pace")
    until(world, lambda: not process.alive)
    assert process.final
    assert process.exit
    assert not process.exit.killed
    token = process.assignment.token
    world.work(2)
    newest = manifest_key(token.job_uid, f"{token.attempt}-{token.nonce[:8]}-{process.sequence}")
    assert newest in world.objects.contents
