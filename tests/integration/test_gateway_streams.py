"""Streams through the gateway: resumed where they broke off, nothing twice, nothing missing."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from adjourn.local import process_cleanup
from adjourn.stored_logs import Segment, end_key, log_prefix, segment_key
from adjourn.v1.job_pb2 import Job
from tests.harness.control_planes import Agent, ControlPlaneProcess, Replica, replica, status_of
from tests.harness.gateways import Event, Gateway, gateway
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore

Eventually = Callable[..., Awaitable[None]]
SPEC = {"entryPoint": "train:main", "totalEpochs": 3}


class Page:
    """A page that is open: it follows a watch, and comes back by itself as a browser does."""

    def __init__(self, web: Gateway, path: str) -> None:
        self.web, self.path = web, path
        self.events: list[Event] = []
        self.errors: list[Event] = []
        self.live = False
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        last = ""
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            try:
                async with self.web.events(self.path, headers=headers) as events:
                    async for event in events:
                        if event.kind == "error":
                            self.errors.append(event)
                            continue
                        self.live = True
                        self.events.append(event)
                        last = last if event.id is None else event.id
            except httpx.TransportError:
                pass
            self.live = False
            await asyncio.sleep(0.1)

    def listed(self) -> bool:
        """Tells whether the list of jobs is complete."""
        return any(set(event.data) == {"resumeToken"} for event in self.events)

    def changes(self) -> list[str | None]:
        """Returns the token of each change."""
        return [event.id for event in self.events if "job" in event.data]

    def states(self) -> dict[str, str]:
        """Returns the state that is shown of each job."""
        return {event.data["job"]["name"]: event.data["job"]["state"] for event in self.events if "job" in event.data}

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_pages_outlive_a_control_plane_that_is_killed(
    redis_url: str, s3_environment: dict[str, str], servers: Path, eventually: Eventually
) -> None:
    plane = ControlPlaneProcess(
        {
            **s3_environment,
            "ADJOURN_REDIS_URL": redis_url,
            "ADJOURN_NAMESPACE": f"gateway-{uuid4().hex[:8]}",
            **process_cleanup.marker(servers),
        }
    )
    await asyncio.to_thread(plane.start)
    try:
        async with gateway(plane.address) as web:
            pages = [Page(web, "/v1/jobs:watch") for _ in range(10)]
            histories = [Page(web, "/v1/jobs:watchEvents") for _ in range(3)]
            try:
                await eventually(lambda: all(page.live for page in (*pages, *histories)))
                for name in ("a", "b"):
                    await web.http.post("/v1/jobs", params={"jobId": name}, json={"spec": SPEC})
                await eventually(lambda: all(len(page.states()) == 2 for page in pages))
                plane.kill()
                await eventually(lambda: all(page.errors and not page.live for page in (*pages, *histories)))
                assert {page.errors[0].data["code"] for page in pages} == {14}
                await asyncio.to_thread(plane.start)
                for verb, state in (("pause", "PAUSED"), ("resume", "QUEUED"), ("cancel", "CANCELLED")):
                    assert (await web.http.post(f"/v1/jobs/a:{verb}")).status_code == 200
                    await eventually(lambda state=state: all(page.states()["jobs/a"] == state for page in pages))
                changes = pages[0].changes()
                assert len(set(changes)) == len(changes), "nothing comes twice"
                assert all(page.changes() == changes for page in pages)
                told = [event["type"] for event in (await web.http.get("/v1/jobs/a/events")).json()["events"]]
                for history in histories:
                    await eventually(lambda history=history: len(kinds(history, "jobs/a")) >= len(told))
                    assert kinds(history, "jobs/a") == told
            finally:
                await asyncio.gather(*(page.close() for page in (*pages, *histories)))
    finally:
        plane.kill()


def kinds(page: Page, job: str) -> list[str]:
    return [event.data["event"]["type"] for event in page.events if event.data.get("job") == job]


async def test_who_comes_to_another_gateway_has_the_list_anew_and_every_event(idle_plane: Replica) -> None:
    await idle_plane.create("a")
    async with (
        gateway(idle_plane.address) as first,
        first.events("/v1/jobs:watch") as jobs,
        first.events("/v1/jobs:watchEvents") as told,
    ):
        listed, end, begin = await anext(jobs), await anext(jobs), await anext(told)
    assert (listed.id, end.data) == ("", {"resumeToken": end.id})
    await idle_plane.create("b")
    async with gateway(idle_plane.address) as second:
        headers = {"Last-Event-ID": end.id or ""}
        async with second.events("/v1/jobs:watch", headers=headers) as jobs:
            assert await anext(jobs) == Event(data={}, id="")
            assert {(await anext(jobs)).data["job"]["name"] for _ in range(2)} == {"jobs/a", "jobs/b"}
            assert set((await anext(jobs)).data) == {"resumeToken"}
        async with second.events(f"/v1/jobs:watchEvents?last_event_id={begin.id}") as told:
            event = await anext(told)
            assert (event.data["job"], event.data["event"]["type"]) == ("jobs/b", "CREATED")
        async with second.events("/v1/jobs:watch?resumeToken=1-0") as jobs:
            assert await anext(jobs) == Event(data={}, id="")


async def test_many_pages_have_one_watch_and_a_filter_its_own(idle_plane: Replica, eventually: Eventually) -> None:
    for name in ("a", "b"):
        await idle_plane.create(name)
    async with gateway(idle_plane.address) as web:
        paths = Counter({"/v1/jobs:watch": 20, "/v1/jobs:watch?names=jobs/a": 5})
        pages = [Page(web, path) for path in paths.elements()]
        try:
            await eventually(lambda: all(page.listed() for page in pages))
            listed = Counter(
                tuple(sorted(event.data["job"]["name"] for event in page.events if "job" in event.data))
                for page in pages
            )
            assert listed == {("jobs/a", "jobs/b"): 20, ("jobs/a",): 5}
            assert len(web.rest.streams.watches) == 2
        finally:
            await asyncio.gather(*(page.close() for page in pages))


async def test_draining_ends_pages_with_a_reason_to_come_back(idle_plane: Replica) -> None:
    async with gateway(idle_plane.address) as web, web.events("/v1/jobs:watch") as events:
        assert set((await anext(events)).data) == {"resumeToken"}
        web.rest.closing.set()
        last = [event async for event in events]
        assert [(event.kind, event.data["code"]) for event in last] == [("error", 14)]


async def test_more_streams_than_there_is_room_for_are_told_to_wait(
    idle_plane: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adjourn.web.rest.application.STREAM_LIMIT", 1)
    async with gateway(idle_plane.address) as web:
        async with web.events("/v1/jobs:watch"):
            refused = await web.http.get("/v1/jobs:watch")
            assert (refused.status_code, refused.json()["code"]) == (429, 8)
        status = 429
        async with asyncio.timeout(10):
            while status == 429:
                async with web.http.stream("GET", "/v1/jobs:watch") as answer:
                    status = answer.status_code
        assert status == 200
        assert (await web.http.head("/v1/jobs:watch")).status_code == 405
        assert (await web.http.head("/v1/jobs")).status_code == 200


async def test_output_is_followed_and_read_on_where_it_broke_off(memory_store: MemoryStore) -> None:
    objects = MemoryObjects()
    async with replica(memory_store, objects=objects) as plane, gateway(plane.address) as web:
        await plane.create()
        async with Agent(plane.address) as agent:
            await agent.say()
            order = await agent.given("jobs/j")
            await agent.say(status_of(order))
            await plane.becomes(Job.RUNNING)
            prefix = log_prefix(order.token)
            objects.contents[segment_key(prefix, Segment(0, 4))] = b"one\n"
            async with web.events("/v1/jobs/j:streamLogs?follow=true") as events:
                first = await anext(events)
                assert (first.id, first.data["data"]) == ("1:4", "b25lCg==")
            objects.contents[segment_key(prefix, Segment(4, 8))] = b"two\n"
            again = {"Last-Event-ID": first.id or ""}
            async with web.events("/v1/jobs/j:streamLogs?follow=true&tailLines=5", headers=again) as events:
                second = await anext(events)
                assert (second.id, second.data["offset"], second.data["data"]) == ("1:8", "4", "dHdvCg==")
            objects.contents[end_key(prefix, 8)] = b"end"
        await web.http.post("/v1/jobs/j:cancel")
