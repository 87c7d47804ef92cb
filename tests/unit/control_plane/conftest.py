"""A ledger and its store, for the tests of what changes jobs."""

import pytest

from control_plane.ledger import Ledger
from tests.memory_store import MemoryStore


@pytest.fixture
def ledger(memory_store: MemoryStore) -> Ledger:
    return Ledger(memory_store)
