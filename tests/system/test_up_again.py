"""`adjourn up` ends in the middle of a training, and is started again on the same data directory."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adjourn.client import AsyncClient
from adjourn.local import process_cleanup
from adjourn.local.ports import free_ports
from tests.harness.jobs import GatedJobs, Outcome
from tests.harness.process_guard import guarded

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]


class Up:
    """An `adjourn up`."""

    def __init__(self, data: Path, port: int) -> None:
        self.data = data
        self.log = data.with_name(f"{len(list(data.parent.iterdir()))}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / "adjourn", "up", "--data", data, "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "160"},
            )

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "Adjourn is ready" in self.log.read_text()

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


@contextmanager
def started(data: Path, port: int) -> Iterator[Up]:
    up = Up(data, port)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.end(signal.SIGTERM)


async def test_a_training_goes_on_where_it_was_and_no_restart_is_used_up(
    tmp_path: Path, eventually: Eventually, uninterrupted: Outcome
) -> None:
    data = tmp_path / "data"
    (port,) = free_ports(1)
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with guarded(data):
            with started(data, port) as first:
                await eventually(first.is_ready, seconds=90)
                gated = await GatedJobs(client=client, directory=tmp_path, eventually=eventually).start("kept", limit=2)
                training = await gated.inside(3)
                await gated.durable(2)
                first.end(signal.SIGINT)
                assert first.process.returncode == 0
                assert not training.lives()
                assert list(process_cleanup.find(data)) == []

            with started(data, port) as second:
                await eventually(second.is_ready, seconds=90)
                training = await gated.inside(3)
                gated.gate.open(4)
                assert (await gated.inside(5)) == training
                await gated.durable(4)
                second.end(signal.SIGKILL)
                assert training.lives()

            with started(data, port) as third:
                await eventually(third.is_ready, seconds=90)
                assert not training.lives()
                job = await gated.finish()
                assert (job.attempt, job.restart_count) == (3, 0)
                assert await gated.outcome() == uninterrupted
