"""What the long work for an assignment tells of storage that is away or refuses."""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from adjourn import outputs, reasons, snapshots
from adjourn.errors import ObjectStoreRefusedError, ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot
from adjourn.manifests import PART_BYTES
from adjourn.objects import ObjectMissing, S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, ConditionChange, FencingToken
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.attempt import files
from adjourn_worker.paths import Kept, WorkerPaths
from adjourn_worker.storage import tasks as module
from adjourn_worker.storage.parts import DAMAGE_LOOKS
from adjourn_worker.storage.tasks import StorageTasks
from tests.harness.bundle_archives import archive
from tests.harness.memory_objects import MemoryObjects

CODE = archive(**{"train.py": b""})
BUNDLE = f"bundles/{hashlib.sha256(CODE).hexdigest()}"


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", tmp_path)
    yield made
    made.remove_volatile()


def held(paths: WorkerPaths, nonce: str = "") -> HeldAssignment:
    token = FencingToken(attempt=1, nonce=nonce or secrets.token_hex(16), job_uid=str(uuid4()))
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
        storage = StorageTasks(refusing, paths, threads=1, kept=Kept())
        work = asyncio.create_task(storage.prepare(held(paths), told.append))
        await eventually(lambda: told)
        (began,) = told
        assert (began.condition.type, began.ended) == (Condition.STORAGE_FAILING, False)
        assert began.condition.reason == reasons.OBJECT_STORE_REFUSED
        assert f"bucket {wrong.bucket} at " in began.condition.message
        assert f"{code}: " in began.condition.message
        assert f"correct {variable}" in began.condition.message
        assert began.condition.time.seconds > 0
        storage.store.objects = mended
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
    away, gone = ObjectStoreUnavailableError("away"), ObjectStoreUnavailableError("gone")
    key, bucket = ObjectStoreRefusedError("no such key"), ObjectStoreRefusedError("no such bucket")
    objects = Scripted(away, gone, key, key, bucket, away)
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    told: list[ConditionChange] = []
    await StorageTasks(objects, paths, threads=1, kept=Kept()).prepare(held(paths), told.append)
    assert [(change.condition.reason, change.condition.message) for change in told if not change.ended] == [
        (reasons.OBJECT_STORE_UNAVAILABLE, "away"),
        (reasons.OBJECT_STORE_REFUSED, "no such key"),
        (reasons.OBJECT_STORE_REFUSED, "no such bucket"),
        (reasons.OBJECT_STORE_UNAVAILABLE, "away"),
    ]
    assert [change.ended for change in told] == [False, False, True, False, False, True]


@pytest.mark.parametrize(("steps", "places"), [(0, ["work"]), (20, ["code", "work"])])
async def test_code_lies_in_the_working_directory_and_for_a_drill_once_more(
    paths: WorkerPaths, steps: int, places: list[str]
) -> None:
    objects = MemoryObjects()
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    attempt = held(paths)
    attempt.assignment.spec.drill_steps = steps
    await StorageTasks(objects, paths, threads=1, kept=Kept()).prepare(attempt, lambda _: None)
    directory = Path(attempt.directory)
    assert sorted(path.parent.name for path in directory.glob("*/train.py")) == places
    start = files.read_start(directory)
    assert start
    assert start.code_directory == str(directory / "work")


async def test_a_condition_that_an_earlier_agent_told_is_ended(paths: WorkerPaths) -> None:
    objects = MemoryObjects()
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    before = held(paths)
    before.conditions.add(type=Condition.STORAGE_FAILING, reason=reasons.OBJECT_STORE_REFUSED)
    told: list[ConditionChange] = []
    await StorageTasks(objects, paths, threads=1, kept=Kept()).prepare(before, told.append)
    assert [(change.condition.type, change.ended) for change in told] == [(Condition.STORAGE_FAILING, True)]


class Flaky(MemoryObjects):
    """Loses the parts of checkpoints for so many reads of each."""

    lost = 0

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    async def get(self, key: str, *, limit: int) -> bytes:
        self.reads[key] += "/parts/" in key
        if 0 < self.reads[key] <= self.lost:
            raise ObjectMissing(key)
        return await super().get(key, limit=limit)


async def restorable(
    storage: StorageTasks, paths: WorkerPaths, slot: Path, output: dict[str, bytes] | None = None
) -> HeldAssignment:
    """Returns an assignment that restores a checkpoint, which is stored, with these files of the run."""
    slot.mkdir()
    for name, content in (output or {}).items():
        (slot / name).write_bytes(content)
    (slot / snapshots.TENSORS).write_bytes((2).to_bytes(8, "little") + b"{}")
    state = {"format": snapshots.FORMAT, "components": {}, "environment": {}, "progress": {}}
    (slot / snapshots.STATE).write_text(json.dumps(state))
    before, resumed = held(paths), held(paths)
    taken = Snapshot(directory=str(slot), sequence=1)
    resumed.assignment.restore.CopyFrom(await storage.persist(before, taken, lambda _: None, lambda _: None))
    resumed.assignment.spec.bundle = ""
    return resumed


INDEX = b'{"format":1,"files":[{"path":"a/b.txt","size":2},{"path":"empty","size":0}]}'


async def test_files_of_a_run_are_there_again_before_it_goes_on(paths: WorkerPaths, tmp_path: Path) -> None:
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept(), output_bytes=77)
    resumed = await restorable(storage, paths, tmp_path / "slot", {outputs.INDEX: INDEX, outputs.DATA: b"ab"})
    directory = Path(resumed.directory)
    (directory / "output").mkdir(parents=True)
    (directory / "output" / "half-made").touch()  # of an agent that died amid it
    await storage.prepare(resumed, lambda _: None)
    found = {str(path.relative_to(directory / "output")) for path in (directory / "output").rglob("*")}
    assert found == {"a", "a/b.txt", "empty"}
    assert (directory / "output" / "a" / "b.txt").read_bytes() == b"ab"
    start = files.read_start(directory)
    assert start
    assert start.output_bytes == 77


@pytest.mark.parametrize(
    ("index", "data", "said"),
    [
        (b"{}", b"", "output.json: KeyError"),
        (b'{"format":1,"files":[{"path":"../x","size":1}]}', b"a", "'../x' of 1 bytes is no file of a run"),
        (b'{"format":1,"files":[{"path":"x","size":2}]}', b"a", "output.data: 1 bytes, and its files have 2"),
    ],
)
async def test_files_of_a_run_that_its_code_has_mixed_up_are_no_snapshot(
    paths: WorkerPaths, tmp_path: Path, index: bytes, data: bytes, said: str
) -> None:
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())
    with pytest.raises(module.Unusable, match=re.escape(said)) as caught:
        await restorable(storage, paths, tmp_path / "slot", {outputs.INDEX: index, outputs.DATA: data})
    assert caught.value.failure.reason == reasons.SNAPSHOT_FAILED


async def test_an_index_that_another_version_stored_is_a_damaged_checkpoint(
    paths: WorkerPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())
    monkeypatch.setattr(outputs, "FORMAT", 2)
    newer = INDEX.replace(b":1,", b":2,", 1)
    resumed = await restorable(storage, paths, tmp_path / "slot", {outputs.INDEX: newer, outputs.DATA: b"ab"})
    monkeypatch.undo()
    with pytest.raises(module.Unusable, match=r"output\.json: format 2; this version reads 1") as caught:
        await storage.prepare(resumed, lambda _: None)
    assert caught.value.failure.reason == reasons.CHECKPOINT_CORRUPT


async def test_a_manifest_of_somebody_else_under_our_token_fences_the_attempt(
    paths: WorkerPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DAMAGE_AGAIN_SECONDS", 0.0)
    objects = MemoryObjects()
    storage = StorageTasks(objects, paths, threads=1, kept=Kept())
    resumed = await restorable(storage, paths, tmp_path / "slot")
    (ours,) = [key for key in objects.contents if "/manifests/" in key]
    objects.contents[ours] += b" "  # other bytes, and a manifest
    before = held(paths)
    before.assignment.token.job_uid = resumed.assignment.restore.job_uid
    before.assignment.token.nonce = ours.rpartition("/")[2].split("-")[1] * 4
    taken = Snapshot(directory=str(tmp_path / "slot"), sequence=1)
    with pytest.raises(module.Unusable, match="somebody else acts under this attempt's token") as caught:
        await storage.persist(before, taken, lambda _: None, lambda _: None)
    assert caught.value.failure.reason == reasons.FENCED


@pytest.mark.parametrize(("lost", "whole"), [(DAMAGE_LOOKS - 1, True), (DAMAGE_LOOKS, False)])
async def test_a_checkpoint_is_damaged_only_if_it_is_found_so_again_and_again(
    paths: WorkerPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int, whole: bool
) -> None:
    """A bit that the network flips, or a server that is starting, must not cost a job its newest checkpoint."""
    monkeypatch.setattr(module, "DAMAGE_AGAIN_SECONDS", 0.0)
    objects = Flaky()
    storage = StorageTasks(objects, paths, threads=1, kept=Kept())
    resumed = await restorable(storage, paths, tmp_path / "slot")
    objects.lost = lost
    with contextlib.nullcontext() if whole else pytest.raises(module.Unusable, match="is missing") as caught:
        await storage.prepare(resumed, lambda _: None)
    assert whole or (caught and caught.value.failure.reason == reasons.CHECKPOINT_CORRUPT)


async def test_a_bucket_that_is_not_there_says_nothing_of_a_checkpoint(
    s3_environment: dict[str, str], paths: WorkerPaths, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    """NoSuchBucket is for somebody to mend; NoSuchKey is damage."""
    told: list[ConditionChange] = []
    right = S3Settings.from_environment(s3_environment)
    wrong = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_BUCKET": "not-there-yet"})
    async with S3Objects(right) as objects, S3Objects(wrong) as elsewhere:
        await objects.ensure_bucket()
        storage = StorageTasks(objects, paths, threads=1, kept=Kept())
        resumed = await restorable(storage, paths, tmp_path / "slot")
        resumed.assignment.restore.uri = resumed.assignment.restore.uri.replace(right.bucket, wrong.bucket)
        storage.store.objects = elsewhere
        work = asyncio.create_task(storage.prepare(resumed, told.append))
        await eventually(lambda: told)
        assert "NoSuchBucket" in told[0].condition.message
        assert not work.done()
        await elsewhere.ensure_bucket()  # mended; but nothing is in it
        with pytest.raises(module.Unusable, match="is missing"):
            await work


def snapshot_places(paths: WorkerPaths, held: HeldAssignment) -> tuple[str, str]:
    start = files.read_start(Path(held.directory))
    assert start
    assert start.job_uid == held.assignment.token.job_uid
    return start.snapshot_directory, start.fallback_snapshot_directory


async def test_training_is_told_where_snapshots_go_and_where_if_there_is_no_room(paths: WorkerPaths) -> None:
    objects = MemoryObjects()
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    storage = StorageTasks(objects, paths, threads=1, kept=Kept())
    assignment = held(paths)
    await storage.prepare(assignment, lambda _: None)
    directory = Path(assignment.directory)
    places = (paths.snapshot_directory(directory), paths.disk_snapshot_directory(directory))
    assert snapshot_places(paths, assignment) == tuple(map(str, places))
    assert all(place.is_dir() for place in places)
    await storage.clean_up(assignment)
    assert not any(place.exists() for place in (*places, directory))


async def test_without_shared_memory_there_is_no_other_place(tmp_path: Path) -> None:
    paths = WorkerPaths.prepare(tmp_path / "data")
    objects = MemoryObjects()
    await objects.put(f"{BUNDLE}.tar.gz", CODE)
    assignment = held(paths)
    await StorageTasks(objects, paths, threads=1, kept=Kept()).prepare(assignment, lambda _: None)
    assert snapshot_places(paths, assignment) == (str(paths.disk_snapshot_directory(Path(assignment.directory))), "")
    paths.remove_volatile()


def test_room_in_memory_is_counted(paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000 << 20)
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())

    def goes_to_memory(attempt: str, state: int) -> bool:
        return paths.snapshots in storage.snapshot_places(paths.attempts / attempt, state << 20)[0].parents

    assert not goes_to_memory("a", 400)  # three slots are needed
    assert goes_to_memory("b", 300)
    assert goes_to_memory("b", 300)  # prepared again
    assert not goes_to_memory("c", 40)  # what the other may come to take is taken
    used = paths.snapshots / "b"
    used.mkdir()
    with (used / "slot").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 100 << 20)  # and is not counted twice
    assert goes_to_memory("c", 60)
    assert goes_to_memory("d", 0)


def room_for(storage: StorageTasks, attempt: HeldAssignment, state: int) -> bool:
    """Returns whether three snapshots of so many MiB go to memory."""
    places = storage.snapshot_places(Path(attempt.directory), state << 20)
    return storage.paths.snapshots in places[0].parents


def test_an_agent_counts_the_memory_that_an_earlier_one_promised(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000 << 20)
    resumed, from_scratch, other = held(paths), held(paths), held(paths)
    resumed.assignment.restore.size_bytes = 100 << 20
    from_scratch.persisted.size_bytes = 200 << 20
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())
    storage.adopt(resumed)
    assert room_for(storage, other, 300), "whose place is not there has nothing in memory"
    for each in (resumed, from_scratch):
        paths.snapshot_directory(Path(each.directory)).mkdir()
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())
    for each in (resumed, from_scratch):
        storage.adopt(each)
    assert not room_for(storage, other, 34)
    assert room_for(storage, other, 33)


async def test_a_training_that_began_from_scratch_counts_once_it_is_known_how_large_it_is(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1000 << 20)
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())
    first, other = held(paths), held(paths)
    assert room_for(storage, first, 0)
    assert room_for(storage, other, 100)
    with pytest.raises(module.Unusable):
        await storage.persist(first, Snapshot(size_bytes=300 << 20), lambda _: None, lambda _: None)
    assert not room_for(storage, other, 100)
    paths.logs.rmdir()
    await storage.clean_up(first)
    assert room_for(storage, other, 100), "also if its files could not be put away"


# Tries within a request are seen on the job.


class Ear:
    """Hears conditions of a job."""

    def __init__(self, paths: WorkerPaths) -> None:
        self.told: list[ConditionChange] = []
        self.patience = module.Patience(held(paths), self.told.append)

    def fails(self, call: str, seconds: float) -> None:
        self.patience.failing(call, ObjectStoreUnavailableError("SlowDown"), seconds)

    @property
    def messages(self) -> list[str]:
        return [change.condition.message for change in self.told]


async def test_a_call_that_fails_for_seconds_is_shown_with_its_tries_and_told_again_as_they_double(
    paths: WorkerPaths,
) -> None:
    ear = Ear(paths)
    ear.fails("a", 0)
    ear.fails("a", module.SHOWN_SECONDS - 0.1)
    assert not ear.told
    for seconds in range(3, 13):
        ear.fails("a", seconds)
    assert ear.messages == [f"SlowDown; {tries} tries have failed" for tries in (3, 6, 12)]
    assert {change.condition.reason for change in ear.told} == {reasons.OBJECT_STORE_UNAVAILABLE}


async def test_a_failure_that_passes_is_not_shown(paths: WorkerPaths) -> None:
    ear = Ear(paths)
    ear.fails("a", 0)
    ear.patience.answered("a")
    assert not ear.told


async def test_a_try_without_an_answer_is_shown_before_it_ends(paths: WorkerPaths) -> None:
    ear = Ear(paths)
    ear.patience.silent("a", ObjectStoreUnavailableError("no answer for 10 s"))
    assert ear.messages == ["no answer for 10 s"]


async def test_the_condition_ends_once_no_try_has_failed_for_a_while(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = Ear(paths)
    ear.fails("a", module.SHOWN_SECONDS)
    ear.patience.answered("a")
    assert not ear.told[-1].ended, "another may fail at once: it would come and go"
    monkeypatch.setattr(module, "CALM_SECONDS", 0.0)
    ear.fails("b", 0)
    ear.patience.answered("c")
    assert not ear.told[-1].ended, "b is failing"
    ear.patience.answered("b")
    assert ear.told[-1].ended


def write_snapshot(slot: Path, tensors: bytes) -> None:
    slot.mkdir()
    head, entries = snapshots.layout([("x", "U8", (len(tensors),))])
    (slot / snapshots.TENSORS).write_bytes(head.ljust(entries["x"].begin, b" ") + tensors)
    tree = {"x": {"$": "tensor", "name": "x", "dtype": "U8", "shape": [len(tensors)]}}
    state = {"format": snapshots.FORMAT, "components": {"model": tree}, "environment": {}, "progress": {}}
    (slot / snapshots.STATE).write_text(json.dumps(state))


class Throttled(MemoryObjects):
    """Gives up every third write."""

    writes = 0

    async def put(self, key: str, data: bytes) -> bool:
        self.writes += 1
        if self.writes % 3 == 0:
            raise ObjectStoreUnavailableError("SlowDown")
        return await super().put(key, data)


async def test_what_was_sent_before_storage_failed_is_not_sent_again(
    paths: WorkerPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of many parts becomes durable although no run over all of them goes through."""
    monkeypatch.setattr(module, "BACKOFF_MOST", 0.0)
    objects = Throttled()
    slot = tmp_path / "slot"
    write_snapshot(slot, secrets.token_bytes(9 * PART_BYTES))
    storage = StorageTasks(objects, paths, threads=1, kept=Kept())
    taken = Snapshot(directory=str(slot), sequence=1)
    checkpoint = await storage.persist(held(paths), taken, lambda _: None, lambda _: None)
    assert objects.writes <= 2 * len(objects.contents)
    assert checkpoint.uploaded_bytes == sum(map(len, objects.contents.values()))


class Breaking(MemoryObjects):
    """Has a fault of ours in it, at the first manifest. Counts the bytes of parts that are sent and read."""

    broken = True
    sent = read = 0

    async def create(self, key: str, data: bytes) -> bool:
        if self.broken:
            self.broken = False
            raise RuntimeError("a fault of ours")
        return await super().create(key, data)

    async def put(self, key: str, data: bytes) -> bool:
        self.sent += len(data) * ("/parts/" in key)
        return await super().put(key, data)

    async def get(self, key: str, *, limit: int) -> bytes:
        data = await super().get(key, limit=limit)
        self.read += len(data) * ("/parts/" in key)
        return data


async def test_the_last_snapshot_that_is_persisted_again_sends_nothing_again(
    paths: WorkerPaths, tmp_path: Path
) -> None:
    """It is tried again until it works; what the try before has sent, and the store compared, is not read either."""
    objects = Breaking()
    storage = StorageTasks(objects, paths, threads=1, kept=Kept())
    slot = tmp_path / "slot"
    attempt = held(paths)
    write_snapshot(slot, secrets.token_bytes(3 * PART_BYTES))
    taken = Snapshot(directory=str(slot), sequence=1, last=True)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await storage.persist(attempt, taken, lambda _: None, lambda _: None)
    once = objects.sent
    checkpoint = await storage.persist(attempt, taken, lambda _: None, lambda _: None)
    assert once > 3 * PART_BYTES
    assert (objects.sent, objects.read) == (once, 0)
    assert checkpoint.uploaded_bytes == sum(map(len, objects.contents.values()))
    await storage.clean_up(attempt)
    assert not storage.sent


async def test_an_attempt_for_which_the_disk_has_no_room_is_the_workers_fault(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "fetch_bundle", full)
    storage = StorageTasks(MemoryObjects(), paths, threads=1, kept=Kept())
    with pytest.raises(module.Unusable) as caught:
        await storage.prepare(held(paths), lambda _: None)
    assert caught.value.failure.reason == reasons.NO_SPACE
    condition = storage.disk.condition()
    assert condition
    assert condition.type == Condition.DISK_FULL
