"""CheckpointService: checks requests and reads the store."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1 import checkpoint_service_pb2 as pb
from adjourn.v1 import checkpoint_service_pb2_grpc
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn_control_plane.api import pages, validation
from adjourn_control_plane.api.identity import actor
from adjourn_control_plane.api.jobs import check
from adjourn_control_plane.api.reads import Reads
from adjourn_control_plane.api.sending import SILENCE_SECONDS, send
from adjourn_control_plane.job import retention
from adjourn_control_plane.job.transition import Decision
from adjourn_control_plane.job.updater import JobUpdater, now
from adjourn_control_plane.store.interface import JobName, JobStore

Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointService(checkpoint_service_pb2_grpc.CheckpointServiceServicer):
    """Shows a job's checkpoints, and what is in them."""

    def __init__(self, store: JobStore, updater: JobUpdater, reads: Reads, *, silence: float = SILENCE_SECONDS) -> None:
        self.store = store
        self.updater = updater
        self.reads = reads
        self.silence = silence

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Context) -> Checkpoint:
        check(validation.checkpoint_name("name", request.name))
        return retention.shown(await self.record(job_of(request.name)), await self.registered(request.name))

    async def registered(self, name: str) -> Checkpoint:
        """Returns a checkpoint as it is stored; raises NotFoundError."""
        found = await self.store.checkpoint(job_of(name), name)
        if found is None:
            raise errors.NotFoundError(f"there is no {name}", checkpoint=name)
        return found

    async def record(self, job: JobName) -> JobRecord:
        """Returns the record of a job; raises NotFoundError."""
        stored = await self.store.get(job)
        if stored is None:
            raise errors.NotFoundError(f"there is no {job}", job=job)
        return stored.record

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        check(validation.name("parent", request.parent))
        check(pages.violations(request))
        job = JobName(request.parent)
        record = await self.record(job)
        numbers: dict[str, int] = {"": pages.position(request)}

        async def read(last: Checkpoint | None, count: int) -> Sequence[Checkpoint]:
            before = numbers[last.name if last else ""] or None
            found = await self.store.checkpoints(job, size=count, before=before)
            numbers.update((checkpoint.name, number) for number, checkpoint in found)
            return [retention.shown(record, checkpoint) for _, checkpoint in found]

        checkpoints, more = await pages.filled(pages.size(request), read)
        token = pages.token(request, str(numbers[checkpoints[-1].name])) if more else ""
        return pb.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)

    async def PinCheckpoint(self, request: pb.PinCheckpointRequest, context: Context) -> Checkpoint:
        check(validation.checkpoint_name("name", request.name) | validation.text("reason", request.reason))
        decide = partial(retention.pinned, actor=actor(context), reason=request.reason)
        return await self.change(request.name, decide)

    async def UnpinCheckpoint(self, request: pb.UnpinCheckpointRequest, context: Context) -> Checkpoint:
        check(validation.checkpoint_name("name", request.name))
        return await self.change(request.name, partial(retention.unpinned, actor=actor(context)))

    async def change(self, name: str, decide: Callable[..., Decision | None]) -> Checkpoint:
        """Changes the job of a checkpoint, and returns the checkpoint as it then is."""
        changed = await self.updater.change_checkpoint(
            job_of(name), name, lambda record, checkpoint: decide(record, checkpoint.name, now=now())
        )
        return retention.shown(*changed)

    async def ReadCheckpoint(  # type: ignore[override]  # the generated type has generators only
        self, request: pb.ReadCheckpointRequest, context: grpc.aio.ServicerContext[Any, pb.ReadCheckpointResponse]
    ) -> None:
        check(validation.checkpoint_name("name", request.name))
        checkpoint = await self.registered(request.name)
        try:
            with self.reads.turn():
                async with aclosing(self.reads.chunks(checkpoint, request.file, request.offset)) as chunks:
                    async for chunk in chunks:
                        await send(context, pb.ReadCheckpointResponse(data=chunk), self.silence)
        except errors.CheckpointDamagedError:
            await self.registered(request.name)  # with its job, it may have been deleted meanwhile
            raise


def job_of(checkpoint: str) -> JobName:
    """Returns the job that a checkpoint belongs to, by name."""
    return JobName(checkpoint.partition("/checkpoints/")[0])
