"""The client for programs with an event loop."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from adjourn.channel import CLIENT_OPTIONS
from adjourn.client import calls, requests
from adjourn.client.watching import ENDED, EventWatch, Following, Logs, Read, Until, Wait, Watch
from adjourn.errors import AdjournError, DeadlineError
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import (
    HoldOutcome,
    JobEvent,
    StreamLogsResponse,
    WatchEventsResponse,
    WatchJobsResponse,
)
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn.v1.worker_service_pb2_grpc import WorkerServiceStub

RequestT = TypeVar("RequestT")
MessageT = TypeVar("MessageT")
ResponseT = TypeVar("ResponseT")
PageRequestT = TypeVar("PageRequestT", bound=calls.Paged)
PageT = TypeVar("PageT", bound=calls.Page)


class AsyncClient:
    """Talks to a control plane. Belongs to the event loop in which it was made.

    Until it is closed, methods raise classes of `adjourn.errors`. Close it, or use it in an `async with` statement.
    """

    def __init__(self, address: str | None = None, *, timeout: float = calls.CALL_SECONDS) -> None:
        """Connects when first used; `timeout` is for each call that is answered once, in seconds.

        `address`: of the control plane, `host:port`; None: as the variable ADJOURN_ADDRESS says, else 127.0.0.1:7400.
        """
        self.address = address or calls.default_address()
        self._timeout = timeout
        self._caller = calls.caller()
        self.channel = grpc.aio.insecure_channel(self.address, options=CLIENT_OPTIONS)
        """For calls that none of the methods makes."""
        self._jobs = JobServiceStub(self.channel)
        self._checkpoints = CheckpointServiceStub(self.channel)
        self._workers = WorkerServiceStub(self.channel)

    async def aclose(self) -> None:
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def create_job(
        self, spec: JobSpec, *, job_id: str = "", labels: Mapping[str, str] | None = None, request_id: str = ""
    ) -> Job:
        """Queues a new job; an empty `job_id` is filled in.

        Raises InvalidRequestError, AlreadyExistsError, and BundleMissingError: upload the code again.
        """
        request = requests.create_job(spec, job_id=job_id, labels=labels, request_id=request_id)
        return await self._call(self._jobs.CreateJob, request)

    async def get_job(self, name: str) -> Job:
        return await self._call(self._jobs.GetJob, requests.get_job(name))

    async def list_jobs(
        self, *, states: Iterable[Job.State.ValueType] = (), labels: Mapping[str, str] | None = None
    ) -> AsyncIterator[Job]:
        """Yields every matching job, newest first, fetching pages as they are needed."""
        async for page in self._pages(self._jobs.ListJobs, requests.list_jobs(states, labels)):
            for item in page.jobs:
                yield item

    async def pause_job(
        self,
        name: str,
        *,
        mode: PauseMode.ValueType = PauseMode.EPOCH,
        reason: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> Job:
        """Asks for a pause: after the running EPOCH, after the running STEP, or now, at the LATEST checkpoint.

        A pause under way becomes earlier if `mode` is, never later. `pause` of the answer has the predicted times; in
        mode EPOCH, if the worker could tell within a second, `boundary_epoch`, where training pauses for certain; in
        mode LATEST `lost_steps` and `lost_duration`, what is given up by what is known now.

        Raises JobFinishedError, JobCancellingError, JobNotPausableError, and in mode LATEST NoCheckpointError.
        """
        request = requests.pause_job(name, mode=mode, reason=reason, etag=etag, request_id=request_id)
        return await self._call(self._jobs.PauseJob, request)

    async def resume_job(self, name: str, *, allow_inexact: bool = False, etag: str = "", request_id: str = "") -> Job:
        """Resumes a paused job, takes back a pause, or restarts a job that FAILED or was CANCELLED.

        Raises JobNotPausedError, JobFinishedError, JobCancellingError, NoCheckpointError.
        """
        request = requests.resume_job(name, allow_inexact=allow_inexact, etag=etag, request_id=request_id)
        return await self._call(self._jobs.ResumeJob, request)

    async def cancel_job(
        self,
        name: str,
        *,
        save_checkpoint: bool = False,
        mode: PauseMode.ValueType = PauseMode.PAUSE_MODE_UNSPECIFIED,
        reason: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> Job:
        """Stops a job for good: now or, with `save_checkpoint`, at its next boundary, with a last checkpoint.

        `mode`: which boundary, EPOCH if it is left out, or STEP. Raises JobFinishedError, JobNotPausableError.
        """
        request = requests.cancel_job(
            name, save_checkpoint=save_checkpoint, mode=mode, reason=reason, etag=etag, request_id=request_id
        )
        return await self._call(self._jobs.CancelJob, request)

    async def update_job(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        max_restarts: int | None = None,
        total_epochs: int | None = None,
        etag: str = "",
        request_id: str = "",
    ) -> Job:
        """Changes what is given; `labels` replaces all labels.

        `total_epochs` can only grow, and only while no worker has the job: a training process learns it when it starts.
        Raises InvalidRequestError, JobFinishedError, JobCancellingError, JobHeldByWorkerError.
        """
        request = requests.update_job(
            name,
            labels=labels,
            max_restarts=max_restarts,
            total_epochs=total_epochs,
            etag=etag,
            request_id=request_id,
        )
        return await self._call(self._jobs.UpdateJob, request)

    async def hold_jobs(
        self,
        names: Iterable[str] = (),
        *,
        labels: Mapping[str, str] | None = None,
        all_jobs: bool = False,
        mode: PauseMode.ValueType = PauseMode.EPOCH,
        reason: str = "",
        dry_run: bool = False,
    ) -> list[HoldOutcome]:
        """Adds the OPERATOR hold to the jobs that are named, that carry all labels, or that do both; or to all.

        `mode` is that of `pause_job`. Returns what became of each, or with `dry_run` would become. Raises
        InvalidRequestError.
        """
        request = requests.hold_jobs(names, labels=labels, all_jobs=all_jobs, mode=mode, reason=reason, dry_run=dry_run)
        return list((await self._call(self._jobs.HoldJobs, request)).jobs)

    async def release_jobs(
        self,
        names: Iterable[str] = (),
        *,
        labels: Mapping[str, str] | None = None,
        all_jobs: bool = False,
        dry_run: bool = False,
    ) -> list[HoldOutcome]:
        """Removes the OPERATOR hold from the jobs that `hold_jobs` would choose; returns what became of each."""
        request = requests.release_jobs(names, labels=labels, all_jobs=all_jobs, dry_run=dry_run)
        return list((await self._call(self._jobs.ReleaseJobs, request)).jobs)

    async def delete_job(self, name: str, *, etag: str = "", request_id: str = "") -> None:
        """Deletes a job that has ended, with its checkpoints. Raises JobNotFinishedError."""
        await self._call(self._jobs.DeleteJob, requests.delete_job(name, etag=etag, request_id=request_id))

    def watch_jobs(
        self,
        *,
        names: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        resume_token: str = "",
        patience: float = calls.PATIENCE_SECONDS,
        timeout: float | None = None,
    ) -> AsyncGenerator[WatchJobsResponse, None]:
        """Yields each matching job once, then its newest state after every change; `deleted` names a job that is gone.

        Never ends by itself. Reconnects and misses nothing; raises when the control plane is away for `patience`
        seconds, and DeadlineError after `timeout` seconds.
        """
        request = requests.watch_jobs(names, labels, resume_token)
        return self._followed(self._jobs.WatchJobs, Watch(request, patience=patience, timeout=timeout))

    async def wait_job(
        self,
        name: str,
        *,
        until: Until = ENDED,
        timeout: float | None = None,  # noqa: ASYNC109 - becomes the stream's deadline: reads must not be cut short
    ) -> Job:
        """Returns the job as soon as it is in one of the states `until`, or as that predicate accepts it.

        Raises JobFinishedError if it ends otherwise, DeadlineError after `timeout` seconds.
        """
        wait = Wait(requests.job_name(name), until, timeout)
        watch = Watch(requests.watch_jobs([name], None, ""), patience=calls.PATIENCE_SECONDS, timeout=timeout)
        job = await self.get_job(name)  # an unknown name is an error now, not a long wait
        if wait.met(job):
            return job
        with suppress(DeadlineError):
            async with aclosing(self._followed(self._jobs.WatchJobs, watch)) as changes:
                async for change in changes:
                    if wait.changed(change):
                        return change.job
        raise wait.expired()

    def stream_logs(
        self,
        name: str,
        *,
        attempt: int = 0,
        offset: int = 0,
        tail_lines: int | None = None,
        follow: bool = False,
        patience: float = calls.PATIENCE_SECONDS,
    ) -> AsyncGenerator[StreamLogsResponse, None]:
        """Yields what an attempt of a job has printed, piece by piece; 0: the newest attempt.

        Begins at byte `offset`, or `tail_lines` before the end. With `follow` it goes on with what is printed from then
        on, and with the attempts that follow, until the job has ended. `data` is bytes: a character may go on in the
        next piece. Reconnects, misses nothing and repeats nothing; raises when the control plane is away for `patience`
        seconds.
        """
        request = requests.stream_logs(name, attempt=attempt, offset=offset, tail_lines=tail_lines, follow=follow)
        return self._followed(self._jobs.StreamLogs, Logs(request, patience=patience))

    def watch_events(
        self,
        *,
        names: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        types: Iterable[JobEvent.Type.ValueType] = (),
        resume_token: str = "",
        tokens: bool = False,
        patience: float = calls.PATIENCE_SECONDS,
    ) -> AsyncGenerator[WatchEventsResponse, None]:
        """Yields what happens to matching jobs, each event once: from now on, or from a token.

        With `tokens` also the messages that have a token alone: the first says from where on nothing is left out, later
        ones that nothing matching has happened. Never ends by itself. Reconnects and misses nothing, unless `gap` says
        so; raises when the control plane is away for `patience` seconds.
        """
        request = requests.watch_events(names, labels, types, resume_token)
        watch = EventWatch(request, tokens=tokens, patience=patience)
        return self._followed(self._jobs.WatchEvents, watch)

    async def list_job_events(self, job: str) -> AsyncIterator[JobEvent]:
        """Yields what happened to a job, oldest first."""
        async for page in self._pages(self._jobs.ListJobEvents, requests.list_job_events(job)):
            for item in page.events:
                yield item

    async def list_epoch_metrics(self, job: str) -> AsyncIterator[EpochMetrics]:
        """Yields the metrics of each epoch, oldest first."""
        async for page in self._pages(self._jobs.ListEpochMetrics, requests.list_epoch_metrics(job)):
            for item in page.epochs:
                yield item

    async def list_step_metrics(
        self, job: str, *, start: int = 0, end: int = 0, max_steps: int = 0
    ) -> list[StepMetrics]:
        """Returns what a job showed of itself as it trained, by step, from step `start` to `end` (0: to the newest).

        At most `max_steps` (0: 500, and never more than 1000), evenly spread.
        """
        request = requests.list_step_metrics(job, start=start, end=end, max_steps=max_steps)
        answer = await self._call(self._jobs.ListStepMetrics, request)
        return list(answer.steps)

    async def list_resource_samples(
        self, job: str, *, start: datetime | None = None, end: datetime | None = None, max_samples: int = 0
    ) -> list[ResourceSample]:
        """Returns what a job and its worker used from `start` to `end`, oldest first. Times without a zone are UTC.

        At most `max_samples` (0: 500, and never more than 1000), evenly spread.
        """
        request = requests.list_resource_samples(job, start=start, end=end, max_samples=max_samples)
        answer = await self._call(self._jobs.ListResourceSamples, request)
        return list(answer.samples)

    async def upload_bundle(self, data: bytes) -> str:
        """Stores code for jobs (see `adjourn.bundles.pack`) and returns its name, `bundles/{sha256}`.

        What no job names is removed some time after its last upload. Raises BundleBeingRemovedError while that goes on.
        """
        chunks = requests.upload_bundle(data)
        try:
            return (await self._jobs.UploadBundle(chunks, timeout=calls.UPLOAD_SECONDS, metadata=self._caller)).bundle
        except grpc.RpcError as error:
            raise calls.typed(error, self.address) from error

    async def get_checkpoint(self, name: str) -> Checkpoint:
        return await self._call(self._checkpoints.GetCheckpoint, requests.get_checkpoint(name))

    async def list_checkpoints(self, job: str) -> AsyncIterator[Checkpoint]:
        """Yields a job's checkpoints, newest first."""
        async for page in self._pages(self._checkpoints.ListCheckpoints, requests.list_checkpoints(job)):
            for item in page.checkpoints:
                yield item

    async def pin_checkpoint(self, name: str, *, reason: str = "") -> Checkpoint:
        """Keeps a checkpoint until it is unpinned. Raises NotFoundError, TooManyPinsError."""
        return await self._call(self._checkpoints.PinCheckpoint, requests.pin_checkpoint(name, reason=reason))

    async def unpin_checkpoint(self, name: str) -> Checkpoint:
        """Takes a pin back. Raises NotFoundError."""
        return await self._call(self._checkpoints.UnpinCheckpoint, requests.unpin_checkpoint(name))

    async def read_checkpoint(
        self, name: str, *, file: str = "", offset: int = 0, patience: float = calls.PATIENCE_SECONDS
    ) -> AsyncGenerator[bytes, None]:
        """Yields a file of a checkpoint from a byte on; its manifest, if no file is named.

        Reconnects and misses nothing; raises when nothing comes for `patience` seconds. Raises CheckpointDamagedError.
        The control plane has verified what it sends; `adjourn.export` verifies what arrives.
        """
        read = Read(requests.read_checkpoint(name, file=file, offset=offset), patience=patience)
        async with aclosing(self._followed(self._checkpoints.ReadCheckpoint, read)) as messages:
            async for message in messages:
                yield message.data

    async def get_worker(self, name: str) -> Worker:
        return await self._call(self._workers.GetWorker, requests.get_worker(name))

    async def list_workers(self) -> AsyncIterator[Worker]:
        """Yields every worker, by name."""
        async for page in self._pages(self._workers.ListWorkers, requests.list_workers()):
            for item in page.workers:
                yield item

    async def drain_worker(self, name: str, *, reason: str = "") -> Worker:
        """Has a worker take nothing new; its jobs pause at their next boundary and go on elsewhere by themselves."""
        return await self._call(self._workers.DrainWorker, requests.drain_worker(name, reason=reason))

    async def undrain_worker(self, name: str) -> Worker:
        """Takes an order to drain back."""
        return await self._call(self._workers.UndrainWorker, requests.undrain_worker(name))

    async def delete_worker(self, name: str, *, instance: str = "") -> None:
        """Forgets a worker that is LOST and holds no job. Raises WorkerInUseError.

        `instance`: says instead that this earlier machine of the name is gone; raises InstanceUnknownError too.
        """
        await self._call(self._workers.DeleteWorker, requests.delete_worker(name, instance=instance))

    async def _call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]", request: RequestT
    ) -> ResponseT:
        try:
            return await method(request, timeout=self._timeout, metadata=self._caller)
        except grpc.RpcError as error:
            raise calls.typed(error, self.address) from error

    async def _pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[PageRequestT, PageT]", request: PageRequestT
    ) -> AsyncIterator[PageT]:
        while True:
            page = await self._call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _followed(
        self,
        method: "grpc.aio.UnaryStreamMultiCallable[RequestT, MessageT]",
        following: Following[RequestT, MessageT],
    ) -> AsyncGenerator[MessageT, None]:
        """Yields what messages tell, over as many streams as it takes."""
        while not following.complete:
            failure: AdjournError | None = None
            stream = method(following.request, timeout=following.remaining, metadata=self._caller)
            try:
                async for message in stream:
                    if following.accept(message):
                        yield message
            except grpc.RpcError as error:
                failure = calls.typed(error, self.address)
            finally:
                stream.cancel()
            if following.complete or (following.ends_in_order and failure is None):
                return
            await asyncio.sleep(following.broken(failure, random.random()))  # noqa: S311 - spreads reconnects
