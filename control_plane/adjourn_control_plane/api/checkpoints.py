"""CheckpointService: proto <-> domain, nothing else."""

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
        start = int(pages.cursor(request) or 0)
        shown: dict[str, int] = {"": start}

        async def read(last: Checkpoint | None, count: int) -> Sequence[Checkpoint]:
            skip = shown[last.name if last else ""]
            found = await self.store.checkpoints(job, size=count, skip=skip)
            shown.update((checkpoint.name, skip + place) for place, checkpoint in enumerate(found, start=1))
            return found

        checkpoints, more = await pages.filled(pages.size(request), read)
        token = pages.token(request, str(shown[checkpoints[-1].name])) if more else ""
        return pb.ListCheckpointsResponse(checkpoints=checkpoints, next_page_token=token)
