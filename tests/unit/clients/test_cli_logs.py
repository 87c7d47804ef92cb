"""`adjourn logs` against a scripted control plane; what it makes of bytes is in test_log_text.py."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from typer.testing import Result

from adjourn import errors
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import StreamLogsResponse

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]
WHOLE, REST_MISSING = StreamLogsResponse.WHOLE, StreamLogsResponse.REST_MISSING


def piece(attempt: int, data: bytes = b"", **fields: Any) -> StreamLogsResponse:
    return StreamLogsResponse(attempt=attempt, data=data, next_offset=len(data), **fields)


def test_a_log_is_printed_as_text(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.printed = [piece(2, b"\x1b[31mloss\x1b[0m 1\n\r 50%\r100%\n\xff\xe2\x9c"), piece(2, b"\x93", end=WHOLE)]
    plane.printed[1].next_offset += len(plane.printed[0].data)
    result = adjourn("logs", "x", "--attempt", "2", "--tail", "7")
    assert (result.stdout, result.stderr, result.exit_code) == ("loss 1\n100%\n\ufffd✓\n", "", 0)
    _, request = plane.asked[-1]
    assert (request.attempt, request.tail_lines, request.follow) == (2, 7, False)


def test_followed_attempts_are_told_apart_beside_the_log(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.printed = [piece(1, b"one"), piece(1, end=REST_MISSING), piece(2, b"two\n", left_out_bytes=9)]
    plane.printed[1].next_offset = 3
    plane.printed.append(StreamLogsResponse(attempt=2, next_offset=4, end=WHOLE))
    result = adjourn("logs", "-f", "x")
    left_out = "[adjourn: 9 bytes are left out here; ADJOURN_LOG_BYTES of the worker limits a log]"
    assert result.stdout == f"one\n{left_out}\ntwo\n"
    assert result.stderr.splitlines() == [
        "--- the rest of attempt 1 is not stored: its worker is out of reach, or has no storage ---",
        "--- attempt 2 ---",
        "--- attempt 2 is over ---",
    ]


def test_why_there_is_nothing(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED)
    assert adjourn("logs", "x").stderr == "x has not begun: it is QUEUED\n"
    plane.add("x", Job.RUNNING, attempt=1)
    assert adjourn("logs", "x").stderr == "attempt 1 of x has printed nothing that is stored\n"
    plane.add("x", Job.RUNNING, attempt=3)
    result = adjourn("logs", "x")
    assert result.stdout == ""
    assert result.stderr == (
        "attempt 3 of x has printed nothing that is stored; `adjourn logs x --attempt 2` has the one before\n"
    )


def test_errors_are_a_line(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.printed = [piece(1, b"one\n")]
    plane.failures["StreamLogs"] = [errors.NotFoundError("jobs/x was deleted")]
    result = adjourn("logs", "x")
    assert result.stderr == "adjourn: jobs/x was deleted; `adjourn list` shows what there is\n"
    assert result.exit_code != 0
    assert "--tail" in adjourn("logs", "x", "--tail", "-1").stderr
