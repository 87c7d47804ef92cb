"""The gateway over a control plane: routes, errors, streams."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.control_planes import Replica
from tests.harness.gateways import Gateway, gateway


@pytest.fixture
async def web(plane: Replica) -> AsyncIterator[Gateway]:
    async with gateway(plane.address) as served:
        yield served


async def test_a_job_is_made_watched_and_paused(web: Gateway) -> None:
    spec = {"entryPoint": "train:main", "totalEpochs": 3}
    made = await web.http.post("/v1/jobs", params={"jobId": "a"}, json={"spec": spec, "labels": {"team": "x"}})
    assert made.status_code == 200, made.text
    assert made.json()["name"] == "jobs/a"
    async with web.events("/v1/jobs:watch") as events:
        listed = await anext(events)
        assert (listed.id, listed.data["job"]["name"]) == ("", "jobs/a")
        end = await anext(events)
        assert end.data == {"resumeToken": end.id}
        paused = await web.http.post("/v1/jobs/a:pause", json={"reason": "lunch"})
        assert paused.json()["state"] == "PAUSED"
        change = await anext(events)
        assert change.data["job"]["state"] == "PAUSED"
        assert change.id == change.data["resumeToken"]
    async with web.events("/v1/jobs:watch", headers={"Last-Event-ID": end.id or ""}) as events:
        assert await anext(events) == change
    missing = await web.http.get("/v1/jobs/b")
    assert missing.status_code == 404
    assert missing.json()["code"] == 5
