"""The gateway as a process: how it starts, what keeps it from starting, how it goes away."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adjourn.local import process_cleanup
from adjourn.local.ports import HOST, free_ports
from adjourn.local.services import answers
from tests.harness.control_planes import Replica

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def start(servers: Path, log: Path) -> Iterator[Start]:
    """Starts gateways; none survives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ADJOURN_")}
        environment = {**inherited, **process_cleanup.marker(servers), **settings}
        with log.open("wb") as sink:
            process = subprocess.Popen([sys.executable, "-m", "adjourn.web"], env=environment, stderr=sink, stdout=sink)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_streams_with_a_reason_and_then_the_process(
    start: Start, idle_plane: Replica, log: Path, eventually: Callable[..., Awaitable[None]], number: signal.Signals
) -> None:
    (port,) = free_ports(1)
    address = f"{HOST}:{port}"
    gateway = start(ADJOURN_WEB_LISTEN=address, ADJOURN_ADDRESS=idle_plane.address)
    async with asyncio.timeout(30):
        while not await answers(address):  # noqa: ASYNC110  # it is another process
            await asyncio.sleep(0.02)
    async with (
        httpx.AsyncClient(base_url=f"http://{address}", timeout=30, trust_env=False) as http,
        http.stream("GET", "/v1/jobs:watch") as answer,
    ):
        lines = answer.aiter_lines()
        while not (await anext(lines)).startswith("data: "):
            pass
        gateway.send_signal(number)
        rest = [line async for line in lines if line]
        assert rest[0] == "event: error"
        assert "SHUTTING_DOWN" in rest[1]
    await eventually(lambda: gateway.poll() is not None)
    assert gateway.returncode == 0
    assert [entry["event"] for entry in logged(log)] == ["serving", "drained"]


def test_a_port_that_is_taken_is_told_in_a_line(start: Start, log: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        assert start(ADJOURN_WEB_LISTEN=address).wait(30) == 1
    (entry,) = logged(log)
    assert entry["errors"] == [f"cannot listen at {address}: Address already in use"]


def test_everything_that_is_wrong_with_settings_is_told(start: Start, log: Path) -> None:
    wrong = {"LISTEN": "7480", "HOSTS": "a:80", "ORIGINS": "example.org"}
    assert start(**{f"ADJOURN_WEB_{name}": value for name, value in wrong.items()}).wait(30) == 2
    assert log.read_text().splitlines() == [
        "ADJOURN_WEB_LISTEN must be host:port",
        "ADJOURN_WEB_HOSTS must be names of hosts, separated by commas, without ports",
        "ADJOURN_WEB_ORIGINS must be origins, separated by commas: https://host or http://host:port",
    ]
