"""The asynchronous client against a scripted control plane, over real connections."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from adjourn import AsyncClient, errors
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent, StreamLogsResponse
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

NOWHERE = "127.0.0.1:1"


async def test_the_asynchronous_client_makes_the_same_calls(plane: "Plane") -> None:
    plane.epochs = [EpochMetrics(epoch=number) for number in range(1, 6)]
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1")]
    plane.workers = [Worker(name="workers/1")]
    plane.events = [JobEvent(sequence=number) for number in range(1, 6)]
    async with AsyncClient(plane.address) as client:
        job = await client.create_job(JobSpec(entry_point="m:f"), job_id="x")
        assert await client.get_job("x") == job
        assert await client.pause_job("x") == await client.resume_job("x") == job
        assert [each.name async for each in client.list_jobs()] == ["jobs/x"]
        assert [each async for each in client.list_epoch_metrics("x")] == plane.epochs
        assert [each async for each in client.list_checkpoints("x")] == plane.checkpoints
        assert [each async for each in client.list_workers()] == plane.workers
        assert [each async for each in client.list_job_events("x")] == plane.events
        assert (await client.update_job("x", labels={"a": "b"})).labels == {"a": "b"}
        assert await client.get_worker("1") == plane.workers[0]
        assert await client.get_checkpoint("x/1") == plane.checkpoints[0]
        assert await client.upload_bundle(bytes(7)) == f"bundles/{7:064x}"
        assert (await client.cancel_job("x")).state == Job.CANCELLING
        await client.delete_job("x")
        await client.delete_worker("1")
    assert plane.jobs == {}
    assert plane.workers == []


async def test_the_asynchronous_client_raises_the_same_errors(plane: "Plane") -> None:
    plane.failures["UploadBundle"] = [errors.InvalidRequestError({"chunk": "is no archive"})]
    async with AsyncClient(plane.address) as client:
        with pytest.raises(errors.NotFoundError, match="there is no jobs/x"):
            await client.get_job("x")
        with pytest.raises(errors.InvalidRequestError):
            await client.upload_bundle(b"x")
    async with AsyncClient(NOWHERE) as client:
        with pytest.raises(errors.ControlPlaneUnreachableError, match=f"at {NOWHERE}"):
            await client.get_job("x")


async def test_the_asynchronous_watch_goes_on_where_its_stream_broke(plane: "Plane") -> None:
    plane.streams = [
        [plane.change(Job.RUNNING, token="1"), errors.ShuttingDownError("bye")],
        [plane.change(Job.PAUSED, token="2")],
    ]
    async with AsyncClient(plane.address) as client:
        changes = client.watch_jobs(names=["x"])
        assert [(await anext(changes)).job.state, (await anext(changes)).job.state] == [Job.RUNNING, Job.PAUSED]
        await changes.aclose()
    assert plane.tokens == ["", "1"]


async def test_the_asynchronous_log_goes_on_where_its_stream_broke(plane: "Plane") -> None:
    plane.printed = [
        StreamLogsResponse(attempt=1, data=b"one", next_offset=3),
        StreamLogsResponse(attempt=1, offset=3, data=b"two", next_offset=6),
    ]
    plane.failures["StreamLogs"] = [errors.ShuttingDownError("bye")]
    async with AsyncClient(plane.address) as client:
        assert [message.data async for message in client.stream_logs("x")] == [b"one", b"two"]


async def test_the_asynchronous_wait(plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [
        [plane.change(Job.RUNNING, token="1"), plane.change(Job.PAUSED, token="2")],
        [plane.change(Job.FAILED, token="3")],
    ]
    async with AsyncClient(plane.address) as client:
        assert (await client.wait_job("x", until=[Job.PAUSED], timeout=30)).state == Job.PAUSED
        with pytest.raises(errors.JobFinishedError):
            await client.wait_job("x", until=[Job.PAUSED], timeout=30)
        with pytest.raises(errors.DeadlineError, match="did not come"):
            await client.wait_job("x", timeout=0.2)


async def test_a_cancelled_wait_is_cancelled(plane: "Plane") -> None:
    plane.add("x")
    async with AsyncClient(plane.address) as client:
        waiting = asyncio.create_task(client.wait_job("x"))
        assert await asyncio.to_thread(plane.watched.wait, 30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
