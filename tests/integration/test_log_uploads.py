"""What training prints is stored while it runs and whole in the end, whatever becomes of agent and storage."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from adjourn.objects import ObjectMissing, ObjectStore, S3Objects, S3Settings
from adjourn.stored_logs import log_prefix, segment_key, stored_log
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from tests.harness.agents import DEADLINE, NOWHERE, AgentHarness
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job


async def stored(objects: ObjectStore, job: Job) -> tuple[bytes, int | None]:
    """Returns what is stored of a job's log, and its end if that is."""
    prefix = log_prefix(job.assignment.token)
    found, text = stored_log(prefix, await objects.list(prefix)), b""
    while segment := found.after(len(text)):
        text += (await objects.get(segment_key(prefix, segment), limit=segment.size))[len(text) - segment.begin :]
    return text, found.end


async def until_stored(objects: ObjectStore, job: Job, text: bytes, *, whole: bool = False) -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(ObjectMissing):  # a larger one has taken its place since they were listed
                found, end = await stored(objects, job)
                assert end in (None, len(found))
                if found.endswith(text) and (end is not None or not whole):
                    return
            await asyncio.sleep(0.05)


@pytest.fixture
async def s3(s3_environment: dict[str, str]) -> AsyncIterator[S3Objects]:
    async with S3Objects(S3Settings.from_environment(s3_environment)) as objects:
        await objects.ensure_bucket()
        yield objects


async def test_a_log_is_stored_while_it_is_printed_and_ends_with_its_attempt(
    harness: AgentHarness, s3: ObjectStore
) -> None:
    job = harness.job()
    harness.plane.followed = [job.assignment.token.job_uid]
    job.do("print one")
    async with harness.agent(s3):
        await until_stored(s3, job, b"one\n")
        job.do("print two")
        await until_stored(s3, job, b"one\ntwo\n")
        assert len(await s3.list(log_prefix(job.assignment.token))) <= 2  # the newest one grows
        job.do("print three", "epoch", "finish")
        await harness.until_forgotten(job)
        await until_stored(s3, job, b"one\ntwo\nthree\n", whole=True)
        await harness.until(lambda: not list(harness.paths.unstored_logs.iterdir()))
    text, _ = await stored(s3, job)
    assert text == harness.log(job).read_bytes()


async def test_an_agent_that_is_killed_has_its_successor_go_on(
    harness: AgentHarness, s3: ObjectStore, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADJOURN_FAILPOINT", "worker.log-stored:kill@2")
    job = harness.job()
    harness.plane.followed = [job.assignment.token.job_uid]
    await harness.launcher()
    job.do("print one")
    first = await harness.process(**s3_environment)
    await until_stored(s3, job, b"one\n")
    job.do("print two")
    assert await harness.ended(first) == -signal.SIGKILL
    job.do("print three")
    monkeypatch.delenv("ADJOURN_FAILPOINT")
    second = await harness.process(**s3_environment)
    await until_stored(s3, job, b"one\ntwo\nthree\n")
    job.do("fail")
    await harness.until_forgotten(job)
    await until_stored(s3, job, b"three\nthe whole story\n", whole=True)
    await harness.kill(second)
    text, _ = await stored(s3, job)
    assert text == harness.log(job).read_bytes()


async def test_without_storage_an_attempt_ends_all_the_same_and_its_log_follows(
    harness: AgentHarness, objects: MemoryObjects, s3_environment: dict[str, str]
) -> None:
    """The agent that held it can reach no storage; the next one, which holds nothing, can."""
    job = harness.job()
    job.do("print one", "fail")
    settings = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_ENDPOINT": NOWHERE})
    async with S3Objects(settings) as nowhere, harness.agent(nowhere):
        await harness.until_forgotten(job)
        assert harness.plane.exit(job).phase == AssignmentStatus.FAILED
    assert len(list(harness.paths.unstored_logs.iterdir())) == 1
    async with harness.agent(objects):
        await until_stored(objects, job, b"one\nthe whole story\n", whole=True)


async def test_an_attempt_that_was_never_launched_has_printed_nothing(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job(hand_out=False)
    job.assignment.target = Assignment.STOP
    harness.plane.assignments[job.name] = job.assignment
    async with harness.agent(objects):
        await harness.until_forgotten(job)
        await until_stored(objects, job, b"", whole=True)


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()
