"""Makes sure that a checkpoint still has its parts once its manifest is there.

The control plane removes parts of retired checkpoints that no manifest needs (`fleet/collector.py` there). A part that
is stored, or found stored, before the manifest exists may be among them. A collection that begins once the manifest is
there keeps its parts; one that began before is noted in object storage, and waited for.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from adjourn import manifests
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.storage.parts import PartStore

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LOOK_SECONDS: Final = 0.2
LEFT_SECONDS: Final = 150.0
"""After so long a note counts as left by a replica that is gone: a collection begins to remove nothing after 30 s, and
a request ends within two minutes."""


async def gone(
    store: PartStore, manifest: Manifest, *, look: float = LOOK_SECONDS, clock: Callable[[], float] | None = None
) -> set[str]:
    """Returns the parts of a stored manifest that are not there, once no collection can remove any more of them.

    A note that stays is waited for once in an agent's life, not by each checkpoint. Raises ObjectStoreUnavailableError,
    ObjectStoreRefusedError.
    """
    now = clock or asyncio.get_running_loop().time
    prefix = manifests.collecting_prefix(manifest.job_uid)
    began = now()
    waited_for = await store.objects.list(prefix)
    seen = store.collections
    for key in [key for key in seen if key.startswith(prefix) and key not in waited_for]:
        del seen[key]
    notes = set(waited_for)
    while notes and now() - max(seen.setdefault(note, began) for note in notes) < LEFT_SECONDS:
        await asyncio.sleep(look)
        notes &= set(await store.objects.list(prefix))  # those that begin now see the manifest
    if waited_for:
        log.info("collection_waited_for", job=manifest.job, seconds=round(now() - began, 1), left=len(notes))
    there = await store.objects.list(manifests.part_key(manifest.job_uid, ""))
    parts = manifests.distinct_parts(manifest)
    return {part for part in parts if manifests.part_key(manifest.job_uid, part) not in there}
