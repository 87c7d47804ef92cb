"""WorkerService: proto <-> domain, nothing else."""

import contextlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import empty_pb2

from adjourn import errors
from adjourn.v1 import worker_service_pb2 as pb
from adjourn.v1 import worker_service_pb2_grpc
from adjourn.v1.worker_pb2 import Drain, Worker
from adjourn_control_plane.api import pages, validation
from adjourn_control_plane.api.identity import actor
from adjourn_control_plane.api.jobs import check
from adjourn_control_plane.fleet.worker_state import release_condition, state
from adjourn_control_plane.job.events import ReleaseConfirmed
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.store.interface import JobStore, Session, Unconfirmed, WorkerName

Context = grpc.aio.ServicerContext[Any, Any]


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    """Shows workers."""

    def __init__(self, store: JobStore, updater: JobUpdater) -> None:
        self.store = store
        self.updater = updater

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
        if session.drain is not None:
            worker.drain.CopyFrom(session.drain)
        unconfirmed = await self.store.unconfirmed(WorkerName(worker.name))
        if (condition := release_condition(session, unconfirmed)) is not None:
            worker.conditions.append(condition)
        return worker

    async def DrainWorker(self, request: pb.DrainWorkerRequest, context: Context) -> Worker:
        await self.session(request.name)
        check(validation.text("reason", request.reason))
        drain = Drain(actor=actor(context), reason=request.reason)
        drain.time.GetCurrentTime()
        return await self.ordered(WorkerName(request.name), drain)

    async def UndrainWorker(self, request: pb.UndrainWorkerRequest, context: Context) -> Worker:
        await self.session(request.name)
        return await self.ordered(WorkerName(request.name), None)

    async def ordered(self, worker: WorkerName, drain: Drain | None) -> Worker:
        """Keeps an order, or removes it; the stream of the worker's agent sees to its jobs (`AgentSession.drained`)."""
        await self.store.order_drain(worker, drain)
        return await self.to_public(await self.session(worker))

    async def DeleteWorker(self, request: pb.DeleteWorkerRequest, context: Context) -> empty_pb2.Empty:
        check(validation.name("name", request.name, "workers"))
        check(validation.text("instance", request.instance))
        name = WorkerName(request.name)
        if request.instance:
            await self.delete_instance(name, request.instance, context)
            return empty_pb2.Empty()
        if not await self.store.unconfirmed(name):  # else a call before this one did not get to them
            await self.session(name)
        if not await self.store.forget(name):
            worker = await self.to_public(await self.session(name))
            raise errors.WorkerInUseError(
                f"{request.name} is {Worker.State.Name(worker.state)} and holds {len(worker.jobs)} jobs; "
                "only a worker that is LOST and holds none can be deleted",
                worker=request.name,
                state=Worker.State.Name(worker.state),
                allowed_states=Worker.State.Name(Worker.LOST),
            )
        left = await self.store.unconfirmed(name)
        await self.confirm(left, f"deleted {name}: its machine is gone", context)  # not before: it may be back
        await self.store.forget(name)  # again, for what the confirmations have written of it
        return empty_pb2.Empty()

    async def delete_instance(self, name: WorkerName, instance: str, context: Context) -> None:
        """Takes the caller's word that nothing of an earlier instance lives; the one that has the name now stays."""
        left = await self.store.unconfirmed(name)
        session = await self.store.session(name) if left else await self.session(name)
        if session is not None and session.worker.instance == instance:
            raise errors.WorkerInUseError(
                f"{name} has the instance {instance} now; once it is LOST, delete the worker without `instance`",
                worker=name,
                state=Worker.State.Name(state(session, busy=True)),
                allowed_states=Worker.State.Name(Worker.LOST),
            )
        its_own = [each for each in left if each.entry.instance == instance]
        if not its_own:
            instances = ", ".join(sorted({each.entry.instance for each in left} - {""}))
            raise errors.InstanceUnknownError(
                f"no attempt is unconfirmed on the instance {instance} of {name}; unconfirmed are those of "
                f"{instances or 'none'}",
                worker=name,
                instance=instance,
                instances=instances,
            )
        await self.confirm(its_own, f"deleted the instance {instance} of {name}: its machine is gone", context)

    async def confirm(self, left: Sequence[Unconfirmed], why: str, context: Context) -> None:
        """Takes the caller's word that attempts live no more."""
        caller = actor(context)
        for each in left:
            event = ReleaseConfirmed(actor=caller, token=each.entry.token, message=f"{caller} {why}")
            with contextlib.suppress(errors.NotFoundError):  # the job was deleted meanwhile
                await self.updater.apply(each.job, event)

    async def session(self, name: str) -> Session:
        """Returns what is known of a worker; raises InvalidRequestError, NotFoundError."""
        check(validation.name("name", name, "workers"))
        session = await self.store.session(WorkerName(name))
        if session is None:
            raise errors.NotFoundError(f"there is no {name}", worker=name)
        return session
