"""What the long work for an assignment tells of storage that is away or refuses."""

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from adjourn import reasons
from adjourn.errors import ObjectStoreRefusedError, ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, ConditionChange, FencingToken
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.storage import tasks as module
from adjourn_worker.storage.tasks import StorageTasks
from tests.harness.bundle_archives import archive
from tests.harness.memory_objects import MemoryObjects

CODE = archive(**{"train.py": b""})
BUNDLE = f"bundles/{hashlib.sha256(CODE).hexdigest()}"


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", {}, tmp_path)
    yield made
    made.remove_volatile()


def held(paths: WorkerPaths) -> HeldAssignment:
    token = FencingToken(attempt=1, nonce=secrets.token_hex(16), job_uid=str(uuid4()))
    assignment = Assignment(job="jobs/a", token=token)
    assignment.spec.bundle = BUNDLE
    return HeldAssignment(assignment=assignment, directory=str(paths.attempt("jobs/a", token)))


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("ADJOURN_S3_ACCESS_KEY", "wrong", "InvalidAccessKeyId"),
        ("ADJOURN_S3_SECRET_KEY", "wrong", "SignatureDoesNotMatch"),
        ("ADJOURN_S3_BUCKET", "not-there", "NoSuchBucket"),
    ],
)
async def test_storage_that_refuses_is_shown_within_seconds_until_it_is_mended(
    s3_environment: dict[str, str],
    paths: WorkerPaths,
    eventually: Callable[..., Awaitable[None]],
    variable: str,
    value: str,
    code: str,
) -> None:
    told: list[ConditionChange] = []
    right = S3Settings.from_environment(s3_environment)
    wrong = S3Settings.from_environment({**s3_environment, variable: value})
    async with S3Objects(wrong) as refusing, S3Objects(right) as mended:
        await mended.ensure_bucket()
        await mended.put(f"{BUNDLE}.tar.gz", CODE)
        storage = StorageTasks(refusing, paths, threads=1)
        work = asyncio.create_task(storage.prepare(held(paths), told.append))
        await eventually(lambda: told, seconds=5)
        (began,) = told
        assert (began.condition.type, began.ended) == (Condition.STORAGE_FAILING, False)
        assert began.condition.reason == reasons.OBJECT_STORE_REFUSED
        assert f"bucket {wrong.bucket} at " in began.condition.message
        assert f"{code}: " in began.condition.message
        assert f"correct {variable}" in began.condition.message
        assert began.condition.time.seconds > 0
        storage.objects = mended
        await work
    assert [change.ended for change in told] == [False, True]


class Scripted(MemoryObjects):
    """Raises what it is told to, before it answers."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    async def get(self, key: str, *, limit: int) -> bytes:
        if self.errors:
            raise self.errors.pop(0)
        return await super().get(key, limit=limit)


async def test_a_condition_is_told_when_its_reason_changes_and_not_more_often(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_MOST", 0.0)
    away, refused = ObjectStoreUnavailableError("away"), ObjectStoreRefusedError("no")
    objects = Scripted(away, away, refused, refused, away)
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    told: list[ConditionChange] = []
    await StorageTasks(objects, paths, threads=1).prepare(held(paths), told.append)
    assert [(change.condition.reason, change.ended) for change in told] == [
        (reasons.OBJECT_STORE_UNAVAILABLE, False),
        (reasons.OBJECT_STORE_REFUSED, False),
        (reasons.OBJECT_STORE_UNAVAILABLE, False),
        ("", True),
    ]


async def test_a_condition_that_an_earlier_agent_told_is_ended(paths: WorkerPaths) -> None:
    objects = MemoryObjects()
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    before = held(paths)
    before.conditions.add(type=Condition.STORAGE_FAILING, reason=reasons.OBJECT_STORE_REFUSED)
    told: list[ConditionChange] = []
    await StorageTasks(objects, paths, threads=1).prepare(before, told.append)
    assert [(change.condition.type, change.ended) for change in told] == [(Condition.STORAGE_FAILING, True)]
