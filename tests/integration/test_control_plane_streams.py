"""Streams over the wire: bundles in chunks, watches that go on where they broke off."""

import asyncio
import contextlib
import gzip
import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from adjourn import errors
from adjourn.channel import BUNDLE_LIMIT_BYTES, CHUNK_BYTES, CLIENT_OPTIONS
from adjourn.client import calls
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from adjourn_control_plane.store.interface import JobStore
from tests.harness.control_planes import Replica, creation, refused, replica, to_the_end


@pytest.fixture
def plane(idle_plane: Replica) -> Replica:
    return idle_plane


def packed(**files: bytes) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{name}.py")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


async def in_chunks(data: bytes, size: int = CHUNK_BYTES) -> AsyncIterator[pb.UploadBundleRequest]:
    for start in range(0, len(data), size):
        yield pb.UploadBundleRequest(chunk=data[start : start + size])


class TestBundles:
    async def test_the_same_bytes_have_the_same_name_and_can_be_used(self, plane: Replica) -> None:
        data = packed(train=b"def main(run): ...\n" + os.urandom(3 << 20).hex().encode())
        assert len(data) > CHUNK_BYTES
        bundle = (await plane.jobs.UploadBundle(in_chunks(data))).bundle
        assert (await plane.jobs.UploadBundle(in_chunks(data, size=100_000))).bundle == bundle
        spec = JobSpec(entry_point="train:main", bundle=bundle)
        job = await plane.jobs.CreateJob(pb.CreateJobRequest(job=Job(spec=spec)))
        assert job.spec.bundle == bundle

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"no archive", "not a gzip'ed tar"),
            (gzip.compress(b"no archive inside" * 100), "not a gzip'ed tar"),
            (packed(train=b"x" * 5000)[:-20], "not a gzip'ed tar"),
            (packed(), "no file"),
            (packed(**{"../evil": b""}), "leads out"),
        ],
        ids=["no gzip", "no tar", "cut", "empty", "leads out"],  # an archive has the time in it
    )
    async def test_what_is_no_bundle_is_refused_and_not_stored(self, plane: Replica, data: bytes, why: str) -> None:
        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.UploadBundle(in_chunks(data))
        assert isinstance(caught.error, errors.InvalidRequestError)
        assert why in caught.error.violations["chunk"]
        assert await plane.objects.list("") == {}

    async def test_an_empty_upload_is_refused(self, plane: Replica) -> None:
        with refused(errors.InvalidRequestError):
            await plane.jobs.UploadBundle(in_chunks(b""))

    async def test_too_much_is_refused_on_the_way(self, plane: Replica) -> None:
        sent = 0

        def endless() -> Iterator[pb.UploadBundleRequest]:
            nonlocal sent
            while sent < 4 * BUNDLE_LIMIT_BYTES:
                sent += CHUNK_BYTES
                yield pb.UploadBundleRequest(chunk=b"\0" * CHUNK_BYTES)

        def upload() -> None:  # not by grpc.aio, which may hide the answer to a call that still writes
            with grpc.insecure_channel(plane.address, options=CLIENT_OPTIONS) as channel:
                JobServiceStub(channel).UploadBundle(endless())

        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(upload)
        error = calls.typed(caught.value, plane.address)
        assert isinstance(error, errors.InvalidRequestError)
        assert str(BUNDLE_LIMIT_BYTES) in error.message
        assert sent < 3 * BUNDLE_LIMIT_BYTES

    async def test_a_refusal_reaches_a_caller_that_still_writes(self, plane: Replica) -> None:
        """grpc.aio shows such a caller "Internal error from Core" if the call ends before it has written all."""
        for _ in range(8):
            with refused(errors.InvalidRequestError) as caught:
                await plane.jobs.UploadBundle(in_chunks(b"\0" * (20 * CHUNK_BYTES), size=CHUNK_BYTES + 1))
            assert str(CHUNK_BYTES) in caught.error.message

    async def test_a_chunk_has_a_limit(self, plane: Replica) -> None:
        with refused(errors.InvalidRequestError) as caught:
            await plane.jobs.UploadBundle(in_chunks(b"\0" * (CHUNK_BYTES + 1), size=CHUNK_BYTES + 1))
        assert str(CHUNK_BYTES) in caught.error.message


class TestWatching:
    async def test_it_goes_on_where_it_broke_off(self, plane: Replica) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/j"]))
        assert (await watch.read()).job.state == Job.QUEUED
        token = (await watch.read()).resume_token
        assert token
        watch.cancel()
        await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest(names=["jobs/j"], resume_token=token))
        response = await watch.read()
        assert (response.job.state, bool(response.resume_token)) == (Job.PAUSED, True)
        await plane.jobs.CancelJob(pb.CancelJobRequest(name="jobs/j"))
        assert (await watch.read()).job.state == Job.CANCELLED
        await plane.jobs.DeleteJob(pb.DeleteJobRequest(name="jobs/j"))
        assert (await watch.read()).deleted == "jobs/j"
        watch.cancel()

    async def test_it_goes_on_at_another_replica(self, plane: Replica, redis_url: str) -> None:
        await plane.jobs.CreateJob(creation(name="j"))
        watch = plane.jobs.WatchJobs(pb.WatchJobsRequest())
        await watch.read()
        token = (await watch.read()).resume_token
        watch.cancel()
        async with replica(plane.store, controllers=False) as other:
            watch = other.jobs.WatchJobs(pb.WatchJobsRequest(resume_token=token))
            assert not (await watch.read()).HasField("job"), "nothing has changed, and it is live"
            await plane.jobs.PauseJob(pb.PauseJobRequest(name="jobs/j"))
            assert (await watch.read()).job.state == Job.PAUSED
            watch.cancel()


async def test_draining_ends_streams_with_a_reason_to_come_back(memory_store: JobStore) -> None:
    async with contextlib.AsyncExitStack() as outliving:
        async with replica(memory_store, controllers=False) as plane:
            # The caller's channel outlives the replica: one that closes with it would end the stream itself.
            channel = await outliving.enter_async_context(grpc.aio.insecure_channel(plane.address))
            watch = JobServiceStub(channel).WatchJobs(pb.WatchJobsRequest())
            await watch.read()
            ending = asyncio.create_task(drained(watch))
        assert isinstance(await ending, errors.ShuttingDownError)


async def drained(watch: Any) -> errors.AdjournError:
    with refused(errors.ShuttingDownError) as caught:
        await to_the_end(watch)
    return caught.error
