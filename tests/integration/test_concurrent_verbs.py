"""Many callers at once, at two replicas on one real store: what they ask for happens once, and the last word counts."""

import asyncio
from collections import Counter

from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1 import worker_service_pb2 as worker_pb
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Exit
from adjourn.v1.job_pb2 import Hold, Job, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.control_planes import Agent, checkpoint_of_epoch, replica, status_of

JOB = "jobs/j"
CALLS = 100


async def happened(store: RedisStore) -> Counter[JobEvent.Type.ValueType]:
    return Counter(event.type for event in await store.events(JobName(JOB), after=0, size=1000))


async def test_a_hundred_pauses_are_one_and_a_hundred_resumes_start_one_attempt(job_store: RedisStore) -> None:
    async with replica(job_store) as one, replica(job_store) as two:
        await one.create()
        async with Agent(two.address) as agent:
            await agent.say()
            order = await agent.given(JOB)
            await agent.say(status_of(order))
            await one.becomes(Job.RUNNING)
            pauses = [(one, two)[i % 2].jobs.PauseJob(pb.PauseJobRequest(name=JOB)) for i in range(CALLS)]
            answers = await asyncio.gather(*pauses)
            assert {(job.state, job.pause.request_time.ToNanoseconds()) for job in answers} == {
                (Job.PAUSING, answers[0].pause.request_time.ToNanoseconds())
            }
            assert (await happened(job_store))[JobEvent.PAUSE_REQUESTED] == 1
            paused = await agent.given(JOB, Assignment.PAUSE)
            assert paused.generation == order.generation + 1
            saved = agent.report(JOB, order.token, checkpoint=checkpoint_of_epoch(1))
            left = Exit(phase=AssignmentStatus.PAUSED, checkpoint=checkpoint_of_epoch(1).name)
            await agent.say(reports=(saved, agent.report(JOB, order.token, exit=left)))
            await one.becomes(Job.PAUSED)
            resumes = [(one, two)[i % 2].jobs.ResumeJob(pb.ResumeJobRequest(name=JOB)) for i in range(CALLS)]
            resumed = await asyncio.gather(*resumes)
            assert {job.state for job in resumed} <= {Job.QUEUED, Job.STARTING}
            again = await agent.given(JOB, Assignment.RUN)
            assert again.token.attempt == 2
            job = await one.get()
            assert (job.attempt, len(job.past_pauses)) == (2, 0)
            told = await happened(job_store)
            assert (told[JobEvent.RESUME_REQUESTED], told[JobEvent.PLACED]) == (1, 2)


async def test_two_hundred_commands_in_turn_end_where_the_last_one_says(job_store: RedisStore) -> None:
    async with replica(job_store) as one, replica(job_store) as two:
        await one.create()
        async with Agent(two.address) as agent:
            await agent.say()
            order = await agent.given(JOB)
            await agent.say(status_of(order))
            await one.becomes(Job.RUNNING)
            for i in range(CALLS):
                await (one, two)[i % 2].jobs.PauseJob(pb.PauseJobRequest(name=JOB))
                await (two, one)[i % 2].jobs.ResumeJob(pb.ResumeJobRequest(name=JOB))
            job = await two.get()
            assert (job.state, job.attempt, list(job.holds)) == (Job.RUNNING, 1, [])
            newest = order.generation + 2 * CALLS
            await agent.hears(lambda response: [each.generation for each in response.assignments] == [newest])
            last = await one.jobs.PauseJob(pb.PauseJobRequest(name=JOB))
            assert last.state == Job.PAUSING
            assert (await agent.given(JOB, Assignment.PAUSE)).generation == newest + 1
            told = await happened(job_store)
            assert (told[JobEvent.PAUSE_REQUESTED], told[JobEvent.RESUME_REQUESTED]) == (CALLS + 1, CALLS)


async def test_a_drain_at_one_replica_reaches_the_agent_at_the_other(job_store: RedisStore) -> None:
    async with replica(job_store) as one, replica(job_store) as two:
        await one.create()
        async with Agent(two.address) as agent:
            await agent.say()
            order = await agent.given(JOB)
            await agent.say(status_of(order))
            await one.becomes(Job.RUNNING)
            request = worker_pb.DrainWorkerRequest(name="workers/a", reason="new disk")
            drained = await one.workers.DrainWorker(request)
            assert (drained.state, drained.drain.reason) == (Worker.DRAINING, "new disk")
            await agent.given(JOB, Assignment.PAUSE)
            pausing = await one.get()
            assert (pausing.state, pausing.pause.cause) == (Job.PAUSING, Pause.DRAINED)
            assert (
                await one.workers.DrainWorker(worker_pb.DrainWorkerRequest(name="workers/a"))
            ).drain == drained.drain
            back = await two.workers.UndrainWorker(worker_pb.UndrainWorkerRequest(name="workers/a"))
            assert (back.state, back.HasField("drain")) == (Worker.ACTIVE, False)
            assert (await agent.given(JOB, Assignment.RUN)).generation == order.generation + 2


async def test_jobs_are_held_and_released_over_the_wire(job_store: RedisStore) -> None:
    async with replica(job_store, controllers=False) as plane:
        for name in ("j", "k"):
            await plane.create(name)
        held = await plane.jobs.HoldJobs(pb.HoldJobsRequest(all=True, reason="power"))
        assert [(each.job, each.state, each.changed) for each in held.jobs] == [
            (JOB, Job.PAUSED, True),
            ("jobs/k", Job.PAUSED, True),
        ]
        job = await plane.get()
        assert [(hold.kind, hold.reason) for hold in job.holds] == [(Hold.OPERATOR, "power")]
        released = await plane.jobs.ReleaseJobs(pb.ReleaseJobsRequest(names=[JOB]))
        assert [(each.job, each.state) for each in released.jobs] == [(JOB, Job.QUEUED)]
