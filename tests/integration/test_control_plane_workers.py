"""What operators do with workers, over the wire."""

from adjourn import errors
from adjourn.v1 import worker_service_pb2 as pb
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import WorkerName
from tests.harness.control_planes import Agent, Replica, refused
from tests.harness.store_records import change, created

A = WorkerName("workers/a")


async def test_a_worker_that_is_lost_and_holds_nothing_can_be_deleted(idle_plane: Replica) -> None:
    store, workers = idle_plane.store, idle_plane.workers
    delete = pb.DeleteWorkerRequest(name=A)
    await store.attach(Worker(name=A), "session", "stream")
    await store.heartbeat(Worker(name=A), "stream")
    job = await created(store, "jobs/j", state=Job.RUNNING, worker=A)
    with refused(errors.WorkerInUseError) as caught:
        await workers.DeleteWorker(delete)
    assert caught.error.metadata == {"worker": A, "state": "ACTIVE", "allowed_states": "LOST"}
    session = await store.session(A)
    assert session
    await store.mark_lost(A, session.heartbeat)
    with refused(errors.WorkerInUseError) as caught:
        await workers.DeleteWorker(delete)
    assert "holds 1 jobs" in caught.error.message
    await store.commit(change(job, state=Job.QUEUED, worker=""))
    await workers.DeleteWorker(delete)
    for call, request in ((workers.GetWorker, pb.GetWorkerRequest(name=A)), (workers.DeleteWorker, delete)):
        with refused(errors.NotFoundError):
            await call(request)


async def test_a_name_that_is_none_is_refused(idle_plane: Replica) -> None:
    with refused(errors.InvalidRequestError):
        await idle_plane.workers.DeleteWorker(pb.DeleteWorkerRequest(name="a"))


async def test_a_worker_that_was_deleted_comes_back_as_a_new_one(idle_plane: Replica) -> None:
    async with Agent(idle_plane.address) as agent:
        await agent.say()
        await agent.hears()
        await idle_plane.worker_is(Worker.ACTIVE)
        session = await idle_plane.store.session(A)
        assert session
        await idle_plane.store.mark_lost(A, session.heartbeat)
        await idle_plane.workers.DeleteWorker(pb.DeleteWorkerRequest(name=A))
        with refused(errors.ShuttingDownError):
            await agent.ended()
    async with Agent(idle_plane.address, session=agent.session) as agent:
        await agent.say()
        await agent.hears()
        await idle_plane.worker_is(Worker.ACTIVE)
