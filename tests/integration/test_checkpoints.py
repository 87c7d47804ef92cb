"""Snapshots on their way into an object store and back: whole and verified, or not at all."""

import asyncio
import json
import secrets
from pathlib import Path

import pytest

import adjourn.objects
from adjourn import snapshots
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.objects import ObjectStore, S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn_worker.storage import persist as persisting
from adjourn_worker.storage.fetch import CheckpointCorrupt, fetch, read_manifest
from adjourn_worker.storage.manifest import Manifest
from adjourn_worker.storage.parts import IN_FLIGHT, PART_BYTES, digest, each, part_key
from adjourn_worker.storage.persist import SnapshotLost, persist
from tests.harness.memory_objects import MemoryObjects

FROZEN = secrets.token_bytes(PART_BYTES)
"""The first part of every tensors file made here, header aside."""


@pytest.fixture
def assignment() -> Assignment:
    token = FencingToken(attempt=2, nonce=secrets.token_hex(16))
    return Assignment(job=f"jobs/{secrets.token_hex(6)}", token=token, spec=JobSpec(entry_point="a:b", total_epochs=5))


def snapshot(directory: Path, *, sequence: int = 1, tail: bytes = b"tail" * 1000) -> Snapshot:
    """Writes a snapshot of two tensors: one that never changes, and `tail`."""
    directory.mkdir(exist_ok=True)
    tensors = {"frozen": FROZEN, "tail": tail}
    head, entries = snapshots.layout((name, "U8", (len(data),)) for name, data in tensors.items())
    content = head.ljust(min(entry.begin for entry in entries.values()), b" ")
    for name in sorted(entries, key=lambda name: entries[name].begin):
        content += tensors[name]
    (directory / snapshots.TENSORS).write_bytes(content)
    tree = {name: {"$": "tensor", "name": name, "dtype": "U8", "shape": [len(data)]} for name, data in tensors.items()}
    state = {"format": snapshots.FORMAT, "components": {"model": tree}, "environment": {}, "progress": {}}
    (directory / snapshots.STATE).write_text(json.dumps(state))
    progress = Progress(epoch=sequence, step=sequence * 10)
    progress.active_duration.FromSeconds(7)
    return Snapshot(directory=str(directory), sequence=sequence, progress=progress, metrics={"val_loss": 0.5})


async def kept(store: ObjectStore, assignment: Assignment, taken: Snapshot, base: Manifest | None = None) -> Checkpoint:
    return await persist(store, assignment, taken, base, lambda _: None)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def test_a_snapshot_comes_back_bit_for_bit(store: ObjectStore, assignment: Assignment, tmp_path: Path) -> None:
    taken = snapshot(tmp_path / "slot")
    heard: list[float] = []
    checkpoint = await persist(store, assignment, taken, None, heard.append)
    manifest = await fetch(store, checkpoint, tmp_path / "restored", heard.append)
    assert files(tmp_path / "restored") == files(tmp_path / "slot")
    assert heard == sorted(heard[: len(heard) // 2]) + sorted(heard[len(heard) // 2 :])
    assert heard.count(1.0) == 2
    name = f"2-{assignment.token.nonce[:8]}-1"
    key = f"checkpoints/{assignment.job.removeprefix('jobs/')}/manifests/{name}.json"
    size = sum(map(len, files(tmp_path / "slot").values()))
    written = await store.get(key, limit=1 << 20)
    components = snapshots.component_digests(tmp_path / "restored")
    expected = Checkpoint(
        name=f"{assignment.job}/checkpoints/{name}",
        attempt=2,
        epoch=1,
        step=10,
        uri=f"s3://{store.bucket}/{key}",
        manifest_digest=digest(written),
        state_digest=snapshots.state_digest(components),
        size_bytes=size,
        uploaded_bytes=size + len(written),
        metrics={"val_loss": 0.5},
        component_digests=components,
    )
    expected.active_duration.FromSeconds(7)
    assert checkpoint == expected
    assert (manifest.job, manifest.spec, manifest.progress) == (assignment.job, assignment.spec, taken.progress)


async def test_what_the_last_checkpoint_has_is_not_sent_again(
    store: ObjectStore, assignment: Assignment, tmp_path: Path
) -> None:
    first = await kept(store, assignment, snapshot(tmp_path / "slot"))
    base = await read_manifest(store, first)
    second = await kept(store, assignment, snapshot(tmp_path / "slot", sequence=2, tail=b"new." * 1000), base)
    assert second.size_bytes == first.size_bytes
    assert second.uploaded_bytes < PART_BYTES < first.uploaded_bytes
    await fetch(store, second, tmp_path / "restored")
    assert files(tmp_path / "restored") == files(tmp_path / "slot")


async def test_persisting_again_gives_the_same_checkpoint(
    store: ObjectStore, assignment: Assignment, tmp_path: Path
) -> None:
    taken = snapshot(tmp_path / "slot")
    assert await kept(store, assignment, taken) == await kept(store, assignment, taken)


async def test_a_part_that_the_base_only_claims_to_have_is_sent(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    base = await read_manifest(memory, await kept(memory, assignment, snapshot(tmp_path / "slot")))
    for key in list(memory.contents):
        memory.contents[key] = memory.contents[key][:-1]  # damaged where it lies
    second = await kept(memory, assignment, snapshot(tmp_path / "slot", sequence=2), base)
    await fetch(memory, second, tmp_path / "restored")
    assert files(tmp_path / "restored") == files(tmp_path / "slot")


class Failing(MemoryObjects):
    """Fails at the n-th put; loses what is put if told to; counts what is in flight."""

    def __init__(self, *, fail_at: int = 0, lose: bool = False) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.lose = lose
        self.puts = 0
        self.in_flight = self.most_in_flight = 0

    async def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        fails = self.puts == self.fail_at
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        if fails:
            raise ObjectStoreUnavailableError("no")
        if not self.lose:
            await super().put(key, data)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
async def test_until_all_parts_are_there_is_no_manifest(assignment: Assignment, tmp_path: Path, fail_at: int) -> None:
    store = Failing(fail_at=fail_at)
    taken = snapshot(tmp_path / "slot")
    with pytest.raises(ObjectStoreUnavailableError):
        await kept(store, assignment, taken)
    assert not [key for key in store.contents if "/manifests/" in key]
    checkpoint = await kept(store, assignment, taken)
    await fetch(store, checkpoint, tmp_path / "restored")


async def test_a_store_that_loses_what_it_took_is_found_out(assignment: Assignment, tmp_path: Path) -> None:
    with pytest.raises(ObjectStoreUnavailableError, match="was written with"):
        await kept(Failing(lose=True), assignment, snapshot(tmp_path / "slot"))


async def test_few_parts_are_in_memory_at_a_time_and_equal_ones_sent_once(
    assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persisting, "PART_BYTES", 64 << 10)
    store = Failing()
    checkpoint = await kept(store, assignment, snapshot(tmp_path / "slot", tail=bytes(64 << 14)))
    assert 1 < store.most_in_flight <= IN_FLIGHT
    assert checkpoint.uploaded_bytes < checkpoint.size_bytes - (8 << 16)
    await fetch(store, checkpoint, tmp_path / "restored")
    assert files(tmp_path / "restored") == files(tmp_path / "slot")


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
    real = persisting.component_digests

    def cut_afterwards(directory: Path) -> dict[str, str]:
        digests = real(directory)
        pieces = persisting.split(directory / snapshots.TENSORS)
        monkeypatch.setattr(persisting, "split", lambda path: pieces if path.name == snapshots.TENSORS else [])
        (directory / snapshots.TENSORS).write_bytes(b"short")
        return digests

    monkeypatch.setattr(persisting, "component_digests", cut_afterwards)
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
        await fetch(memory, checkpoint, tmp_path / "restored")
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
        await fetch(memory, other, tmp_path / "restored")
    other.CopyFrom(checkpoint)
    other.uri = checkpoint.uri.replace(memory.bucket, "elsewhere")
    with pytest.raises(CheckpointCorrupt, match="not in the bucket"):
        await fetch(memory, other, tmp_path / "restored")
    other.CopyFrom(checkpoint)
    other.manifest_digest = digest(b"{}")
    memory.contents[checkpoint.uri.removeprefix("s3://memory/")] = b"{}"
    with pytest.raises(CheckpointCorrupt, match="is no manifest"):
        await fetch(memory, other, tmp_path / "restored")


async def test_what_a_killed_fetch_left_is_replaced(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path
) -> None:
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    for left in ("restored", ".restored.fetching"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "junk").touch()
    await fetch(memory, checkpoint, tmp_path / "restored")
    assert files(tmp_path / "restored") == files(tmp_path / "slot")
    assert not (tmp_path / ".restored.fetching").exists()


async def test_an_outage_is_not_damage(
    memory: MemoryObjects, assignment: Assignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjourn.objects, "RETRIES", adjourn.objects.RETRIES.new(backoff_factor=0))
    checkpoint = await kept(memory, assignment, snapshot(tmp_path / "slot"))
    settings = S3Settings(endpoint="http://127.0.0.1:1", bucket=memory.bucket, access_key="a", secret_key="b")
    async with S3Objects(settings) as unreachable:
        with pytest.raises(ObjectStoreUnavailableError):
            await fetch(unreachable, checkpoint, tmp_path / "restored")
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


def test_parts_are_keyed_by_job_and_content() -> None:
    assert part_key("jobs/a", digest(b"")) == f"checkpoints/a/parts/{digest(b'')}"
    with pytest.raises(ValueError):
        part_key("a", "x")
