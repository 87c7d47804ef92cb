"""How a store keeps its values: messages as bytes, rows of bytes as what they mean."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from adjourn.internal.v1.record_pb2 import JobRecord, UnconfirmedReleases
from adjourn.v1.agent_service_pb2 import SeriesPart
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Drain, Worker
from adjourn_control_plane.store.interface import (
    DELETED_KEPT,
    REQUEST_MEMORY,
    REQUESTS_KEPT,
    Change,
    Changed,
    Fence,
    Happened,
    JobName,
    JobUid,
    SeriesLimits,
    Session,
    Stored,
    Tombstone,
    Unconfirmed,
    WorkerName,
)

RECORD_FIELDS = ("record", "version", "number")
SESSION_FIELDS = ("worker", "session", "stream", "connected", "lost", "heartbeat", "report_time", "drain")
REPEAT_MEMORY = 120
"""Seconds for which a change is recognised by its id: longer than anyone repeats it."""
START = "0-0"
"""Token before the first change."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TOKEN = re.compile(r"(0|[1-9]\d{0,19})-(0|[1-9]\d{0,19})", re.ASCII)


def is_token(text: str) -> bool:
    """Whether the text could be the id of a stream's entry: two numbers of 64 bits."""
    return bool(TOKEN.fullmatch(text)) and all(int(part) < 2**64 for part in text.split("-"))


def encoded(
    message: JobRecord
    | Job
    | JobEvent
    | EpochMetrics
    | StepMetrics
    | ResourceSample
    | Checkpoint
    | Worker
    | Drain
    | UnconfirmedReleases,
) -> bytes:
    return message.SerializeToString(deterministic=True)


def stored(row: Sequence[bytes]) -> Stored:
    """Returns the record that RECORD_FIELDS make; its number is the store's."""
    record, version, number = row
    item = JobRecord.FromString(record)
    item.number = int(number)
    return Stored(record=item, version=int(version))


def session(row: Sequence[Any]) -> Session | None:
    """Returns the session that SESSION_FIELDS make; None if the worker is not known."""
    worker, name, stream, connected, lost, heartbeat, report_time, drain = row
    if worker is None:
        return None
    return Session(
        worker=Worker.FromString(worker),
        session=name.decode(),
        stream=stream.decode(),
        connected=connected == b"1",
        lost=lost == b"1",
        heartbeat=int(heartbeat),
        report_time_ns=int(report_time) * 1000,  # Redis TIME counts microseconds
        drain=Drain.FromString(drain) if drain is not None else None,
    )


def changed(token: bytes, fields: Mapping[bytes, bytes]) -> Changed:
    """Returns the change that an entry of the stream stands for."""
    state = fields[b"state"].decode()
    return Changed(
        token=token.decode(),
        job=JobName(fields[b"job"].decode()),
        version=int(fields[b"version"]),
        state=Job.State.Value(state) if state else None,
        workers=tuple(WorkerName(worker) for worker in fields[b"workers"].decode().split()),
        labels=dict(Job.FromString(fields[b"labels"]).labels),
    )


def happened(token: bytes, fields: Mapping[bytes, bytes]) -> Happened:
    """Returns the event that an entry of the stream stands for."""
    return Happened(
        token=token.decode(),
        job=JobName(fields[b"job"].decode()),
        uid=JobUid(fields[b"uid"].decode()),
        labels=dict(Job.FromString(fields[b"labels"]).labels),
        event=JobEvent.FromString(fields[b"event"]),
    )


def tombstone(row: bytes) -> Tombstone:
    looks, uid = row.decode().split(" ")
    return Tombstone(JobUid(uid), int(looks))


def milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def since_1970(time: datetime) -> int:
    """Returns milliseconds."""
    return (time - EPOCH) // timedelta(milliseconds=1)


def series_arguments(part: SeriesPart, fence: Fence, limits: SeriesLimits) -> list[bytes | str | int]:
    """Returns what series.lua takes, in its order."""
    arguments: list[bytes | str | int] = [part.job, part.token.job_uid, fence.worker, fence.stream]
    arguments += [limits.newest, limits.older, len(part.samples), len(part.steps)]
    for sample in part.samples:
        arguments += [since_1970(sample.time.ToDatetime(UTC)), encoded(sample)]
    for metrics in part.steps:
        arguments += [metrics.step, encoded(metrics)]
    return arguments


def stamps(row: Sequence[bytes]) -> dict[str, int]:
    """Returns bundles with their stamps, as ZRANGE has them."""
    return {bundle.decode(): int(stamp) for bundle, stamp in zip(row[::2], row[1::2], strict=True)}


def described(worker: Worker) -> bytes:
    """Returns the worker without what is derived when it is shown."""
    kept = Worker()
    kept.CopyFrom(worker)
    for field in ("state", "jobs", "report_time", "drain"):
        kept.ClearField(field)
    return encoded(kept)


def unconfirmed_by_worker(record: JobRecord) -> dict[str, bytes]:
    """Returns what is kept by worker of the attempts of a job that are unconfirmed."""
    found: dict[str, UnconfirmedReleases] = {}
    for entry in record.unconfirmed_releases:
        found.setdefault(entry.worker, UnconfirmedReleases()).releases.append(entry)
    return {worker: encoded(releases) for worker, releases in sorted(found.items())}


def unconfirmed(kept: Mapping[bytes, bytes]) -> list[Unconfirmed]:
    """Returns the attempts that are unconfirmed on a worker, from what is kept of them by job."""
    return [
        Unconfirmed(job=JobName(job.decode()), entry=entry)
        for job, attempts in sorted(kept.items())
        for entry in UnconfirmedReleases.FromString(attempts).releases
    ]


def commit_arguments(change: Change, *, changes_kept: int, events_kept: int) -> list[bytes | str | int]:
    """Returns what commit.lua takes, in its order."""
    record, request, allocation, fence = change.record, change.request, change.allocation, change.fence
    arguments: list[bytes | str | int] = [change.id, change.job, change.expected]
    if record:
        arguments += [encoded(record), Job.State.Name(record.job.state), record.job.worker, int(record.released)]
    else:
        arguments += ["", "", "", 0]
    arguments += [allocation.worker, allocation.version] if allocation else ["", 0]
    arguments += [request.id, request.digest, encoded(request.answer)] if request else ["", "", ""]
    arguments += [int(REQUEST_MEMORY.total_seconds()), REPEAT_MEMORY, changes_kept]
    arguments += [len(change.events), len(change.epochs), len(change.checkpoints)]
    arguments += [record.job.uid if record else ""]
    arguments += [fence.worker, fence.stream] if fence else ["", ""]
    arguments += [encoded(Job(labels=record.job.labels)) if record else "", events_kept]
    unconfirmed = unconfirmed_by_worker(record) if record else {}
    arguments += [len(unconfirmed), DELETED_KEPT, REQUESTS_KEPT]
    arguments += ["" if fence is None or fence.heartbeat is None else fence.heartbeat]
    arguments += [change.wanted_at if change.wanted_at is not None else ""]
    arguments += [len(change.retired), int(change.review or bool(change.retired))]
    for worker, attempts in unconfirmed.items():
        arguments += [worker, attempts]
    arguments += [encoded(event) for event in change.events]
    for metrics in change.epochs:
        arguments += [metrics.epoch, encoded(metrics)]
    for checkpoint in change.checkpoints:
        arguments += [checkpoint.name, encoded(checkpoint)]
    return [*arguments, *change.retired]
