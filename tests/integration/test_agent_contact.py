"""An agent that does not hear the control plane, that slept, or whose name another has: what becomes of training."""

import asyncio
import signal
from collections.abc import Callable
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from adjourn import reasons
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn_worker.attempt import files
from adjourn_worker.attempt.events import Reached
from adjourn_worker.host.kernel import boot_seconds
from adjourn_worker.journal import Journal
from adjourn_worker.launcher import process_tree
from tests.harness.agents import DEADLINE, AgentHarness, Process, alive, oversleep
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUNNING, PAUSING, PAUSED = AssignmentStatus.RUNNING, AssignmentStatus.PAUSING, AssignmentStatus.PAUSED
STOPPED, STARTING = AssignmentStatus.STOPPED, AssignmentStatus.STARTING
LEASE = 2.0


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture(autouse=True)
def _short_lease(harness: AgentHarness) -> None:
    harness.plane.lease = timedelta(seconds=LEASE)


def is_held(harness: AgentHarness, job: Job) -> bool:
    process = files.read_process(harness.attempt(job))
    assert process
    return process_tree.held(process)


# Out of contact.


async def test_out_of_contact_training_pauses_at_its_boundary_and_its_checkpoint_is_kept(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    async with harness.agent(objects, ADJOURN_OUT_OF_CONTACT_LEASES="2") as agent:
        await harness.until_phase(job, RUNNING)
        await harness.plane.stop()
        (runner,) = agent.runners.values()
        await harness.until(lambda: runner.status.phase == PAUSING)
        await harness.until_told(job, Assignment.PAUSE)
        pid = harness.training(job)
        job.do("epoch")
        await harness.until(lambda: not alive(pid))
        await harness.until(lambda: runner.over)
        await harness.plane.start()
        await harness.until_forgotten(job)
    assert harness.plane.kinds(job) == ["epoch", "checkpoint", "exit"]
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (PAUSED, reasons.WORKER_OUT_OF_CONTACT)
    assert how.checkpoint == harness.plane.checkpoints(job)[-1].name


async def test_contact_that_returns_before_the_boundary_has_training_go_on(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    async with harness.agent(objects, ADJOURN_OUT_OF_CONTACT_LEASES="2") as agent:
        await harness.until_phase(job, RUNNING)
        await harness.plane.stop()
        (runner,) = agent.runners.values()
        await harness.until(lambda: runner.status.phase == PAUSING)
        await harness.plane.start()
        await harness.until(lambda: runner.status.phase == RUNNING)
        await harness.until_told(job, Assignment.RUN)
        pid = harness.training(job)
        job.do("epoch", "epoch")
        await harness.until_durable(job, 2)
        assert alive(pid)
    assert not runner.held.HasField("pausing_by_itself")


async def test_an_agent_is_back_within_a_third_of_a_lease_however_long_it_was_alone(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def latest(_least: float, most: float) -> float:
        waits.append(most)
        return most

    monkeypatch.setattr("random.uniform", latest)
    lease = 12.0
    harness.plane.lease = timedelta(seconds=lease)
    async with harness.agent(objects) as agent:
        await harness.until(lambda: agent.stream.connected)
        with capture_logs() as logs:
            await harness.plane.stop()
            await harness.until(lambda: [entry for entry in logs if entry.get("failures", 0) > 4])
        await harness.plane.start()
        await harness.until(lambda: agent.stream.connected)
    longest_try = dict(agent.stream.options())["grpc.min_reconnect_backoff_ms"] / 1000
    assert max(waits) + longest_try < lease / 3


async def test_the_next_agent_knows_the_lease_and_when_the_control_plane_was_heard(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    async with harness.agent(objects) as agent:
        async with asyncio.timeout(DEADLINE):
            while await agent.journal.run(agent.journal.last_contact) is None:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.02)
    with Journal(harness.paths) as journal:
        last = journal.last_contact()
    assert last
    assert (last.lease, last.boot_id) == (LEASE, process_tree.boot_id())
    assert 0 < last.heard <= agent.contact.heard
    harness.plane.mute = True
    async with harness.agent(objects) as agent:
        assert agent.contact.heard == last.heard
        assert agent.stream.lease == agent.contact.lease == LEASE


async def test_nothing_is_launched_before_the_control_plane_was_heard(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job(hand_out=False)
    harness.plane.mute = True
    async with harness.agent(objects) as agent:
        await agent.take_on(job.assignment)
        said = len(harness.plane.requests)
        await harness.until(lambda: len(harness.plane.requests) > said + 2)
        assert harness.plane.phase(job) == STARTING
        assert files.read_process(harness.attempt(job)) is None
        harness.plane.assignments[job.name] = job.assignment
        harness.plane.mute = False
        await harness.until_phase(job, RUNNING)


# Sleep.


async def asleep(harness: AgentHarness, agent: Process, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Stops an agent for longer than its lease, and lets it go on."""
    agent.send_signal(signal.SIGSTOP)
    try:
        meanwhile()
        over = boot_seconds() + LEASE + 0.5
        await harness.until(lambda: boot_seconds() > over)
    finally:
        agent.send_signal(signal.SIGCONT)


async def held_still(harness: AgentHarness) -> tuple[Process, Job]:
    """Returns an agent that has slept and holds its job's training still, since nobody tells it what is meant."""
    await harness.launcher()
    agent = await harness.process()
    job = harness.job()
    await harness.until_phase(job, RUNNING)

    def partition() -> None:
        harness.plane.mute = True

    await asleep(harness, agent, partition)
    await harness.until(lambda: is_held(harness, job))
    return agent, job


async def test_an_agent_that_slept_beyond_its_lease_holds_training_still_until_it_is_told(
    harness: AgentHarness,
) -> None:
    _, job = await held_still(harness)
    job.do("epoch")
    said = len(harness.plane.requests)
    await harness.until(lambda: len(harness.plane.requests) > said + 2)
    assert is_held(harness, job)
    harness.plane.mute = False
    await harness.until(lambda: harness.plane.epochs(job) == [1])
    assert not is_held(harness, job)


async def test_what_is_to_be_stopped_is_ended_without_another_step(harness: AgentHarness) -> None:
    _, job = await held_still(harness)
    pid = harness.training(job)
    job.do("epoch")
    harness.plane.set_target(job, Assignment.STOP)
    harness.plane.mute = False
    await harness.until_forgotten(job)
    assert not alive(pid)
    assert harness.plane.exit(job).phase == STOPPED
    assert harness.plane.epochs(job) == []


async def test_what_the_control_plane_does_not_name_is_held_for_a_lease_more(harness: AgentHarness) -> None:
    _, job = await held_still(harness)
    harness.plane.assignments.clear()
    harness.plane.mute = False
    began = boot_seconds()
    await harness.until(lambda: not is_held(harness, job))
    assert boot_seconds() - began > LEASE


async def test_the_next_agent_lets_go_of_what_one_that_was_killed_held_still(harness: AgentHarness) -> None:
    agent, job = await held_still(harness)
    await harness.kill(agent)
    await harness.process()
    await harness.until(lambda: "found_held_still" in {entry["event"] for entry in harness.logged()})
    assert is_held(harness, job)
    harness.plane.mute = False
    await harness.until(lambda: not is_held(harness, job))
    job.do("epoch")
    await harness.until(lambda: harness.plane.epochs(job) == [1])


async def test_what_is_held_still_and_out_of_contact_goes_on_to_its_boundary(harness: AgentHarness) -> None:
    await harness.launcher()
    agent = await harness.process(ADJOURN_OUT_OF_CONTACT_LEASES="2")
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    pid = harness.training(job)
    job.do("epoch")

    def partition() -> None:
        harness.plane.mute = True

    await asleep(harness, agent, partition)
    await harness.until(lambda: is_held(harness, job))
    job.do("epoch")
    await harness.until(lambda: not alive(pid))
    assert {entry["leases"] for entry in harness.logged() if entry["event"] == "out_of_contact"} == {2}
    assert harness.written(job)[-1] == "paused"


async def test_what_pauses_by_itself_and_is_then_held_still_goes_on_to_its_boundary_once_out_of_contact_again(
    harness: AgentHarness,
) -> None:
    await harness.launcher()
    agent = await harness.process(ADJOURN_OUT_OF_CONTACT_LEASES="2")
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    pid = harness.training(job)
    harness.plane.mute = True
    await harness.until_phase(job, PAUSING)
    await asleep(harness, agent)
    await harness.until(lambda: is_held(harness, job))
    job.do("epoch")
    await harness.until(lambda: not alive(pid))
    assert harness.written(job)[-1] == "paused"


async def test_a_drain_lets_go_of_what_was_held_still_and_has_it_pause(harness: AgentHarness) -> None:
    await harness.launcher()
    agent = await harness.process(ADJOURN_ON_TERM="drain")
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    pid = harness.training(job)
    agent.terminate()
    await harness.until_phase(job, PAUSING)  # by itself: this control plane orders nothing

    def partition() -> None:
        harness.plane.mute = True

    await asleep(harness, agent, partition)
    await harness.until(lambda: is_held(harness, job))
    said = len(harness.plane.requests)
    await harness.until(lambda: len(harness.plane.requests) > said + 2)
    assert is_held(harness, job)
    harness.plane.mute = False
    await harness.until(lambda: not is_held(harness, job))
    await harness.until_phase(job, PAUSING)
    job.do("epoch")
    await harness.until(lambda: not alive(pid))
    assert harness.written(job)[-1] == "paused"


async def test_what_was_said_before_a_sleep_lets_nothing_go(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects) as agent:
        await harness.until_phase(job, RUNNING)
        (runner,) = agent.runners.values()
        harness.plane.mute = True
        oversleep(agent)
        runner.inbox.put_nowait(Reached())  # it was waiting there
        await harness.until(runner.inbox.empty)
        said = len(harness.plane.requests)
        await harness.until(lambda: len(harness.plane.requests) > said + 1)
        assert is_held(harness, job)
        harness.plane.mute = False
        await harness.until(lambda: not is_held(harness, job))


async def test_a_short_sleep_holds_nothing(harness: AgentHarness) -> None:
    harness.plane.lease = timedelta(seconds=600)
    await harness.launcher()
    agent = await harness.process()
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    await asleep(harness, agent)
    said = len(harness.plane.requests)
    await harness.until(lambda: len(harness.plane.requests) > said + 1)
    assert not [entry for entry in harness.logged() if entry["event"] == "slept"]
    assert not is_held(harness, job)


# A name that is another's.


async def test_a_second_agent_of_one_name_launches_nothing_and_says_what_to_do(harness: AgentHarness) -> None:
    harness.plane.refusing_name = True
    await harness.launcher()
    agent = await harness.process()
    assert await harness.ended(agent) == 4
    (entry,) = [entry for entry in harness.logged() if entry["event"] == "name_taken"]
    (message,) = entry["errors"]
    assert message == (
        f"workers/w is another's. This agent has the data directory {harness.paths.data} (instance "
        f"{harness.paths.instance}): give it another ADJOURN_WORKER, or the other's data directory once that agent has "
        "ended"
    )
    assert not harness.paths.launcher_socket.exists()


async def test_the_agent_that_came_back_to_its_name_taken_waits_and_pauses_by_itself(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    async with harness.agent(objects, ADJOURN_OUT_OF_CONTACT_LEASES="2") as agent:
        await harness.until_phase(job, RUNNING)
        harness.plane.refusing_name = True
        (runner,) = agent.runners.values()
        await harness.until(lambda: runner.status.phase == PAUSING)
        harness.plane.refusing_name = False
        await harness.until_phase(job, RUNNING)
