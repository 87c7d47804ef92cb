"""What the tests of this directory share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests import agents


@pytest.fixture
async def bench(
    tmp_path: Path, servers: Path, eventually: Callable[..., Awaitable[None]]
) -> AsyncIterator[agents.Bench]:
    """A worker's data directory and a scripted control plane; what runs on it ends with it."""
    async with agents.bench(tmp_path, servers, eventually) as made:
        yield made
