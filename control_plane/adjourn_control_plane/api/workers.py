"""WorkerService: proto <-> domain, nothing else."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import empty_pb2

from adjourn import errors
from adjourn.v1 import worker_service_pb2 as pb
from adjourn.v1 import worker_service_pb2_grpc
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.api import pages, validation
from adjourn_control_plane.api.jobs import check
from adjourn_control_plane.fleet.worker_state import state
from adjourn_control_plane.store.interface import JobStore, Session, WorkerName

Context = grpc.aio.ServicerContext[Any, Any]


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    """Shows workers."""

    def __init__(self, store: JobStore) -> None:
        self.store = store

    async def GetWorker(self, request: pb.GetWorkerRequest, context: Context) -> Worker:
        return await self.to_public(await self.session(request.name))

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        check(pages.violations(request))
        sessions = await self.store.sessions()
        names = [session.worker.name for session in sessions]
        start = pages.cursor(request)

        async def read(last: Worker | None, count: int) -> Sequence[Worker]:
            first = bisect_right(names, last.name if last else start)
            return [await self.to_public(session) for session in sessions[first : first + count]]

        workers, more = await pages.filled(pages.size(request), read)
        token = pages.token(request, workers[-1].name) if more else ""
        return pb.ListWorkersResponse(workers=workers, next_page_token=token)

    async def to_public(self, session: Session) -> Worker:
        """Returns the worker as callers see it."""
        worker = Worker()
        worker.CopyFrom(session.worker)
        allocation = await self.store.allocation(WorkerName(worker.name))
        worker.jobs.extend(sorted(stored.record.job.name for stored in allocation.jobs))
        worker.report_time.FromNanoseconds(session.report_time_ns)
        worker.state = state(session, busy=bool(worker.jobs))
        return worker

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> Worker:
        raise errors.NotImplementedYetError("DrainWorker is not served yet")

    async def UndrainWorker(self, request: pb.UndrainWorkerRequest, context: Context) -> Worker:
        raise errors.NotImplementedYetError("UndrainWorker is not served yet")

    async def DeleteWorker(self, request: pb.DeleteWorkerRequest, context: Context) -> empty_pb2.Empty:
        session = await self.session(request.name)
        if not await self.store.forget(WorkerName(request.name)):
            worker = await self.to_public(session)
            raise errors.WorkerInUseError(
                f"{request.name} is {Worker.State.Name(worker.state)} and holds {len(worker.jobs)} jobs; "
                "only a worker that is LOST and holds none can be deleted",
                worker=request.name,
                state=Worker.State.Name(worker.state),
                allowed_states=Worker.State.Name(Worker.LOST),
            )
        return empty_pb2.Empty()

    async def session(self, name: str) -> Session:
        """Returns what is known of a worker; raises InvalidRequestError, NotFoundError."""
        check(validation.name("name", name, "workers"))
        session = await self.store.session(WorkerName(name))
        if session is None:
            raise errors.NotFoundError(f"there is no {name}", worker=name)
        return session
