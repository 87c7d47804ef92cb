"""Builds requests from the arguments of client methods; shared by the blocking and the asynchronous client.

Names may be given short (`digits`) or in full (`jobs/digits`). Every request that changes something gets a new
`request_id` unless the caller gives one: it makes gRPC's own retries safe.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final
from uuid import uuid4

from google.protobuf.field_mask_pb2 import FieldMask

from adjourn.channel import BUNDLE_LIMIT_BYTES, CHUNK_BYTES
from adjourn.errors import InvalidRequestError
from adjourn.v1.checkpoint_service_pb2 import (
    GetCheckpointRequest,
    ListCheckpointsRequest,
    PinCheckpointRequest,
    ReadCheckpointRequest,
    UnpinCheckpointRequest,
)
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode
from adjourn.v1.job_service_pb2 import (
    CancelJobRequest,
    CreateJobRequest,
    DeleteJobRequest,
    GetJobRequest,
    HoldJobsRequest,
    JobEvent,
    ListEpochMetricsRequest,
    ListJobEventsRequest,
    ListJobsRequest,
    ListResourceSamplesRequest,
    ListStepMetricsRequest,
    PauseJobRequest,
    ReleaseJobsRequest,
    ResumeJobRequest,
    StreamLogsRequest,
    UpdateJobRequest,
    UploadBundleRequest,
    WatchEventsRequest,
    WatchJobsRequest,
)
from adjourn.v1.worker_service_pb2 import (
    DeleteWorkerRequest,
    DrainWorkerRequest,
    GetWorkerRequest,
    ListWorkersRequest,
    UndrainWorkerRequest,
)

PAGE_SIZE: Final = 500
"""Items to ask for at a time. The server sends fewer where more would not fit into a message."""


def job_name(name: str) -> str:
    """Returns `jobs/{job}` for either form."""
    return name if "/" in name else f"jobs/{name}"


def worker_name(name: str) -> str:
    """Returns `workers/{worker}` for either form."""
    return name if "/" in name else f"workers/{name}"


def checkpoint_name(name: str) -> str:
    """Returns `jobs/{job}/checkpoints/{checkpoint}`, also for `{job}/{checkpoint}`."""
    job, _, checkpoint = name.partition("/")
    return f"jobs/{job}/checkpoints/{checkpoint}" if checkpoint and "/" not in checkpoint else name


def create_job(spec: JobSpec, *, job_id: str, labels: Mapping[str, str] | None, request_id: str) -> CreateJobRequest:
    job = Job(spec=spec, labels=labels or {})
    return CreateJobRequest(job_id=job_id, job=job, request_id=request_id or fresh_id())


def get_job(name: str) -> GetJobRequest:
    return GetJobRequest(name=job_name(name))


def list_jobs(states: Iterable[Job.State.ValueType], labels: Mapping[str, str] | None) -> ListJobsRequest:
    return ListJobsRequest(page_size=PAGE_SIZE, states=states, labels=labels or {})


def pause_job(name: str, *, mode: PauseMode.ValueType, reason: str, etag: str, request_id: str) -> PauseJobRequest:
    return PauseJobRequest(
        name=job_name(name), mode=mode, reason=reason, etag=etag, request_id=request_id or fresh_id()
    )


def resume_job(name: str, *, allow_inexact: bool, etag: str, request_id: str) -> ResumeJobRequest:
    return ResumeJobRequest(
        name=job_name(name), allow_inexact=allow_inexact, etag=etag, request_id=request_id or fresh_id()
    )


def cancel_job(
    name: str, *, save_checkpoint: bool, mode: PauseMode.ValueType, reason: str, etag: str, request_id: str
) -> CancelJobRequest:
    return CancelJobRequest(
        name=job_name(name),
        save_checkpoint=save_checkpoint,
        mode=mode,
        reason=reason,
        etag=etag,
        request_id=request_id or fresh_id(),
    )


def delete_job(name: str, *, etag: str, request_id: str) -> DeleteJobRequest:
    return DeleteJobRequest(name=job_name(name), etag=etag, request_id=request_id or fresh_id())


def hold_jobs(
    names: Iterable[str],
    *,
    labels: Mapping[str, str] | None,
    all_jobs: bool,
    mode: PauseMode.ValueType,
    reason: str,
    dry_run: bool,
) -> HoldJobsRequest:
    return HoldJobsRequest(
        names=[job_name(name) for name in names],
        labels=labels or {},
        all=all_jobs,
        mode=mode,
        reason=reason,
        dry_run=dry_run,
    )


def release_jobs(
    names: Iterable[str], *, labels: Mapping[str, str] | None, all_jobs: bool, dry_run: bool
) -> ReleaseJobsRequest:
    chosen = [job_name(name) for name in names]
    return ReleaseJobsRequest(names=chosen, labels=labels or {}, all=all_jobs, dry_run=dry_run)


def drain_worker(name: str, *, reason: str) -> DrainWorkerRequest:
    return DrainWorkerRequest(name=worker_name(name), reason=reason)


def undrain_worker(name: str) -> UndrainWorkerRequest:
    return UndrainWorkerRequest(name=worker_name(name))


def update_job(
    name: str,
    *,
    labels: Mapping[str, str] | None,
    max_restarts: int | None,
    total_epochs: int | None,
    etag: str,
    request_id: str,
) -> UpdateJobRequest:
    job = Job(name=job_name(name), labels=labels or {}, etag=etag)
    job.spec.MergeFrom(JobSpec(max_restarts=max_restarts, total_epochs=total_epochs or 0))
    given = {"labels": labels, "spec.max_restarts": max_restarts, "spec.total_epochs": total_epochs}
    mask = FieldMask(paths=[path for path, value in given.items() if value is not None])
    return UpdateJobRequest(job=job, update_mask=mask, request_id=request_id or fresh_id())


def watch_jobs(names: Iterable[str], labels: Mapping[str, str] | None, resume_token: str) -> WatchJobsRequest:
    given = [names] if isinstance(names, str) else names  # a string is an iterable of names too: of its letters
    return WatchJobsRequest(names=[job_name(name) for name in given], labels=labels or {}, resume_token=resume_token)


def stream_logs(name: str, *, attempt: int, offset: int, tail_lines: int | None, follow: bool) -> StreamLogsRequest:
    return StreamLogsRequest(name=job_name(name), attempt=attempt, offset=offset, tail_lines=tail_lines, follow=follow)


def watch_events(
    names: Iterable[str],
    labels: Mapping[str, str] | None,
    types: Iterable[JobEvent.Type.ValueType],
    resume_token: str,
) -> WatchEventsRequest:
    given = [names] if isinstance(names, str) else names
    jobs = [job_name(name) for name in given]
    return WatchEventsRequest(names=jobs, labels=labels or {}, types=types, resume_token=resume_token)


def list_job_events(job: str) -> ListJobEventsRequest:
    return ListJobEventsRequest(parent=job_name(job), page_size=PAGE_SIZE)


def list_epoch_metrics(job: str) -> ListEpochMetricsRequest:
    return ListEpochMetricsRequest(parent=job_name(job), page_size=PAGE_SIZE)


def list_step_metrics(job: str, *, start: int, end: int, max_steps: int) -> ListStepMetricsRequest:
    return ListStepMetricsRequest(parent=job_name(job), start_step=start, end_step=end, max_steps=max_steps)


def list_resource_samples(
    job: str, *, start: datetime | None, end: datetime | None, max_samples: int
) -> ListResourceSamplesRequest:
    request = ListResourceSamplesRequest(parent=job_name(job), max_samples=max_samples)
    if start is not None:
        request.start_time.FromDatetime(start)
    if end is not None:
        request.end_time.FromDatetime(end)
    return request


def upload_bundle(data: bytes) -> Iterator[UploadBundleRequest]:
    """Cuts a bundle into messages; raises InvalidRequestError if it is too large to be accepted."""
    if len(data) > BUNDLE_LIMIT_BYTES:
        raise InvalidRequestError({"chunk": f"{len(data)} bytes in all; at most {BUNDLE_LIMIT_BYTES} are accepted"})
    offsets = range(0, len(data), CHUNK_BYTES)
    return (UploadBundleRequest(chunk=data[offset : offset + CHUNK_BYTES]) for offset in offsets)


def get_checkpoint(name: str) -> GetCheckpointRequest:
    return GetCheckpointRequest(name=checkpoint_name(name))


def list_checkpoints(job: str) -> ListCheckpointsRequest:
    return ListCheckpointsRequest(parent=job_name(job), page_size=PAGE_SIZE)


def pin_checkpoint(name: str, *, reason: str) -> PinCheckpointRequest:
    return PinCheckpointRequest(name=checkpoint_name(name), reason=reason)


def unpin_checkpoint(name: str) -> UnpinCheckpointRequest:
    return UnpinCheckpointRequest(name=checkpoint_name(name))


def read_checkpoint(name: str, *, file: str, offset: int) -> ReadCheckpointRequest:
    return ReadCheckpointRequest(name=checkpoint_name(name), file=file, offset=offset)


def get_worker(name: str) -> GetWorkerRequest:
    return GetWorkerRequest(name=worker_name(name))


def list_workers() -> ListWorkersRequest:
    return ListWorkersRequest(page_size=PAGE_SIZE)


def delete_worker(name: str, *, instance: str) -> DeleteWorkerRequest:
    return DeleteWorkerRequest(name=worker_name(name), instance=instance)


def fresh_id() -> str:
    return str(uuid4())
