"""Watching and waiting, over streams that break."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from adjourn import Client, errors
from adjourn.client import watching
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import (
    JobEvent,
    StreamLogsRequest,
    StreamLogsResponse,
    WatchEventsResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

NOWHERE = "127.0.0.1:1"


def test_a_watch_goes_on_where_its_stream_broke(client: Client, plane: "Plane") -> None:
    plane.streams = [
        [plane.change(Job.RUNNING, token="1"), WatchJobsResponse(resume_token="2"), errors.ShuttingDownError("bye")],
        [plane.change(Job.PAUSING, token="3")],  # ended in order, as by a proxy
        [errors.StoreUnavailableError("no redis")],
        [WatchJobsResponse(deleted="jobs/x", resume_token="4")],
    ]
    changes = client.watch_jobs(names=["x"], labels={"a": "b"})
    states = [next(changes).job.state, next(changes).job.state]
    assert states == [Job.RUNNING, Job.PAUSING]
    assert next(changes).deleted == "jobs/x"
    changes.close()
    assert plane.tokens[:2] == ["", "2"]
    assert set(plane.tokens[2:]) == {"3"}
    assert plane.asked[-1][1].labels == {"a": "b"}


def test_a_watch_begins_at_a_given_token(client: Client, plane: "Plane") -> None:
    plane.streams = [[plane.change(Job.RUNNING, token="8")]]
    changes = client.watch_jobs(resume_token="7")
    assert next(changes).resume_token == "8"
    changes.close()
    assert plane.tokens == ["7"]


def test_a_watch_of_events_goes_on_where_its_stream_broke(client: Client, plane: "Plane") -> None:
    begun, paused = JobEvent(sequence=3, type=JobEvent.BEGAN), JobEvent(sequence=4, type=JobEvent.PAUSED)
    plane.event_streams = [
        [WatchEventsResponse(resume_token="1"), errors.ShuttingDownError("bye")],
        [WatchEventsResponse(event=begun, job="jobs/x", resume_token="2")],
        [WatchEventsResponse(gap=True, resume_token="2"), WatchEventsResponse(event=paused, resume_token="9")],
        [errors.InvalidRequestError({"names": "too many"})],
    ]
    told = client.watch_events(names="x", labels={"a": "b"}, types=[JobEvent.BEGAN, JobEvent.PAUSED])
    assert next(told).event == begun
    assert next(told).gap
    assert next(told).event == paused
    with pytest.raises(errors.InvalidRequestError):
        next(told)
    asked = [request for method, request in plane.asked if method == "WatchEvents"]
    assert [request.resume_token for request in asked] == ["", "1", "2", "9"]
    assert asked[0].names == ["jobs/x"]
    assert (asked[0].labels, list(asked[0].types)) == ({"a": "b"}, [JobEvent.BEGAN, JobEvent.PAUSED])


def test_a_watch_of_events_can_tell_from_where_on_nothing_is_left_out(client: Client, plane: "Plane") -> None:
    begun = WatchEventsResponse(event=JobEvent(sequence=1), job="jobs/x", resume_token="2")
    plane.event_streams = [[WatchEventsResponse(resume_token="1"), begun, WatchEventsResponse(resume_token="3")]]
    told = client.watch_events(tokens=True)
    assert [next(told).resume_token for _ in range(3)] == ["1", "2", "3"]
    told.close()


def test_a_watch_ends_at_its_timeout(client: Client, plane: "Plane", hour_passes: Callable[[], None]) -> None:
    plane.streams = [[plane.change(Job.RUNNING), hour_passes]]
    changes = client.watch_jobs(timeout=60)
    assert next(changes).job.state == Job.RUNNING
    with pytest.raises(errors.DeadlineError):
        next(changes)


def test_a_silent_watch_ends_at_its_timeout(client: Client) -> None:
    with pytest.raises(errors.DeadlineError):
        next(client.watch_jobs(timeout=0.2))


def test_a_watch_ends_with_an_error_that_does_not_pass(client: Client, plane: "Plane") -> None:
    plane.streams = [[errors.InvalidRequestError({"names": "too many"})]]
    with pytest.raises(errors.InvalidRequestError, match="too many"):
        next(client.watch_jobs())


def test_a_read_goes_on_at_the_byte_where_its_stream_broke(client: Client, plane: "Plane") -> None:
    plane.files = {"state.json": b"0123456789"}
    plane.failures["ReadCheckpoint"] = [errors.ShuttingDownError("bye"), errors.ObjectStoreUnavailableError("no s3")]
    assert b"".join(client.read_checkpoint("jobs/x/checkpoints/1", file="state.json", offset=1)) == b"123456789"
    assert plane.asked == [("ReadCheckpoint", ("state.json", offset)) for offset in (1, 3, 5)]
    plane.failures["ReadCheckpoint"] = [errors.CheckpointDamagedError("flipped")]
    with pytest.raises(errors.CheckpointDamagedError, match="flipped"):
        list(client.read_checkpoint("jobs/x/checkpoints/1", file="state.json"))


def test_a_watch_gives_up_after_its_patience() -> None:
    with Client(NOWHERE) as client, pytest.raises(errors.ControlPlaneUnreachableError):
        next(client.watch_jobs(patience=0.0))


def test_patience_and_delays_start_anew_with_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watching, "monotonic", lambda: now)
    watch = watching.Watch(WatchJobsRequest(), patience=60)
    failure = errors.ControlPlaneUnreachableError("away")
    assert [watch.broken(failure, 1.0) for _ in range(7)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    now = 159.0
    watch.broken(failure, 1.0)
    assert not watch.accept(WatchJobsResponse(resume_token="5"))
    now = 161.0
    assert watch.broken(failure, 1.0) == pytest.approx(0.1)
    now = 221.0
    with pytest.raises(errors.ControlPlaneUnreachableError):
        watch.broken(failure, 1.0)


def test_waiting_ends_with_the_state(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [
        [
            plane.change(Job.RUNNING, token="1"),
            plane.change(Job.PAUSING, token="2"),
            plane.change(Job.PAUSED, token="3"),
        ]
    ]
    assert client.wait_job("x", until=[Job.PAUSED], timeout=30).state == Job.PAUSED


def test_waiting_ends_with_a_predicate_and_survives_a_break(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [
        [plane.change(Job.RUNNING, 1, token="1"), errors.ShuttingDownError("bye")],
        [plane.change(Job.RUNNING, 2, token="2")],
    ]
    assert client.wait_job("x", until=lambda job: job.progress.epoch >= 2, timeout=30).progress.epoch == 2


def test_waiting_for_what_is_already_so_asks_once(client: Client, plane: "Plane") -> None:
    plane.add("x", Job.SUCCEEDED)
    assert client.wait_job("x").state == Job.SUCCEEDED
    assert [method for method, _ in plane.asked] == ["GetJob"]


def test_waiting_in_vain_is_told(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[plane.change(Job.SUCCEEDED, token="1")]]
    with pytest.raises(errors.JobFinishedError, match="ended SUCCEEDED while PAUSED was waited for"):
        client.wait_job("x", until=[Job.PAUSED], timeout=30)


def test_waiting_for_a_job_that_is_deleted_is_told(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[WatchJobsResponse(deleted="jobs/x")]]
    with pytest.raises(errors.NotFoundError, match="was deleted"):
        client.wait_job("x", timeout=30)


def test_waiting_for_an_unknown_job_is_an_error_at_once(client: Client) -> None:
    with pytest.raises(errors.NotFoundError):
        client.wait_job("x")


def test_waiting_has_a_limit(client: Client, plane: "Plane") -> None:
    plane.add("x")
    with pytest.raises(errors.DeadlineError, match=r"jobs/x is RUNNING; PAUSED did not come within 0\.2 s"):
        client.wait_job("x", until=[Job.PAUSED], timeout=0.2)


def test_waiting_has_a_limit_while_reconnecting(client: Client, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[plane.change(Job.RUNNING, token=str(number))] for number in range(200)]
    with pytest.raises(errors.DeadlineError, match="the condition did not come"):
        client.wait_job("x", until=lambda job: job.state == Job.PAUSED, timeout=0.3)


def printed(attempt: int, offset: int, data: bytes = b"", **fields: Any) -> StreamLogsResponse:
    next_offset = offset + len(data)
    return StreamLogsResponse(attempt=attempt, offset=offset, data=data, next_offset=next_offset, **fields)


def test_a_log_has_no_gap_and_no_repetition_over_streams_that_break(client: Client, plane: "Plane") -> None:
    end = StreamLogsResponse.WHOLE
    plane.printed = [printed(1, 0, b"one"), printed(1, 9, b"two", left_out_bytes=6), printed(1, 12, end=end)]
    plane.printed += [printed(2, 0, b"three"), printed(2, 5, end=end)]
    plane.failures["StreamLogs"] = [errors.ReadStalledError("read on") for _ in range(5)]
    assert list(client.stream_logs("x", tail_lines=5, follow=True)) == plane.printed
    assert len(plane.asked) == 6
    assert all(request.follow and request.name == "jobs/x" for _, request in plane.asked)


def test_where_a_log_goes_on() -> None:
    request = StreamLogsRequest(name="jobs/x", tail_lines=5, follow=True)
    logs = watching.Logs(request, patience=1)
    goes_on = []
    for message in (printed(1, 3, b"one"), printed(1, 6, end=StreamLogsResponse.WHOLE), printed(2, 0, b"two")):
        logs.accept(message)
        assert not request.HasField("tail_lines")
        goes_on.append((request.attempt, request.offset))
    assert goes_on == [(1, 6), (2, 0), (2, 3)]


def test_a_log_that_is_complete_is_not_asked_for_again() -> None:
    logs = watching.Logs(StreamLogsRequest(attempt=1), patience=1)
    logs.accept(printed(1, 0, b"one"))
    assert not logs.complete
    logs.accept(printed(1, 3, end=StreamLogsResponse.REST_MISSING))
    assert logs.complete


def test_the_log_of_an_unknown_job_is_an_error_at_once(client: Client, plane: "Plane") -> None:
    plane.printed = [printed(1, 0, b"one")]
    plane.failures["StreamLogs"] = [errors.NotFoundError("there is no jobs/x")]
    with pytest.raises(errors.NotFoundError):
        list(client.stream_logs("x"))
