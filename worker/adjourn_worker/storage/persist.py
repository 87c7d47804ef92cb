"""Makes a snapshot durable: every part first, each checked to be there, the manifest last.

Until the manifest exists there is no checkpoint, so dying at any moment leaves nothing wrong, and doing it again gives
the same manifest.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adjourn import snapshots
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.objects import ObjectStore
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn_worker.storage.manifest import File, Manifest, Part
from adjourn_worker.storage.parts import PART_BYTES, digest, each, manifest_key, part_key

FILES: Final = (snapshots.TENSORS, snapshots.STATE)


class SnapshotLost(Exception):
    """A snapshot is not, or no longer, whole on this machine (a reboot empties shared memory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Where a part is in the snapshot."""

    path: Path
    offset: int
    size: int


async def persist(
    objects: ObjectStore,
    assignment: Assignment,
    snapshot: Snapshot,
    base: Manifest | None,
    on_fraction: Callable[[float], None],
) -> Checkpoint:
    """Returns the checkpoint that the snapshot has become, to be registered.

    Parts that `base` has, and that are really there, are not uploaded again. `on_fraction` hears how much is durable,
    0 to 1. Raises SnapshotLost, adjourn.snapshots.SnapshotInvalid, ObjectStoreUnavailableError.
    """
    directory = Path(snapshot.directory)
    components = await asyncio.to_thread(component_digests, directory)
    pieces = [piece for name in FILES for piece in split(directory / name)]
    uploads = Uploads(objects, assignment.job, base)
    parts: dict[Piece, Part] = {}
    total = sum(piece.size for piece in pieces) or 1

    async def store(piece: Piece) -> None:
        parts[piece] = await uploads.store(piece)
        on_fraction(sum(part.size for part in parts.values()) / total)

    await each(pieces, store)
    manifest = Manifest(
        job=assignment.job,
        attempt=assignment.token.attempt,
        nonce=assignment.token.nonce,
        sequence=snapshot.sequence,
        spec=assignment.spec,
        progress=snapshot.progress,
        metrics=dict(snapshot.metrics),
        files=tuple(
            File(name=name, parts=tuple(parts[piece] for piece in pieces if piece.path.name == name)) for name in FILES
        ),
        component_digests=components,
        state_digest=snapshots.state_digest(components),
    )
    return await conclude(objects, manifest, uploads.uploaded)


async def conclude(objects: ObjectStore, manifest: Manifest, uploaded: int) -> Checkpoint:
    """Writes the manifest, which makes the checkpoint exist."""
    name = f"{manifest.attempt}-{manifest.nonce[:8]}-{manifest.sequence}"
    key = manifest_key(manifest.job, name)
    data = manifest.to_json()
    await objects.put(key, data)
    await check(objects, key, len(data))
    progress = manifest.progress
    checkpoint = Checkpoint(
        name=f"{manifest.job}/checkpoints/{name}",
        attempt=manifest.attempt,
        epoch=progress.epoch,
        step=progress.step,
        uri=f"s3://{objects.bucket}/{key}",
        manifest_digest=digest(data),
        state_digest=manifest.state_digest,
        size_bytes=manifest.size,
        uploaded_bytes=uploaded + len(data),
        metrics=manifest.metrics,
        component_digests=manifest.component_digests,
    )
    if progress.HasField("active_duration"):
        checkpoint.active_duration.CopyFrom(progress.active_duration)
    return checkpoint


class Uploads:
    """The parts of one checkpoint on their way; each distinct one is sent once."""

    def __init__(self, objects: ObjectStore, job: str, base: Manifest | None) -> None:
        self._objects = objects
        self._job = job
        self._base = base.parts if base else {}
        self._seen: set[str] = set()
        self.uploaded = 0
        """Bytes sent."""

    async def store(self, piece: Piece) -> Part:
        """Returns the part once it is in the store, or once another task has taken it upon itself."""
        data = await asyncio.to_thread(read, piece)
        part = Part(digest=await asyncio.to_thread(digest, data), size=len(data))
        if part.digest not in self._seen:
            self._seen.add(part.digest)
            key = part_key(self._job, part.digest)
            # Having it in the base is not enough: it is this checkpoint that has to be whole.
            if part.digest not in self._base or await self._objects.size(key) != part.size:
                await self._objects.put(key, data)
                await check(self._objects, key, part.size)
                self.uploaded += part.size
        return part


async def check(objects: ObjectStore, key: str, size: int) -> None:
    """Raises ObjectStoreUnavailableError if what was just written is not there."""
    found = await objects.size(key)
    if found != size:
        raise ObjectStoreUnavailableError(
            f"object {key} was written with {size} bytes and has {found}", bucket=objects.bucket
        )


def component_digests(directory: Path) -> dict[str, str]:
    if not all((directory / name).is_file() for name in FILES):
        raise SnapshotLost(f"there is no snapshot in {directory}")
    return snapshots.component_digests(directory)


def split(path: Path) -> list[Piece]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SnapshotLost(f"{path}: {error.strerror}") from error
    return [
        Piece(path=path, offset=offset, size=min(PART_BYTES, size - offset)) for offset in range(0, size, PART_BYTES)
    ]


def read(piece: Piece) -> bytes:
    try:
        with piece.path.open("rb") as file:
            data = os.pread(file.fileno(), piece.size, piece.offset)
    except OSError as error:
        raise SnapshotLost(f"{piece.path}: {error.strerror}") from error
    if len(data) != piece.size:
        raise SnapshotLost(f"{piece.path} ends at byte {piece.offset + len(data)}")
    return data
