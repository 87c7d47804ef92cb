"""CheckpointService: checks requests and reads the store."""

from collections.abc import Sequence
from typing import Any

import grpc

from adjourn import errors
from adjourn.v1 import checkpoint_service_pb2 as pb
from adjourn.v1 import checkpoint_service_pb2_grpc
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn_control_plane.api import pages, validation
from adjourn_control_plane.api.jobs import check
from adjourn_control_plane.store.interface import JobName, JobStore

Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointService(checkpoint_service_pb2_grpc.CheckpointServiceServicer):
    """Shows a job's checkpoints."""

    def __init__(self, store: JobStore) -> None:
        self.store = store

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Context) -> Checkpoint:
        check(validation.checkpoint_name("name", request.name))
        job = JobName(request.name.partition("/checkpoints/")[0])
        found = await self.store.checkpoint(job, request.name)
        if found is None:
            raise errors.NotFoundError(f"there is no {request.name}", checkpoint=request.name)
        return found

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Context) -> pb.ListCheckpointsResponse:
        check(validation.name("parent", request.parent))
        check(pages.violations(request))
        job = JobName(request.parent)
        if await self.store.get(job) is None:
            raise errors.NotFoundError(f"there is no {job}", job=job)
        numbers: dict[str, int] = {"": pages.position(request)}

        async def read(last: Checkpoint | None, count: int) -> Sequence[Checkpoint]:
            before = numbers[last.name if last else ""] or None
            found = await self.store.checkpoints(job, size=count, before=before)
            numbers.update((checkpoint.name, number) for number, checkpoint in found)
            return [checkpoint for _, checkpoint in found]

        checkpoints, more = await pages.filled(pages.size(request), read)
        token = pages.token(request, str(numbers[checkpoints[-1].name])) if more else ""
        return pb.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)
