"""Snapshots on their way into an object store and back: whole and verified, or not at all."""

import asyncio
import errno
import json
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import adjourn.objects
from adjourn import snapshots
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.manifests import PART_BYTES, digest, distinct_parts, manifest_key, part_key
from adjourn.objects import ObjectStore, S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.storage import chunks
from adjourn_worker.storage import fetch as fetching
from adjourn_worker.storage import parts as parts_module
from adjourn_worker.storage import persist as persisting
from adjourn_worker.storage.fetch import CheckpointCorrupt, fetch, read_manifest
from adjourn_worker.storage.parts import IN_FLIGHT, KeyTaken, PartStore, each
from adjourn_worker.storage.persist import Piece, SnapshotDiffers, SnapshotLost, persist
from tests.harness.memory_objects import MemoryObjects

FROZEN = secrets.token_bytes(PART_BYTES)
"""The first tensor of every file made here: it fills the first part, but for a chunk."""
MUCH = PART_BYTES // 2
"""More bytes than a checkpoint takes of which only `tail` is new."""
OTHER = b'{"format":"adjourn.checkpoint/2"}'
"""Somebody else's manifest."""
ENVIRONMENT = {"torch": "2.13.0", "device": "cpu"}


@pytest.fixture
def assignment() -> Assignment:
    token = FencingToken(attempt=2, nonce=secrets.token_hex(16), job_uid=str(uuid4()))
    return Assignment(job="jobs/digits", token=token, spec=JobSpec(entry_point="a:b", total_epochs=5))


def snapshot(directory: Path, *, sequence: int = 1, tail: bytes = b"tail" * 1000) -> Snapshot:
    """Writes a snapshot of two tensors: one that never changes, and `tail`."""
    return written(directory, {"frozen": FROZEN, "tail": tail}, sequence=sequence)


def written(directory: Path, tensors: Mapping[str, bytes], *, sequence: int, remark: str = "") -> Snapshot:
    directory.mkdir(exist_ok=True)
    head, entries = snapshots.layout((name, "U8", (len(data),)) for name, data in tensors.items())
    content = head.ljust(min(entry.begin for entry in entries.values()), b" ")
    content += b"".join(tensors[name] for name in sorted(entries, key=lambda name: entries[name].begin))
    (directory / snapshots.TENSORS).write_bytes(content)
    tree = {name: {"$": "tensor", "name": name, "dtype": "U8", "shape": [len(data)]} for name, data in tensors.items()}
    state = {"format": snapshots.FORMAT, "components": {"model": tree}, "environment": ENVIRONMENT, "progress": {}}
    (directory / snapshots.STATE).write_text(json.dumps({**state, "remarks": [remark] if remark else []}))
    progress = Progress(epoch=sequence, step=sequence * 10)
    progress.active_duration.FromSeconds(7)
    metrics = {"val_loss": 0.5}
    return Snapshot(directory=str(directory), sequence=sequence, progress=progress, metrics=metrics, stall_seconds=3)


async def kept(
    store: ObjectStore | PartStore, assignment: Assignment, taken: Snapshot, base: Manifest | None = None
) -> Checkpoint:
    """Persists a snapshot; as a new agent would, given an ObjectStore."""
    parts = store if isinstance(store, PartStore) else PartStore(store)
    return await persist(parts, assignment, taken, base, {}, lambda _: None)


async def fetched(store: ObjectStore, checkpoint: Checkpoint, into: Path) -> dict[str, bytes]:
    await fetch(PartStore(store), checkpoint, into)
    return files(into)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_a_snapshot_comes_back_bit_for_bit(store: ObjectStore, assignment: Assignment, tmp_path: Path) -> None:
    taken = snapshot(tmp_path / "slot")
    heard: list[float] = []
    checkpoint = await persist(PartStore(store), assignment, taken, None, {}, heard.append)
    manifest = await fetch(PartStore(store), checkpoint, tmp_path / "restored")
    assert files(tmp_path / "restored") == files(tmp_path / "slot")
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    uid = assignment.token.job_uid
    name = f"2-{assignment.token.nonce[:8]}-1"
    key = f"checkpoints/{uid}/manifests/{name}.json"
    size = sum(map(len, files(tmp_path / "slot").values()))
    written = await store.get(key, limit=1 << 20)
    components = snapshots.component_digests(tmp_path / "restored")
    expected = Checkpoint(
        name=f"jobs/digits/checkpoints/{name}",
        job_uid=uid,
        attempt=2,
        epoch=1,
        step=10,
        uri=f"s3://{store.bucket}/{key}",
        manifest_digest=digest(written),
        state_digest=snapshots.state_digest(components),
        size_bytes=size,
        part_count=len(manifest.parts),
        uploaded_bytes=size + len(written),
        metrics={"val_loss": 0.5},
        component_digests=components,
        environment=ENVIRONMENT,
    )
    expected.progress.CopyFrom(taken.progress)
    expected.active_duration.FromSeconds(7)
    expected.snapshot_duration.FromSeconds(3)
    assert checkpoint == expected
    assert (manifest.job, manifest.job_uid, manifest.spec) == (assignment.job, uid, assignment.spec)
    assert (manifest.progress, dict(manifest.environment)) == (taken.progress, ENVIRONMENT)


async def test_what_the_last_checkpoint_has_is_not_sent_again(
    store: ObjectStore, assignment: Assignment, tmp_path: Path
) -> None:
    first = await kept(store, assignment, snapshot(tmp_path / "slot"))
    base = await read_manifest(PartStore(store), first)
    second = await kept(store, assignment, snapshot(tmp_path / "slot", sequence=2, tail=b"new." * 1000), base)
    assert second.size_bytes == first.size_bytes
    assert second.uploaded_bytes < MUCH < first.uploaded_bytes
    assert await fetched(store, second, tmp_path / "restored") == files(tmp_path / "slot")


def large(directory: Path, content: bytes | bytearray, *, sequence: int = 1, remark: str = "") -> Snapshot:
    """Writes a snapshot of fifty tensors, with a small one between each and the next."""
    length = len(content) // 50
    tensors = {f"{number}": bytes(content[number * length :][:length]) for number in range(50)}
    tensors |= {f"{number}/small": bytes([number]) * 700 for number in range(50)}
    return written(directory, dict(sorted(tensors.items())), sequence=sequence, remark=remark)


@pytest.mark.parametrize("size", [5_000_000, 30_000_000])
async def test_a_checkpoint_of_which_little_is_new_sends_little_in_few_requests(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, size: int
) -> None:
    agent = PartStore(memory)
    content = bytearray(secrets.token_bytes(size))
    first = await kept(agent, assignment, large(tmp_path / "slot", content))
    before = set(memory.contents)
    content[size // 3 : size // 3 + size // 100] = secrets.token_bytes(size // 100)
    base = await read_manifest(agent, first)
    second = await kept(agent, assignment, large(tmp_path / "slot", content, sequence=2), base)
    assert size // 100 < second.uploaded_bytes < 0.02 * first.uploaded_bytes
    assert len(set(memory.contents) - before) == 2, "one part and the manifest"
    assert await fetched(memory, second, tmp_path / "restored") == files(tmp_path / "slot")


async def test_what_a_damaged_part_has_beside_other_things_is_sent_anew(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    """It cannot be written again as it was: something of it is in the earlier state only."""
    agent = PartStore(memory)
    content = bytearray(secrets.token_bytes(5_000_000))
    base = await read_manifest(agent, await kept(agent, assignment, large(tmp_path / "slot", content)))
    (damaged,) = [key for key in memory.contents if "/parts/" in key]
    flip(memory, damaged)
    content[:1000] = bytes(1000)
    taken = large(tmp_path / "slot", content, sequence=2)
    taken.last = True
    second = await kept(agent, assignment, taken, base)
    assert second.uploaded_bytes > second.size_bytes
    assert damaged not in [
        part_key(second.job_uid, part) for part in distinct_parts(await read_manifest(agent, second))
    ]
    assert await fetched(memory, second, tmp_path / "restored") == files(tmp_path / "slot")


async def persisted_in_two_ways(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> tuple[Checkpoint, Snapshot, bytearray]:
    """Makes a checkpoint that shares a part with the one before; returns it, its snapshot, and what is in it."""
    agent = PartStore(memory)
    content = bytearray(secrets.token_bytes(5_000_000))
    base = await read_manifest(agent, await kept(agent, assignment, large(tmp_path / "slot", content)))
    content[:1000] = bytes(1000)
    taken = large(tmp_path / "slot", content, sequence=2)
    return await kept(agent, assignment, taken, base), taken, content


async def test_a_manifest_of_the_same_bytes_in_other_parts_is_ours(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    """The agent that wrote it died before it could say so, and the base cannot be read any more."""
    checkpoint, taken, content = await persisted_in_two_ways(memory, assignment, tmp_path)
    again = await kept(PartStore(memory, again_seconds=0), assignment, taken, None)
    assert (again.uri, again.manifest_digest) == (checkpoint.uri, checkpoint.manifest_digest)
    assert await fetched(memory, again, tmp_path / "restored") == files(tmp_path / "slot")
    other = large(tmp_path / "slot", content, sequence=2, remark="it is another")
    with pytest.raises(KeyTaken):
        await kept(PartStore(memory, again_seconds=0), assignment, other, None)


async def test_a_manifest_of_ours_whose_parts_are_damaged_is_written_again(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    checkpoint, taken, _ = await persisted_in_two_ways(memory, assignment, tmp_path)
    largest = max(memory.contents, key=lambda key: len(memory.contents[key]))
    flip(memory, largest)
    again = await kept(PartStore(memory, again_seconds=0), assignment, taken, None)
    assert again.uri == checkpoint.uri
    assert again.manifest_digest != checkpoint.manifest_digest
    assert await fetched(memory, again, tmp_path / "restored") == files(tmp_path / "slot")


class Collecting(MemoryObjects):
    """Loses a part, as if it were collected, in the moment before the manifest that relies on it is there."""

    doomed = ""

    async def create(self, key: str, data: bytes) -> bool:
        if self.doomed:
            del self.contents[self.doomed]
            self.doomed = ""
        return await super().create(key, data)


async def test_a_part_that_is_collected_while_a_checkpoint_takes_some_of_it_is_replaced(
    assignment: Assignment, tmp_path: Path
) -> None:
    """It cannot be sent again as it was, so the manifest is another by then: it takes the place of the first."""
    store = Collecting()
    agent = PartStore(store, again_seconds=0)
    content = bytearray(secrets.token_bytes(5_000_000))
    base = await read_manifest(agent, await kept(agent, assignment, large(tmp_path / "slot", content)))
    (store.doomed,) = [key for key in store.contents if "/parts/" in key]
    content[:1000] = bytes(1000)
    taken = large(tmp_path / "slot", content, sequence=2)
    sent: dict[str, int] = {}
    with pytest.raises(ObjectStoreUnavailableError, match="were removed while they were relied on"):
        await persist(agent, assignment, taken, base, sent, lambda _: None)
    checkpoint = await persist(agent, assignment, taken, base, sent, lambda _: None)
    assert await fetched(store, checkpoint, tmp_path / "restored") == files(tmp_path / "slot")


async def test_a_snapshot_that_changes_while_it_is_read_is_no_checkpoint(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = snapshot(tmp_path / "slot")
    real = persisting.hashed

    async def changed_afterwards(store: PartStore, pieces: Sequence[Piece]) -> list[bytes]:
        digests = await real(store, pieces)
        with pieces[0].path.open("r+b") as file:
            file.seek(100)
            file.write(b"#")
        return digests

    monkeypatch.setattr(persisting, "hashed", changed_afterwards)
    with pytest.raises(SnapshotLost, match="has changed"):
        await kept(memory, assignment, taken)
    assert not [key for key in memory.contents if "/manifests/" in key]


async def test_a_checkpoint_of_version_2_is_restored_and_the_next_rests_on_nothing_of_it_that_is_wrong(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    snapshot(tmp_path / "slot")
    components = snapshots.component_digests(tmp_path / "slot")
    uid = assignment.token.job_uid
    rows = []
    for name, content in files(tmp_path / "slot").items():
        pieces = [content[begin : begin + PART_BYTES] for begin in range(0, len(content), PART_BYTES)]
        for piece in pieces:
            await memory.put(part_key(uid, digest(piece)), piece)
        rows.append({"name": name, "parts": [{"digest": digest(it), "sizeBytes": len(it)} for it in pieces]})
    document = {
        "format": "adjourn.checkpoint/2",
        "job": "jobs/digits",
        "jobUid": uid,
        "attempt": 1,
        "nonce": "0" * 32,
        "sequence": 1,
        "files": rows,
        "componentDigests": components,
        "stateDigest": snapshots.state_digest(components),
    }
    data = json.dumps(document).encode()
    await memory.put(manifest_key(uid, "1-00000000-1"), data)
    checkpoint = Checkpoint(
        name="jobs/digits/checkpoints/1-00000000-1",
        job_uid=uid,
        uri=f"s3://{memory.bucket}/{manifest_key(uid, '1-00000000-1')}",
        manifest_digest=digest(data),
        size_bytes=sum(map(len, files(tmp_path / "slot").values())),
    )
    assert await fetched(memory, checkpoint, tmp_path / "restored") == files(tmp_path / "slot")
    base = await read_manifest(PartStore(memory), checkpoint)
    taken = snapshot(tmp_path / "slot", tail=b"new." * 1000)
    following = await kept(memory, assignment, taken, base)
    assert await fetched(memory, following, tmp_path / "restored") == files(tmp_path / "slot")


async def test_persisting_again_gives_the_same_checkpoint(
    store: ObjectStore, assignment: Assignment, tmp_path: Path
) -> None:
    taken = snapshot(tmp_path / "slot")
    assert await kept(store, assignment, taken) == await kept(store, assignment, taken)


async def test_two_jobs_of_one_name_share_no_object(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    await kept(memory, assignment, snapshot(tmp_path / "slot"))
    before = set(memory.contents)
    assignment.token.job_uid = str(uuid4())
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    assert await memory.delete_prefix(f"checkpoints/{assignment.token.job_uid}/") == len(before)
    assert set(memory.contents) == before
    assert checkpoint.job_uid == assignment.token.job_uid


async def test_a_manifest_is_never_replaced(store: ObjectStore, assignment: Assignment, tmp_path: Path) -> None:
    name = f"2-{assignment.token.nonce[:8]}-1"
    key = manifest_key(assignment.token.job_uid, name)
    for other in (OTHER, OTHER.ljust(100_000)):
        await store.put(key, other)
        with pytest.raises(KeyTaken, match=name):
            await kept(PartStore(store, again_seconds=0), assignment, snapshot(tmp_path / "slot"))
        assert await store.get(key, limit=len(other)) == other


class Overtaken(MemoryObjects):
    """Another writes a manifest of its own in the moment between looking and writing."""

    async def create(self, key: str, data: bytes) -> bool:
        await super().put(key, OTHER)
        return await super().create(key, data)


async def test_a_manifest_that_another_wrote_at_the_same_time_is_not_ours(
    assignment: Assignment, tmp_path: Path
) -> None:
    with pytest.raises(KeyTaken):
        await kept(PartStore(Overtaken(), again_seconds=0), assignment, snapshot(tmp_path / "slot"))


def flip(store: MemoryObjects, key: str) -> None:
    """Loses a bit where it lies: size and version stay."""
    data = store.contents[key]
    store.contents[key] = data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
async def test_a_damaged_part_of_the_base_is_sent_again(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, damage: str
) -> None:
    first = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    base = await read_manifest(PartStore(memory), first)
    for key in [key for key in memory.contents if "/parts/" in key]:
        match damage:
            case "flipped":
                flip(memory, key)
            case "short":
                memory.contents[key] = memory.contents[key][:-1]
            case "missing":
                del memory.contents[key]
    second = await kept(memory, assignment, snapshot(tmp_path / "slot", sequence=2), base)
    assert second.uploaded_bytes > second.size_bytes
    assert await fetched(memory, second, tmp_path / "restored") == files(tmp_path / "slot")


class Counting(MemoryObjects):
    """Counts the bytes that are read."""

    read = 0

    async def get(self, key: str, *, limit: int) -> bytes:
        data = await super().get(key, limit=limit)
        self.read += len(data)
        return data


@pytest.mark.parametrize("known_by", ["upload", "restore", "reading"])
async def test_a_part_is_read_once_in_an_agents_life(assignment: Assignment, tmp_path: Path, known_by: str) -> None:
    store = Counting()
    agent = PartStore(store)
    first = await kept(agent, assignment, snapshot(tmp_path / "slot"))
    base = await read_manifest(agent, first)
    if known_by != "upload":
        agent = PartStore(store)  # the next one
    if known_by == "restore":
        await fetch(agent, first, tmp_path / "restored")
    if known_by == "reading":
        store.read = 0
        await kept(agent, assignment, snapshot(tmp_path / "slot", sequence=2), base)
        assert store.read > MUCH
    store.read = 0
    third = await kept(agent, assignment, snapshot(tmp_path / "slot", sequence=3), base)
    assert store.read < MUCH > third.uploaded_bytes


@pytest.mark.parametrize("last", [False, True])
async def test_what_an_earlier_snapshot_sent_is_not_sent_again_although_it_became_no_checkpoint(
    assignment: Assignment, tmp_path: Path, last: bool
) -> None:
    store = Counting()
    agent = PartStore(store)
    dropped = await kept(agent, assignment, snapshot(tmp_path / "slot"))
    assert dropped.uploaded_bytes > MUCH
    store.read = 0
    taken = snapshot(tmp_path / "slot", sequence=2, tail=b"new." * 1000)
    taken.last = last
    second = await kept(agent, assignment, taken)
    assert second.uploaded_bytes < MUCH
    assert (store.read > MUCH) == last, "what a pause rests on is read"
    assert await fetched(store, second, tmp_path / "restored") == files(tmp_path / "slot")


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
async def test_what_a_pause_rests_on_is_read_whatever_was_known_of_it(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, damage: str
) -> None:
    """A disk loses a part that this agent has verified before: the next pause does not rest on the damaged bytes."""
    agent = PartStore(memory)
    first = await kept(agent, assignment, snapshot(tmp_path / "slot"))
    base = await read_manifest(agent, first)
    largest = max(memory.contents, key=lambda key: len(memory.contents[key]))
    match damage:
        case "flipped":
            flip(memory, largest)
        case "short":
            memory.contents[largest] = memory.contents[largest][:-1]
        case "missing":
            del memory.contents[largest]
    taken = snapshot(tmp_path / "slot", sequence=2)
    taken.last = True
    second = await kept(agent, assignment, taken, base)
    assert second.uploaded_bytes > MUCH
    assert await fetched(memory, second, tmp_path / "restored") == files(tmp_path / "slot")
    assert await fetched(memory, first, tmp_path / "restored"), "what shares the part is whole again, too"


async def test_a_part_that_somebody_wrote_again_is_read_again(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    agent = PartStore(memory)
    base = await read_manifest(agent, await kept(agent, assignment, snapshot(tmp_path / "slot")))
    largest = max(memory.contents, key=lambda key: len(memory.contents[key]))
    await memory.put(largest, bytes(len(memory.contents[largest])))
    second = await kept(agent, assignment, snapshot(tmp_path / "slot", sequence=2), base)
    assert second.uploaded_bytes > MUCH
    assert await fetched(memory, second, tmp_path / "restored") == files(tmp_path / "slot")


class Unreadable(MemoryObjects):
    """Fails at reading a part, for ever: what SeaweedFS answers when its own checksum is wrong."""

    async def get(self, key: str, *, limit: int) -> bytes:
        if "/parts/" in key:
            raise ObjectStoreUnavailableError("InternalError")
        return await super().get(key, limit=limit)


async def test_a_part_that_the_store_fails_to_read_is_sent_again(assignment: Assignment, tmp_path: Path) -> None:
    store = Unreadable()
    base = await read_manifest(PartStore(store), await kept(store, assignment, snapshot(tmp_path / "slot")))
    second = await kept(store, assignment, snapshot(tmp_path / "slot", sequence=2), base)
    assert second.uploaded_bytes > second.size_bytes


async def test_a_bit_that_the_servers_disk_lost_is_found_and_the_part_sent_again(
    servers: Path,
    s3_environment: dict[str, str],
    assignment: Assignment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adjourn.objects, "TRIES", 1)
    tail = secrets.token_bytes(4000)
    async with S3Objects(S3Settings.from_environment(s3_environment)) as store:
        await store.ensure_bucket()
        base = await read_manifest(
            PartStore(store), await kept(store, assignment, snapshot(tmp_path / "slot", tail=tail))
        )
        lose_a_bit(servers / "s3", tail)
        second = await kept(store, assignment, snapshot(tmp_path / "slot", sequence=2, tail=tail), base)
        assert second.uploaded_bytes > len(tail)
        assert await fetched(store, second, tmp_path / "restored") == files(tmp_path / "slot")


def lose_a_bit(server: Path, content: bytes) -> None:
    """Flips a bit of what SeaweedFS has in its volumes."""
    for volume in server.glob("*.dat"):
        offset = volume.read_bytes().find(content)
        if offset >= 0:
            with volume.open("r+b") as file:
                file.seek(offset)
                file.write(bytes([content[0] ^ 1]))
            return
    raise AssertionError("it is in no volume")


class Damaging(MemoryObjects):
    """Compares nothing, and flips a bit of the first part that it takes."""

    damaged = False

    async def put(self, key: str, data: bytes) -> bool:
        await super().put(key, data)
        if not self.damaged:
            self.damaged = True
            flip(self, key)
        return False


async def test_an_upload_that_was_damaged_is_found_out(assignment: Assignment, tmp_path: Path) -> None:
    store = Damaging()
    taken = snapshot(tmp_path / "slot")
    with pytest.raises(ObjectStoreUnavailableError, match="is not what was written"):
        await kept(store, assignment, taken)
    assert not [key for key in store.contents if "/manifests/" in key]
    checkpoint = await kept(store, assignment, taken)
    assert await fetched(store, checkpoint, tmp_path / "restored") == files(tmp_path / "slot")


async def test_a_snapshot_that_is_not_the_live_state_is_no_checkpoint(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    taken = snapshot(tmp_path / "slot")
    components = snapshots.component_digests(tmp_path / "slot")
    taken.live_digests.update(components)
    assert await kept(memory, assignment, taken)
    memory.contents.clear()
    taken.live_digests.update({"model": "00" * 32, "lost": "11" * 32})
    with pytest.raises(SnapshotDiffers, match="lost, model"):
        await kept(memory, assignment, taken)
    assert memory.contents == {}


class Failing(MemoryObjects):
    """Fails at the n-th write; loses what is put if told to; counts what is in flight.

    Takes nothing before so many writes are in flight `together`.
    """

    def __init__(self, *, fail_at: int = 0, lose: bool = False, together: int = 1) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.lose = lose
        self.puts = 0
        self.in_flight = self.most_in_flight = 0
        self.together = together
        self.open = asyncio.Event()

    async def put(self, key: str, data: bytes) -> bool:
        self.puts += 1
        fails = self.puts == self.fail_at
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.in_flight == self.together:
            self.open.set()
        await self.open.wait()
        await asyncio.sleep(0)
        self.in_flight -= 1
        if fails:
            raise ObjectStoreUnavailableError("no")
        return self.lose or await super().put(key, data)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
async def test_until_all_parts_are_there_is_no_manifest(assignment: Assignment, tmp_path: Path, fail_at: int) -> None:
    store = Failing(fail_at=fail_at)
    taken = snapshot(tmp_path / "slot")
    with pytest.raises(ObjectStoreUnavailableError):
        await kept(store, assignment, taken)
    assert not [key for key in store.contents if "/manifests/" in key]
    checkpoint = await kept(store, assignment, taken)
    await fetched(store, checkpoint, tmp_path / "restored")


async def test_a_store_that_loses_what_it_took_is_found_out(assignment: Assignment, tmp_path: Path) -> None:
    with pytest.raises(ObjectStoreUnavailableError, match="was written with"):
        await kept(Failing(lose=True), assignment, snapshot(tmp_path / "slot"))


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (persisting, chunks):
        monkeypatch.setattr(module, "PART_BYTES", 64 << 10)


async def test_few_parts_are_in_memory_at_a_time_and_equal_ones_sent_once(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    store = Failing(together=IN_FLIGHT)
    async with asyncio.timeout(60):
        checkpoint = await kept(store, assignment, snapshot(tmp_path / "slot", tail=bytes(64 << 14)))
    assert store.most_in_flight == IN_FLIGHT
    assert checkpoint.uploaded_bytes < checkpoint.size_bytes - (8 << 16)
    assert await fetched(store, checkpoint, tmp_path / "restored") == files(tmp_path / "slot")


async def test_few_parts_of_all_checkpoints_are_in_memory_at_a_time(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_parts(monkeypatch)
    monkeypatch.setattr(parts_module, "PARTS_IN_MEMORY", 2)
    store = Failing(together=2)
    agent = PartStore(store)
    taken = [snapshot(tmp_path / f"slot-{number}", sequence=number) for number in (1, 2, 3)]
    async with asyncio.timeout(60):
        checkpoints = await asyncio.gather(*(kept(agent, assignment, each) for each in taken))
    assert store.most_in_flight == 2
    for number, checkpoint in enumerate(checkpoints, start=1):
        await fetch(agent, checkpoint, tmp_path / "restored")
        assert files(tmp_path / "restored") == files(tmp_path / f"slot-{number}")


async def test_hashing_has_threads_of_its_own(memory: MemoryObjects, assignment: Assignment, tmp_path: Path) -> None:
    busy = threading.Event()
    with ThreadPoolExecutor(1) as others:
        asyncio.get_running_loop().set_default_executor(others)
        waiting = asyncio.create_task(asyncio.to_thread(busy.wait))
        checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
        assert await fetched(memory, checkpoint, tmp_path / "restored") == files(tmp_path / "slot")
        assert not waiting.done()
        busy.set()
        await waiting


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("read", ["state.json", "tensors.safetensors"])
async def test_a_snapshot_that_cannot_be_read_for_a_while_is_not_lost(
    memory: MemoryObjects,
    assignment: Assignment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    read: str,
) -> None:
    taken = snapshot(tmp_path / "slot")
    opened = Path.open

    def short(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == read:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", short)
        with pytest.raises(OSError, match=read) as raised:
            await kept(memory, assignment, taken)
    assert raised.value.errno == number
    await kept(memory, assignment, taken)


async def test_a_snapshot_that_is_gone_is_said_to_be(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SnapshotLost, match="no snapshot"):
        await kept(memory, assignment, Snapshot(directory=str(tmp_path / "none")))
    taken = snapshot(tmp_path / "slot")
    (tmp_path / "slot" / snapshots.STATE).write_text("{")
    with pytest.raises(snapshots.SnapshotInvalid):
        await kept(memory, assignment, taken)
    taken = snapshot(tmp_path / "slot")
    real = persisting.describe

    def cut_afterwards(directory: Path) -> tuple[dict[str, str], dict[str, str]]:
        described = real(directory)
        pieces = persisting.split(directory / snapshots.TENSORS)
        monkeypatch.setattr(persisting, "split", lambda path: pieces if path.name == snapshots.TENSORS else [])
        (directory / snapshots.TENSORS).write_bytes(b"short")
        return described

    monkeypatch.setattr(persisting, "describe", cut_afterwards)
    with pytest.raises(SnapshotLost, match="ends at byte"):
        await kept(memory, assignment, taken)
    assert memory.contents == {}


@pytest.mark.parametrize("what", ["part", "manifest"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "short", "long"])
async def test_damage_is_found_and_named_and_nothing_is_left(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, what: str, damage: str
) -> None:
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    key = next(key for key in memory.contents if f"/{what}s/" in key)
    data = memory.contents.pop(key)
    match damage:
        case "flipped":
            memory.contents[key] = bytes([data[0] ^ 1]) + data[1:]
        case "short":
            memory.contents[key] = data[:-1]
        case "long":
            memory.contents[key] = data + b"."
    with pytest.raises(CheckpointCorrupt) as caught:
        await fetched(memory, checkpoint, tmp_path / "restored")
    assert caught.value.key == key
    assert caught.value.checkpoint == checkpoint.name
    assert key in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slot"]


async def test_a_manifest_of_another_job_or_bucket_is_not_this_checkpoint(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    other = Checkpoint()
    other.CopyFrom(checkpoint)
    other.name = "jobs/other/checkpoints/1-00000000-1"
    with pytest.raises(CheckpointCorrupt, match="belongs to"):
        await fetched(memory, other, tmp_path / "restored")
    other.CopyFrom(checkpoint)
    other.job_uid = str(uuid4())
    with pytest.raises(CheckpointCorrupt, match="belongs to"):
        await fetched(memory, other, tmp_path / "restored")
    other.CopyFrom(checkpoint)
    other.size_bytes += 1
    with pytest.raises(CheckpointCorrupt, match="bytes in all"):
        await fetched(memory, other, tmp_path / "restored")
    other.CopyFrom(checkpoint)
    other.uri = checkpoint.uri.replace(memory.bucket, "elsewhere")
    with pytest.raises(CheckpointCorrupt, match="not in the bucket"):
        await fetched(memory, other, tmp_path / "restored")
    other.CopyFrom(checkpoint)
    other.manifest_digest = digest(b"{}")
    memory.contents[checkpoint.uri.removeprefix("s3://memory/")] = b"{}"
    with pytest.raises(CheckpointCorrupt, match="is no manifest"):
        await fetched(memory, other, tmp_path / "restored")


async def test_what_a_killed_fetch_left_is_replaced(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    for left in ("restored", ".restored.fetching"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "junk").touch()
    await fetched(memory, checkpoint, tmp_path / "restored")
    assert files(tmp_path / "restored") == files(tmp_path / "slot")
    assert not (tmp_path / ".restored.fetching").exists()


async def test_nothing_is_fetched_without_room_for_all(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    parts = [key for key in memory.contents if "/parts/" in key]
    for key in parts:
        del memory.contents[key]
    monkeypatch.setattr(fetching, "free_bytes", lambda _: checkpoint.size_bytes - 1)
    with pytest.raises(OSError, match="No space left") as raised:
        await fetched(memory, checkpoint, tmp_path / "restored")
    assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["slot"]
    monkeypatch.setattr(fetching, "free_bytes", lambda _: checkpoint.size_bytes)
    with pytest.raises(CheckpointCorrupt, match="is missing"):
        await fetched(memory, checkpoint, tmp_path / "restored")


async def test_an_outage_is_not_damage(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjourn.objects, "BACKOFF_MOST", 0.0)
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    settings = S3Settings(endpoint="http://127.0.0.1:1", bucket=memory.bucket, access_key="a", secret_key="b")
    async with S3Objects(settings) as unreachable:
        with pytest.raises(ObjectStoreUnavailableError):
            await fetched(unreachable, checkpoint, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


async def test_the_first_error_ends_the_work() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number == 3:
            raise ValueError("three")
        done.append(number)

    with pytest.raises(ValueError, match="three"):
        await each(range(1000), work)
    assert len(done) < 10


def test_objects_are_keyed_by_uid_and_content() -> None:
    uid = str(uuid4())
    assert part_key(uid, digest(b"")) == f"checkpoints/{uid}/parts/{digest(b'')}"
    assert manifest_key(uid, "1-a-2") == f"checkpoints/{uid}/manifests/1-a-2.json"
    for name in ("", "digits", "jobs/digits", "../x"):
        with pytest.raises(ValueError, match="not the uid of a job"):
            part_key(name, digest(b""))
