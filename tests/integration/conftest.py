"""What the tests of this directory share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest

from adjourn.objects import ObjectStore, S3Objects, S3Settings
from adjourn_control_plane.store.redis import RedisStore
from tests.harness import agents
from tests.harness.control_planes import Replica, replica
from tests.harness.memory_objects import MemoryObjects


@pytest.fixture
async def harness(
    tmp_path: Path, servers: Path, eventually: Callable[..., Awaitable[None]]
) -> AsyncIterator[agents.AgentHarness]:
    """A worker's data directory and a scripted control plane; what runs on it ends with it."""
    async with agents.agent_harness(tmp_path, servers, eventually) as harness:
        yield harness


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
    async with replica(job_store, controllers=False) as served:
        yield served


@pytest.fixture(params=["memory", "s3"])
def settings(request: pytest.FixtureRequest) -> S3Settings | None:
    """Where to keep objects; None: in memory."""
    return None if request.param == "memory" else S3Settings.from_environment(request.getfixturevalue("s3_environment"))


@pytest.fixture
async def store(settings: S3Settings | None) -> AsyncIterator[ObjectStore]:
    if settings is None:
        yield MemoryObjects()
        return
    async with S3Objects(settings) as objects:
        await objects.ensure_bucket()
        yield objects


@pytest.fixture
def memory() -> MemoryObjects:
    return MemoryObjects()
