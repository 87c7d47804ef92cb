"""`adjourn up`, as people run it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adjourn.client import AsyncClient
from adjourn.local import process_cleanup
from adjourn.local.data_directory import DataDirectory
from adjourn.local.ports import free_ports, is_free
from adjourn.local.process_cleanup import Role
from adjourn.v1.job_pb2 import JobSpec, Money

Eventually = Callable[..., Awaitable[None]]


COMMAND = (str(Path(sys.executable).parent / "adjourn"),)
GRACIOUS = """
from adjourn.local import services
from adjourn.cli import main
services.AGENT_GRACE_SECONDS = 600
main()
"""
"""The command, whose agents are given more time to end than the test has."""


class Up:
    """An `adjourn up` in the background; what it prints is in a file."""

    def __init__(self, data: Path, *options: str, command: Sequence[str] = COMMAND) -> None:
        self.data = data
        self.output = data.with_suffix(".out")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "up", "--data", str(data), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "200"},
            )

    def printed(self) -> str:
        return self.output.read_text()

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.printed()
        return "ADJOURN_ADDRESS" in self.printed()

    def address(self) -> str:
        found = re.search(r"ADJOURN_ADDRESS=(\S+)", self.printed())
        assert found
        return found[1]

    def web(self) -> str:
        """Returns the URL of the gateway."""
        found = re.search(r"web page, HTTP\s+(http://\S+)", self.printed())
        assert found, self.printed()
        return found[1]

    def members(self, role: Role | None = None) -> list[psutil.Process]:
        return [process for kind, process in process_cleanup.find(self.data) if role in (None, kind)]

    def end(self, number: signal.Signals) -> int:
        """Returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(15)

    def ports(self) -> set[int]:
        ports = (
            set(DataDirectory(self.data).settings(threads=1, ports=9).ports)
            if (self.data / "stack.json").exists()
            else set()
        )
        return ports | ({int(self.address().rpartition(":")[2])} if "ADJOURN_ADDRESS" in self.printed() else set())


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str, **more: Any) -> Up:
        started.append(Up(tmp_path / "data", *options, **more))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
        one.process.wait(60)
        assert one.members() == []


async def test_killed_parts_come_back_and_a_restart_goes_on_where_it_was(
    up: Callable[..., Up], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADJOURN_GPU_HOUR_PRICE", "2.50 EUR")
    first = up()
    await eventually(first.is_ready, seconds=90)
    async with AsyncClient(first.address()) as client:
        kept = await client.create_job(
            JobSpec(entry_point="nowhere:main", total_epochs=1, worker_selector={"no": "such"}), job_id="kept"
        )
        assert kept.gpu_hour_price == Money(currency="EUR", amount=2.5), "the control plane has what is set here"
        assert len([worker async for worker in client.list_workers()]) == 2

    for role in (Role.AGENT, Role.VALKEY, Role.CONTROL_PLANE, Role.WEB):
        before = {process.pid for process in first.members(role)}
        for process in first.members(role):
            process.kill()
        await eventually(
            lambda role=role, before=before: len({p.pid for p in first.members(role)} - before) == len(before)
        )
    # A watch tries until the control plane serves again.
    async with AsyncClient(first.address()) as client, aclosing(client.watch_jobs(names=["kept"])) as changes:
        assert (await anext(changes)).job.name == "jobs/kept"
    web = first.web()
    async with httpx.AsyncClient(base_url=web, transport=httpx.AsyncHTTPTransport(retries=8)) as http:
        assert (await http.get("/v1/jobs/kept")).json()["name"] == "jobs/kept"
        assert "<!doctype html>" in (await http.get("/")).text

    # A second one is refused, and changes nothing.
    second = up()
    assert second.process.wait(60) == 1
    assert f"pid {first.process.pid}" in second.printed()
    assert first.process.poll() is None

    assert first.end(signal.SIGINT) == 0
    assert first.members() == []
    assert all(map(is_free, (*first.ports(), int(web.rpartition(":")[2]))))

    third = up("--workers", "1")
    await eventually(third.is_ready, seconds=90)
    async with AsyncClient(third.address()) as client:
        assert (await client.get_job("kept")).name == "jobs/kept"
    third.process.kill()
    third.process.wait()
    assert third.members(), "SIGKILL leaves everything behind"

    fourth = up("--workers", "1", command=(sys.executable, "-P", "-c", GRACIOUS))
    await eventually(fourth.is_ready, seconds=90)
    assert re.search(r"ended \d+ processes", fourth.printed())
    async with AsyncClient(fourth.address()) as client:
        assert (await client.get_job("kept")).name == "jobs/kept"
    # Agents that cannot end take their whole grace; a second Ctrl-C does not wait for it.
    for process in fourth.members(Role.AGENT):
        process.suspend()
    fourth.process.send_signal(signal.SIGINT)
    await eventually(lambda: "stopping" in fourth.printed())
    assert fourth.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("number", "reached"),
    [
        (signal.SIGINT, "lock"),
        (signal.SIGTERM, "logs/valkey.log"),
        (signal.SIGINT, "s3/filerldb2"),
        (signal.SIGTERM, "logs/control-plane.log"),
        (signal.SIGHUP, "logs/worker-1.log"),
    ],
)
async def test_a_signal_while_it_starts_leaves_nothing_behind(
    up: Callable[..., Up], eventually: Eventually, number: signal.Signals, reached: str
) -> None:
    starting = up()
    await eventually((starting.data / reached).exists, seconds=60)
    assert starting.end(number) == 0, starting.printed()
    assert starting.members() == []
    assert all(map(is_free, starting.ports()))


async def test_who_reads_what_it_prints_may_go_before_it_ends(tmp_path: Path, eventually: Eventually) -> None:
    data = tmp_path / "data"  # as in `adjourn up | tee log`, where Ctrl-C ends both
    argv = [str(Path(sys.executable).parent / "adjourn"), "up", "--data", str(data)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:  # noqa: ASYNC220
        await eventually((data / "logs/valkey.log").exists, seconds=60)
        assert process.stdout
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert list(process_cleanup.find(data)) == []


def test_a_port_that_was_asked_for_and_is_taken_is_refused(up: Callable[..., Up]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = up("--port", str(port))
        assert refused.process.wait(60) == 1
        assert f"port {port} of 127.0.0.1 is taken" in refused.printed()


def test_a_data_directory_that_cannot_be_made_is_told_in_a_line(tmp_path: Path, up: Callable[..., Up]) -> None:
    (tmp_path / "file").write_text("")
    refused = up("--data", str(tmp_path / "file" / "sub"))
    assert refused.process.wait(60) == 1
    assert f"adjourn: {tmp_path / 'file' / 'sub'}: Not a directory" in refused.printed()


def test_a_part_that_does_not_start_shows_its_last_words(up: Callable[..., Up]) -> None:
    (port,) = free_ports(1)
    failing = up("--redis", f"redis://127.0.0.1:{port}/0")
    assert failing.process.wait(60) == 1
    assert re.search(
        r"control-plane ended with status 1; the end of .*control-plane.log:\n(.*\n)*  \| .*cannot_serve",
        failing.printed(),
    )
    assert failing.members() == []


def test_a_wrong_s3_url_is_a_usage_error(up: Callable[..., Up]) -> None:
    refused = up("--s3", "http://models")
    assert refused.process.wait(60) == 2
    assert "must be http(s)://key:secret@host:port/bucket" in " ".join(refused.printed().split())
