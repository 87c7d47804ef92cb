"""CheckpointService: proto <-> domain, nothing else."""

from typing import Any

import grpc

from adjourn import errors
from adjourn.v1 import checkpoint_service_pb2 as pb
from adjourn.v1 import checkpoint_service_pb2_grpc
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn_control_plane.api import validation
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
        check(validation.name("parent", request.parent) | validation.page(request.page_size, request.page_token))
        if await self.store.get(JobName(request.parent)) is None:
            raise errors.NotFoundError(f"there is no {request.parent}", job=request.parent)
        size = validation.page_size(request.page_size)
        skip = int(request.page_token or 0)
        found = await self.store.checkpoints(JobName(request.parent), size=size + 1, skip=skip)
        token = str(skip + size) if len(found) > size else ""
        return pb.ListCheckpointsResponse(checkpoints=found[:size], next_page_token=token)
