"""JobService: checks requests, calls the job updater and the store, and builds answers."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC
from itertools import islice
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import empty_pb2

from adjourn import bundles, errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.objects import ObjectStore
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1 import job_service_pb2_grpc
from adjourn.v1.job_pb2 import EPOCH, Hold, Job, Money
from adjourn_control_plane.api import pages, validation
from adjourn_control_plane.api.boundaries import Boundaries
from adjourn_control_plane.api.event_watch import EventWatch
from adjourn_control_plane.api.holds import Holds
from adjourn_control_plane.api.identity import actor
from adjourn_control_plane.api.logs import Logs
from adjourn_control_plane.api.sending import SILENCE_SECONDS, send
from adjourn_control_plane.api.uploads import Uploads
from adjourn_control_plane.api.watch import Watch
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.events import CancelRequested, PauseRequested, ResumeRequested, UpdateRequested
from adjourn_control_plane.job.transition import Decision
from adjourn_control_plane.job.updater import ATTEMPTS, Call, JobUpdater, copy_args, now, to_public
from adjourn_control_plane.store.interface import (
    BundlesRemoved,
    Change,
    Conflict,
    JobName,
    JobStore,
    RequestSeen,
)

Context = grpc.aio.ServicerContext[Any, Any]


class JobService(job_service_pb2_grpc.JobServiceServicer):
    """Runs training jobs that can be paused and resumed."""

    def __init__(
        self,
        store: JobStore,
        updater: JobUpdater,
        objects: ObjectStore,
        watch: Watch,
        event_watch: EventWatch,
        boundaries: Boundaries,
        logs: Logs,
        *,
        silence: float = SILENCE_SECONDS,
        gpu_hour_price: Money = Money(),  # noqa: B008
    ) -> None:
        """`silence`: seconds that a reader of a log may leave a message untaken."""
        self.store = store
        self.updater = updater
        self.objects = objects
        self.uploads = Uploads(store, objects)
        self.holds = Holds(store, updater)
        self.watch = watch
        self.event_watch = event_watch
        self.boundaries = boundaries
        self.logs = logs
        self.silence = silence
        self.gpu_hour_price = gpu_hour_price

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> Job:
        check(validation.create_job(request))
        call = Call.of(request, request_id=request.request_id)
        if (answer := await self.updater.answered(call)) is not None:
            copy_args(request.job, answer)
            return answer
        spec = request.job.spec
        job = Job(name=f"jobs/{request.job_id or uuid4().hex[:12]}", spec=spec, labels=request.job.labels)
        if not spec.HasField("seed"):
            job.spec.seed = secrets.randbits(53)  # what JSON numbers carry without loss
        if self.gpu_hour_price.amount:
            job.gpu_hour_price.CopyFrom(self.gpu_hour_price)
        return await self.create(machine.create(job, uid=str(uuid4()), actor=actor(context), now=now()), call)

    async def create(self, decision: Decision, call: Call) -> Job:
        """Stores a new job; raises AlreadyExistsError if its name is taken, BundleMissingError."""
        for _ in range(ATTEMPTS):
            wanted_at = await self.want(decision.record.job.spec.bundle)
            with contextlib.suppress(BundlesRemoved):
                return await self.commit(decision, call, wanted_at)
        raise errors.ContentionError("bundles are being removed one after the other; try again")

    async def want(self, bundle: str) -> int | None:
        """Keeps a bundle from being removed (see `fleet.bundle_collector`), and looks for it; "": none is needed."""
        if not bundle:
            return None
        wanted_at = await self.store.want_bundle(bundle)
        if wanted_at is None or await self.objects.stat(bundles.object_key(bundle)) is None:
            why = f"{bundle} was never uploaded, or was removed as no job needed it; upload it again"
            raise errors.BundleMissingError(why, bundle=bundle)
        return wanted_at

    async def commit(self, decision: Decision, call: Call, wanted_at: int | None) -> Job:
        answer = to_public(decision.record)
        request = call.answered_by(answer) if call.request_id else None
        name = JobName(answer.name)
        change = Change(
            job=name, expected=0, record=decision.record, events=decision.events, request=request, wanted_at=wanted_at
        )
        try:
            await self.store.commit(change)
        except BundlesRemoved:
            raise
        except RequestSeen as seen:
            first = await self.updater.first_answer(call, seen)
            copy_args(decision.record.job, first)
            return first
        except Conflict:
            raise errors.AlreadyExistsError(f"{name} is taken; choose another id", job=name) from None
        return answer

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> Job:
        return to_public(await self.record("name", request.name))

    async def record(self, field: str, name: str) -> JobRecord:
        check(validation.name(field, name))
        stored = await self.store.get(JobName(name))
        if stored is None:
            raise errors.NotFoundError(f"there is no {name}", job=name)
        return stored.record

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        check(pages.violations(request) | validation.states(list(request.states)))
        numbers: dict[str, int] = {"": pages.position(request)}

        async def read(last: Job | None, count: int) -> Sequence[Job]:
            before = numbers[last.name if last else ""] or None
            labels = dict(request.labels)
            found, _ = await self.store.page(states=request.states, labels=labels, size=count, before=before)
            numbers.update((stored.record.job.name, stored.record.number) for stored in found)
            return [to_public(stored.record) for stored in found]

        jobs, more = await pages.filled(pages.size(request), read)
        token = pages.token(request, str(numbers[jobs[-1].name])) if more else ""
        return pb.ListJobsResponse(jobs=jobs, next_page_token=token)

    async def UpdateJob(self, request: pb.UpdateJobRequest, context: Context) -> Job:
        check(validation.update_job(request))
        event = UpdateRequested(actor=actor(context), job=request.job, fields=tuple(request.update_mask.paths))
        call = Call.of(request, request_id=request.request_id, etag=request.job.etag)
        return await self.updater.request(JobName(request.job.name), event, call)

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> Job:
        check(validation.verb(request.name, request_id=request.request_id, etag=request.etag, reason=request.reason))
        check(validation.pause_mode(request.mode))
        event = PauseRequested(actor=actor(context), mode=request.mode, reason=request.reason)
        asked = await self.ask(request, event)
        if asked.state != Job.PAUSING or asked.pause.mode != EPOCH:
            return asked
        answer = await self.boundaries.named(asked, context.time_remaining())
        return await self.updater.settle(Call.of(request, request_id=request.request_id), answer)

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> Job:
        check(validation.verb(request.name, request_id=request.request_id, etag=request.etag))
        return await self.ask(request, ResumeRequested(actor=actor(context), allow_inexact=request.allow_inexact))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> Job:
        check(validation.verb(request.name, request_id=request.request_id, etag=request.etag, reason=request.reason))
        check(validation.cancel_mode(request))
        event = CancelRequested(
            actor=actor(context), reason=request.reason, save_checkpoint=request.save_checkpoint, mode=request.mode
        )
        return await self.ask(request, event)

    async def ask(
        self,
        request: pb.PauseJobRequest | pb.ResumeJobRequest | pb.CancelJobRequest,
        event: PauseRequested | ResumeRequested | CancelRequested,
    ) -> Job:
        call = Call.of(request, request_id=request.request_id, etag=request.etag)
        return await self.updater.request(JobName(request.name), event, call)

    async def DeleteJob(self, request: pb.DeleteJobRequest, context: Context) -> empty_pb2.Empty:
        check(validation.verb(request.name, request_id=request.request_id, etag=request.etag))
        call = Call.of(request, request_id=request.request_id, etag=request.etag)
        if await self.updater.answered(call) is None:
            await self.updater.delete(JobName(request.name), call)
        return empty_pb2.Empty()

    async def WatchJobs(self, request: pb.WatchJobsRequest, context: Context) -> AsyncIterator[pb.WatchJobsResponse]:
        check(validation.names(request.names))
        async with aclosing(self.watch.follow(request)) as responses:
            async for response in responses:
                yield response

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        check(validation.names(request.names))
        async with aclosing(self.event_watch.follow(request)) as responses:
            async for response in responses:
                yield response

    async def StreamLogs(  # type: ignore[override]  # the generated type has generators only
        self, request: pb.StreamLogsRequest, context: grpc.aio.ServicerContext[Any, pb.StreamLogsResponse]
    ) -> None:
        check(validation.stream_logs(request))
        record = await self.record("name", request.name)
        with self.logs.turn():
            async with aclosing(self.logs.read(request, record)) as responses:
                async for response in responses:
                    await send(context, response, self.silence)

    async def HoldJobs(self, request: pb.HoldJobsRequest, context: Context) -> pb.HoldJobsResponse:
        check(validation.selection(request) | validation.text("reason", request.reason))
        check(validation.pause_mode(request.mode))
        event = PauseRequested(actor=actor(context), mode=request.mode, reason=request.reason, kind=Hold.OPERATOR)
        return pb.HoldJobsResponse(jobs=await self.holds.ask(request, event))

    async def ReleaseJobs(self, request: pb.ReleaseJobsRequest, context: Context) -> pb.ReleaseJobsResponse:
        check(validation.selection(request))
        event = ResumeRequested(actor=actor(context), kind=Hold.OPERATOR)
        return pb.ReleaseJobsResponse(jobs=await self.holds.ask(request, event))

    async def ListJobEvents(self, request: pb.ListJobEventsRequest, context: Context) -> pb.ListJobEventsResponse:
        check(pages.violations(request))
        name = JobName((await self.record("parent", request.parent)).job.name)
        start = pages.position(request)
        events, more = await pages.filled(
            pages.size(request),
            lambda last, count: self.store.events(name, after=last.sequence if last else start, size=count),
        )
        token = pages.token(request, str(events[-1].sequence)) if more else ""
        return pb.ListJobEventsResponse(events=events, next_page_token=token)

    async def ListEpochMetrics(
        self, request: pb.ListEpochMetricsRequest, context: Context
    ) -> pb.ListEpochMetricsResponse:
        check(pages.violations(request))
        name = JobName((await self.record("parent", request.parent)).job.name)
        start = pages.position(request)
        epochs, more = await pages.filled(
            pages.size(request),
            lambda last, count: self.store.epochs(name, after=last.epoch if last else start, size=count),
        )
        token = pages.token(request, str(epochs[-1].epoch)) if more else ""
        return pb.ListEpochMetricsResponse(epochs=epochs, next_page_token=token)

    async def ListStepMetrics(self, request: pb.ListStepMetricsRequest, context: Context) -> pb.ListStepMetricsResponse:
        check(validation.step_range(request))
        name = JobName((await self.record("parent", request.parent)).job.name)
        steps = await self.store.steps(name, start=request.start_step, end=request.end_step or None)
        shown = pages.thin(steps, request.max_steps, lambda metrics: metrics.step)
        return pb.ListStepMetricsResponse(steps=shown)

    async def ListResourceSamples(
        self, request: pb.ListResourceSamplesRequest, context: Context
    ) -> pb.ListResourceSamplesResponse:
        check(validation.time_range(request))
        name = JobName((await self.record("parent", request.parent)).job.name)
        start = request.start_time.ToDatetime(UTC) if request.HasField("start_time") else None
        end = request.end_time.ToDatetime(UTC) if request.HasField("end_time") else None
        samples = await self.store.samples(name, start=start, end=end)
        shown = pages.thin(samples, request.max_samples, lambda sample: sample.time.ToNanoseconds())
        return pb.ListResourceSamplesResponse(samples=shown)

    async def UploadBundle(
        self, requests: AsyncIterator[pb.UploadBundleRequest], context: Context
    ) -> pb.UploadBundleResponse:
        return pb.UploadBundleResponse(bundle=await self.uploads.receive(request.chunk async for request in requests))


def check(violations: validation.Violations) -> None:
    """Raises InvalidRequestError if anything is wrong."""
    if violations:
        raise errors.InvalidRequestError(dict(islice(violations.items(), validation.MAX_VIOLATIONS)))
