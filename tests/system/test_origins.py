"""The interfaces of Heimdall and PEFT Studio: their test plans and their sockets' clients, on a real training."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio
import websockets
from websockets.asyncio.client import ClientConnection

from adjourn.client import AsyncClient
from adjourn.local.ports import HOST
from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECONDS = 60.0


@dataclass
class Listener:
    """A client of a socket; what it heard is kept."""

    connection: ClientConnection
    heard: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, key: str, name: str, **data: object) -> dict[str, Any]:
        """Waits for a frame of this event or type whose data has these values."""
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    frame: dict[str, Any] = json.loads(await self.connection.recv())
                    self.heard.append(frame)
                    about = frame.get("data", {})
                    if frame.get(key) == name and all(about.get(each) == value for each, value in data.items()):
                        return frame
        except TimeoutError:
            raise AssertionError(f"{name} {data} did not come after {self.heard[-5:]}") from None


@dataclass
class Origin:
    """An interface, and clients of it."""

    address: str
    http: httpx.AsyncClient

    @asynccontextmanager
    async def listener(self, path: str) -> AsyncIterator[Listener]:
        async with websockets.connect(f"ws://{self.address}{path}") as connection:
            yield Listener(connection)

    async def says(self, status: int, method: str, path: str, body: object = None) -> Any:
        answer = await self.http.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def detail(self, status: int, method: str, path: str, body: object = None) -> Any:
        return (await self.says(status, method, path, body))["detail"]


@asynccontextmanager
async def origin(port: int) -> AsyncIterator[Origin]:
    address = f"{HOST}:{port}"
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=SECONDS, trust_env=False) as http:
        yield Origin(address, http)


@pytest_asyncio.fixture(loop_scope="session")
async def heimdall(stack: Stack) -> AsyncIterator[Origin]:
    assert stack.options.origins
    async with origin(stack.options.origins.heimdall) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def peft_studio(stack: Stack) -> AsyncIterator[Origin]:
    assert stack.options.origins
    async with origin(stack.options.origins.peft_studio) as made:
        yield made


async def test_heimdalls_plan(  # noqa: PLR0915  # one life of a job
    client: AsyncClient, heimdall: Origin
) -> None:
    """Create, pause, resume, cancel, delete, list, metrics, each refusal on the way, and two sockets that follow."""
    jobs = "/v1/training/jobs"
    async with heimdall.listener("/ws") as everything:
        await everything.until("event", "connected")
        config = {"epochs": 200, "batch_size": 64, "early_stop_patience": 0, "their own": "kept"}
        made = await heimdall.says(201, "POST", jobs, {"job_name": "first <b>", "config": config})
        job_id, path = made["id"], f"{jobs}/{made['id']}"
        assert (made["status"], made["job_name"], made["config"]["their own"]) == ("queued", "first <b>", "kept")
        assert made["config"]["learning_rate"] == 1e-3
        await everything.until("event", "training_job_update", job_id=job_id, action="created")
        async with heimdall.listener(f"/api/v1/ws/training/{job_id}") as socket:
            assert (await socket.until("event", "connected"))["job_id"] == job_id
            await socket.connection.send('{"event": "ping"}')
            await socket.until("event", "pong")
            await socket.until("event", "training:progress", epoch=2)
            running = await heimdall.says(200, "GET", path)
            assert (running["status"], running["job"]["id"]) == ("running", job_id)
            assert 0 < len(running["recent_metrics"]) <= 10
            assert await heimdall.detail(400, "POST", f"{path}/resume") == (
                "Cannot resume job in status 'running'. Only paused, cancelled, or failed jobs can be resumed."
            )
            assert (await heimdall.detail(400, "DELETE", path)).startswith("Cannot delete job in status 'running'.")
            answer = await heimdall.says(200, "POST", f"{path}/pause")
            assert answer["message"] == "Training will pause after completing the current epoch"
            assert (answer["status"], answer["total_epochs"]) == ("pausing", 200)
            paused = await socket.until("event", "training:paused")
            told = await heimdall.says(200, "GET", path)
            job = await client.get_job(job_id)
            assert (told["status"], job.state) == ("paused", Job.PAUSED)
            assert told["pause_checkpoint_path"] == job.pause.checkpoint == paused["data"]["checkpoint_path"]
            assert told["current_epoch"] == job.pause.epoch == paused["data"]["current_epoch"]
            assert await heimdall.detail(400, "POST", f"{path}/pause") == (
                "Cannot pause job in status 'paused'. Only running jobs can be paused."
            )
            assert await heimdall.detail(400, "DELETE", path) == (
                "Cannot delete job in status 'paused'. Cancel the job first."
            )
            listed = await heimdall.says(200, "GET", f"{jobs}?status=paused&limit=1")
            assert listed == {"jobs": [told["job"]], "total": listed["total"]}
            answer = await heimdall.says(200, "POST", f"{path}/resume")
            assert answer["message"] == f"Training resumed from epoch {job.pause.epoch}"
            assert (answer["status"], bool(answer["celery_task_id"])) == ("queued", True)
            await socket.until("event", "training:resumed", current_epoch=job.pause.epoch)
            await socket.until("event", "training:progress", epoch=job.pause.epoch + 1)
            assert await heimdall.says(200, "POST", f"{path}/cancel") == {"status": "cancelled", "job_id": job_id}
            await socket.until("event", "training:completed", status="cancelled")
        assert (await heimdall.detail(400, "POST", f"{path}/cancel")).startswith(
            "Cannot cancel job in status 'cancelled'."
        )
        epochs = await heimdall.says(200, "GET", f"{path}/metrics?limit=1000")
        assert [each["epoch"] for each in epochs] == list(range(1, len(epochs) + 1))
        assert all(each["val_loss"] > 0 and each["val_accuracy"] > 0 for each in epochs)
        followed = [frame["data"]["epoch"] for frame in socket.heard if frame["event"] == "training:progress"]
        assert followed == sorted(set(followed))
        await heimdall.says(204, "DELETE", path)
        assert await heimdall.detail(404, "GET", path) == f"Training job {job_id} not found"
        await everything.until("event", "training_job_update", job_id=job_id, action="deleted")
    actions = [
        frame["data"].get("action") for frame in everything.heard if frame.get("data", {}).get("job_id") == job_id
    ]
    assert [each for each in actions if each] == ["created", "paused", "resumed", "cancelled", "deleted"]


async def test_heimdall_refuses_what_it_cannot_read(heimdall: Origin) -> None:
    jobs, unknown = "/api/v1/training/jobs", uuid4()
    for path in (f"{jobs}/{unknown}", f"{jobs}/{unknown}/metrics"):
        assert await heimdall.detail(404, "GET", path) == f"Training job {unknown} not found"
    for verb in ("pause", "resume", "cancel"):
        assert await heimdall.detail(404, "POST", f"{jobs}/{unknown}/{verb}") == f"Training job {unknown} not found"
    for method, path, body, place in (
        ("GET", f"{jobs}/no-uuid", None, ["path", "job_id"]),
        ("GET", f"{jobs}?limit=501", None, ["query", "limit"]),
        ("GET", f"{jobs}?offset=-1", None, ["query", "offset"]),
        ("GET", f"{jobs}?status=odd", None, ["query", "status"]),
        ("GET", f"{jobs}/{unknown}/metrics?limit=0", None, ["query", "limit"]),
        ("POST", jobs, {"config": {}}, ["body", "job_name"]),
        ("POST", jobs, {"job_name": "", "config": {}}, ["body", "job_name"]),
        ("POST", jobs, {"job_name": "a", "config": {"batch_size": 0}}, ["body", "config", "batch_size"]),
        ("POST", jobs, {"job_name": "a", "config": {"epochs": 5001}}, ["body", "config", "epochs"]),
        ("POST", jobs, {"job_name": "a", "config": {"learning_rate": 0}}, ["body", "config", "learning_rate"]),
    ):
        (problem,) = await heimdall.detail(422, method, path, body)
        assert problem["loc"] == place
        assert problem["msg"]
    assert (await heimdall.http.post(jobs, content=b"{")).json()["detail"][0]["type"] == "json_invalid"
    assert await heimdall.says(200, "GET", f"{jobs}?status=pending") == {"jobs": [], "total": 0}
    assert (await heimdall.says(200, "GET", "/health"))["status"] == "healthy"
    assert await heimdall.says(200, "GET", "/ready") == {"status": "ready"}
    with pytest.raises(websockets.ConnectionClosed) as closed:
        async with heimdall.listener(f"/ws/training/{unknown}") as socket:
            await socket.connection.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4404


async def test_a_job_without_epochs_cannot_be_paused(client: AsyncClient, heimdall: Origin) -> None:
    body = {"job_name": "synthetic", "config": {"epochs": 0}}
    job_id = (await heimdall.says(201, "POST", "/v1/training/jobs", body))["id"]
    answer = await heimdall.detail(400, "POST", f"/v1/training/jobs/{job_id}/pause")
    assert answer == "Cannot pause synthetic data generation jobs."
    assert (await client.wait_job(job_id, timeout=SECONDS)).state == Job.SUCCEEDED


async def test_peft_studios_plan(client: AsyncClient, peft_studio: Origin) -> None:
    """Start, pause, what a paused run tells, resume, stop and save, the refusals between, and a socket that follows."""
    base = "/api/training"
    config = {"model_name": "llama", "dataset_path": "/data/alpaca", "num_epochs": 200, "batch_size": 64, "patience": 0}
    started = await peft_studio.says(200, "POST", f"{base}/start", config)
    job_id = started["job_id"]
    async with peft_studio.listener(f"/ws/training/{job_id}") as socket:
        await socket.until("type", "connected")
        await socket.connection.send("ping")
        await socket.until("type", "pong")
        await socket.until("type", "metrics", epoch=2)
        refusal = f"Job {job_id} is not in paused state. Current state: running"
        assert await peft_studio.detail(400, "GET", f"{base}/paused/{job_id}") == refusal
        assert await peft_studio.detail(400, "POST", f"{base}/resume/{job_id}") == "Cannot resume job in state: running"
        assert (await peft_studio.says(200, "POST", f"{base}/{job_id}/pause"))["status"] == "pausing"
        await socket.until("type", "status_change", status="paused")
        told = await peft_studio.says(200, "GET", f"{base}/paused/{job_id}")
        job = await client.get_job(job_id)
        assert as_the_contract_tells(job) == {name: told[name] for name in as_the_contract_tells(job)}
        assert (told["unknown"], told["resource_usage"]["unknown"]) == ([], [])
        assert (told["checkpoint"]["verified"], told["checkpoint"]["size_bytes"] > 0) == (True, True)
        listed = await peft_studio.says(200, "GET", f"{base}/paused")
        assert listed["count"] == len(listed["paused_runs"])
        assert job_id in [run["job_id"] for run in listed["paused_runs"]]
        assert (await peft_studio.says(200, "POST", f"{base}/{job_id}/resume")) == {
            "job_id": job_id,
            "status": "resumed",
            "message": "Training resumed successfully",
        }
        await socket.until("type", "status_change", status="running")
        await socket.until("type", "metrics", epoch=job.progress.epoch + 1)
        assert (await peft_studio.says(200, "POST", f"{base}/stop/{job_id}"))["status"] == "stopping"
        await socket.until("type", "status_change", status="stopped")
    stopped = await client.get_job(job_id)
    assert stopped.state == Job.CANCELLED
    kept = await client.get_checkpoint(stopped.latest_checkpoint)
    assert kept.step == stopped.progress.step
    assert await peft_studio.detail(400, "POST", f"{base}/{job_id}/stop") == "Cannot stop job in state: stopped"
    (line,) = [
        each for each in (await peft_studio.says(200, "GET", f"{base}/list"))["jobs"] if each["job_id"] == job_id
    ]
    assert (line["state"], line["model_name"]) == ("stopped", "llama")
    assert await peft_studio.detail(404, "GET", f"{base}/paused/unknown") == "Job unknown not found"
    assert (await peft_studio.detail(422, "POST", f"{base}/start", {}))[0]["loc"] == ["body", "model_name"]
    await client.delete_job(job_id)


def as_the_contract_tells(job: Job) -> dict[str, Any]:
    """Returns the fields of a paused run as GetJob tells them, in PEFT Studio's units."""
    usage = job.pause.usage
    return {
        "job_id": job.name.removeprefix("jobs/"),
        "state": "paused",
        "paused_at": job.state_time.ToDatetime(tzinfo=UTC).isoformat(timespec="milliseconds"),
        "started_at": job.start_time.ToDatetime(tzinfo=UTC).isoformat(timespec="milliseconds"),
        "elapsed_time": job.progress.active_duration.ToTimedelta().total_seconds(),
        "remaining_time_estimate": job.progress.remaining_duration.ToTimedelta().total_seconds(),
        "current_step": job.progress.step,
        "current_epoch": job.progress.epoch,
        "current_loss": job.progress.loss,
        "resource_usage": {
            "gpu_utilization": [],
            "gpu_memory_used": [],
            "cpu_utilization": usage.worker_cpu_percent,
            "ram_used": usage.memory_bytes,
            "unknown": [],
        },
        "model_name": job.spec.model_name,
        "dataset_path": job.spec.dataset_uri,
        "dataset_name": "alpaca",
    }
