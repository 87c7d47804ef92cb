"""Agents that fall silent, stores that go away, replicas that share one: no job is lost, none runs twice."""

import asyncio

from adjourn import errors, reasons
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import JobName, WorkerName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.control_planes import Agent, LeaseClock, checkpoint_of_epoch, refused, replica, status_of
from tests.harness.memory_store import MemoryStore

JOB = "jobs/j"


class TestSilence:
    async def test_a_lease_that_runs_out_moves_the_job_and_fences_the_worker(self, memory_store: MemoryStore) -> None:
        clock = LeaseClock()
        async with replica(memory_store, clock=clock) as plane:
            await plane.create()
            async with Agent(plane.address) as agent:
                await agent.say()
                old = await agent.given(JOB)
                durable = agent.report(JOB, old.token, checkpoint=checkpoint_of_epoch(1))
                await agent.say(status_of(old, epoch=1), reports=(durable,))
                await agent.hears(lambda response: response.acknowledged_report == 1)
            await plane.worker_is(Worker.DISCONNECTED)
            with clock.running():
                lost = await plane.becomes(Job.QUEUED)
            assert lost.failure.reason == reasons.WORKER_LOST
            await plane.worker_is(Worker.LOST)
            async with Agent(plane.address, name="workers/b") as other:
                await other.say()
                new = await other.given(JOB)
                assert (new.token.attempt, new.restore.name) == (2, checkpoint_of_epoch(1).name)
                async with Agent(plane.address, session=agent.session, sequence=1) as back:
                    late = back.report(JOB, old.token, checkpoint=checkpoint_of_epoch(2))
                    ended = Exit(phase=AssignmentStatus.SUCCEEDED, checkpoint=checkpoint_of_epoch(2).name)
                    reports = (late, back.report(JOB, old.token, exit=ended))
                    await back.say(status_of(old, epoch=2), reports=reports)
                    assert (await back.given(JOB, Assignment.STOP)).token == old.token
                    await back.hears(lambda response: response.acknowledged_report == back.sequence)
                    await plane.worker_is(Worker.ACTIVE)
                job = await plane.get()
                assert (job.worker, job.latest_checkpoint) == ("workers/b", checkpoint_of_epoch(1).name)

    async def test_an_open_stream_without_a_word_is_silence_too(self, memory_store: MemoryStore) -> None:
        clock = LeaseClock()
        async with replica(memory_store, clock=clock) as plane:
            await plane.create()
            async with Agent(plane.address) as agent:
                await agent.say()
                await agent.given(JOB)
                with clock.running():
                    await plane.becomes(Job.QUEUED)
                await agent.hears(lambda response: not response.assignments)


class TestOutage:
    async def test_the_stream_ends_unavailable_and_the_job_stays_where_it_is(self, memory_store: MemoryStore) -> None:
        async with replica(memory_store) as plane:
            await plane.create()
            async with Agent(plane.address) as agent:
                await agent.say()
                order = await agent.given(JOB)
                await agent.say(status_of(order))
                await plane.becomes(Job.RUNNING)
                memory_store.available = False
                with refused(errors.StoreUnavailableError):
                    await agent.ended()
            async with Agent(plane.address, session=agent.session) as agent:
                await agent.say(status_of(order))
                with refused(errors.StoreUnavailableError):
                    await agent.ended()
            memory_store.available = True
            async with Agent(plane.address, session=agent.session) as agent:
                await agent.say(status_of(order))
                assert (await agent.given(JOB)).token == order.token
            job = await plane.get()
            assert (job.state, job.attempt, job.restart_count) == (Job.RUNNING, 1, 0)

    async def test_a_store_that_has_forgotten_the_worker_sends_nobody_away_for_good(
        self, memory_store: MemoryStore
    ) -> None:
        async with replica(memory_store) as plane:
            async with Agent(plane.address) as agent:
                await agent.say()
                await agent.hears()
                memory_store._sessions.clear()
                with refused(errors.ShuttingDownError):
                    await agent.ended()
            async with Agent(plane.address, session=agent.session) as agent:
                await agent.say()
                await agent.hears()

    async def test_draining_sends_agents_to_another_replica(self, job_store: RedisStore) -> None:
        async with replica(job_store) as other:
            async with replica(job_store) as plane:
                await plane.create()
                agent = await Agent(plane.address).__aenter__()
                await agent.say()
                order = await agent.given(JOB)
            with refused(errors.ShuttingDownError):
                await agent.ended()
            await agent.__aexit__(None, None, None)
            async with Agent(other.address, session=agent.session) as again:
                await again.say(status_of(order))
                assert (await again.given(JOB)).token == order.token
            assert (await other.get()).attempt == 1


class TestTwoReplicas:
    async def test_placing_at_once_they_sell_each_slot_once(self, job_store: RedisStore) -> None:
        async with replica(job_store) as one, replica(job_store) as two:
            agents = Agent(one.address, cpu_slots=2), Agent(two.address, name="workers/b", cpu_slots=3)
            async with agents[0] as a, agents[1] as b:
                await a.say()
                await b.say()
                await a.hears()
                await b.hears()
                await asyncio.gather(*((one, two)[i % 2].create(f"j{i}") for i in range(12)))
                heard = [
                    await a.hears(lambda response: len(response.assignments) >= 2),
                    await b.hears(lambda response: len(response.assignments) >= 3),
                ]
                assert [len(response.assignments) for response in heard] == [2, 3]
                placed = {order.job for response in heard for order in response.assignments}
                assert len(placed) == 5
                queued = await one.jobs.ListJobs(pb.ListJobsRequest(states=[Job.QUEUED]))
                assert len(queued.jobs) == 7
                for worker, slots in (("workers/a", 2), ("workers/b", 3)):
                    allocation = await job_store.allocation(WorkerName(worker))
                    assert len(allocation.jobs) == slots

    async def test_a_change_at_one_reaches_the_agent_at_the_other(self, job_store: RedisStore) -> None:
        async with replica(job_store) as one, replica(job_store) as two:
            await one.create()
            async with Agent(two.address) as agent:
                await agent.say()
                order = await agent.given(JOB)
                await agent.say(status_of(order))
                await one.becomes(Job.RUNNING)
                await one.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
                assert (await agent.given(JOB, Assignment.PAUSE)).generation == 2

    async def test_an_agent_goes_on_at_the_other(self, job_store: RedisStore) -> None:
        async with replica(job_store) as one, replica(job_store) as two:
            await one.create()
            async with Agent(one.address) as agent:
                await agent.say()
                order = await agent.given(JOB)
                first = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(1))
                await agent.say(status_of(order, epoch=1), reports=(first,))
                async with Agent(two.address, session=agent.session, sequence=1) as again:
                    reports = (first, again.report(JOB, order.token, checkpoint=checkpoint_of_epoch(2)))
                    await again.say(status_of(order, epoch=2), reports=reports)
                    await again.hears(lambda response: response.acknowledged_report == 2)
                    with refused(errors.ShuttingDownError):
                        await agent.ended()
            checkpoints = await job_store.checkpoints(JobName(JOB), size=10)
            assert [each.epoch for _, each in checkpoints] == [2, 1]
