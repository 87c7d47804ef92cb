"""Code that no job names is removed from a real store and real storage, and can be uploaded again."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from adjourn import bundles, errors
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn_control_plane.api.jobs import JobService
from adjourn_control_plane.fleet.bundle_collector import GRACE_SECONDS, BundleCollector
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.updater import Call, JobUpdater
from adjourn_control_plane.store.redis import RedisStore
from tests.harness.bundle_archives import archive
from tests.harness.controllers import SETTINGS

OWN_BUCKET = f"bundles-{secrets.token_hex(6)}"
"""A collector removes the bundles of everybody in its bucket."""


@pytest.fixture
async def objects(s3_environment: dict[str, str]) -> AsyncIterator[S3Objects]:
    settings = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_BUCKET": OWN_BUCKET})
    async with S3Objects(settings) as store:
        await store.ensure_bucket()
        yield store


async def test_old_code_is_removed_and_uploaded_again(job_store: RedisStore, objects: S3Objects) -> None:
    nobody: Any = None
    service = JobService(
        job_store, JobUpdater(job_store), objects, watch=nobody, event_watch=nobody, boundaries=nobody, logs=nobody
    )
    seconds = 0.0
    eager = replace(SETTINGS, bundle_retention=timedelta(seconds=-60))  # all is old
    collector = BundleCollector(job_store, objects, eager, monotonic=lambda: seconds)

    async def uploaded(code: bytes) -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield code

        return await service.uploads.receive(chunks())

    async def created(name: str, bundle: str) -> Job:
        job = Job(name=f"jobs/{name}", spec=JobSpec(entry_point="m:f", bundle=bundle))
        decision = machine.create(job, uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
        return await service.create(decision, Call())

    code = archive(**{"train.py": b"once"})
    needed, unneeded = await uploaded(archive(**{"train.py": b"needed"})), await uploaded(code)
    await created("a", needed)
    for _ in range(2):
        await collector.collect()
        seconds += GRACE_SECONDS
    assert set(await objects.list(bundles.PREFIX)) == {bundles.object_key(each) for each in (needed, unneeded)}
    await collector.collect()
    assert set(await objects.list(bundles.PREFIX)) == {bundles.object_key(needed)}
    with pytest.raises(errors.BundleMissingError, match="upload it again"):
        await created("b", unneeded)
    assert await uploaded(code) == unneeded
    await asyncio.gather(collector.collect(), created("b", unneeded))
    for _ in range(3):
        await collector.collect()
        seconds += GRACE_SECONDS
    assert set(await objects.list(bundles.PREFIX)) == {bundles.object_key(each) for each in (needed, unneeded)}
