"""Webhooks from a real control plane, over real HTTP, to a sink that is away at first and then fails."""

import base64
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
from google.protobuf.json_format import MessageToDict
from redis.asyncio import Redis

from adjourn import AsyncClient
from adjourn.local.ports import HOST
from adjourn.v1.job_pb2 import JobSpec
from adjourn_control_plane.webhooks import message
from adjourn_control_plane.webhooks.sink import Answer, HttpSink
from tests.harness.control_planes import ControlPlaneProcess

Eventually = Callable[..., Awaitable[None]]

SECRET = f"whsec_{base64.b64encode(b'k' * 32).decode()}"
SPEC = JobSpec(entry_point="nowhere:main", total_epochs=3)


class Sink(ThreadingHTTPServer):
    """Answers with the statuses given, then with 204; keeps what it was sent."""

    def __init__(self, *statuses: int) -> None:
        super().__init__((HOST, 0), Handler, bind_and_activate=False)
        self.server_bind()  # the port is its own, and nobody answers there before it serves
        self.statuses = list(statuses)
        self.tries: list[str] = []
        self.taken: list[dict[str, object]] = []


class Handler(BaseHTTPRequestHandler):
    server: Sink

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        then = datetime.fromtimestamp(int(self.headers["webhook-timestamp"]), UTC)
        expected = message.headers(self.headers["webhook-id"], data, message.parse_secret(SECRET), then)
        signed = self.headers["webhook-signature"] == expected["webhook-signature"]
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        self.server.tries.append(self.headers["webhook-id"])
        if status == 204 and signed:
            self.server.taken.append(json.loads(data))
        self.send_response(status)
        self.send_header("location", f"http://{HOST}:1/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Says nothing."""


@contextmanager
def serving(sink: Sink) -> Iterator[Sink]:
    sink.server_activate()
    thread = threading.Thread(target=sink.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield sink
    finally:
        sink.shutdown()
        thread.join()
        sink.server_close()


async def test_every_event_reaches_a_sink_that_was_away_signed_and_in_order(
    redis_url: str, s3_environment: dict[str, str], eventually: Eventually, capfd: pytest.CaptureFixture[str]
) -> None:
    sink, namespace = Sink(503, 302), f"test-{uuid4().hex[:8]}"
    environment = {
        **s3_environment,
        "ADJOURN_REDIS_URL": redis_url,
        "ADJOURN_NAMESPACE": namespace,
        "ADJOURN_WEBHOOK_URL": f"http://{HOST}:{sink.server_port}/adjourn?key=hidden",
        "ADJOURN_WEBHOOK_SECRET": SECRET,
    }
    plane = ControlPlaneProcess(environment)
    plane.start()
    try:
        async with Redis.from_url(redis_url) as redis, AsyncClient(plane.address) as client:
            while not await redis.get(f"{{{namespace}}}:delivery:token"):
                pass
            name = (await client.create_job(SPEC, labels={"team": "x"})).name
            await client.pause_job(name)
            history = [event async for event in client.list_job_events(name)]
            said = ""

            def has_failed() -> bool:
                nonlocal said
                said += "".join(capfd.readouterr())
                return "webhook_waits" in said

            await eventually(has_failed)
            with serving(sink):
                await eventually(lambda: len(sink.taken) == len(history))
    finally:
        plane.kill()
    said += "".join(capfd.readouterr())
    events = [MessageToDict(event, preserving_proto_field_name=True) for event in history]
    data = [taken["data"] for taken in sink.taken]
    assert [each["event"] for each in data] == events  # type: ignore[index]
    assert {(each["job"], each["labels"]["team"]) for each in data} == {(name, "x")}  # type: ignore[index]
    assert sink.taken[0]["type"] == "job.created"
    assert sink.tries[:3] == [sink.tries[0]] * 3
    assert sorted(sink.tries[2:]) == sorted(set(sink.tries)), "each once more than it was refused"
    assert "webhook_works" in said
    assert "hidden" not in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, Answer(taken=True)),
        (422, Answer(refused=True, problem="{place} answers with status 422")),
        (401, Answer(problem="{place} answers with status 401")),
        (302, Answer(problem="{place} answers with status 302")),
    ],
)
async def test_what_an_answer_means(status: int, answer: Answer) -> None:
    with serving(Sink(status)) as served:
        sink = HttpSink(f"http://{HOST}:{served.server_port}/")
        got = await sink.post(b"{}", message.headers("id", b"{}", b"k" * 32, datetime.now(UTC)))
        sink.close()
    assert (got.taken, got.refused, got.problem) == (
        answer.taken,
        answer.refused,
        answer.problem.format(place=sink.place),
    )


async def test_a_sink_that_is_not_there_gives_no_answer() -> None:
    sink = HttpSink(f"http://{HOST}:1/?key=hidden")
    answer = await sink.post(b"{}", {})
    sink.close()
    assert answer == Answer(problem=f"{HOST}:1 gives no answer: NewConnectionError")
