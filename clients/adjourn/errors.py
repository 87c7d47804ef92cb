"""The errors of calls: one class for each situation, converted to and from google.rpc.Status.

A class has the status code and the reason that are sent (`google.rpc.ErrorInfo`). The receiver finds the class by that
reason. docs/reasons.md explains each reason. Imports no grpc, because pure modules raise these errors.
"""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import ClassVar, Self

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "adjourn.v1"
RESOURCE_TYPES: Mapping[str, str] = {
    "checkpoint": "adjourn.v1/Checkpoint",
    "worker": "adjourn.v1/Worker",
    "job": "adjourn.v1/Job",
}
"""Type of the resource that each key of `metadata` names, as google.api.resource declares it."""


class AdjournError(Exception):
    """A call was answered with an error; subclasses name the situation.

    `code` and `reason` belong to the class. An answer whose reason this version does not know keeps its own.
    """

    code: int = code_pb2.UNKNOWN
    reason: str = "UNKNOWN"
    RETRY_DELAY: ClassVar[timedelta | None] = None
    """How long to wait before the same request may succeed; None where repeating it does not help."""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata
        """What the error is about, by name: `job`, `state`, `allowed_states`..."""
        self.retry_delay = self.RETRY_DELAY
        """How long to wait before the same request is repeated; None: repeating it does not help."""

    def details(self) -> Iterable[Message]:
        """Returns the typed details for google.rpc.Status, ErrorInfo first."""
        yield error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        kind, name = self.resource
        if self.code in (code_pb2.NOT_FOUND, code_pb2.ALREADY_EXISTS) and name:
            yield error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=self.message)
        if self.code == code_pb2.FAILED_PRECONDITION:
            failure = error_details_pb2.PreconditionFailure()
            failure.violations.add(type=self.reason, subject=name, description=self.message)
            yield failure
        if self.retry_delay is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(self.retry_delay)
            yield retry

    @property
    def resource(self) -> tuple[str, str]:
        """Type and name of the resource that `metadata` names; empty if it names none."""
        return next(
            ((kind, self.metadata[key]) for key, kind in RESOURCE_TYPES.items() if key in self.metadata), ("", "")
        )

    def to_status(self) -> status_pb2.Status:
        status = status_pb2.Status(code=self.code, message=self.message)
        for detail in self.details():
            status.details.add().Pack(detail)
        return status

    @classmethod
    def rebuild(cls, status: status_pb2.Status, metadata: Mapping[str, str]) -> Self:
        """Returns the error of this class that `status` describes."""
        error = cls.__new__(cls)
        AdjournError.__init__(error, status.message, **metadata)
        retry = error_details_pb2.RetryInfo()
        error.retry_delay = retry.retry_delay.ToTimedelta() if unpacked(status.details, retry) else None
        return error


class InvalidRequestError(AdjournError):
    """Fields of a request cannot be accepted; `violations` says which, and why."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, violations: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{field}: {why}" for field, why in violations.items()))
        self.violations = dict(violations)
        """Why each field was refused, by its path in the request (`job.spec.entry_point`)."""

    def details(self) -> Iterable[Message]:
        yield from super().details()
        bad = error_details_pb2.BadRequest()
        for field, why in self.violations.items():
            bad.field_violations.add(field=field, description=why)
        yield bad

    @classmethod
    def rebuild(cls, status: status_pb2.Status, metadata: Mapping[str, str]) -> Self:
        error = super().rebuild(status, metadata)
        bad = error_details_pb2.BadRequest()
        found = unpacked(status.details, bad)
        error.violations = {item.field: item.description for item in bad.field_violations} if found else {}
        return error


class RequestIdReusedError(AdjournError):
    """The request_id was used before, for another request."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "REQUEST_ID_REUSED"


class NotFoundError(AdjournError):
    """There is no job, worker or checkpoint of that name."""

    code = code_pb2.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExistsError(AdjournError):
    """The job id is taken."""

    code = code_pb2.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class StaleEtagError(AdjournError):
    """The job has changed since the etag was read: get it and decide again. The same request fails again."""

    code = code_pb2.ABORTED
    reason = "ETAG_STALE"


class ContentionError(AdjournError):
    """Others kept changing the job while the call tried to: try again."""

    code = code_pb2.ABORTED
    reason = "CONTENTION"
    RETRY_DELAY = timedelta(milliseconds=200)


class SessionSupersededError(AdjournError):
    """A newer agent of the same worker is connected; this one must not come back."""

    code = code_pb2.ABORTED
    reason = "SESSION_SUPERSEDED"


class PreconditionError(AdjournError):
    """The job's state forbids the call; `metadata` has `state` and `allowed_states`."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class JobFinishedError(PreconditionError):
    """The job has ended; nothing is left to pause, resume, cancel or change."""

    reason = "JOB_FINISHED"


class JobCancellingError(PreconditionError):
    """The job is being stopped for good, which cannot be taken back. Once CANCELLED it can be resumed."""

    reason = "JOB_CANCELLING"


class JobHeldByWorkerError(PreconditionError):
    """The change would not reach the attempt that a worker has: pause the job, change it, resume it."""

    reason = "JOB_HELD_BY_WORKER"


class JobNotPausableError(PreconditionError):
    """The job has no epochs, and therefore no boundary to pause at."""

    reason = "JOB_NOT_PAUSABLE"


class JobNotPausedError(PreconditionError):
    """The job is not paused, so there is nothing to resume."""

    reason = "JOB_NOT_PAUSED"


class NoCheckpointError(PreconditionError):
    """The job has no checkpoint yet that it could go on from, or rest on."""

    reason = "NO_CHECKPOINT"


class TooManyPinsError(PreconditionError):
    """So many of the job's checkpoints are pinned that no other can be: unpin one."""

    reason = "TOO_MANY_PINS"


class JobNotFinishedError(PreconditionError):
    """Only a job that has ended can be deleted: cancel it first."""

    reason = "JOB_NOT_FINISHED"


class WorkerInUseError(PreconditionError):
    """Only a worker that is LOST and holds no job can be deleted."""

    reason = "WORKER_IN_USE"


class InstanceUnknownError(NotFoundError):
    """No earlier instance of the worker with this id has left an attempt of which it is not known that it is gone."""

    reason = "INSTANCE_UNKNOWN"


class WorkerNameTakenError(PreconditionError):
    """Another agent, of another data directory, speaks for the worker of this name: one of them needs another name."""

    reason = "WORKER_NAME_TAKEN"


class BundleMissingError(AdjournError):
    """The code that a job names is not there: never uploaded, or removed as no job needed it. Upload it, then again."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "BUNDLE_MISSING"


class BundleBeingRemovedError(AdjournError):
    """The same code is being removed just now, as no job needed it: upload it again after the delay."""

    code = code_pb2.UNAVAILABLE
    reason = "BUNDLE_BEING_REMOVED"
    RETRY_DELAY = timedelta(seconds=30)


class TooManyUploadsError(AdjournError):
    """Other uploads use all the memory that is set aside for them: try again."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_UPLOADS"
    RETRY_DELAY = timedelta(seconds=5)


class UploadStalledError(AdjournError):
    """The next part of an upload did not come in time: upload it again."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = "UPLOAD_STALLED"
    RETRY_DELAY = timedelta()


class TooManyReadsError(AdjournError):
    """Other readers of checkpoints, or of logs, use all the memory that is set aside for them: try again."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_READS"
    RETRY_DELAY = timedelta(seconds=2)


class ReadStalledError(AdjournError):
    """The reader of a checkpoint or a log did not take what was sent: read on from where it stopped."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = "READ_STALLED"
    RETRY_DELAY = timedelta()


class CheckpointDamagedError(AdjournError):
    """An object of the checkpoint is missing or damaged. `metadata` has the `checkpoint` and the object's `key`."""

    code = code_pb2.DATA_LOSS
    reason = "CHECKPOINT_DAMAGED"


class StoreUnavailableError(AdjournError):
    """The store cannot be reached: retry with the same request_id."""

    code = code_pb2.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"
    RETRY_DELAY = timedelta(seconds=1)


class ObjectStoreUnavailableError(AdjournError):
    """The object storage cannot be reached: retry."""

    code = code_pb2.UNAVAILABLE
    reason = "OBJECT_STORE_UNAVAILABLE"
    RETRY_DELAY = timedelta(seconds=2)


class ObjectStoreRefusedError(AdjournError):
    """The object storage answers and refuses: a wrong key, a missing bucket, a missing permission.

    Waiting does not mend it. `metadata` has `bucket` and `s3_code`, the code that S3 gave.
    """

    code = code_pb2.FAILED_PRECONDITION
    reason = "OBJECT_STORE_REFUSED"


class ShuttingDownError(AdjournError):
    """This replica is going away: reconnect, to another if there is one."""

    code = code_pb2.UNAVAILABLE
    reason = "SHUTTING_DOWN"
    RETRY_DELAY = timedelta(milliseconds=500)


class ControlPlaneUnreachableError(AdjournError):
    """No control plane answers at the address."""

    code = code_pb2.UNAVAILABLE
    reason = "CONTROL_PLANE_UNREACHABLE"


class DeadlineError(AdjournError):
    """No answer came in time; the call may still take effect."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class NotImplementedYetError(AdjournError):
    """The server does not know this call: it is older than the client."""

    code = code_pb2.UNIMPLEMENTED
    reason = "NOT_IMPLEMENTED"


class InternalError(AdjournError):
    """A fault of the control plane; its log has the traceback under `error_id`."""

    code = code_pb2.INTERNAL
    reason = "INTERNAL"


def subclasses(kind: type[AdjournError]) -> Iterable[type[AdjournError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


BY_REASON: Mapping[str, type[AdjournError]] = {kind.reason: kind for kind in subclasses(AdjournError)}
BY_CODE: Mapping[int, type[AdjournError]] = {
    code_pb2.NOT_FOUND: NotFoundError,
    code_pb2.FAILED_PRECONDITION: PreconditionError,
    code_pb2.UNAVAILABLE: ControlPlaneUnreachableError,
    code_pb2.DEADLINE_EXCEEDED: DeadlineError,
    code_pb2.UNIMPLEMENTED: NotImplementedYetError,
}
"""Classes for answers without our details (gRPC itself made them), or with a reason of a newer version."""


def from_status(status: status_pb2.Status) -> AdjournError:
    """Returns the error that `status` describes, of the class that its reason names."""
    info = error_details_pb2.ErrorInfo()
    if unpacked(status.details, info) and info.domain == DOMAIN:
        kind = BY_REASON.get(info.reason) or BY_CODE.get(status.code, AdjournError)
        error = kind.rebuild(status, dict(info.metadata))
        error.code, error.reason = status.code, info.reason
        return error
    return BY_CODE.get(status.code, AdjournError).rebuild(status, {})


def unpacked(details: Iterable[any_pb2.Any], into: Message) -> bool:
    """Fills `into` from the first detail of its type; False if there is none."""
    return any(detail.Unpack(into) for detail in details)  # Unpack leaves other types alone
