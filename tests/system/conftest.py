"""A whole stack that the tests of this directory share, and jobs that run on it."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from adjourn.client import AsyncClient
from adjourn.local.ports import free_ports
from adjourn.local.stack import Options, Origins, Stack
from adjourn.objects import S3Objects
from tests.harness.jobs import EPOCHS, GatedJobs, Outcome
from tests.harness.process_guard import guarded
from tests.harness.wheels import without_index

SYNC_SECONDS = 0.25
LEASE_SECONDS = 12.0
"""An agent that was killed has to be back within it: some 2 s, and three times that on a busy machine."""
ENVIRONMENT = {"ADJOURN_VENVS": "wheels", "ADJOURN_ORIGIN_JOB_ARGUMENTS": '{"width": 8}'}
"""Of the stack: workers install what jobs require; what a client of Heimdall creates trains a small network."""

Eventually = Callable[..., Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a program printed, and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that workers install from."""
    return tmp_path_factory.mktemp("wheels")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> AsyncIterator[Stack]:
    """Two workers on embedded servers, and a gateway; a lost worker is noticed soon."""
    data = tmp_path_factory.mktemp("stack")
    port, web_port, heimdall, peft_studio = free_ports(4)
    options = Options(
        data=data,
        port=port,
        web=True,
        web_port=web_port,
        origins=Origins(heimdall=heimdall, peft_studio=peft_studio),
        sync_interval=SYNC_SECONDS,
        lease_duration=LEASE_SECONDS,
    )
    with guarded(data):
        starting = Stack(options, report=logging.getLogger("stack").info)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**ENVIRONMENT, **without_index(wheels)}.items():
                patch.setenv(name, value)
            await starting.__aenter__()
        async with AsyncExitStack() as ending:
            ending.push_async_exit(starting)
            yield starting


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.address) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="session")
async def gated_jobs(client: AsyncClient, tmp_path: Path, eventually: Eventually) -> AsyncIterator[GatedJobs]:
    """Makes jobs that do not outlive the test."""
    made = GatedJobs(client=client, directory=tmp_path, eventually=eventually)
    yield made
    await made.end()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def uninterrupted(
    client: AsyncClient, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> Outcome:
    """What the training of a gated job comes to if nothing happens to it; it has a checkpoint of each epoch."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    gated = await GatedJobs(client=client, directory=directory, eventually=eventually).start("uninterrupted")
    for epoch in range(1, EPOCHS):
        gated.gate.open(epoch)
        await gated.durable(epoch)  # or the next snapshot may take its place
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    return await gated.outcome()


@pytest_asyncio.fixture(loop_scope="session")
async def undrained(client: AsyncClient) -> AsyncIterator[None]:
    """No worker is drained afterwards."""
    yield
    for worker in [worker async for worker in client.list_workers()]:
        await client.undrain_worker(worker.name)


@pytest_asyncio.fixture(loop_scope="session")
async def objects(stack: Stack) -> AsyncIterator[S3Objects]:
    assert stack.s3
    async with S3Objects(stack.s3) as opened:
        yield opened


@pytest.fixture(scope="session")
def run(stack: Stack) -> Callable[..., Awaitable[Ran]]:
    """Runs a command of the environment, as a user of the stack would, and waits for its end."""

    async def to_end(command: str, *words: object, seconds: float = 60) -> Ran:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / command),
            *map(str, words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "ADJOURN_ADDRESS": stack.address, "COLUMNS": "160"},
        )
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Ran(status=process.returncode or 0, out=out.decode(), err=err.decode())

    return to_end
