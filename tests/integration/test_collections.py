"""Objects of retired checkpoints are removed, and no part that another checkpoint needs, whenever it came about."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adjourn import errors, manifests, snapshots
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.objects import Deletion
from adjourn.training.snapshot.writer import Slot, dumped
from adjourn.training.state.codec import Encoder
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_control_plane.fleet import collector
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.job import retention
from adjourn_control_plane.job.transition import Decision
from adjourn_control_plane.job.updater import JobUpdater, now
from adjourn_control_plane.store.interface import Change, Conflict, JobName
from adjourn_worker.storage import collected
from adjourn_worker.storage.fetch import fetch, read_manifest
from adjourn_worker.storage.parts import PartStore
from adjourn_worker.storage.persist import persist
from tests.harness.checkpoint_objects import damage
from tests.harness.controllers import SETTINGS
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import created, there

JOB = JobName("jobs/j")


@dataclass
class Training:
    """One attempt of a job that makes checkpoints; its content is what a test says, so it may come again."""

    store: MemoryStore
    objects: MemoryObjects
    directory: Path
    assignment: Assignment
    sequence: int = 0
    base: Checkpoint | None = None
    parts: PartStore = field(init=False)

    def __post_init__(self) -> None:
        self.parts = PartStore(self.objects)

    @classmethod
    async def begin(
        cls, store: MemoryStore, objects: MemoryObjects, directory: Path, *, keep_last: int = 1
    ) -> "Training":
        stored = await created(store, JOB)
        stored.record.job.spec.retention.keep_last = keep_last
        await store.commit(Change(job=JOB, expected=stored.version, record=stored.record))
        token = FencingToken(attempt=1, nonce=secrets.token_hex(16), job_uid=stored.record.job.uid)
        return cls(store, objects, directory, Assignment(job=JOB, token=token, spec=JobSpec(entry_point="a:b")))

    async def saved(self, content: str, *, loss: float = 0.0) -> Checkpoint:
        """Makes a checkpoint durable, as an agent does: again, until storage lets it."""
        self.sequence += 1
        place = self.directory / str(self.sequence)
        encoder = Encoder()
        trees = {"model": encoder.encode({"content": content}, ("model",))}
        document = {"format": snapshots.FORMAT, "components": trees, "environment": {}, "progress": {}}
        Slot(place).write(dumped(document).encode(), encoder.blobs)
        progress = Progress(epoch=self.sequence, step=self.sequence)
        taken = Snapshot(directory=str(place), sequence=self.sequence, progress=progress, metrics={"loss": loss})
        base = await read_manifest(self.parts, self.base) if self.base else None
        sent: dict[str, int] = {}
        while True:
            try:
                return await persist(self.parts, self.assignment, taken, base, sent, lambda _: None)
            except ObjectStoreUnavailableError:
                continue

    async def registers(self, checkpoint: Checkpoint) -> None:
        while True:
            stored = await there(self.store, JOB)
            stored.record.checkpoint.CopyFrom(checkpoint)
            stored.record.job.latest_checkpoint = checkpoint.name
            change = Change(job=JOB, expected=stored.version, record=stored.record, checkpoints=[checkpoint])
            if await committed(self.store, change):
                self.base = checkpoint
                return

    async def makes(self, content: str, *, loss: float = 0.0) -> Checkpoint:
        checkpoint = await self.saved(content, loss=loss)
        await self.registers(checkpoint)
        return checkpoint


async def committed(store: MemoryStore, change: Change) -> bool:
    try:
        await store.commit(change)
    except Conflict:
        return False
    return True


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
async def training(memory_store: MemoryStore, objects: MemoryObjects, tmp_path: Path) -> Training:
    return await Training.begin(memory_store, objects, tmp_path)


async def read(objects: MemoryObjects, key: str) -> bytes:
    return await objects.get(key, limit=1 << 30)


async def kept(store: MemoryStore, objects: MemoryObjects) -> list[int]:
    """Returns the epochs of the job's checkpoints, each of which is whole."""
    found = [each for _, each in await store.checkpoints(JOB, size=99)]
    for each in found:
        assert await damage(each, lambda key: read(objects, key)) == ""
    return [each.epoch for each in found][::-1]


def keys(objects: MemoryObjects) -> set[str]:
    return {key.partition("/")[2].partition("/")[2] for key in objects.contents}


async def test_what_is_retired_leaves_nothing_and_what_is_shared_stays(
    memory_store: MemoryStore, objects: MemoryObjects, training: Training
) -> None:
    made = [
        await training.makes("a", loss=0.5),
        await training.makes("b", loss=0.1),
        await training.makes("a", loss=0.7),
    ]
    made.append(await training.makes("d", loss=0.6))
    await Collector(memory_store, objects, SETTINGS).retire()
    assert await kept(memory_store, objects) == [2, 4], "the best and the newest"
    wanted = [await read_manifest(PartStore(objects), made[index]) for index in (1, 3)]
    assert keys(objects) == {
        *(f"manifests/{made[index].name.rpartition('/')[2]}.json" for index in (1, 3)),
        *(f"parts/{part}" for manifest in wanted for part in manifests.distinct_parts(manifest)),
    }
    assert await memory_store.retired(JOB) == []
    assert await memory_store.to_review(size=9) in ([], [(JOB, (await there(memory_store, JOB)).version)])
    await Collector(memory_store, objects, SETTINGS).retire()
    assert await memory_store.to_review(size=9) == []


async def test_a_pinned_checkpoint_outlives_all_and_goes_once_it_is_unpinned(
    memory_store: MemoryStore, objects: MemoryObjects, training: Training
) -> None:
    pinned = await training.makes("a", loss=9)
    updater, collecting = JobUpdater(memory_store), Collector(memory_store, objects, SETTINGS)
    await updater.change_checkpoint(
        JOB, pinned.name, lambda record, each: retention.pinned(record, each.name, actor="ann", reason="", now=now())
    )
    for content in "bcd":
        await training.makes(content, loss=1)
        await collecting.retire()
    assert await kept(memory_store, objects) == [1, 4]
    await updater.change_checkpoint(
        JOB, pinned.name, lambda record, each: retention.unpinned(record, each.name, actor="ann", now=now())
    )
    await collecting.retire()
    assert await kept(memory_store, objects) == [4]
    with pytest.raises(errors.NotFoundError):
        await updater.change_checkpoint(JOB, pinned.name, lambda *_: None)


async def test_a_checkpoint_that_is_not_registered_yet_keeps_its_parts(
    memory_store: MemoryStore, objects: MemoryObjects, training: Training
) -> None:
    await training.makes("a", loss=9)
    await training.makes("b")
    late = await training.saved("a")  # the bytes of the first, which goes
    await Collector(memory_store, objects, SETTINGS).retire()
    assert await kept(memory_store, objects) == [2]
    await training.registers(late)
    assert await kept(memory_store, objects) == [2, 3]


async def test_a_manifest_that_cannot_be_read_keeps_all_parts(
    memory_store: MemoryStore, objects: MemoryObjects, training: Training
) -> None:
    made = [await training.makes(content, loss=9 - number) for number, content in enumerate("ab")]
    key = manifests.key_of(made[1], objects.bucket)
    sound = objects.contents[key]
    objects.contents[key] = sound[:-1]
    before = set(objects.contents)
    collecting = Collector(memory_store, objects, SETTINGS)
    await collecting.retire()
    assert set(objects.contents) == before
    objects.contents[key] = sound
    await collecting.retire()
    assert await kept(memory_store, objects) == [2]
    assert set(objects.contents) < before


async def test_what_a_replica_began_and_could_not_end_another_ends(
    memory_store: MemoryStore, objects: MemoryObjects, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collected, "LEFT_SECONDS", 0.3)
    for number, content in enumerate("abc"):
        await training.makes(content, loss=9 - number)

    class Failing(MemoryObjects):
        def deletion(self, key: str) -> Deletion:
            async def delete() -> None:
                raise ObjectStoreUnavailableError("away")

            return delete

    failing = Failing()
    failing.contents = objects.contents
    time = 0.0
    with pytest.raises(ObjectStoreUnavailableError):
        await Collector(memory_store, failing, SETTINGS).retire()
    (note,) = [key for key in objects.contents if "/collecting/" in key]
    other = Collector(memory_store, objects, SETTINGS, clock=lambda: time)
    await other.retire()
    assert await kept(memory_store, objects) == [3]
    assert note in objects.contents, "a request of the first may be under way still"
    time += collector.NOTE_SECONDS
    await training.makes("d", loss=-1)
    await other.retire()
    assert note not in objects.contents
    assert not [key for key in objects.contents if "/collecting/" in key]


async def test_a_collection_that_takes_too_long_goes_on_in_the_next_round(
    memory_store: MemoryStore, objects: MemoryObjects, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "PARTS_AT_ONCE", 1)
    for number, content in enumerate("abcd"):
        await training.makes(content, loss=9 - number)
    time = 0.0

    def clock() -> float:
        nonlocal time
        time += 12
        return time

    collecting = Collector(memory_store, objects, SETTINGS, clock=clock)
    rounds = 0
    while await memory_store.retired(JOB) or not rounds:
        await collecting.retire()
        rounds += 1
        assert await kept(memory_store, objects) == [4]
    assert rounds > 1
    assert len([key for key in objects.contents if "/manifests/" in key]) == 1


async def test_a_request_of_a_replica_that_stood_still_removes_nothing(
    memory_store: MemoryStore, training: Training
) -> None:
    """It stood still after its last look at the clock, for longer than its note is waited for."""
    standing = MemoryObjects()
    standing.contents = training.objects.contents
    time = datetime.now(UTC)
    standing.now = lambda: time

    for number, content in enumerate("abcd"):
        await training.makes(content, loss=9 - number)
    before = {key for key in standing.contents if "/parts/" in key}
    prepare = standing.deletion

    def deletion(key: str) -> Deletion:
        prepared = prepare(key)

        async def delete() -> None:
            nonlocal time
            time += timedelta(seconds=collector.NOTE_SECONDS)
            await prepared()

        return delete

    standing.deletion = deletion  # type: ignore[method-assign]
    await Collector(memory_store, standing, SETTINGS).retire()
    assert {key for key in standing.contents if "/parts/" in key} == before
    assert await memory_store.retired(JOB), "the next round removes them"


async def test_a_worker_waits_for_a_collection_that_began_before_its_manifest_and_looks_for_its_parts(
    objects: MemoryObjects, training: Training
) -> None:
    checkpoint = await training.makes("a")
    manifest: Manifest = await read_manifest(training.parts, checkpoint)
    note = f"{manifests.collecting_prefix(manifest.job_uid)}1"
    await objects.put(note, b"")
    waiting = asyncio.create_task(collected.gone(training.parts, manifest, look=0.01))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    (part, *_) = manifests.distinct_parts(manifest)
    await objects.delete([manifests.part_key(manifest.job_uid, part)])
    await objects.put(f"{note}2", b"")  # this one has seen the manifest
    await objects.delete([note])
    assert await asyncio.wait_for(waiting, 60) == {part}


async def test_a_note_that_nobody_removes_is_not_waited_for_for_ever(
    objects: MemoryObjects, training: Training
) -> None:
    manifest = await read_manifest(training.parts, await training.makes("a"))
    await objects.put(f"{manifests.collecting_prefix(manifest.job_uid)}1", b"")
    times = iter([0.0, 1.0, 2.0, collected.LEFT_SECONDS, collected.LEFT_SECONDS])
    assert await collected.gone(training.parts, manifest, look=0.001, clock=lambda: next(times)) == set()


async def test_a_note_that_stays_is_waited_for_once(objects: MemoryObjects, training: Training) -> None:
    manifest = await read_manifest(training.parts, await training.makes("a"))
    prefix = manifests.collecting_prefix(manifest.job_uid)
    await objects.put(f"{prefix}1", b"")
    left = collected.LEFT_SECONDS

    async def waits(*times: float) -> None:
        clock = iter(times)
        assert await collected.gone(training.parts, manifest, look=0.001, clock=lambda: next(clock)) == set()
        assert next(clock, None) is None, "so often it looked"

    await waits(0.0, 1.0, left, left)
    await waits(left + 1, left + 1, left + 1)
    await objects.put(f"{prefix}2", b"")
    await waits(left + 2, left + 2, 2 * left + 1, 2 * left + 2, 2 * left + 2)
    await objects.delete([f"{prefix}1", f"{prefix}2"])
    await waits(3 * left)
    assert training.parts.collections == {}


async def test_parts_that_were_removed_before_the_manifest_was_there_are_sent_again(
    memory_store: MemoryStore, tmp_path: Path
) -> None:
    class Removing(MemoryObjects):
        doomed = ""
        removed = 0

        async def create(self, key: str, data: bytes) -> bool:
            if self.doomed and self.contents.pop(self.doomed, None) is not None:
                self.removed += 1
                self.doomed = ""
            return await super().create(key, data)

    objects = Removing()
    training = await Training.begin(memory_store, objects, tmp_path)
    manifest = await read_manifest(training.parts, await training.makes("a"))
    (part, *_) = manifests.distinct_parts(manifest)
    objects.doomed = manifests.part_key(manifest.job_uid, part)
    await training.makes("a")
    assert objects.removed == 1
    assert await kept(memory_store, objects) == [1, 2]


# Any order


class Turns:
    """Lets one of those who wait go on at a time, as the test draws; all wait before each call to store and objects."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []
        self.open = False
        """Nobody is held up any more."""

    async def turn(self) -> None:
        if self.open:
            return
        mine = asyncio.get_running_loop().create_future()
        self.waiting.append(mine)
        await mine

    async def drive(self, tasks: Sequence["asyncio.Task[Any]"], draw: Callable[[int], int]) -> None:
        while live := [task for task in tasks if not task.done()]:
            for _ in range(2000):  # those that compute, some of it in threads, come to a gate or to their end
                live = [task for task in live if not task.done()]
                if len(self.waiting) >= len(live):
                    break
                await asyncio.sleep(0.0005)
            if self.waiting:
                self.waiting.pop(draw(len(self.waiting))).set_result(None)
                await asyncio.sleep(0)


class GatedObjects(MemoryObjects):
    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    async def put(self, key: str, data: bytes) -> bool:
        await self._turns.turn()
        return await super().put(key, data)

    async def get(self, key: str, *, limit: int) -> bytes:
        await self._turns.turn()
        return await super().get(key, limit=limit)

    async def stat(self, key: str) -> Any:
        await self._turns.turn()
        return await super().stat(key)

    async def list(self, prefix: str) -> Any:
        await self._turns.turn()
        return await super().list(prefix)

    async def delete(self, keys: Collection[str]) -> None:
        for key in keys:  # a server removes them one by one
            await self._turns.turn()
            await super().delete([key])

    def deletion(self, key: str) -> Deletion:
        prepared = super().deletion(key)

        async def delete() -> None:
            await self._turns.turn()
            await prepared()

        return delete


class GatedStore(MemoryStore):
    turns: Turns

    async def _reach(self) -> None:
        await self.turns.turn()
        await super()._reach()


class AnyOrder:
    """A training that makes checkpoints, two replicas that collect, somebody who resumes and somebody who pins."""

    def __init__(self, contents: str, pins: int, directory: Path) -> None:
        self.contents, self.pins, self.directory = contents, pins, directory
        self.turns = Turns()
        self.store, self.objects = GatedStore(), GatedObjects(self.turns)
        self.store.turns = self.turns
        self.trained = False
        self.pinned: list[str] = []

    async def run(self, draw: Callable[[int], int]) -> None:
        self.turns.open = True
        training = await Training.begin(self.store, self.objects, self.directory)
        await training.makes(self.contents[0], loss=9)
        self.turns.open = False
        works = (self.trains(training), self.collects(), self.collects(), self.resumes(), self.pins_some())
        tasks = [asyncio.create_task(work) for work in works]
        await self.turns.drive(tasks, draw)
        for task in tasks:
            task.result()
        self.turns.open = True
        for _ in range(2):
            await self.collector().retire()
        assert len(self.contents) in await kept(self.store, self.objects), "the newest"
        for name in self.pinned:
            assert await self.store.checkpoint(JOB, name) is not None
        assert await self.store.retired(JOB) == []
        assert not [key for key in self.objects.contents if "/collecting/" in key]

    def collector(self) -> Collector:
        return Collector(self.store, self.objects, SETTINGS, clock=lambda: 0.0)

    async def trains(self, training: Training) -> None:
        for number, content in enumerate(self.contents[1:]):
            await training.makes(content, loss=8 - number)
        self.trained = True

    async def collects(self) -> None:
        mine = self.collector()
        while not self.trained:
            await mine.retire()
            await self.turns.turn()

    async def resumes(self) -> None:
        """An attempt is given what the job goes on from, and reads it: all of it has to be there meanwhile."""
        for number in range(3):
            while True:
                stored = await there(self.store, JOB)
                stored.record.job.worker = "workers/b"
                stored.record.restored_checkpoint = stored.record.checkpoint.name
                if await committed(self.store, Change(job=JOB, expected=stored.version, record=stored.record)):
                    break
            await fetch(PartStore(self.objects), stored.record.checkpoint, self.directory / f"restored-{number}")

    async def pins_some(self) -> None:
        def decide(record: JobRecord, each: Checkpoint) -> Decision | None:
            return retention.pinned(record, each.name, actor="ann", reason="", now=now())

        for _ in range(self.pins):
            newest = (await self.store.checkpoints(JOB, size=1))[0][1]
            with contextlib.suppress(errors.NotFoundError):
                await JobUpdater(self.store).change_checkpoint(JOB, newest.name, decide)
                self.pinned.append(newest.name)


@settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],  # a run takes a second: what fails is told as it is
)
@given(contents=st.text(alphabet="ab", min_size=3, max_size=6), pinned=st.integers(0, 2), data=st.data())
def test_in_any_order_what_is_registered_is_whole_and_a_resume_reads_all_of_it(
    contents: str, pinned: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seed = data.draw(st.randoms(use_true_random=False))
    directory = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collected, "gone", partial(collected.gone, look=0.001))  # all wait for who is not at a gate
        asyncio.run(AnyOrder(contents, pinned, directory).run(seed.randrange))
