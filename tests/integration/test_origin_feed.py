"""The watch that sockets of the origins share: what it does for who is slow, and while the control plane is away."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import uuid4

import httpx
import pytest
from starlette.requests import Request

from adjourn.client import AsyncClient
from adjourn.errors import DeadlineError, NotFoundError, StaleEtagError
from adjourn.web.origins import applications, feed, happened, refusals
from adjourn.web.origins.created import Trained
from adjourn.web.origins.feed import Deleted, Feed, News, TooSlowError
from adjourn.web.origins.happened import Kind
from tests.harness.control_planes import PATIENCE, SPEC, ControlPlaneProcess, Replica


async def created(news: AsyncGenerator[News, None]) -> str:
    """Waits for the next job that is made; returns its name."""
    async with asyncio.timeout(PATIENCE):
        async for each in news:
            if not isinstance(each, Deleted) and each.kind is Kind.CREATED:
                return each.job.name
    raise AssertionError("the news ended")


async def test_who_is_too_slow_is_told_so_and_nobody_else_is(
    idle_plane: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "QUEUE", 3)
    async with AsyncClient(idle_plane.address) as client:
        shared = Feed(client)
        async with shared.listen() as slow, shared.listen() as quick:
            for number in range(4):  # two news each
                await client.create_job(SPEC, job_id=f"j{number}")
                assert await created(quick) == f"jobs/j{number}"
            with pytest.raises(TooSlowError):
                await anext(slow)


async def test_what_happens_is_told_once_over_a_control_plane_that_was_killed(
    redis_url: str, s3_environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    plane = ControlPlaneProcess(
        {**s3_environment, "ADJOURN_REDIS_URL": redis_url, "ADJOURN_NAMESPACE": f"feed-{uuid4().hex[:8]}"}
    )
    request.addfinalizer(plane.kill)
    plane.start()
    async with AsyncClient(plane.address) as client:
        await client.create_job(SPEC, job_id="before")
        shared = Feed(client)
        async with shared.listen() as news:
            await client.create_job(SPEC, job_id="first")
            assert await created(news) == "jobs/first", "what was there before is no news"
            await asyncio.to_thread(plane.kill)
            await asyncio.to_thread(plane.start)
            await client.create_job(SPEC, job_id="second")
            assert await created(news) == "jobs/second"


async def test_a_fault_of_the_watch_leaves_nobody_waiting(idle_plane: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncClient(idle_plane.address) as client:
        shared = Feed(client)
        async with shared.listen() as news:
            monkeypatch.setattr(happened, "between", lambda *_: 1 / 0)
            await client.create_job(SPEC)
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(anext(news), PATIENCE)


async def test_a_control_plane_that_does_not_answer_is_told() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        app = applications.heimdall(client, Trained(), Feed(client))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            assert (await http.get("/health")).status_code == 200
            for answer in await asyncio.gather(http.get("/ready"), http.get("/v1/training/jobs")):
                assert (answer.status_code, "127.0.0.1:1" in answer.json()["detail"]) == (503, True)


async def test_a_decision_is_taken_anew_if_the_job_has_changed_and_not_for_ever() -> None:
    tries: list[int] = []

    async def decide() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise StaleEtagError("it has changed")
        return len(tries)

    assert await refusals.decided(decide) == 3

    async def never() -> None:
        tries.append(1)
        raise StaleEtagError("it has changed")

    tries.clear()
    with pytest.raises(StaleEtagError):
        await refusals.decided(never)
    assert len(tries) == refusals.TRIES


@pytest.mark.parametrize(
    ("error", "status"), [(DeadlineError("late"), 504), (NotFoundError("gone"), 404), (StaleEtagError("changed"), 409)]
)
async def test_each_kind_of_refusal_has_a_status(error: Exception, status: int) -> None:
    request = Request({"type": "http"})
    assert (await refusals.adjourn_error(request, error)).status_code == status
