"""StreamLogs over the wire: what is stored, what comes, and what is not there. The test plays the agent's part."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from adjourn import errors, reasons
from adjourn.objects import ObjectMissing
from adjourn.stored_logs import Segment, attempt_prefix, end_key, log_prefix, segment_key
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, FencingToken
from adjourn.v1.job_pb2 import Failure, Job
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from adjourn_control_plane.api import logs
from adjourn_control_plane.store.interface import JobName, JobUid
from tests.harness.control_planes import PATIENCE, Agent, Replica, refused, replica, status_of
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import deletion, there

WHOLE, REST_MISSING = pb.StreamLogsResponse.WHOLE, pb.StreamLogsResponse.REST_MISSING


class Storage(MemoryObjects):
    """Storage that can be away, and in which something may happen just before an object is read."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.listed = asyncio.Event()
        self.before_get: Callable[[str], object] = lambda _: None

    async def list(self, prefix: str) -> Any:
        if self.away:
            raise errors.ObjectStoreUnavailableError("the test says so", bucket="memory")
        found = await super().list(prefix)
        self.listed.set()
        return found

    async def get(self, key: str, *, limit: int) -> bytes:
        self.before_get(key)
        return await super().get(key, limit=limit)


class Attempt:
    """What an agent stores of an attempt."""

    def __init__(self, objects: MemoryObjects, token: FencingToken) -> None:
        self.objects, self.prefix, self.end = objects, log_prefix(token), 0

    def prints(self, data: bytes, *, left_out: int = 0) -> None:
        begin = self.end + left_out
        self.end = begin + len(data)
        self.objects.contents[segment_key(self.prefix, Segment(begin, self.end))] = data

    def ends(self) -> None:
        self.objects.contents[end_key(self.prefix, self.end)] = b"end"


@pytest.fixture
def objects() -> Storage:
    return Storage()


@pytest.fixture
async def plane(memory_store: MemoryStore, objects: Storage) -> AsyncIterator[Replica]:
    async with replica(memory_store, objects=objects) as served:
        yield served


@asynccontextmanager
async def running(plane: Replica, objects: Storage) -> AsyncIterator[tuple[Agent, Attempt]]:
    """A job that trains: its agent, and what is stored of its attempt."""
    await plane.create()
    async with Agent(plane.address) as agent:
        await agent.say()
        order = await agent.given("jobs/j")
        await agent.say(status_of(order))
        await plane.becomes(Job.RUNNING)
        yield agent, Attempt(objects, order.token)


async def ends(
    agent: Agent, attempt: FencingToken, phase: AssignmentStatus.Phase.ValueType, failure: Failure | None = None
) -> None:
    await agent.say(reports=(agent.report("jobs/j", attempt, exit=Exit(phase=phase, failure=failure)),))


async def token(plane: Replica) -> FencingToken:
    stored = await plane.store.get(JobName("jobs/j"))
    assert stored
    return stored.record.token


async def is_followed(plane: Replica) -> None:
    uid = JobUid((await plane.get()).uid)
    async with asyncio.timeout(PATIENCE):
        while not await plane.store.followed([uid]):  # noqa: ASYNC110  # it is the server's
            await asyncio.sleep(0.02)


def stream(plane: Replica, **fields: Any) -> Any:
    return plane.jobs.StreamLogs(pb.StreamLogsRequest(name="jobs/j", **fields))


async def read(plane: Replica, **fields: Any) -> list[pb.StreamLogsResponse]:
    async with asyncio.timeout(PATIENCE):
        return [response async for response in stream(plane, **fields)]


def text(responses: list[pb.StreamLogsResponse]) -> bytes:
    return b"".join(response.data for response in responses)


async def test_what_is_stored_of_a_running_attempt(plane: Replica, objects: Storage) -> None:
    async with running(plane, objects) as (_, attempt):
        assert await read(plane) == []
        attempt.prints(b"one\n")
        attempt.prints(b"two\xff\n")
        attempt.prints(b"nine\n", left_out=100)
        found = await read(plane)
        assert [(each.attempt, each.offset, each.next_offset, each.left_out_bytes, each.end) for each in found] == [
            (1, 0, 4, 0, 0),
            (1, 4, 9, 0, 0),
            (1, 109, 114, 100, 0),
        ]
        assert text(found) == b"one\ntwo\xff\nnine\n"
        assert text(await read(plane, attempt=1, offset=2)) == b"e\ntwo\xff\nnine\n"
        assert text(await read(plane, offset=50)) == b"nine\n"
        assert await read(plane, offset=114) == []


@pytest.mark.parametrize(
    ("lines", "found"),
    [(0, b""), (1, b"e"), (2, b"d\ne"), (4, b"b\nc\nd\ne"), (5, b"a\nb\nc\nd\ne"), (9, b"a\nb\nc\nd\ne")],
)
async def test_the_last_lines(plane: Replica, objects: Storage, lines: int, found: bytes) -> None:
    async with running(plane, objects) as (_, attempt):
        for piece in (b"a\nb", b"\n", b"c\n", b"d\n"):
            attempt.prints(piece)
        assert text(await read(plane, tail_lines=lines)) == (b"a\nb\nc\nd\n"[-2 * lines :] if lines else b"")
        attempt.prints(b"e", left_out=7)
        assert text(await read(plane, tail_lines=lines)) == found


async def test_the_last_lines_of_an_attempt_that_is_over_are_those_of_its_whole_log(
    plane: Replica, objects: Storage
) -> None:
    async with running(plane, objects) as (agent, attempt):
        attempt.prints(b"one\n")
        await ends(agent, await token(plane), AssignmentStatus.FAILED, Failure(reason=reasons.TRAINING_WITHOUT_EPOCHS))
        await plane.becomes(Job.FAILED)
        objects.listed.clear()
        reading = asyncio.create_task(read(plane, tail_lines=1))
        await objects.listed.wait()
        attempt.prints(b"two\n")
        attempt.ends()
        assert text(await reading) == b"two\n"


async def test_an_object_that_grows_while_it_is_read(plane: Replica, objects: Storage) -> None:
    """The agent replaces it by a longer one between the reader's look and its reading."""
    async with running(plane, objects) as (_, attempt):
        attempt.prints(b"one\n")

        def replaced(key: str) -> None:
            objects.before_get = lambda _: None
            del objects.contents[key]
            objects.contents[segment_key(attempt.prefix, Segment(0, 8))] = b"one\ntwo\n"

        objects.before_get = replaced
        assert text(await read(plane)) == b"one\ntwo\n"


async def test_an_object_that_is_listed_and_never_there(
    plane: Replica, objects: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(key: str) -> None:
        raise ObjectMissing(key)

    async with running(plane, objects) as (_, attempt):
        attempt.prints(b"one\n")
        objects.before_get = missing
        for fields in ({}, {"tail_lines": 1}):
            with refused(errors.ObjectStoreUnavailableError):
                await read(plane, **fields)


async def test_a_log_is_followed_over_attempts_until_the_job_has_ended(plane: Replica, objects: Storage) -> None:
    async with running(plane, objects) as (agent, first):
        followed = stream(plane, follow=True)
        first.prints(b"one\n")
        assert (await followed.read()).data == b"one\n"
        heard = await agent.hears(lambda response: bool(response.followed_job_uids))
        assert heard.followed_job_uids == [(await plane.get()).uid]
        first.prints(b"two\n")
        assert (await followed.read()).data == b"two\n"
        await ends(agent, await token(plane), AssignmentStatus.STOPPED)
        first.prints(b"three\n")  # it is stored after that is reported
        first.ends()
        assert (await followed.read()).data == b"three\n"
        end = await followed.read()
        assert (end.attempt, end.next_offset, end.end) == (1, first.end, WHOLE)
        order = await agent.given("jobs/j", attempt=2)
        await agent.say(status_of(order))
        second = Attempt(objects, order.token)
        second.prints(b"four\n")
        four = await followed.read()
        assert (four.attempt, four.offset, four.data) == (2, 0, b"four\n")
        second.ends()
        failure = Failure(reason=reasons.TRAINING_WITHOUT_EPOCHS)
        await ends(agent, order.token, AssignmentStatus.FAILED, failure=failure)
        end = await followed.read()
        assert (end.attempt, end.end) == (2, WHOLE)
        assert await followed.read() is grpc.aio.EOF
    assert text(await read(plane, attempt=1)) == b"one\ntwo\nthree\n"
    again = await read(plane, attempt=1, offset=first.end, follow=True)
    assert text(again) == b"four\n"


async def test_the_rest_of_a_log_that_is_not_stored_is_not_waited_for_for_ever(
    plane: Replica, objects: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LATE_SECONDS", 0.2)
    async with running(plane, objects) as (agent, attempt):
        attempt.prints(b"one\n")
        followed = stream(plane, follow=True)
        assert (await followed.read()).data == b"one\n"
        await ends(agent, await token(plane), AssignmentStatus.STOPPED)
        await agent.given("jobs/j", attempt=2)
        end = await followed.read()
        assert (end.attempt, end.next_offset, end.end) == (1, 4, REST_MISSING)
        followed.cancel()
        for fields in ({}, {"tail_lines": 1}):
            found = await read(plane, attempt=1, **fields)
            assert [(each.data, each.end) for each in found] == [(b"one\n", 0), (b"", REST_MISSING)]


async def test_storage_that_is_away(plane: Replica, objects: Storage) -> None:
    async with running(plane, objects) as (_, attempt):
        attempt.prints(b"one\n")
        followed = stream(plane, follow=True)
        assert (await followed.read()).data == b"one\n"
        objects.away = True
        attempt.prints(b"two\n")
        with refused(errors.ObjectStoreUnavailableError):
            await read(plane)
        objects.away = False
        assert (await followed.read()).data == b"two\n"
        followed.cancel()


async def test_of_attempts_with_one_number_the_own_one_is_read(plane: Replica, objects: Storage) -> None:
    """A store that was set back gives a number twice."""
    async with running(plane, objects) as (_, attempt):
        below = attempt_prefix((await plane.get()).uid, 1)
        objects.contents[segment_key(f"{below}00000000/", Segment(0, 9))] = b"another's"
        objects.contents[segment_key(f"{below}zzzzzzzz/", Segment(0, 9))] = b"another's"
        attempt.prints(b"own\n")
        assert text(await read(plane)) == b"own\n"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"attempt": -1}, "attempt"),
        ({"attempt": 3}, "attempt"),
        ({"attempt": 2}, "attempt"),
        ({"attempt": 3, "follow": True}, "attempt"),
        ({"offset": -1}, "offset"),
        ({"tail_lines": -1}, "tail_lines"),
        ({"tail_lines": 1, "offset": 1}, "tail_lines"),
    ],
)
async def test_what_cannot_be_read(plane: Replica, objects: Storage, fields: dict[str, Any], wrong: str) -> None:
    async with running(plane, objects):
        with refused(errors.InvalidRequestError) as caught:
            await read(plane, **fields)
        assert isinstance(caught.error, errors.InvalidRequestError)
        assert set(caught.error.violations) == {wrong}


async def test_a_job_that_has_not_begun(plane: Replica) -> None:
    with refused(errors.NotFoundError):
        await read(plane)
    await plane.create()
    assert await read(plane) == []
    with refused(errors.InvalidRequestError) as caught:
        await read(plane, attempt=1)
    assert "no attempt has begun" in caught.error.message


async def test_a_job_that_is_deleted_while_it_is_followed(idle_plane: Replica) -> None:
    await idle_plane.create()
    followed = stream(idle_plane, follow=True)
    await is_followed(idle_plane)
    await idle_plane.store.commit(deletion(await there(idle_plane.store, JobName("jobs/j"))))
    await idle_plane.create()
    with refused(errors.NotFoundError):
        await followed.read()


async def test_a_replica_that_drains_sends_its_readers_to_another(memory_store: MemoryStore, objects: Storage) -> None:
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(replica(memory_store, objects=objects))
        async with grpc.aio.insecure_channel(plane.address) as channel:
            await plane.create()
            request = pb.StreamLogsRequest(name="jobs/j", follow=True)
            stub: Any = JobServiceStub(channel)
            ending = asyncio.create_task(stub.StreamLogs(request).read())
            await is_followed(plane)
            await stack.aclose()
            with refused(errors.ShuttingDownError):
                await ending


async def test_readers_have_places(memory_store: MemoryStore, objects: Storage) -> None:
    nobody: Any = None
    reader = logs.Logs(memory_store, objects, nobody, at_once=2)
    with reader.turn(), reader.turn(), pytest.raises(errors.TooManyReadsError), reader.turn():
        pass
    with reader.turn():
        pass
