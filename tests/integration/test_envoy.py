"""deploy/envoy.yaml with the real Envoy, before a control plane: the same calls as through the gateway."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from adjourn.local import process_cleanup
from adjourn.local.ports import HOST, free_ports, is_free
from tests.harness.control_planes import PATIENCE, Replica

ROOT = Path(__file__).parents[2]
SPEC = {"entryPoint": "train:main", "totalEpochs": 3}


@pytest.fixture
async def envoy(
    idle_plane: Replica, servers: Path, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> AsyncIterator[httpx.AsyncClient]:
    """An Envoy with the configuration that is shipped, at ports of the test's own."""
    (port,) = free_ports(1)
    shipped: Any = yaml.safe_load((ROOT / "deploy" / "envoy.yaml").read_text())
    parts = shipped["static_resources"]
    parts["listeners"][0]["address"]["socket_address"]["port_value"] = port
    (endpoint,) = parts["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"]["port_value"] = int(idle_plane.address.rpartition(":")[2])
    (tmp_path / "envoy.json").write_text(json.dumps(shipped))
    program = Path(sys.executable).parent / "envoy"
    words = [str(program), "-c", str(tmp_path / "envoy.json"), "--disable-hot-restart", "--concurrency", "1"]
    process = subprocess.Popen(  # noqa: ASYNC220  # which only starts it
        [*words, "--log-level", "error"], cwd=ROOT, env=process_cleanup.marker(servers)
    )
    try:
        await eventually(lambda: process.poll() is not None or not is_free(port))
        assert process.poll() is None
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", timeout=PATIENCE, trust_env=False) as http:
            yield http
    finally:
        process.kill()
        process.wait()


async def test_envoy_does_as_the_gateway_does(envoy: httpx.AsyncClient) -> None:
    made = await envoy.post("/v1/jobs", params={"jobId": "a"}, json={"spec": SPEC, "labels": {"team": "x"}})
    assert made.status_code == 200, made.text
    assert made.json()["name"] == "jobs/a"
    assert [job["name"] for job in (await envoy.get("/v1/jobs?states=QUEUED")).json()["jobs"]] == ["jobs/a"]
    body = {"spec": {"maxRestarts": 9}}
    changed = await envoy.patch("/v1/jobs/a", params={"updateMask": "spec.maxRestarts"}, json=body)
    assert changed.json()["spec"]["maxRestarts"] == 9, changed.text
    paused = await envoy.post("/v1/jobs/a:pause", json={"reason": "lunch"}, headers={"adjourn-actor": "ann"})
    assert (paused.json()["state"], paused.json()["holds"][0]["actor"]) == ("PAUSED", "ann")
    missing = await envoy.get("/v1/jobs/none")
    assert missing.status_code == 404
    assert (missing.json()["code"], missing.json()["details"][0]["reason"]) == (5, "NOT_FOUND")
    refused = await envoy.delete("/v1/jobs/a")
    assert (refused.status_code, refused.json()["details"][0]["reason"]) == (400, "JOB_NOT_FINISHED")
    assert (await envoy.get("/v1/jobs?colour=red")).status_code == 400
    assert (await envoy.get("/v1/nothing")).status_code == 404
    assert (await envoy.get("/v1/jobs", headers={"Host": "evil.example"})).status_code == 404
    async with envoy.stream("GET", "/v1/jobs:watch") as answer:
        lines = answer.aiter_lines()
        assert json.loads((await anext(lines)).removeprefix("data: "))["job"]["name"] == "jobs/a"
