"""What can go wrong in a call: one class a situation, its data as attributes; to and from google.rpc.Status.

The class carries the status code and the reason that go on the wire (`google.rpc.ErrorInfo`), and is found again by
that reason on the other side, so that server and client speak of the same thing. Imports no grpc: pure modules raise
these errors.
"""

from collections.abc import Iterable, Mapping
from typing import Self

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "adjourn.v1"


class AdjournError(Exception):
    """A call that was answered with an error; subclasses name the situation.

    `code` and `reason` are the class's own, except in an answer whose reason this version does not know: there they
    are what was answered.
    """

    code: int = code_pb2.UNKNOWN
    reason: str = "UNKNOWN"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata
        """What the error is about, by name: `job`, `state`, `allowed_states`..."""

    def details(self) -> Iterable[Message]:
        """Returns the typed details for google.rpc.Status, ErrorInfo first."""
        yield error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=dict(self.metadata))
        if self.code == code_pb2.FAILED_PRECONDITION:
            subject = self.metadata.get("job", "")
            violation = error_details_pb2.PreconditionFailure.Violation(
                type=self.reason, subject=subject, description=self.message
            )
            yield error_details_pb2.PreconditionFailure(violations=[violation])

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
    """The job has changed since the etag was read: get it again, decide again."""

    code = code_pb2.ABORTED
    reason = "ETAG_STALE"


class ContentionError(AdjournError):
    """Others kept changing the job while the call tried to: try again."""

    code = code_pb2.ABORTED
    reason = "CONTENTION"


class SessionSupersededError(AdjournError):
    """A newer agent of the same worker is connected; this one must not come back."""

    code = code_pb2.ABORTED
    reason = "SESSION_SUPERSEDED"


class PreconditionError(AdjournError):
    """The job's state forbids the call; `metadata` has `state` and `allowed_states`."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class JobFinishedError(PreconditionError):
    """The job has ended; nothing is left to pause, resume or cancel."""

    reason = "JOB_FINISHED"


class JobNotPausableError(PreconditionError):
    """The job has no epochs, hence no boundary to pause at."""

    reason = "JOB_NOT_PAUSABLE"


class JobNotPausedError(PreconditionError):
    """The job is not paused, so there is nothing to resume."""

    reason = "JOB_NOT_PAUSED"


class NoCheckpointError(PreconditionError):
    """The job ended before it had a checkpoint to go on from."""

    reason = "NO_CHECKPOINT"


class JobNotFinishedError(PreconditionError):
    """Only a job that has ended can be deleted: cancel it first."""

    reason = "JOB_NOT_FINISHED"


class StoreUnavailableError(AdjournError):
    """The store cannot be reached: retry with the same request_id."""

    code = code_pb2.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class ObjectStoreUnavailableError(AdjournError):
    """The object storage cannot be reached: retry."""

    code = code_pb2.UNAVAILABLE
    reason = "OBJECT_STORE_UNAVAILABLE"


class ShuttingDownError(AdjournError):
    """This replica is going away: reconnect, to another if there is one."""

    code = code_pb2.UNAVAILABLE
    reason = "SHUTTING_DOWN"


class ControlPlaneUnreachableError(AdjournError):
    """No control plane answers at the address."""

    code = code_pb2.UNAVAILABLE
    reason = "CONTROL_PLANE_UNREACHABLE"


class DeadlineError(AdjournError):
    """No answer came in time; the call may still take effect."""

    code = code_pb2.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class NotImplementedYetError(AdjournError):
    """The contract has it, this version does not."""

    code = code_pb2.UNIMPLEMENTED
    reason = "NOT_IMPLEMENTED"


class InternalError(AdjournError):
    """A fault of ours; the log of the control plane has the story, under `error_id`."""

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
"""For answers without our details (they come from gRPC itself), or with a reason of a newer version."""


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
