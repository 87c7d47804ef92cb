"""Makes a snapshot durable: every part first, each verified by content, the manifest last.

Until the manifest exists there is no checkpoint, so dying at any moment leaves nothing wrong. Doing it again gives the
same manifest.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adjourn import failpoints, snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.manifests import FORMAT, PART_BYTES, digest, distinct_parts, encode, manifest_key, part_key, total_size
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.storage.parts import PartStore, each

FILES: Final = (snapshots.TENSORS, snapshots.STATE)


class SnapshotLost(Exception):
    """A snapshot is not, or no longer, whole on this machine (a reboot empties shared memory)."""


GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.ESTALE})
"""Errors of reading that say that a snapshot is lost. Others may pass: too many open files, no memory."""


class SnapshotDiffers(Exception):
    """A snapshot is not the state that it was taken of."""

    def __init__(self, components: list[str]) -> None:
        super().__init__(f"the snapshot differs from the state it was taken of: {', '.join(components)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Where a part is in the snapshot."""

    path: Path
    offset: int
    size: int


async def persist(
    store: PartStore,
    assignment: Assignment,
    snapshot: Snapshot,
    base: Manifest | None,
    sent: dict[str, int],
    on_fraction: Callable[[float], None],
) -> Checkpoint:
    """Returns the checkpoint that the snapshot has become, to be registered.

    Parts of `base`, or known to `store`, whose content in storage is right are not uploaded again; for the last
    snapshot of an attempt each is read, since a pause rests on it. `sent`: sizes of the parts that earlier tries have
    stored, by digest, added to here; they are not sent again. `on_fraction` hears how much is durable, 0 to 1. Raises
    SnapshotLost, SnapshotDiffers, adjourn.snapshots.SnapshotInvalid, KeyTaken, ObjectStoreUnavailableError,
    ObjectStoreRefusedError; OSError if the snapshot cannot be read at present.
    """
    directory = Path(snapshot.directory)
    environment, components = await store.run(describe, directory)
    live = snapshot.live_digests
    if different := sorted(name for name in live if components.get(name) != live[name]):
        raise SnapshotDiffers(different)
    pieces = [piece for name in FILES for piece in split(directory / name)]
    uploads = Uploads(store, assignment.token.job_uid, base, sent, anew=snapshot.last)
    parts: dict[Piece, Manifest.Part] = {}
    total = sum(piece.size for piece in pieces) or 1
    done = 0

    async def upload(piece: Piece) -> None:
        nonlocal done
        parts[piece] = await uploads.store(piece)
        done += piece.size
        on_fraction(done / total)

    await each(pieces, upload)
    files = [
        Manifest.File(name=name, parts=[parts[piece] for piece in pieces if piece.path.name == name]) for name in FILES
    ]
    manifest = Manifest(
        format=FORMAT,
        job=assignment.job,
        job_uid=assignment.token.job_uid,
        attempt=assignment.token.attempt,
        nonce=assignment.token.nonce,
        sequence=snapshot.sequence,
        spec=assignment.spec,
        progress=snapshot.progress,
        metrics=snapshot.metrics,
        files=files,
        component_digests=components,
        state_digest=snapshots.state_digest(components),
        environment=environment,
    )
    return await conclude(store, manifest, sum(sent.values()))


async def conclude(store: PartStore, manifest: Manifest, uploaded: int) -> Checkpoint:
    """Writes the manifest, which makes the checkpoint exist."""
    name = f"{manifest.attempt}-{manifest.nonce[:8]}-{manifest.sequence}"
    key = manifest_key(manifest.job_uid, name)
    data = encode(manifest)
    failpoints.hit("worker.before-manifest")
    await store.create_manifest(key, data)
    failpoints.hit("worker.after-manifest")
    progress = manifest.progress
    checkpoint = Checkpoint(
        name=f"{manifest.job}/checkpoints/{name}",
        job_uid=manifest.job_uid,
        attempt=manifest.attempt,
        epoch=progress.epoch,
        step=progress.step,
        uri=f"s3://{store.objects.bucket}/{key}",
        manifest_digest=digest(data),
        state_digest=manifest.state_digest,
        size_bytes=total_size(manifest),
        uploaded_bytes=uploaded + len(data),
        metrics=manifest.metrics,
        component_digests=manifest.component_digests,
        environment=manifest.environment,
    )
    if progress.HasField("active_duration"):
        checkpoint.active_duration.CopyFrom(progress.active_duration)
    return checkpoint


class Uploads:
    """The parts of one checkpoint on their way. Each distinct one is sent once."""

    def __init__(
        self, store: PartStore, job_uid: str, base: Manifest | None, sent: dict[str, int], *, anew: bool
    ) -> None:
        self._store = store
        self._job_uid = job_uid
        self._base = distinct_parts(base) if base else {}
        self._anew = anew
        """Parts that were there before are read, also those that were read before: a pause rests on them."""
        self._sent = sent
        self._seen: set[str] = set()

    async def store(self, piece: Piece) -> Manifest.Part:
        """Returns the part once it is in the store, or once another task has taken it upon itself."""
        async with self._store.memory:
            data = await self._store.run(read, piece)
            part = Manifest.Part(digest=await self._store.run(digest, data), size_bytes=len(data))
            if part.digest not in self._seen:
                self._seen.add(part.digest)
                await self._send(part, data)
        return part

    async def _send(self, part: Manifest.Part, data: bytes) -> None:
        key = part_key(self._job_uid, part.digest)
        # Having it in the base, or having sent it for an earlier snapshot, is not enough: it is this checkpoint that
        # has to be whole.
        before = part.digest in self._base or self._store.knows(key)
        known = part.digest in self._sent or (
            before and await self._store.holds(key, part.digest, part.size_bytes, anew=self._anew)
        )
        if not known:
            await self._store.upload(key, part.digest, data)
            failpoints.hit("worker.part-uploaded")
            self._sent[part.digest] = part.size_bytes


def describe(directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the environment of a snapshot and the digests of its components.

    Raises SnapshotLost, SnapshotInvalid; OSError if trying again may help.
    """
    if not all((directory / name).is_file() for name in FILES):
        raise SnapshotLost(f"there is no snapshot in {directory}")
    try:
        environment = snapshots.read_state(directory).environment
        return {name: str(value) for name, value in environment.items()}, snapshots.component_digests(directory)
    except snapshots.SnapshotInvalid as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno not in GONE:
            raise error.__cause__ from None
        raise


@contextmanager
def lost_if_gone(path: Path) -> Iterator[None]:
    """Raises SnapshotLost for an error that says that a file is lost; other errors of reading pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
        raise SnapshotLost(f"{path}: {error.strerror}") from error


def split(path: Path) -> list[Piece]:
    with lost_if_gone(path):
        size = path.stat().st_size
    return [
        Piece(path=path, offset=offset, size=min(PART_BYTES, size - offset)) for offset in range(0, size, PART_BYTES)
    ]


def read(piece: Piece) -> bytes:
    with lost_if_gone(piece.path), piece.path.open("rb") as file:
        data = os.pread(file.fileno(), piece.size, piece.offset)
    if len(data) != piece.size:
        raise SnapshotLost(f"{piece.path} ends at byte {piece.offset + len(data)}")
    return data
