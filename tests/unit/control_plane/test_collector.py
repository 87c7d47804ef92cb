"""What is removed once nobody can reach it."""

from datetime import timedelta

import pytest

from adjourn import errors
from adjourn.stored_logs import Segment, attempt_prefix, job_prefix, segment_key
from adjourn_control_plane.store.interface import PURGE_AGAIN, JobUid, Tombstone, WorkerName
from tests.harness.controllers import SETTINGS, Controllers
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore


@pytest.fixture
def plane(memory_store: MemoryStore) -> Controllers:
    return Controllers(memory_store)


async def test_objects_of_deleted_jobs_are_removed_and_only_they(plane: Controllers) -> None:
    deleted, neighbour = await plane.create("j"), await plane.create("j2")
    await plane.saves(deleted)
    kept = [await plane.saves(neighbour)]
    for job in (deleted, neighbour):
        uid = (await plane.record(job)).job.uid
        await plane.objects.put(segment_key(f"{attempt_prefix(uid, 1)}01234567/", Segment(0, 1)), b"a")
        kept += [key for key in plane.objects.contents if job == neighbour and key.startswith(job_prefix(uid))]
    await plane.delete(deleted)
    await plane.collector.purge()
    assert list(plane.objects.contents) == kept
    assert await plane.store.tombstones() == []


async def test_a_replica_that_purges_late_leaves_the_next_job_of_the_name_alone(memory_store: MemoryStore) -> None:
    """Two replicas purge the same job; between the two its name is taken again, and the new job saves (C2)."""
    objects = MemoryObjects()
    first, second = Controllers(memory_store, objects), Controllers(memory_store, objects)
    job = await first.create("j")
    await first.saves(job)
    await first.delete(job)

    class Slow(MemoryStore):
        async def tombstones(self, *, size: int = 1000) -> list[Tombstone]:
            """Lists what is to be purged; everything else happens before it is purged."""
            seen = await memory_store.tombstones(size=size)
            await first.collector.purge()
            await first.saves(await first.create("j"))
            return seen

        async def remove_tombstone(self, tombstone: Tombstone) -> None:
            await memory_store.remove_tombstone(tombstone)

    second.collector.store = Slow()
    await second.collector.purge()
    assert list(objects.contents) == [await first.manifest(job)]
    assert await memory_store.tombstones() == []


async def test_what_a_worker_uploads_after_the_purge_is_removed_some_time_later() -> None:
    """It was out of reach as the job was deleted, and never comes back to be heard of."""
    now = 1_000_000_000_000_000_000
    store = MemoryStore(now_ns=lambda: now)
    objects = MemoryObjects()
    planes = [Controllers(store, objects), Controllers(store, objects)]
    job = await planes[0].create("j")
    key = await planes[0].saves(job)
    neighbour = await planes[0].saves(await planes[0].create("k"))
    await planes[0].delete(job)
    for delay in (timedelta(), *PURGE_AGAIN):
        now += int(delay.total_seconds() * 1e9) - 1
        await objects.put(key, b"saved late")
        if delay:
            await planes[0].collector.purge()
            assert set(objects.contents) == {key, neighbour}
        now += 1
        listed = await store.tombstones()
        for plane in planes:
            await plane.collector.purge()
        assert set(objects.contents) == {neighbour}
        for tombstone in listed:  # a slow replica comes to do it now
            await planes[1].collector.remove(tombstone)
    now += 10**18
    await objects.put(key, b"saved later still")
    await planes[0].collector.purge()
    assert set(objects.contents) == {key, neighbour}, "it is not looked for without end"
    await store.add_tombstone(JobUid(key.split("/")[1]))
    await planes[0].collector.purge()
    assert set(objects.contents) == {neighbour}


async def test_objects_that_may_not_be_removed_hold_up_nobody_elses(memory_store: MemoryStore) -> None:
    class Locked(MemoryObjects):
        kept = ""

        async def delete_prefix(self, prefix: str) -> int:
            if self.kept.startswith(prefix):
                raise errors.ObjectStoreRefusedError("it is under retention")
            return await super().delete_prefix(prefix)

    objects = Locked()
    plane = Controllers(memory_store, objects)
    saved = []
    for name in ("a", "b", "c"):
        job = await plane.create(name)
        saved.append((await plane.record(job)).job.uid)
        await plane.saves(job)
        await plane.delete(job)
    objects.kept = f"checkpoints/{min(saved)}/manifests/1"
    await plane.collector.purge()
    assert list(objects.contents) == [objects.kept]
    assert await plane.store.tombstones() == [Tombstone(JobUid(min(saved)))]


async def test_lost_workers_are_forgotten_after_a_while() -> None:
    """Pods of random names come and go; what is left of them does not pile up (C9)."""
    now = 1_000_000_000_000_000_000
    store = MemoryStore(now_ns=lambda: now)
    plane = Controllers(store)
    for number in range(250):
        name = WorkerName(f"workers/pod-{number}")
        await plane.worker(name)
        await plane.loses(name)
    await plane.worker("workers/live")
    await plane.collector.forget_workers()
    assert len(await store.sessions()) == 251
    now += int(SETTINGS.worker_retention.total_seconds() * 1e9)
    await plane.collector.forget_workers()
    assert [session.worker.name for session in await store.sessions()] == ["workers/live"]
