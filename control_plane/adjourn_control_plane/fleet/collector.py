"""Removes what nobody needs any more: the objects of deleted jobs, old bundles, and workers that were lost long ago."""

from typing import Final

import structlog

from adjourn.errors import ObjectStoreRefusedError
from adjourn.objects import ObjectStore
from adjourn_control_plane.fleet import bundle_collector, rounds
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobStore, Tombstone

log = structlog.get_logger()

INTERVAL_SECONDS: Final = 5.0
WORKERS_AT_ONCE: Final = 100
"""Workers forgotten by one call to the store: a script holds up everybody else."""


class Collector:
    """Collects garbage."""

    def __init__(self, store: JobStore, objects: ObjectStore, settings: Settings) -> None:
        self.store = store
        self.objects = objects
        self.worker_retention = settings.worker_retention
        self.bundles = bundle_collector.BundleCollector(store, objects, settings)

    async def run(self) -> None:
        """Collects until cancelled."""
        await rounds.together(
            rounds.every(INTERVAL_SECONDS, "collector.objects", self.purge),
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
        await self.store.remove_tombstone(tombstone)
        if removed or not tombstone.looks:
            log.info("job_purged", uid=tombstone.uid, objects=removed, looks=tombstone.looks)

    async def forget_workers(self) -> None:
        """Forgets workers that have been lost for long and hold no job: pods of random names would pile up."""
        while forgotten := await self.store.forget_lost(self.worker_retention, size=WORKERS_AT_ONCE):
            log.info("workers_forgotten", workers=forgotten)
