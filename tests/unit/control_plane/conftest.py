"""A ledger and its store, for the tests of what changes jobs."""

from datetime import UTC, datetime

import pytest

from adjourn.v1.job_pb2 import Job, JobSpec
from control_plane import jobs
from control_plane.ledger import Ledger
from control_plane.store import Change
from tests.memory_store import MemoryStore
from tests.unit.control_plane.wishing import JOB


@pytest.fixture
def ledger(memory_store: MemoryStore) -> Ledger:
    return Ledger(memory_store)


@pytest.fixture
async def one_job(memory_store: MemoryStore) -> None:
    """A queued job in the store."""
    spec = JobSpec(entry_point="m:f", total_epochs=10)
    decision = jobs.create(Job(name=JOB, spec=spec), actor="ann", now=datetime.now(UTC))
    await memory_store.commit(Change(job=JOB, expected=0, record=decision.record, events=decision.events))
