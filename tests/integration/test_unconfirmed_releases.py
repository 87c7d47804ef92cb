"""A worker is cut off for longer than its lease, and its training process lives: what is shown, and what it is told."""

from collections.abc import AsyncIterator

import pytest

from adjourn import errors, reasons
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1 import worker_service_pb2 as worker_pb
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit
from adjourn.v1.job_pb2 import Condition, Job, Pause
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import WorkerName
from tests.harness.control_planes import Agent, Replica, checkpoint_of_epoch, refused, replica, status_of
from tests.harness.memory_store import MemoryStore

JOB, A, B = "jobs/j", WorkerName("workers/a"), WorkerName("workers/b")


@pytest.fixture
async def plane(memory_store: MemoryStore) -> AsyncIterator[Replica]:
    async with replica(memory_store) as served:
        yield served


async def trains(plane: Replica, agent: Agent) -> Assignment:
    """The job is given to the agent and has a checkpoint."""
    await agent.say()
    order = await agent.given(JOB)
    saved = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(1, order.token.attempt))
    await agent.say(status_of(order, epoch=1), reports=(saved,))
    await agent.hears(lambda response: response.acknowledged_report == agent.sequence)
    await plane.becomes(Job.RUNNING)
    return order


async def is_cut_off(plane: Replica, agent: Agent) -> None:
    """The agent's stream breaks, and its lease ends."""
    agent.call.cancel()
    await plane.worker_is(Worker.DISCONNECTED, agent.name)  # nothing that it said is worked on any more
    session = await plane.store.session(WorkerName(agent.name))
    assert session
    assert await plane.store.mark_lost(WorkerName(agent.name), session.heartbeat)


def condition(shown: Job | Worker) -> Condition | None:
    return next((each for each in shown.conditions if each.type == Condition.RELEASE_UNCONFIRMED), None)


async def shown(plane: Replica, worker: WorkerName = A) -> Worker:
    found: Worker = await plane.workers.GetWorker(worker_pb.GetWorkerRequest(name=worker))
    listed = await plane.workers.ListWorkers(worker_pb.ListWorkersRequest())
    assert found.conditions == next(each for each in listed.workers if each.name == worker).conditions
    return found


async def test_a_pause_whose_worker_is_cut_off_does_not_say_that_gpus_are_free(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address, instance="i") as agent:
        order = await trains(plane, agent)
        await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
        await is_cut_off(plane, agent)
    job = await plane.becomes(Job.PAUSED)
    assert job.pause.cause == Pause.WORKER_LOST
    assert not job.pause.HasField("release_time")
    for said in (condition(job), condition(await shown(plane))):
        assert said is not None
        assert said.reason == reasons.WORKER_OUT_OF_REACH
    async with Agent(plane.address, instance="i") as agent:  # not one word of the attempt: it is gone
        while not job.pause.HasField("release_time"):
            await agent.say()
            await agent.hears()
            job = await plane.get()
    assert job.state == Job.PAUSED
    assert (condition(job), condition(await shown(plane))) == (None, None)
    assert order.token.attempt == job.attempt


async def test_a_job_that_was_queued_and_paused_meanwhile_pauses_truly_when_its_worker_is_back(plane: Replica) -> None:
    """It stayed PAUSED, and the old process trained on."""
    await plane.create()
    async with Agent(plane.address, instance="i") as agent:
        order = await trains(plane, agent)
        await is_cut_off(plane, agent)
    job = await plane.becomes(Job.QUEUED)
    assert condition(job) is not None
    job = await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
    assert job.state == Job.PAUSED
    assert condition(job) is not None
    assert not job.pause.HasField("release_time")
    async with Agent(plane.address, instance="i") as agent:
        await agent.say(status_of(order, epoch=1))
        pausing = await agent.given(JOB, Assignment.PAUSE)
        assert pausing.token == order.token
        assert pausing.generation > order.generation
        job = await plane.get()
        assert (job.state, condition(job)) == (Job.PAUSING, None), "it does not rest: the process lives"
        agent.sequence = 1
        saved = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(2))
        name = checkpoint_of_epoch(2).name
        ended = agent.report(JOB, order.token, exit=Exit(phase=AssignmentStatus.PAUSED, checkpoint=name))
        await agent.say(status_of(pausing, AssignmentStatus.PAUSED, epoch=2), reports=(saved, ended))
        job = await plane.becomes(Job.PAUSED)
    assert (job.pause.checkpoint, job.pause.HasField("release_time"), condition(job)) == (name, True, None)


async def test_an_attempt_that_lives_while_the_next_one_trains_is_told_of_until_it_has_stopped(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address, instance="i") as agent:
        old = await trains(plane, agent)
        await is_cut_off(plane, agent)
    async with Agent(plane.address, name=B) as other:
        await trains(plane, other)
        async with Agent(plane.address, instance="i") as agent:
            await agent.say(status_of(old, epoch=2))
            stop = await agent.given(JOB, Assignment.STOP)
            assert stop.token == old.token
            job, worker = await plane.get(), await shown(plane)
            assert (job.state, job.worker, job.attempt) == (Job.RUNNING, B, 2)
            assert condition(job) is not None
            back = condition(worker)
            assert back is not None
            assert "it is back" in back.message
            assert (await shown(plane, B)).conditions == []
            await agent.say(status_of(stop, AssignmentStatus.STOPPED, epoch=2))
            job = await plane.until(lambda job: condition(job) is None)
            assert (job.state, job.attempt) == (Job.RUNNING, 2)
            assert condition(await shown(plane)) is None


async def test_another_instance_of_the_same_name_confirms_nothing(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address, instance="i") as agent:
        await trains(plane, agent)
        await is_cut_off(plane, agent)
    await plane.becomes(Job.QUEUED)
    async with Agent(plane.address, instance="k") as agent:
        await agent.say()
        await agent.given(JOB)
        assert condition(await plane.get()) is not None
        said = condition(await shown(plane))
        assert said is not None
        assert "out of reach" in said.message


async def test_deleting_the_worker_is_an_operators_word_that_nothing_lives_there(plane: Replica) -> None:
    await plane.create()
    await plane.create("k")
    delete = worker_pb.DeleteWorkerRequest(name=A)
    async with Agent(plane.address, instance="i", cpu_slots=2) as agent:
        await trains(plane, agent)
        await agent.given("jobs/k")
        await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
        with refused(errors.WorkerInUseError):
            await plane.workers.DeleteWorker(delete)
        await is_cut_off(plane, agent)
    await plane.becomes(Job.PAUSED)
    assert condition(await plane.becomes(Job.QUEUED, "jobs/k")) is not None
    await plane.workers.DeleteWorker(delete, metadata=[("adjourn-actor", "ops")])
    for name in (JOB, "jobs/k"):
        assert condition(await plane.get(name)) is None
    assert (await plane.get()).pause.HasField("release_time")
    events = await plane.jobs.ListJobEvents(pb.ListJobEventsRequest(parent=JOB, page_size=100))
    ended = events.events[-1]
    assert (ended.type, ended.actor) == (pb.JobEvent.CONDITION_ENDED, "ops")
    assert "ops deleted workers/a" in ended.message
    with refused(errors.NotFoundError):
        await plane.workers.DeleteWorker(delete)


async def test_a_worker_that_comes_back_as_it_is_deleted_speaks_for_itself(
    plane: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plane.create()
    delete = worker_pb.DeleteWorkerRequest(name=A)
    async with Agent(plane.address, instance="i") as agent:
        await trains(plane, agent)
        await is_cut_off(plane, agent)
    await plane.becomes(Job.QUEUED)

    async def is_back(worker: WorkerName) -> bool:
        return False

    with monkeypatch.context() as patched:
        patched.setattr(plane.store, "forget", is_back)
        with refused(errors.WorkerInUseError):
            await plane.workers.DeleteWorker(delete)
    assert condition(await plane.get()) is not None, "the deletion was refused: nobody has said anything"


async def test_a_deletion_that_was_cut_short_can_be_repeated(plane: Replica) -> None:
    await plane.create()
    async with Agent(plane.address, instance="i") as agent:
        await trains(plane, agent)
        await is_cut_off(plane, agent)
    await plane.becomes(Job.QUEUED)
    assert await plane.store.forget(A)
    assert condition(await plane.get()) is not None
    await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A))
    assert condition(await plane.get()) is None
    with refused(errors.NotFoundError):
        await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A))


async def test_a_second_agent_of_the_name_is_refused_before_anything_is_handed_to_it(plane: Replica) -> None:
    """One attempt was trained by two processes."""
    await plane.create("k")
    async with Agent(plane.address, instance="i", cpu_slots=0) as agent:
        await agent.say()
        await agent.hears()
        async with Agent(plane.address, instance="k") as second:
            await second.say()
            with refused(errors.WorkerNameTakenError):
                await second.ended()
        assert second.heard.empty()
        await plane.worker_is(Worker.ACTIVE)
    await plane.worker_is(Worker.DISCONNECTED)
    async with Agent(plane.address, instance="k") as second:
        await second.say()
        with refused(errors.WorkerNameTakenError):
            await second.ended()
    assert (await plane.get("jobs/k")).attempt == 0


async def test_the_second_agent_of_a_lost_workers_name_takes_over_nothing_of_the_first(plane: Replica) -> None:
    """It has a copy of the first one's journal, and says that it holds the attempt."""
    await plane.create()
    async with Agent(plane.address, instance="i") as first:
        order = await trains(plane, first)
        await is_cut_off(plane, first)
    await plane.becomes(Job.QUEUED)
    await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
    async with Agent(plane.address, instance="k") as second:
        await second.say(status_of(order, epoch=1))
        stop = await second.given(JOB, Assignment.STOP)
        assert stop.token == order.token
        await second.say()
        await second.hears(lambda response: not response.assignments)
        job = await plane.get()
        assert job.state == Job.PAUSED
        assert condition(job) is not None, "the first one may still train"
        async with Agent(plane.address, instance="i") as first:
            await first.say(status_of(order, epoch=2))
            with refused(errors.WorkerNameTakenError):
                await first.ended()
        await is_cut_off(plane, second)
    async with Agent(plane.address, instance="i") as first:
        await first.say(status_of(order, epoch=2))
        assert (await first.given(JOB, Assignment.PAUSE)).token == order.token
        assert condition(await plane.get()) is None


async def succeeded(plane: Replica) -> Assignment:
    """The job rests, and its first attempt, of the instance i, is out of reach for good."""
    await plane.create()
    async with Agent(plane.address, instance="i") as first:
        order = await trains(plane, first)
        await plane.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
        await is_cut_off(plane, first)
    await plane.becomes(Job.PAUSED)
    return order


async def test_an_operator_says_that_a_machine_is_gone_whose_successor_lives(plane: Replica) -> None:
    await succeeded(plane)
    delete = worker_pb.DeleteWorkerRequest(name=A, instance="i")
    async with Agent(plane.address, instance="k") as successor:
        await successor.say()
        await plane.create("of-successor")
        own = await successor.given("jobs/of-successor")
        await successor.say(status_of(own))
        await plane.becomes(Job.RUNNING, "jobs/of-successor")
        for told in (condition(await plane.get()), condition(await shown(plane))):
            assert told is not None
            assert "(instance i)" in told.message
        with refused(errors.WorkerInUseError):
            await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A))
        with refused(errors.WorkerInUseError):
            await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A, instance="k"))
        with refused(errors.InstanceUnknownError) as caught:
            await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A, instance="other"))
        assert caught.error.metadata["instances"] == "i"
        assert condition(await plane.get()) is not None, "nothing was said of the one that it has"

        await plane.workers.DeleteWorker(delete, metadata=[("adjourn-actor", "ops")])
        job = await plane.get()
        assert (condition(job), job.pause.HasField("release_time")) == (None, True)
        assert condition(await shown(plane)) is None
        events = await plane.jobs.ListJobEvents(pb.ListJobEventsRequest(parent=JOB, page_size=100))
        assert "ops deleted the instance i of workers/a" in events.events[-1].message
        with refused(errors.InstanceUnknownError):
            await plane.workers.DeleteWorker(delete)
        await successor.say(status_of(own))
        await plane.worker_is(Worker.ACTIVE)
        assert (await plane.get("jobs/of-successor")).state == Job.RUNNING, "the successor was not touched"


async def test_a_machine_is_said_to_be_gone_though_nobody_has_its_name_any_more(plane: Replica) -> None:
    await succeeded(plane)
    assert await plane.store.forget(A)
    await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A, instance="i"))
    assert condition(await plane.get()) is None
    with refused(errors.NotFoundError):
        await plane.workers.DeleteWorker(worker_pb.DeleteWorkerRequest(name=A, instance="i"))


async def test_what_a_successor_reports_in_the_name_of_the_first_is_not_believed(plane: Replica) -> None:
    """It has a copy of the first one's journal, finds no process, and says how the attempt has ended."""
    order = await succeeded(plane)
    for ending in (
        {"exit": Exit(phase=AssignmentStatus.STOPPED)},
        {"exit": Exit(phase=AssignmentStatus.PAUSED, checkpoint=checkpoint_of_epoch(1).name)},
        {"exit": Exit(phase=AssignmentStatus.FAILED)},
        {"pause": released()},
    ):
        async with Agent(plane.address, instance="k", sequence=10) as successor:
            report = successor.report(JOB, order.token, **ending)
            await successor.say(status_of(order, AssignmentStatus.STOPPED), reports=(report,))
            await successor.hears(lambda response: response.acknowledged_report == 11)
        job = await plane.get()
        assert (job.state, job.pause.HasField("release_time")) == (Job.PAUSED, False)
        assert condition(job) is not None, "the first one may still train"


def released() -> Pause:
    pause = Pause()
    pause.release_time.GetCurrentTime()
    return pause
