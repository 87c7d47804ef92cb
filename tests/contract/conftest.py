"""Every test of the contract runs against the store in memory and against the one on Valkey."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from adjourn_control_plane.store.interface import EVENTS_KEPT, SERIES_KEPT, JobStore, SeriesLimits
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.memory_store import MemoryStore

SHORT = 100
"""Changes that a store with a short memory keeps at least; events of a job that it keeps."""
SERIES = SeriesLimits(newest=4, older=8)


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid4().hex}"


def opened(
    kind: str,
    url: str,
    namespace: str,
    *,
    changes_kept: int = 100_000,
    events_kept: int = EVENTS_KEPT,
    series: SeriesLimits = SERIES_KEPT,
) -> JobStore:
    if kind == "memory":
        return MemoryStore(changes_kept=changes_kept, events_kept=events_kept, series=series)
    return RedisStore(url, namespace, changes_kept=changes_kept, events_kept=events_kept, series=series)


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, redis_url: str, namespace: str) -> AsyncIterator[JobStore]:
    store = opened(request.param, redis_url, namespace)
    yield store
    await store.aclose()


@pytest.fixture(params=["memory", "redis"])
async def forgetful_store(request: pytest.FixtureRequest, redis_url: str, namespace: str) -> AsyncIterator[JobStore]:
    """Keeps about SHORT changes, SHORT events of a job, and of each of its series as SERIES says."""
    store = opened(request.param, redis_url, namespace, changes_kept=SHORT, events_kept=SHORT, series=SERIES)
    yield store
    await store.aclose()
