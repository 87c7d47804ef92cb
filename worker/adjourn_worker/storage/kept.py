"""Snapshots that stay here for the return of their jobs: a restore then reads what is here, and downloads nothing.

    {snapshots}/kept/{job_uid}-{manifest_digest}   was a slot of an attempt that has paused; its checkpoint is durable
    {snapshots}/restored/{attempt}                 the same, once the job's next attempt has claimed it

Directories are moved, not copied, and each move is whole: whatever dies in between, the next agent finds it in one
place or the other. The name says which checkpoint it is. Whether it is that is verified by whoever claims it, byte by
byte: training code of the same user may have written there.
"""

import os
import re
import time
from pathlib import Path

import structlog

from adjourn import failpoints, snapshots
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.kept_snapshots import KEPT, oldest_first
from adjourn.manifests import DIGEST, UID
from adjourn.v1.agent_service_pb2 import AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn_worker.paths import WorkerPaths, free_bytes, remove, used_bytes

log: structlog.stdlib.BoundLogger = structlog.get_logger()

SHARE = 4
"""Snapshots that are kept take at most this fraction of the room that there is without them."""


def keep(paths: WorkerPaths, held: HeldAssignment, limit: int) -> None:
    """Keeps the snapshot that an attempt has paused with, if it is durable, in place of older ones.

    `limit`: most bytes of what is kept. Raises OSError.
    """
    slot = last_slot(paths, held)
    if slot is None:
        return
    place = slot.parent.parent / KEPT
    size, others = used_bytes(slot), used_bytes(place)
    limit = min(limit, (free_bytes(slot) + used_bytes(slot.parent) + others) // SHARE)
    if size > limit:
        return
    for path in oldest_first(place):
        if used_bytes(place) + size <= limit:
            break
        remove(path)
    place.mkdir(mode=0o700, exist_ok=True)
    (slot / snapshots.IN_USE).unlink(missing_ok=True)
    now = time.time_ns()
    os.utime(slot, ns=(now, now))  # the kernel's own clock for files gives several the same time
    name = kept_name(held.persisted)
    remove(place / name)
    slot.rename(place / name)
    failpoints.hit("worker.snapshot-kept")
    log.info("snapshot_kept", checkpoint=held.persisted.name, bytes=size)


def last_slot(paths: WorkerPaths, held: HeldAssignment) -> Path | None:
    """Returns the slot with the snapshot that a paused attempt's newest checkpoint was made of."""
    token, attempt = held.assignment.token, Path(held.directory)
    if held.status.phase != AssignmentStatus.PAUSED or not kept_name(held.persisted):
        return None
    for snapshot in held.dropped:
        slot = Path(snapshot.directory)
        own = slot.parent in (paths.snapshot_directory(attempt), paths.disk_snapshot_directory(attempt))
        made = f"{held.assignment.job}/checkpoints/{token.attempt}-{token.nonce[:8]}-{snapshot.sequence}"
        if own and made == held.persisted.name and slot.is_dir() and not slot.is_symlink():
            return slot
    return None


def kept_name(checkpoint: Checkpoint) -> str:
    """Returns the name of a checkpoint's snapshot; empty for one that no agent has made."""
    known = re.fullmatch(UID, checkpoint.job_uid) and re.fullmatch(DIGEST, checkpoint.manifest_digest)
    return f"{checkpoint.job_uid}-{checkpoint.manifest_digest}" if known else ""


def kept_uid(name: str) -> str:
    """Returns the uid of the job that a directory was kept of; empty if its name is no such."""
    found = re.fullmatch(f"({UID})-{DIGEST}", name)
    return found[1] if found else ""


def claim(paths: WorkerPaths, checkpoint: Checkpoint, attempt: Path) -> Path | None:
    """Returns the directory with the snapshot that is to be restored, as it was kept; None if it was not.

    It is the attempt's from now on. What else is kept of the job is of other checkpoints, and is removed. Raises
    OSError.
    """
    name = kept_name(checkpoint)
    for place in paths.snapshot_places:
        ours, found = paths.restored(place, attempt), place / KEPT / name
        if name and found.is_dir() and not found.is_symlink():
            ours.parent.mkdir(mode=0o700, exist_ok=True)
            remove(ours)
            found.rename(ours)
            failpoints.hit("worker.snapshot-claimed")
        for other in oldest_first(place / KEPT):
            if other.name.startswith(f"{checkpoint.job_uid}-"):
                remove(other)
    return next((ours for place in paths.snapshot_places if (ours := paths.restored(place, attempt)).is_dir()), None)
