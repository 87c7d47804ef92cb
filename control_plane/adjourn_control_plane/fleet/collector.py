"""Removes what nobody can reach any more: the objects of deleted jobs."""

from typing import Final

import structlog

from adjourn.objects import ObjectStore
from adjourn_control_plane.fleet import rounds
from adjourn_control_plane.store.interface import JobStore

log = structlog.get_logger()

INTERVAL_SECONDS: Final = 5.0


class Collector:
    """Collects garbage."""

    def __init__(self, store: JobStore, objects: ObjectStore) -> None:
        self.store = store
        self.objects = objects

    async def run(self) -> None:
        """Collects every INTERVAL_SECONDS until cancelled."""
        await rounds.every(INTERVAL_SECONDS, "collector", self.purge)

    async def purge(self) -> None:
        """Removes the objects of deleted jobs.

        No uid is used twice, so any number of replicas may do it, again and however late.
        """
        for uid in await self.store.tombstones():
            removed = await self.objects.delete_prefix(f"checkpoints/{uid}/")
            await self.store.remove_tombstone(uid)
            log.info("job_purged", uid=uid, objects=removed)
