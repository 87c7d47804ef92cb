"""A JobUpdater and its store, for the tests of what changes jobs."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.store.interface import Change
from tests.harness.job_requests import JOB
from tests.harness.memory_store import MemoryStore


@pytest.fixture
def updater(memory_store: MemoryStore) -> JobUpdater:
    return JobUpdater(memory_store)


@pytest.fixture
async def one_job(memory_store: MemoryStore) -> None:
    """A queued job in the store."""
    spec = JobSpec(entry_point="m:f", total_epochs=10)
    decision = machine.create(Job(name=JOB, spec=spec), uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
    await memory_store.commit(Change(job=JOB, expected=0, record=decision.record, events=decision.events))
