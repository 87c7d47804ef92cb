"""Removes what nobody needs any more: objects of deleted jobs and retired checkpoints, bundles, workers lost long ago.

Parts are shared, and a worker may rely on one that only retired checkpoints have, in a checkpoint that is not
registered yet: it has stored the same bytes again. So a collection is noted in object storage before it looks at the
manifests, until it is over, and keeps the parts of every manifest that is there and not retired, registered or not. A
worker that has written its manifest looks for such a note, waits for its end, and then looks for its parts
(`adjourn_worker/storage/collected.py`): either the collection has seen the manifest, or the worker sees the collection.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final
from uuid import uuid4

import structlog

from adjourn import errors, manifests
from adjourn.errors import ObjectStoreRefusedError
from adjourn.manifests import ManifestInvalid
from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong
from adjourn.stored_logs import job_prefix
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_control_plane.fleet import bundle_collector, rounds
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobName, JobStore, Tombstone

log = structlog.get_logger()

INTERVAL_SECONDS: Final = 5.0
WORKERS_AT_ONCE: Final = 100
"""Workers forgotten by one call to the store: a script holds up everybody else."""
JOBS_AT_ONCE: Final = 1000
"""Jobs whose checkpoints are looked at in a round."""
PARTS_AT_ONCE: Final = 16
"""Parts that are being removed at once."""
COLLECTION_SECONDS: Final = 30.0
"""Longest time from the look at the manifests to the last request that removes parts; the rest is the next round's."""
NOTE_SECONDS: Final = 150.0
"""After so long a note counts as left by a collection that failed. A part is removed by a request that the server
refuses DELETION_SECONDS later, so its last one has ended, also if its replica stood still before it was sent."""


def boottime() -> float:
    """Returns seconds that count while this process, or its machine, stands still."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Collector:
    """Collects garbage."""

    def __init__(
        self, store: JobStore, objects: ObjectStore, settings: Settings, *, clock: Callable[[], float] = boottime
    ) -> None:
        self._clock = clock
        self.store = store
        self.objects = objects
        self.updater = JobUpdater(store)
        self.worker_retention = settings.worker_retention
        self.bundles = bundle_collector.BundleCollector(store, objects, settings)
        self._notes: dict[str, float] = {}
        """When notes of other collections were seen first, by key, on our own clock."""

    async def run(self) -> None:
        """Collects until cancelled."""
        await rounds.together(
            rounds.every(INTERVAL_SECONDS, "collector.objects", self.purge),
            rounds.every(INTERVAL_SECONDS, "collector.checkpoints", self.retire),
            rounds.every(INTERVAL_SECONDS, "collector.workers", self.forget_workers),
            rounds.every(bundle_collector.INTERVAL_SECONDS, "collector.bundles", self.bundles.collect),
        )

    async def purge(self) -> None:
        """Removes the objects of deleted jobs."""
        for tombstone in await self.store.tombstones():
            try:
                await self.remove(tombstone)
            except ObjectStoreRefusedError as error:  # of this job's objects; those of others may go
                log.warning("purge_refused", uid=tombstone.uid, error=error.message)

    async def remove(self, tombstone: Tombstone) -> None:
        """Removes the objects of a deleted job.

        No uid is used twice, so any number of replicas may do it, again and however late. It is done again some time
        later, as PURGE_AGAIN says, and when an attempt of the job is heard of: a worker may upload all the while.
        """
        removed = await self.objects.delete_prefix(f"checkpoints/{tombstone.uid}/")
        removed += await self.objects.delete_prefix(job_prefix(tombstone.uid))
        await self.store.remove_tombstone(tombstone)
        if removed or not tombstone.looks:
            log.info("job_purged", uid=tombstone.uid, objects=removed, looks=tombstone.looks)

    async def retire(self) -> None:
        """Retires the checkpoints that nothing keeps any more, and removes their objects."""
        for job, version in await self.store.to_review(size=JOBS_AT_ONCE):
            try:
                await self.updater.review(job)
                retired = await self.store.retired(job)
                if not retired or await self.collect(job, retired):
                    await self.store.reviewed(job, version)
            except (ObjectStoreRefusedError, errors.ContentionError, TimeoutError) as error:  # other jobs' may go
                log.warning("retiring_failed", job=job, error=str(error))

    async def collect(self, job: JobName, retired: Sequence[Checkpoint]) -> bool:
        """Removes the objects of retired checkpoints that no other manifest needs; returns whether all are gone."""
        uid = retired[0].job_uid
        note = f"{manifests.collecting_prefix(uid)}{uuid4().hex}"
        await self.objects.put(note, job.encode())
        done = await self.collect_noted(job, uid, retired, note)
        await self.objects.delete(
            [note]
        )  # after a failure it stays: a request that was given up may still be under way
        return done

    async def collect_noted(self, job: JobName, uid: str, retired: Sequence[Checkpoint], note: str) -> bool:
        deadline = self._clock() + COLLECTION_SECONDS
        await self.remove_old_notes(uid, note)
        doomed = {manifests.key_of(each, self.objects.bucket): each for each in retired}
        there = await self.objects.list(manifests.manifest_prefix(uid))
        candidates: set[str] = set()
        for key in doomed.keys() & there.keys():
            manifest = await self.manifest(key)
            candidates |= set(manifests.distinct_parts(manifest)) if manifest else set()
        for key in there.keys() - doomed.keys():
            manifest = await self.manifest(key)
            if manifest is None:
                log.warning("parts_not_collected", job=job, key=key, why="a manifest that may need them cannot be read")
                return False
            candidates -= set(manifests.distinct_parts(manifest))
        wanted = {manifests.part_key(uid, part) for part in candidates}
        parts = sorted(wanted & (await self.objects.list(manifests.part_key(uid, ""))).keys())
        for begin in range(0, len(parts), PARTS_AT_ONCE):
            # Prepared before the look at the clock: this replica may be stopped between that and the requests.
            deletions = [self.objects.deletion(key) for key in parts[begin : begin + PARTS_AT_ONCE]]
            left = deadline - self._clock()
            if left <= 0:
                return False
            async with asyncio.timeout(left):
                await asyncio.gather(*(delete() for delete in deletions))
        await self.objects.delete(sorted(doomed))  # last: they tell which parts there are
        await self.store.forget_retired(job, [each.name for each in retired])
        log.info("checkpoints_retired", job=job, checkpoints=len(retired), parts=len(parts))
        return True

    async def manifest(self, key: str) -> Manifest | None:
        """Returns a manifest; None if it cannot be read."""
        try:
            data = await self.objects.get(key, limit=manifests.MANIFEST_LIMIT)
            return await asyncio.to_thread(manifests.decode, data)
        except (ObjectMissing, ObjectTooLong, ManifestInvalid):
            return None

    async def remove_old_notes(self, uid: str, own: str) -> None:
        """Removes notes that a replica which was killed has left: workers wait for them."""
        now = self._clock()
        found = set(await self.objects.list(manifests.collecting_prefix(uid))) - {own}
        seen = {key: since for key, since in self._notes.items() if now - since < 2 * NOTE_SECONDS}
        self._notes = {**dict.fromkeys(found, now), **seen}
        await self.objects.delete([key for key in sorted(found) if now - self._notes[key] >= NOTE_SECONDS])

    async def forget_workers(self) -> None:
        """Forgets workers that have been lost for long and hold no job: pods of random names would pile up."""
        while forgotten := await self.store.forget_lost(self.worker_retention, size=WORKERS_AT_ONCE):
            log.info("workers_forgotten", workers=forgotten)
