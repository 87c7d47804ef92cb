"""The control plane, the agents and the gateway, as programs of the stack."""

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adjourn import channel
from adjourn.client import AsyncClient
from adjourn.errors import AdjournError
from adjourn.local.managed_process import Program
from adjourn.local.process_cleanup import MARKER, agent_options
from adjourn.v1.worker_pb2 import Worker

CONTROL_PLANE: Final = "control-plane"
WEB: Final = "web"
ANSWER_SECONDS: Final = 2.0
AGENT_GRACE_SECONDS: Final = 5.0
"""From SIGTERM to SIGKILL: an agent ends its training, and reports that."""
OF_WORKERS: Final = ("ADJOURN_DATA_", "ADJOURN_KEPT_DATA_", "ADJOURN_VENVS", "ADJOURN_KEPT_VENV_", "PIP_")
OF_CONTROL_PLANE: Final = ("ADJOURN_GPU_HOUR_PRICE", "ADJOURN_WEBHOOK_")
OF_GATEWAY: Final = ("ADJOURN_WEB_HOSTS", "ADJOURN_WEB_ORIGINS", "ADJOURN_ORIGIN_JOB_")
"""Settings, by the beginning of their names, that are taken from the environment of `adjourn up`."""


def control_plane(*, directory: Path, logs: Path, address: str, environment: Mapping[str, str]) -> Program:
    return Program(
        name=CONTROL_PLANE,
        # -P: a module in the working directory must not be imported instead.
        argv=(sys.executable, "-P", "-m", "adjourn_control_plane"),
        environment={"ADJOURN_LISTEN": address, **environment},
        directory=directory,
        log=logs / f"{CONTROL_PLANE}.log",
        ready=lambda: serves(address),
        port=int(address.rpartition(":")[2]),
        patience=60,
        grace=3,
    )


def passed_on(environment: Mapping[str, str], beginnings: tuple[str, ...]) -> dict[str, str]:
    """Returns what the user of a stack may set for its workers, or for its control plane."""
    return {name: value for name, value in environment.items() if name.startswith(beginnings)}


def agent(*, name: str, directory: Path, logs: Path, address: str, environment: Mapping[str, str]) -> Program:
    directory.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    return Program(
        name=name,
        argv=(sys.executable, "-P", *agent_options(environment.get(MARKER, ""), name), "-m", "adjourn_worker"),
        environment={
            "ADJOURN_CONTROL_PLANE": address,
            "ADJOURN_WORKER": name,
            "ADJOURN_DATA": str(directory),
            "ADJOURN_CPU_SLOTS": "1",
            "ADJOURN_ON_TERM": "stop",
            **environment,
        },
        directory=directory,
        log=logs / f"{name}.log",
        ready=lambda: is_active(address, name, since=begun),
        patience=120,  # several import torch at once
        grace=AGENT_GRACE_SECONDS,
    )


def web(*, directory: Path, logs: Path, listen: str, address: str, environment: Mapping[str, str]) -> Program:
    return Program(
        name=WEB,
        argv=(sys.executable, "-P", "-m", "adjourn.web"),
        environment={"ADJOURN_WEB_LISTEN": listen, "ADJOURN_ADDRESS": address, **environment},
        directory=directory,
        log=logs / f"{WEB}.log",
        ready=lambda: answers(listen),
        port=int(listen.rpartition(":")[2]),
        patience=60,
        grace=2,
    )


async def answers(address: str) -> bool:
    """Returns whether a gateway answers HTTP."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readline()
            writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in head


async def serves(address: str) -> bool:
    async with grpc.aio.insecure_channel(address, channel.CLIENT_OPTIONS) as link:
        stub = health_pb2_grpc.HealthStub(link)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def is_active(address: str, name: str, *, since: float) -> bool:
    """Returns whether the worker is ACTIVE and has reported after `since`, in seconds since 1970."""
    try:
        async with AsyncClient(address, timeout=ANSWER_SECONDS) as client:
            worker = await client.get_worker(f"workers/{name}")
    except AdjournError:
        return False
    return worker.state == Worker.ACTIVE and worker.report_time.ToNanoseconds() > since * 1e9
