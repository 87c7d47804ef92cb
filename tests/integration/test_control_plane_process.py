"""The control plane as a process: how it starts, what keeps it from starting, how it goes away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adjourn import errors
from adjourn.local import process_cleanup
from adjourn.local.ports import HOST, free_ports
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import CreateJobRequest, GetJobRequest, WatchJobsRequest
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from tests.harness.control_planes import PATIENCE, Agent, refused

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Plane:
    """A control plane's process, with what it says on stderr in a file."""

    process: subprocess.Popen[bytes]
    address: str
    stderr: Path

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    @property
    def said(self) -> list[str]:
        return self.stderr.read_text().splitlines()

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said]


@pytest.fixture
def environment(redis_url: str, s3_environment: dict[str, str], servers: Path) -> dict[str, str]:
    (port,) = free_ports(1)
    return {
        **os.environ,
        **s3_environment,
        "ADJOURN_LISTEN": f"{HOST}:{port}",
        "ADJOURN_REDIS_URL": redis_url,
        "ADJOURN_NAMESPACE": f"process-{uuid4().hex[:8]}",
        "ADJOURN_SYNC_INTERVAL": "0.2",
        **process_cleanup.marker(servers),
    }


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    """Starts control planes; none survives the test."""
    planes: list[Plane] = []

    def start(environment: Mapping[str, str]) -> Plane:
        stderr = tmp_path / f"stderr-{len(planes)}"
        with stderr.open("wb") as sink:
            argv = (sys.executable, "-m", "adjourn_control_plane")
            process = subprocess.Popen(argv, env=dict(environment), stderr=sink, stdout=sink)
        planes.append(Plane(process, environment.get("ADJOURN_LISTEN", ""), stderr))
        return planes[-1]

    yield start
    for plane in planes:
        plane.process.kill()
        plane.process.wait()


async def serving(channel: grpc.aio.Channel) -> Any:
    """Waits until the health service answers SERVING; returns the stream of what it says next."""
    async with asyncio.timeout(PATIENCE):
        await channel.channel_ready()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        while (await watch.read()).status != SERVING:
            pass
    return watch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_in_order_and_ends_with_status_0(
    started: Any, environment: dict[str, str], number: signal.Signals
) -> None:
    plane = started(environment)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(plane.address))
        health = await serving(channel)
        agent = await stack.enter_async_context(Agent(plane.address))
        jobs: Any = JobServiceStub(channel)
        await jobs.CreateJob(CreateJobRequest(job_id="j", job=Job(spec=JobSpec(entry_point="m:f"))))
        watch = jobs.WatchJobs(WatchJobsRequest())
        await watch.read()
        await agent.say()
        await agent.given("jobs/j")
        plane.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            while (await health.read()).status != NOT_SERVING:
                pass
            health.cancel()
            with refused(errors.ShuttingDownError):
                await agent.ended()
            with refused(errors.ShuttingDownError):
                while await watch.read() is not grpc.aio.EOF:
                    pass
        assert await asyncio.to_thread(plane.ended) == 0
    events = [entry["event"] for entry in plane.logged]
    assert [event for event in events if event in ("serving", "draining", "drained")] == [
        "serving",
        "draining",
        "drained",
    ]
    assert not [entry for entry in plane.logged if entry["level"] in ("error", "critical")]


async def test_what_was_accepted_survives_sigkill(started: Any, environment: dict[str, str]) -> None:
    plane = started(environment)
    async with grpc.aio.insecure_channel(plane.address) as channel:
        await serving(channel)
        jobs: Any = JobServiceStub(channel)
        job = await jobs.CreateJob(CreateJobRequest(job_id="j", job=Job(spec=JobSpec(entry_point="m:f"))))
        plane.process.kill()
        plane.ended()
        again = started(environment)
        assert again.address == plane.address
        async with grpc.aio.insecure_channel(again.address) as other:
            await serving(other)
            stub: Any = JobServiceStub(other)
            found = await stub.GetJob(GetJobRequest(name="jobs/j"))
            found.ClearField("conditions")  # the scheduler may have said meanwhile why the job is queued
            assert found == job


def test_bad_settings_are_all_listed_with_status_2(started: Any, environment: dict[str, str]) -> None:
    wrong = {
        "ADJOURN_LISTEN": "nowhere",
        "ADJOURN_REDIS_URL": "http://secret@host",
        "ADJOURN_SYNC_INTERVAL": "10",
        "ADJOURN_LEASE_DURATION": "15",
        "ADJOURN_S3_SECRET_KEY": "",
    }
    plane = started(environment | wrong)
    assert plane.ended() == 2
    assert sorted(line.split()[0] for line in plane.said) == [
        "ADJOURN_LEASE_DURATION",
        "ADJOURN_LISTEN",
        "ADJOURN_REDIS_URL",
        "ADJOURN_S3_SECRET_KEY",
    ]
    assert "secret@" not in str(plane.said)


def complaint(plane: Plane) -> str:
    """Returns the one line that a control plane which cannot serve says, among what it logs."""
    assert plane.ended() == 1
    (line,) = [entry for entry in plane.logged if entry["level"] == "critical"]
    assert [entry for entry in plane.logged if entry["level"] == "error"] == []
    assert line["event"] == "cannot_serve"
    (error,) = line["errors"]
    return str(error)


def test_a_store_that_does_not_answer_is_one_clear_line(started: Any, environment: dict[str, str]) -> None:
    (port,) = free_ports(1)
    plane = started(environment | {"ADJOURN_REDIS_URL": f"redis://:hidden@{HOST}:{port}/0"})
    assert f"{HOST}:{port}" in complaint(plane)
    assert "hidden" not in str(plane.said)


def test_a_store_that_refuses_the_password_is_one_clear_line(started: Any, environment: dict[str, str]) -> None:
    url = environment["ADJOURN_REDIS_URL"].replace("redis://:", "redis://:hidden")
    plane = started(environment | {"ADJOURN_REDIS_URL": url})
    assert "password" in complaint(plane).lower()
    assert "hidden" not in str(plane.said)


def test_object_storage_that_does_not_answer_is_one_clear_line(started: Any, environment: dict[str, str]) -> None:
    (port,) = free_ports(1)
    plane = started(environment | {"ADJOURN_S3_ENDPOINT": f"http://{HOST}:{port}"})
    assert f"{HOST}:{port}" in complaint(plane)


async def test_a_port_that_is_taken_is_one_clear_line(started: Any, environment: dict[str, str]) -> None:
    first = started(environment)
    async with grpc.aio.insecure_channel(first.address) as channel:
        await serving(channel)
        second = started(environment)
        assert first.address in await asyncio.to_thread(complaint, second)
        await serving(channel)
