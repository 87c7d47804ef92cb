"""What the tests of this directory share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from control_plane.redis_store import RedisStore
from tests import agents
from tests.replicas import Replica, replica


@pytest.fixture
async def bench(
    tmp_path: Path, servers: Path, eventually: Callable[..., Awaitable[None]]
) -> AsyncIterator[agents.Bench]:
    """A worker's data directory and a scripted control plane; what runs on it ends with it."""
    async with agents.bench(tmp_path, servers, eventually) as made:
        yield made


@pytest.fixture
async def job_store(redis_url: str) -> AsyncIterator[RedisStore]:
    """A store of the test's own, on the shared server."""
    async with RedisStore.connect(redis_url, f"test-{uuid4().hex[:8]}") as store:
        yield store


@pytest.fixture
async def plane(job_store: RedisStore) -> AsyncIterator[Replica]:
    """A control plane in this process."""
    async with replica(job_store) as served:
        yield served


@pytest.fixture
async def idle_plane(job_store: RedisStore) -> AsyncIterator[Replica]:
    """A control plane that answers calls; nothing happens by itself."""
    async with replica(job_store, upkeep=False) as served:
        yield served
