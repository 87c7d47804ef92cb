"""A whole stack that the tests of this directory share, and jobs that run on it."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from adjourn.client import AsyncClient
from adjourn.local.ports import free_ports
from adjourn.local.stack import Options, Stack
from adjourn.objects import S3Objects
from tests.guard import guarded
from tests.trials import EPOCHS, Outcome, Trials

SYNC_SECONDS = 0.25
LEASE_SECONDS = 3.0

Eventually = Callable[..., Awaitable[None]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two workers, on embedded servers; a lost worker is noticed soon."""
    data = tmp_path_factory.mktemp("stack")
    (port,) = free_ports(1)
    options = Options(data=data, port=port, sync_interval=SYNC_SECONDS, lease_duration=LEASE_SECONDS)
    with guarded(data):
        async with Stack(options, report=logging.getLogger("stack").info) as running:
            yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.address) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="session")
async def trials(client: AsyncClient, tmp_path: Path, eventually: Eventually) -> AsyncIterator[Trials]:
    """Makes jobs that do not outlive the test."""
    made = Trials(client=client, directory=tmp_path, eventually=eventually)
    yield made
    await made.end()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def uninterrupted(
    client: AsyncClient, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> Outcome:
    """What the training of a trial comes to if nothing happens to it."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    trial = await Trials(client=client, directory=directory, eventually=eventually).start("uninterrupted", limit=EPOCHS)
    job = await trial.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    return await trial.outcome()


@pytest_asyncio.fixture(loop_scope="session")
async def objects(stack: Stack) -> AsyncIterator[S3Objects]:
    assert stack.s3
    async with S3Objects(stack.s3) as opened:
        yield opened
