"""State of watches, reads and logs across broken streams, and the end of a wait for a job; for both clients, no IO.

A watch keeps the token of the last message and begins each new stream there: no change is missed, none comes twice. A
read does so with the offset of the next byte, and so does the reader of a log, with the attempt beside it.
"""

from collections.abc import Callable, Collection
from time import monotonic
from typing import Final, Protocol, TypeVar

from adjourn.errors import (
    AdjournError,
    ControlPlaneUnreachableError,
    DeadlineError,
    JobFinishedError,
    NotFoundError,
    ObjectStoreUnavailableError,
    ReadStalledError,
    ShuttingDownError,
    StoreUnavailableError,
    TooManyReadsError,
)
from adjourn.v1.checkpoint_service_pb2 import ReadCheckpointRequest, ReadCheckpointResponse
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import (
    StreamLogsRequest,
    StreamLogsResponse,
    WatchEventsRequest,
    WatchEventsResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)

RequestT = TypeVar("RequestT")
MessageT_contra = TypeVar("MessageT_contra", contravariant=True)

Until = Callable[[Job], bool] | Collection[Job.State.ValueType]
"""What to wait for: a predicate of the job, or states."""

ENDED: Final = frozenset({Job.SUCCEEDED, Job.FAILED, Job.CANCELLED})
PASSING: Final = (
    ControlPlaneUnreachableError,
    ShuttingDownError,
    StoreUnavailableError,
    ObjectStoreUnavailableError,
    TooManyReadsError,
    ReadStalledError,
)
"""A stream that broke with one of these is opened again."""

FIRST_DELAY: Final = 0.1
LAST_DELAY: Final = 2.0
"""Between two attempts to reconnect, in seconds; doubled from the first to the last."""


class Following(Protocol[RequestT, MessageT_contra]):
    """What is followed from one stream to the next."""

    request: RequestT
    """Of the next stream."""
    complete: bool
    """Nothing more comes, however the stream ends."""

    @property
    def ends_in_order(self) -> bool:
        """A stream that the server ends in order has brought all."""

    @property
    def remaining(self) -> float | None: ...

    def accept(self, message: MessageT_contra) -> bool:
        """Notes where the next stream begins; returns whether the message tells something."""

    def broken(self, failure: AdjournError | None, chance: float) -> float: ...


class Reconnects:
    """When a stream that broke is opened again, and for how long."""

    ends_in_order = False
    complete = False

    def __init__(self, *, patience: float, timeout: float | None = None) -> None:
        self._patience = patience
        self._ends = None if timeout is None else monotonic() + timeout
        self._failing_since: float | None = None
        self._delay = FIRST_DELAY

    @property
    def remaining(self) -> float | None:
        """Seconds left of the caller's timeout; None without one."""
        return None if self._ends is None else max(self._ends - monotonic(), 0.0)

    def works(self) -> None:
        """Notes that a message came."""
        self._failing_since, self._delay = None, FIRST_DELAY

    def broken(self, failure: AdjournError | None, chance: float) -> float:
        """Returns how many seconds to wait before the next stream; raises `failure` when there should be none.

        `failure` is None for a stream that the server ended in order; `chance`, from 0 to 1, spreads the clients of
        a control plane that went away.
        """
        if failure is not None and not isinstance(failure, PASSING):
            raise failure
        now = monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if failure is not None and now - self._failing_since >= self._patience:
            raise failure
        delay, self._delay = self._delay * chance, min(self._delay * 2, LAST_DELAY)
        return delay if self.remaining is None else min(delay, self.remaining)


class Watch(Reconnects):
    """State of one watch: the request for its next stream, and how long to go on trying."""

    def __init__(self, request: WatchJobsRequest, *, patience: float, timeout: float | None = None) -> None:
        super().__init__(patience=patience, timeout=timeout)
        self.request = request

    def accept(self, message: WatchJobsResponse) -> bool:
        """Records the token of a message; returns whether it has a change (a keep-alive has none)."""
        self.works()
        if message.resume_token:
            self.request.resume_token = message.resume_token
        return message.HasField("job") or bool(message.deleted)


class EventWatch(Reconnects):
    """State of one watch of events: the request for its next stream."""

    def __init__(self, request: WatchEventsRequest, *, tokens: bool, patience: float) -> None:
        super().__init__(patience=patience)
        self.request = request
        self._tokens = tokens

    def accept(self, message: WatchEventsResponse) -> bool:
        """Records the token of a message; returns whether it tells something (a token alone does if `tokens`)."""
        self.works()
        self.request.resume_token = message.resume_token
        return self._tokens or message.HasField("event") or message.gap


class Read(Reconnects):
    """State of one read of a checkpoint's file: the request for its next stream."""

    ends_in_order = True

    def __init__(self, request: ReadCheckpointRequest, *, patience: float) -> None:
        super().__init__(patience=patience)
        self.request = request

    def accept(self, message: ReadCheckpointResponse) -> bool:
        """Records where the bytes after those of a message begin; returns True."""
        self.works()
        self.request.offset += len(message.data)
        return True


class Logs(Reconnects):
    """State of one reading of a job's logs: the request for its next stream."""

    ends_in_order = True

    def __init__(self, request: StreamLogsRequest, *, patience: float) -> None:
        super().__init__(patience=patience)
        self.request = request

    def accept(self, message: StreamLogsResponse) -> bool:
        """Records where the next message begins; returns True."""
        self.works()
        self.request.ClearField("tail_lines")
        self.request.attempt, self.request.offset = message.attempt, message.next_offset
        if message.end and self.request.follow:
            self.request.attempt, self.request.offset = message.attempt + 1, 0
        elif message.end:
            self.complete = True
        return True


class Wait:
    """One wait for one job."""

    def __init__(self, name: str, until: Until, timeout: float | None) -> None:
        self._name = name
        self._until = until
        self._timeout = timeout
        self._state = "unknown"

    def met(self, job: Job) -> bool:
        """Returns whether the wait is over; raises JobFinishedError if the job ended otherwise."""
        self._state = Job.State.Name(job.state)
        if self._until(job) if callable(self._until) else job.state in self._until:
            return True
        if job.state in ENDED:
            message = f"{self._name} ended {self._state} while {self._what} was waited for"
            raise JobFinishedError(message, job=self._name, state=self._state)
        return False

    def changed(self, message: WatchJobsResponse) -> bool:
        """Returns whether this change ends the wait; raises NotFoundError if the job is gone."""
        if message.deleted:
            raise NotFoundError(f"{self._name} was deleted while {self._what} was waited for", job=self._name)
        return self.met(message.job)

    def expired(self) -> DeadlineError:
        message = f"{self._name} is {self._state}; {self._what} did not come within {self._timeout:g} s"
        return DeadlineError(message, job=self._name, state=self._state)

    @property
    def _what(self) -> str:
        if callable(self._until):
            return "the condition"
        return " or ".join(Job.State.Name(state) for state in self._until)
