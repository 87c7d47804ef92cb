"""What the tests of this directory share."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from adjourn.objects import ObjectStore, S3Objects, S3Settings
from adjourn_control_plane.store.redis import RedisStore
from adjourn_worker.launcher.client import LauncherClient
from tests.harness import agents, launchers
from tests.harness.control_planes import Replica, replica
from tests.harness.memory_objects import MemoryObjects


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
    async with replica(job_store, controllers=False) as served:
        yield served


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[launchers.Stand]:
    """A data directory and a launcher's environment; no launcher may be left when the test ends."""
    with launchers.stand(tmp_path) as made:
        yield made


@pytest.fixture
async def launcher(stand: launchers.Stand) -> AsyncIterator[LauncherClient]:
    """A launcher's supervisor; both end with the test."""
    async with stand.launcher() as launcher:
        yield launcher
        await launcher.shutdown()


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
