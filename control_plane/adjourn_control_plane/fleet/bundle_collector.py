"""Removes bundles that no job names and that nobody has uploaded for long.

A key is the digest of the content, so a bundle may be wanted again at any moment: by an upload, or by a new job. What
must never be: a job in the store whose bundle was removed. Object storage deletes without conditions, so the store
decides:

1. A bundle that is old, and that no job names by a look at all jobs, is doomed: marked, with a stamp.
2. It is claimed after GRACE, if it has the same stamp still, and a look at all jobs that began when it had that stamp
   has found none either. A claim gives it a new stamp. It is being removed then, and nobody can use it.
3. Its object is deleted. Once storage has answered, it may be uploaded again.

CreateJob wants the bundle, which takes it off the doomed, then looks for it in storage, then commits the job. Dooming
and claiming are steps, which are counted. The commit is refused if the count is not the one from when the bundle was
wanted, and CreateJob begins anew. Why that is enough, whoever is slow or dies whenever:

- A job that was committed before the second look began is found by it. One that was committed later, but before the
  claim, had taken the bundle off the doomed, and nobody had doomed it again until the commit, or it had not been
  committed. So its stamp is gone. A slow replica may doom it after that, by a look of long ago: under a new stamp, for
  which another look has to be made.
- A claim after CreateJob wanted the bundle changes the count, so that the job is not committed. From the claim on,
  CreateJob is told that the bundle is not there, until it was uploaded again.
- An upload waits while the bundle is being removed. One that had begun before may lose what it has stored. CreateJob
  then does not find it, and says so; who has the code uploads it again.
- Of two replicas with one stamp one gets the claim.
- Who has the claim may die, be stopped, or not hear storage. Then the bundle goes on being removed: nobody can use it.
  Another claims it anew after HOLD, counted on its own clock from when it saw the claim. No deletion of the first can
  come after that: it was prepared before the claim, storage refuses it when it is DELETION_SECONDS old, and refuses
  whoever's clock is off by more than 15 minutes. What the first says of the removal has an old stamp by then.
- Storage may refuse to delete. Then nothing was deleted, and the bundle may be used again.

No other clock matters but for convenience: how old a bundle is goes by the clocks of storage and of this process.
"""

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Final

import structlog

from adjourn import bundles
from adjourn.errors import ObjectStoreRefusedError
from adjourn.objects import ObjectStore
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobStore

log = structlog.get_logger()

INTERVAL_SECONDS: Final = 1800.0
GRACE_SECONDS: Final = 3600.0
"""From when this process saw that a bundle is doomed to its claim."""
HOLD_SECONDS: Final = 1800.0
"""From when this process saw a claim to when it may make another. More than a deletion can be late: 16 minutes."""
PAGE: Final = 200
"""Jobs read at a time."""


class BundleCollector:
    """Removes bundles. A process that starts counts anew."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        settings: Settings,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.objects = objects
        self.retention = settings.bundle_retention
        self.monotonic = monotonic
        self.seen: dict[tuple[str, int], float] = {}
        """When this process first saw each mark."""

    async def collect(self) -> None:
        """Looks at all bundles and all jobs once."""
        marks = await self.store.bundle_marks()
        now = self.monotonic()
        known = self.seen
        seen = {mark: known.get(mark, now) for mark in (*marks.doomed.items(), *marks.removing.items())}
        self.seen = seen
        for bundle, stamp in marks.removing.items():
            if now - seen[bundle, stamp] >= HOLD_SECONDS:
                await self.remove(bundle, stamp)
        old, young = await self.stored()
        if not old and not marks.doomed:
            return
        kept = young | await self.named()
        for bundle, stamp in marks.doomed.items():
            if bundle not in kept and now - seen[bundle, stamp] >= GRACE_SECONDS:
                await self.remove(bundle, stamp)
        if fresh := old - kept - marks.doomed.keys() - marks.removing.keys():
            await self.store.doom_bundles(sorted(fresh))

    async def stored(self) -> tuple[AbstractSet[str], AbstractSet[str]]:
        """Returns the bundles that were uploaded long ago, and the others."""
        before = datetime.now(UTC) - self.retention
        written = await self.objects.written(bundles.PREFIX)
        found = {bundle: time for key, time in written.items() if (bundle := bundles.of_key(key))}
        old = {bundle for bundle, time in found.items() if time < before}
        return old, found.keys() - old

    async def named(self) -> AbstractSet[str]:
        """Returns the bundles that jobs name: of every job that is there from before this look to its end."""
        found: set[str] = set()
        before: int | None = None
        while True:
            page, before = await self.store.page(states=(), labels={}, size=PAGE, before=before)
            found.update(stored.record.job.spec.bundle for stored in page)
            if before is None:
                return found

    async def remove(self, bundle: str, stamp: int) -> None:
        """Removes a bundle that has this stamp still. It stays claimed if storage does not answer."""
        delete = self.objects.deletion(bundles.object_key(bundle))  # before the claim: it is not valid for long
        claim = await self.store.claim_bundle(bundle, stamp)
        if claim is None:
            return
        try:
            await delete()
            log.info("bundle_removed", bundle=bundle)
        except ObjectStoreRefusedError as error:
            log.warning("bundle_not_removed", bundle=bundle, error=error.message)
        await self.store.bundle_removed(bundle, claim)
