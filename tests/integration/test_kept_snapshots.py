"""Snapshots that stay on a worker for their job's return: restored if they are the checkpoint to the last bit."""

import errno
import json
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from adjourn import kept_snapshots, reasons, snapshots
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot
from adjourn.kept_snapshots import KEPT
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.attempt import files
from adjourn_worker.paths import RESTORED, Kept, WorkerPaths, used_bytes
from adjourn_worker.storage import kept as kept_module
from adjourn_worker.storage import tasks as module
from adjourn_worker.storage.fetch import fetch
from adjourn_worker.storage.parts import PartStore
from adjourn_worker.storage.tasks import StorageTasks
from tests.harness.memory_objects import MemoryObjects

SIZE = 300_000
"""Bytes of the tensors: some twenty chunks."""


class Read(MemoryObjects):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    async def get(self, key: str, *, limit: int) -> bytes:
        self.reads["parts" if "/parts/" in key else "others"] += 1
        return await super().get(key, limit=limit)


@pytest.fixture(params=["memory", "disk"])
def paths(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", tmp_path if request.param == "memory" else None)
    yield made
    made.remove_volatile()


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", tmp_path)
    yield made
    made.remove_volatile()


@pytest.fixture
def objects() -> Read:
    return Read()


def tasks(objects: MemoryObjects, paths: WorkerPaths, **kept: int) -> StorageTasks:
    return StorageTasks(objects, paths, threads=1, kept=Kept(**kept))


def assigned(paths: WorkerPaths, uid: str, restore: Checkpoint | None = None, *, attempt: int = 1) -> HeldAssignment:
    token = FencingToken(attempt=attempt, nonce=secrets.token_hex(16), job_uid=uid)
    assignment = Assignment(job=f"jobs/a-{uid[:8]}", token=token, restore=restore)
    return HeldAssignment(assignment=assignment, directory=str(paths.attempt(assignment.job, token)))


async def prepared(storage: StorageTasks, held: HeldAssignment) -> Path:
    """Returns the directory that an attempt's training restores, once all is there."""
    await storage.prepare(held, lambda _: None)
    start = files.read_start(Path(held.directory))
    assert start
    return Path(start.restore_directory)


async def paused(
    storage: StorageTasks,
    uid: str,
    *,
    restore: Checkpoint | None = None,
    phase: AssignmentStatus.Phase.ValueType = AssignmentStatus.PAUSED,
) -> Checkpoint:
    """Has an attempt pause with a snapshot of its own; returns the checkpoint."""
    held = assigned(storage.paths, uid, restore, attempt=restore.attempt + 1 if restore else 1)
    await storage.prepare(held, lambda _: None)
    start = files.read_start(Path(held.directory))
    assert start
    slot = Path(start.snapshot_directory) / "slot-1"
    slot.mkdir()
    head, _ = snapshots.layout([("w", "U8", (SIZE,))])
    (slot / snapshots.TENSORS).write_bytes(head + secrets.token_bytes(SIZE))
    tree = {"model": {"$": "tensor", "name": "w", "dtype": "U8", "shape": [SIZE]}}
    state = {"format": snapshots.FORMAT, "components": tree, "environment": {}, "progress": {}}
    (slot / snapshots.STATE).write_text(json.dumps(state))
    (slot / snapshots.IN_USE).touch()
    taken = Snapshot(directory=str(slot), sequence=1, last=True)
    held.persisted.CopyFrom(await storage.persist(held, taken, lambda _: None, lambda _: None))
    held.dropped.append(taken)
    held.status.phase = phase
    await storage.clean_up(held)
    assert not Path(held.directory).exists()
    assert not Path(start.snapshot_directory).exists()
    return held.persisted


def kept(paths: WorkerPaths) -> list[Path]:
    return [path for place in paths.snapshot_places for path in kept_snapshots.oldest_first(place / KEPT)]


def restored(paths: WorkerPaths) -> list[Path]:
    return [path for place in paths.snapshot_places for path in (place / RESTORED).glob("*")]


def is_the(checkpoint: Checkpoint, directory: Path) -> bool:
    return snapshots.component_digests(directory) == dict(checkpoint.component_digests)


async def test_a_job_that_returns_downloads_nothing_but_the_manifest(objects: Read, paths: WorkerPaths) -> None:
    storage, uid = tasks(objects, paths), str(uuid4())
    checkpoint = await paused(storage, uid)
    (left,) = kept(paths)
    inode = (left / snapshots.TENSORS).stat().st_ino
    objects.reads.clear()
    held = assigned(paths, uid, checkpoint, attempt=2)
    directory = await prepared(storage, held)
    assert (directory / snapshots.TENSORS).stat().st_ino == inode, "it is not copied"
    assert is_the(checkpoint, directory)
    assert objects.reads == {"others": 1}
    assert kept(paths) == []
    await storage.restored(held)
    assert restored(paths) == []
    held.status.phase = AssignmentStatus.FAILED
    await storage.clean_up(held)
    assert kept(paths) == [], "it made no checkpoint"


async def test_a_bit_that_differs_anywhere_is_never_restored(objects: Read, paths: WorkerPaths) -> None:
    storage, uid = tasks(objects, paths), str(uuid4())
    checkpoint = await paused(storage, uid)
    draw = random.Random(secrets.token_hex(4))
    for attempt in range(2, 22):
        (left,) = kept(paths)
        path = left / draw.choice([snapshots.TENSORS, snapshots.STATE])
        content = bytearray(path.read_bytes())
        offset = draw.choice([0, len(content) - 1, draw.randrange(len(content))])
        content[offset] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        objects.reads.clear()
        directory = await prepared(storage, assigned(paths, uid, checkpoint, attempt=attempt))
        assert is_the(checkpoint, directory), (path.name, offset)
        assert objects.reads["parts"] == checkpoint.part_count
        assert (kept(paths), restored(paths)) == ([], [])
        checkpoint = await paused(storage, uid, restore=checkpoint)


def cut(directory: Path) -> None:
    os.truncate(directory / snapshots.TENSORS, SIZE)


def grown(directory: Path) -> None:
    with (directory / snapshots.STATE).open("ab") as file:
        file.write(b" ")


def gone(directory: Path) -> None:
    (directory / snapshots.STATE).unlink()


def elsewhere(directory: Path) -> None:
    """Leaves a link to the same content: whoever can write there may change it after it was verified."""
    (directory / snapshots.TENSORS).rename(directory.parent / "content")
    (directory / snapshots.TENSORS).symlink_to(directory.parent / "content")


def no_directory(directory: Path) -> None:
    directory.rename(directory.parent / "content")
    directory.symlink_to(directory.parent / "content")


def no_file(directory: Path) -> None:
    (directory / snapshots.TENSORS).unlink()
    (directory / snapshots.TENSORS).mkdir()


@pytest.mark.parametrize("spoil", [cut, grown, gone, elsewhere, no_directory, no_file])
async def test_what_is_no_snapshot_any_more_is_downloaded(
    objects: Read, in_memory: WorkerPaths, spoil: Callable[[Path], None]
) -> None:
    storage, uid = tasks(objects, in_memory), str(uuid4())
    checkpoint = await paused(storage, uid)
    spoil(kept(in_memory)[0])
    directory = await prepared(storage, assigned(in_memory, uid, checkpoint, attempt=2))
    assert is_the(checkpoint, directory)
    assert objects.reads["parts"] == checkpoint.part_count


async def test_a_checkpoint_is_brought_to_memory_until_training_has_read_it(
    objects: Read, in_memory: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uid = tasks(objects, in_memory, snapshot_bytes=0), str(uuid4())
    checkpoint = await paused(storage, uid)
    held = assigned(in_memory, uid, checkpoint, attempt=2)
    directory = await prepared(storage, held)
    assert is_the(checkpoint, directory)
    assert restored(in_memory) == [directory]
    objects.reads.clear()
    assert await prepared(tasks(objects, in_memory), held) == directory
    assert objects.reads == {"others": 1}, "the next agent finds it there"
    await storage.restored(held)
    assert restored(in_memory) == []

    storage.promised.clear()
    Space(monkeypatch, in_memory.snapshots, 4 * checkpoint.size_bytes - 1)  # the slots come first
    directory = await prepared(storage, assigned(in_memory, uid, checkpoint, attempt=3))
    assert is_the(checkpoint, directory)
    assert directory.is_relative_to(in_memory.attempts)


async def test_memory_that_others_have_filled_meanwhile_is_no_reason_to_fail(
    objects: Read, in_memory: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(store: PartStore, checkpoint: Checkpoint, into: Path) -> Manifest:
        if into.is_relative_to(in_memory.snapshots):
            raise OSError(errno.ENOSPC, "No space left on device")
        return await fetch(store, checkpoint, into)

    monkeypatch.setattr(module, "fetch", full)
    storage, uid = tasks(objects, in_memory, snapshot_bytes=0), str(uuid4())
    checkpoint = await paused(storage, uid)
    directory = await prepared(storage, assigned(in_memory, uid, checkpoint, attempt=2))
    assert is_the(checkpoint, directory)
    assert directory.is_relative_to(in_memory.attempts)
    assert storage.disk.condition() is None


async def test_a_sound_snapshot_makes_up_for_parts_that_storage_has_lost(objects: Read, paths: WorkerPaths) -> None:
    storage, uid = tasks(objects, paths), str(uuid4())
    checkpoint = await paused(storage, uid)
    for key in [key for key in objects.contents if "/parts/" in key]:
        del objects.contents[key]
    assert is_the(checkpoint, await prepared(storage, assigned(paths, uid, checkpoint, attempt=2)))


async def test_a_damaged_snapshot_and_lost_parts_are_a_corrupt_checkpoint(
    objects: Read, paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DAMAGE_AGAIN_SECONDS", 0.0)
    storage, uid = tasks(objects, paths), str(uuid4())
    checkpoint = await paused(storage, uid)
    for key in [key for key in objects.contents if "/parts/" in key]:
        del objects.contents[key]
    cut(kept(paths)[0])
    with pytest.raises(module.Unusable, match="is missing") as caught:
        await prepared(storage, assigned(paths, uid, checkpoint, attempt=2))
    assert caught.value.failure.reason == reasons.CHECKPOINT_CORRUPT


async def test_jobs_get_their_own(objects: Read, paths: WorkerPaths) -> None:
    storage = tasks(objects, paths)
    saved = {uid: await paused(storage, uid) for uid in (str(uuid4()), str(uuid4()))}
    assert len(kept(paths)) == 2
    objects.reads.clear()
    for uid, checkpoint in saved.items():
        assert is_the(checkpoint, await prepared(storage, assigned(paths, uid, checkpoint, attempt=2)))
    assert objects.reads == {"others": 2}


async def test_a_job_that_returns_with_another_checkpoint_has_nothing_kept(objects: Read, paths: WorkerPaths) -> None:
    """It went on elsewhere meanwhile, or the one that it paused with turned out damaged."""
    storage, uid, other = tasks(objects, paths), str(uuid4()), str(uuid4())
    older = await paused(storage, uid)
    newer = await paused(storage, uid, restore=older)
    await paused(storage, other)
    directory = await prepared(storage, assigned(paths, uid, older, attempt=3))
    assert is_the(older, directory)
    assert not is_the(newer, directory)
    assert [path.name.startswith(other) for path in kept(paths)] == [True]


@pytest.mark.parametrize("phase", [AssignmentStatus.FAILED, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED])
async def test_only_what_was_paused_is_kept(
    objects: Read, paths: WorkerPaths, phase: AssignmentStatus.Phase.ValueType
) -> None:
    await paused(tasks(objects, paths), str(uuid4()), phase=phase)
    assert kept(paths) == []


async def test_a_slot_outside_the_attempt_is_not_kept(objects: Read, in_memory: WorkerPaths, tmp_path: Path) -> None:
    """Training writes where its slot is; that of another attempt stays where it is."""
    held = assigned(in_memory, str(uuid4()))
    foreign = in_memory.snapshots / "another" / "slot-1"
    foreign.mkdir(parents=True)
    name = f"{held.assignment.job}/checkpoints/1-{held.assignment.token.nonce[:8]}-1"
    digest = secrets.token_hex(32)
    held.persisted.CopyFrom(Checkpoint(name=name, job_uid=held.assignment.token.job_uid, manifest_digest=digest))
    held.dropped.append(Snapshot(directory=str(foreign), sequence=1))
    held.status.phase = AssignmentStatus.PAUSED
    await tasks(objects, in_memory).clean_up(held)
    assert kept(in_memory) == []
    assert foreign.is_dir()


async def test_no_more_is_kept_than_the_setting_allows_and_the_oldest_goes(objects: Read, paths: WorkerPaths) -> None:
    room_for_two = 2 * (SIZE + 40_000)
    storage, uids = tasks(objects, paths, snapshot_bytes=room_for_two), [str(uuid4()) for _ in range(3)]
    for uid in uids:
        await paused(storage, uid)
    assert [path.name[:36] for path in kept(paths)] == uids[1:]
    await paused(tasks(objects, paths, snapshot_bytes=0), str(uuid4()))
    assert [path.name[:36] for path in kept(paths)] == uids[1:]


async def test_no_more_is_kept_than_a_share_of_the_room(
    objects: Read, paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = kept_module.SHARE * (SIZE + 40_000)
    monkeypatch.setattr(kept_module, "free_bytes", lambda slot: room - used_bytes(slot.parent.parent / KEPT))
    storage, uids = tasks(objects, paths), [str(uuid4()) for _ in range(2)]
    for uid in uids:
        await paused(storage, uid)
    assert [path.name[:36] for path in kept(paths)] == uids[1:]


class Space:
    """A file system of some size, with nothing on it but what is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path, size: int) -> None:
        self.place, self.size = place, size
        monkeypatch.setattr(kept_snapshots, "free", lambda _: self.free())
        monkeypatch.setattr(module, "free_bytes", lambda _: self.free())

    def free(self) -> int:
        used = [kept_snapshots.taken(path) for path in (*self.place.glob(f"{KEPT}/*"), *self.place.glob("restored/*"))]
        return self.size - sum(used)


async def test_what_is_kept_makes_room_for_the_slots_of_an_attempt_the_oldest_first(
    objects: Read, in_memory: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uids = tasks(objects, in_memory), [str(uuid4()) for _ in range(3)]
    for uid in uids:
        await paused(storage, uid)
    one = kept_snapshots.taken(kept(in_memory)[0])
    storage.promised.clear()
    Space(monkeypatch, in_memory.snapshots, 3 * one + 3 * SIZE - one)
    assert storage.snapshot_places(in_memory.attempts / "new", SIZE)[0].is_relative_to(in_memory.snapshots)
    assert [path.name[:36] for path in kept(in_memory)] == uids[1:]
    storage.promised.clear()
    assert storage.snapshot_places(in_memory.attempts / "large", 10 * SIZE)[0].is_relative_to(in_memory.disk_snapshots)
    assert len(kept(in_memory)) == 2, "all of it would not have been enough"


async def test_slots_come_before_a_snapshot_that_is_restored(
    objects: Read, in_memory: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uid = tasks(objects, in_memory), str(uuid4())
    checkpoint = await paused(storage, uid)
    storage.promised.clear()
    Space(monkeypatch, in_memory.snapshots, 3 * checkpoint.size_bytes)
    held = assigned(in_memory, uid, checkpoint, attempt=2)
    directory = await prepared(storage, held)
    start = files.read_start(Path(held.directory))
    assert start
    assert Path(start.snapshot_directory).is_relative_to(in_memory.snapshots)
    assert directory.is_relative_to(in_memory.attempts)
    assert is_the(checkpoint, directory)
    assert (kept(in_memory), restored(in_memory)) == ([], [])


async def test_another_agent_finds_what_was_kept_and_what_was_claimed(objects: Read, paths: WorkerPaths) -> None:
    uid, other = str(uuid4()), str(uuid4())
    storage = tasks(objects, paths)
    checkpoint, waiting = await paused(storage, uid), await paused(storage, other)
    held = assigned(paths, uid, checkpoint, attempt=2)
    claimed = kept_module.claim(paths, checkpoint, Path(held.directory))
    paths.collect_garbage([Path(held.directory)])
    objects.reads.clear()
    storage = tasks(objects, paths)
    assert await prepared(storage, held) == claimed
    assert is_the(waiting, await prepared(storage, assigned(paths, other, waiting, attempt=2)))
    assert objects.reads == {"others": 2}
    paths.collect_garbage([])
    assert restored(paths) == [], "nobody has the attempts any more"


async def test_what_is_kept_of_a_deleted_job_goes(objects: Read, paths: WorkerPaths) -> None:
    storage, uids = tasks(objects, paths), [str(uuid4()) for _ in range(2)]
    for uid in uids:
        await paused(storage, uid)
    stranger = kept(paths)[0].with_name("lost+found")
    stranger.mkdir()
    await storage.drop_orphans()
    assert len(kept(paths)) == 3
    await objects.delete_prefix(f"checkpoints/{uids[0]}/")
    await storage.drop_orphans()
    assert {path.name[:36] for path in kept(paths)} == {uids[1], stranger.name}
