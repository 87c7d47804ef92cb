"""Makes a snapshot durable: every part first, each verified by content, the manifest last.

Until the manifest exists there is no checkpoint, so dying at any moment leaves nothing wrong. Doing it again gives the
same manifest.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Final

from blake3 import blake3

from adjourn import failpoints, manifests, outputs, snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.manifests import FORMAT, PART_BYTES, ManifestInvalid, encode, manifest_key, part_key, total_size
from adjourn.outputs import OutputsInvalid
from adjourn.snapshots import SnapshotInvalid
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.storage import chunks, collected
from adjourn_worker.storage.chunks import Place
from adjourn_worker.storage.parts import KeyTaken, PartStore, each

FILES: Final = (snapshots.TENSORS, snapshots.STATE)
"""Of every snapshot; those of `adjourn.outputs` may be there beside them."""


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
    """Where a chunk is in the snapshot."""

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

    What `base` has of it, in parts whose content in storage is right, is not uploaded again; for the last snapshot of
    an attempt each is read, since a pause rests on it. `sent`: sizes of the parts that earlier tries have stored, by
    digest, added to here; they are not sent again. `on_fraction` hears how much is durable, 0 to 1. Raises
    SnapshotLost, SnapshotDiffers, adjourn.snapshots.SnapshotInvalid, KeyTaken, ObjectStoreUnavailableError,
    ObjectStoreRefusedError; OSError if the snapshot cannot be read at present.
    """
    directory = Path(snapshot.directory)
    environment, components = await store.run(describe, directory)
    live = snapshot.live_digests
    if different := sorted(name for name in live if components.get(name) != live[name]):
        raise SnapshotDiffers(different)
    files = [*FILES, *(outputs.FILES if (directory / outputs.INDEX).exists() else ())]
    pieces = [await store.run(split, directory / name) for name in files]
    digests = [await hashed(store, each_file) for each_file in pieces]
    wanted = {
        digest: piece
        for each_file, found in zip(pieces, digests, strict=True)
        for digest, piece in zip(found, each_file, strict=True)
    }
    uploads = Uploads(store, assignment.token.job_uid, sent, wanted, on_fraction, anew=snapshot.last)
    if base is not None:
        await uploads.reuse(base)
    await uploads.send()
    places = [[uploads.places[digest] for digest in found] for found in digests]
    sizes = {part.digest: part.size_bytes for part in uploads.parts}
    order = list(dict.fromkeys(place.part for found in places for place in found))
    numbers = {part: number for number, part in enumerate(order)}
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
        parts=[Manifest.Part(digest=part, size_bytes=sizes[part]) for part in order],
        files=[
            Manifest.File(
                name=name,
                spans=chunks.spans(places[index], numbers),
                chunk_sizes=[piece.size for piece in pieces[index]],
                chunk_digests=b"".join(digests[index]),
            )
            for index, name in enumerate(files)
        ],
        component_digests=components,
        state_digest=snapshots.state_digest(components),
        environment=environment,
    )
    checkpoint = await conclude(store, manifest, sent)
    checkpoint.snapshot_duration.FromTimedelta(timedelta(seconds=snapshot.stall_seconds))
    return checkpoint


async def conclude(store: PartStore, manifest: Manifest, sent: dict[str, int]) -> Checkpoint:
    """Writes the manifest, which makes the checkpoint exist; raises KeyTaken.

    Raises ObjectStoreUnavailableError if parts that it relies on were collected; they are not `sent` any more then.

    An earlier try may have written one that finds the same bytes in other parts, since it knew another base, or since
    parts were damaged meanwhile. It stays, and is the checkpoint's, as long as its own parts are right.
    """
    name = f"{manifest.attempt}-{manifest.nonce[:8]}-{manifest.sequence}"
    key = manifest_key(manifest.job_uid, name)
    data = encode(manifest)
    failpoints.hit("worker.before-manifest")
    try:
        await store.create_manifest(key, data)
    except KeyTaken as taken:
        earlier = same_snapshot(taken.found, manifest)
        if earlier is None:
            raise
        if await whole(store, earlier):
            manifest, data = earlier, taken.found
        else:
            await store.replace_manifest(key, data)
    if missing := await collected.gone(store, manifest):
        for part in missing:
            sent.pop(part, None)
        raise store.wrong(f"{len(missing)} parts of {key} were removed while they were relied on; they are sent again")
    failpoints.hit("worker.after-manifest")
    progress = manifest.progress
    checkpoint = Checkpoint(
        name=f"{manifest.job}/checkpoints/{name}",
        job_uid=manifest.job_uid,
        attempt=manifest.attempt,
        epoch=progress.epoch,
        step=progress.step,
        epoch_step=progress.epoch_step,
        uri=f"s3://{store.objects.bucket}/{key}",
        manifest_digest=manifests.digest(data),
        state_digest=manifest.state_digest,
        size_bytes=total_size(manifest),
        part_count=len(manifest.parts),
        uploaded_bytes=sum(sent.values()) + len(data),
        metrics=manifest.metrics,
        component_digests=manifest.component_digests,
        environment=manifest.environment,
        progress=progress,
    )
    if progress.HasField("active_duration"):
        checkpoint.active_duration.CopyFrom(progress.active_duration)
    return checkpoint


def same_snapshot(found: bytes, manifest: Manifest) -> Manifest | None:
    """Returns the manifest in `found` if it describes the same bytes as `manifest`, wherever it finds them."""
    try:
        earlier = manifests.decode(found)
    except ManifestInvalid:
        return None
    return earlier if without_places(earlier) == without_places(manifest) else None


def without_places(manifest: Manifest) -> Manifest:
    bare = Manifest()
    bare.CopyFrom(manifest)
    bare.ClearField("parts")
    for file in bare.files:
        file.ClearField("spans")
    return bare


async def whole(store: PartStore, manifest: Manifest) -> bool:
    """Returns whether all parts of a checkpoint are stored, with the right content."""
    wrong = []

    async def look(part: Manifest.Part) -> None:
        if not await store.holds(part_key(manifest.job_uid, part.digest), part.digest, part.size_bytes):
            wrong.append(part)

    await each(manifest.parts, look)
    return not wrong


class Uploads:
    """The chunks of one checkpoint on their way. Each distinct one is stored once."""

    def __init__(
        self,
        store: PartStore,
        job_uid: str,
        sent: dict[str, int],
        wanted: Mapping[bytes, Piece],
        on_fraction: Callable[[float], None],
        *,
        anew: bool,
    ) -> None:
        self.places: dict[bytes, Place] = {}
        """Where each chunk is stored, by its digest."""
        self.parts: list[Manifest.Part] = []
        self._store = store
        self._job_uid = job_uid
        self._sent = sent
        self._wanted = wanted
        self._anew = anew
        """Parts that were there before are read, also those that were read before: a pause rests on them."""
        self._on_fraction = on_fraction
        self._total = sum(piece.size for piece in wanted.values()) or 1
        self._done = 0

    async def reuse(self, base: Manifest) -> None:
        """Takes the chunks that `base` has, as far as its parts are right; one that is not is mended if possible."""
        found = chunks.reusable(base, {digest: piece.size for digest, piece in self._wanted.items()})
        parts = {part.digest: part for part in base.parts}
        used: dict[str, dict[bytes, Place]] = {}
        for digest, place in found.items():
            used.setdefault(place.part, {})[digest] = place

        async def take(part: str) -> None:
            if await self._is_right(parts[part]) or await self._mended(parts[part], used[part]):
                self._stored(parts[part], used[part])

        await each(used, take)

    async def send(self) -> None:
        """Sends what is not yet stored."""
        new = [(digest, piece.size) for digest, piece in self._wanted.items() if digest not in self.places]

        async def put(pack: list[bytes]) -> None:
            async with self._store.memory:
                data = await self._store.run(self._gathered, pack)
                part = Manifest.Part(digest=await self._store.run(manifests.digest, data), size_bytes=len(data))
                before = self._store.knows(part_key(self._job_uid, part.digest))
                if not (before and await self._is_right(part)):
                    await self._upload(part, data)
            offset, places = 0, {}
            for digest in pack:
                size = self._wanted[digest].size
                places[digest] = Place(part=part.digest, offset=offset, size=size)
                offset += size
            self._stored(part, places)

        await each(chunks.packed(new), put)

    async def _is_right(self, part: Manifest.Part) -> bool:
        """Returns whether a part that was stored before is there, with the right content.

        Having it in the base, or having sent it for an earlier snapshot, is not enough: it is this checkpoint that has
        to be whole.
        """
        key = part_key(self._job_uid, part.digest)
        return part.digest in self._sent or await self._store.holds(key, part.digest, part.size_bytes, anew=self._anew)

    async def _mended(self, part: Manifest.Part, places: Mapping[bytes, Place]) -> bool:
        """Writes a damaged part again, which others may rest on too, if all of it is in this snapshot."""
        order = sorted(places, key=lambda digest: places[digest].offset)
        if sum(place.size for place in places.values()) != part.size_bytes:
            return False
        async with self._store.memory:
            data = await self._store.run(self._gathered, order)
            if await self._store.run(manifests.digest, data) != part.digest:
                return False
            await self._upload(part, data)
        return True

    async def _upload(self, part: Manifest.Part, data: bytes) -> None:
        if part.digest not in self._sent:
            await self._store.upload(part_key(self._job_uid, part.digest), part.digest, data)
            failpoints.hit("worker.part-uploaded")
            self._sent[part.digest] = part.size_bytes

    def _gathered(self, pack: Sequence[bytes]) -> bytes:
        """Returns chunks one after another; raises SnapshotLost if one is not what it was."""
        content = []
        for batch in batched([self._wanted[digest] for digest in pack]):
            begin = batch[0].offset
            data = read(Piece(path=batch[0].path, offset=begin, size=batch[-1].offset + batch[-1].size - begin))
            view = memoryview(data)
            for digest, piece in zip(pack, batch, strict=False):
                if blake3(view[piece.offset - begin :][: piece.size]).digest() != digest:
                    raise SnapshotLost(f"{piece.path} has changed since it was written, near byte {piece.offset}")
            pack = pack[len(batch) :]
            content.append(data)
        return b"".join(content)

    def _stored(self, part: Manifest.Part, places: Mapping[bytes, Place]) -> None:
        self.parts.append(part)
        self.places |= places
        self._done += sum(place.size for place in places.values())
        self._on_fraction(self._done / self._total)


async def hashed(store: PartStore, pieces: Sequence[Piece]) -> list[bytes]:
    """Returns the BLAKE3 of each chunk of a file."""
    found: dict[int, list[bytes]] = {}
    batches = list(batched(pieces))

    async def take(number: int) -> None:
        async with store.memory:
            found[number] = await store.run(hashes, batches[number])

    await each(range(len(batches)), take)
    return [digest for number in range(len(batches)) for digest in found[number]]


def batched(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Returns chunks in as few batches as are read at once: they follow one another in a file, and make up a part."""
    batch: list[Piece] = []
    end = 0
    for piece in pieces:
        follows = batch and piece.path == batch[0].path and piece.offset == end
        if batch and not (follows and piece.offset + piece.size - batch[0].offset <= PART_BYTES):
            yield batch
            batch = []
        batch.append(piece)
        end = piece.offset + piece.size
    if batch:
        yield batch


def hashes(batch: Sequence[Piece]) -> list[bytes]:
    """Returns the BLAKE3 of chunks of one file, each read into the same buffer, which caches hold.

    Raises SnapshotLost, OSError.
    """
    path, found = batch[0].path, []
    buffer = memoryview(bytearray(max(piece.size for piece in batch)))
    with lost_if_gone(path), path.open("rb", buffering=0) as file:
        for piece in batch:
            read = os.preadv(file.fileno(), [buffer[: piece.size]], piece.offset)
            if read != piece.size:
                raise SnapshotLost(f"{path} ends at byte {piece.offset + read}")
            found.append(blake3(buffer[: piece.size]).digest())
    return found


def describe(directory: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the environment of a snapshot and the digests of its components.

    Raises SnapshotLost, SnapshotInvalid; OSError if trying again may help.
    """
    if not all((directory / name).is_file() for name in FILES):
        raise SnapshotLost(f"there is no snapshot in {directory}")
    with passing():
        environment = snapshots.read_state(directory).environment
        return {name: str(value) for name, value in environment.items()}, snapshots.component_digests(directory)


@contextmanager
def passing() -> Iterator[None]:
    """Raises errors of reading that may pass as they are, and not as a snapshot that is invalid."""
    try:
        yield
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
    """Returns the chunks of a file of the snapshot; raises SnapshotLost, SnapshotInvalid, OSError."""
    with lost_if_gone(path), passing():
        if path.name == snapshots.TENSORS:
            sizes = chunks.cut(tensor_sizes(path))
        elif path.name == outputs.DATA:
            sizes = chunks.cut(output_sizes(path))
        else:
            sizes = chunks.cut([path.stat().st_size], chunks.STATE_CHUNK)
    offsets = accumulate(sizes, initial=0)
    return [Piece(path=path, offset=offset, size=size) for offset, size in zip(offsets, sizes, strict=False)]


def output_sizes(path: Path) -> list[int]:
    """Returns the bytes of each file that a run keeps, in order; raises SnapshotInvalid."""
    try:
        files = outputs.decode((path.parent / outputs.INDEX).read_bytes())
    except OutputsInvalid as error:
        raise SnapshotInvalid(str(error)) from error
    if (found := path.stat().st_size) != outputs.total_size(files):
        raise SnapshotInvalid(f"{path.name}: {found} bytes, and its files have {outputs.total_size(files)}")
    return [file.size for file in files]


def tensor_sizes(path: Path) -> list[int]:
    """Returns the bytes before the first tensor of a file, then those of each, in order."""
    entries = sorted(snapshots.read_layout(path).values(), key=lambda entry: entry.begin)
    first = entries[0].begin if entries else path.stat().st_size
    return [first, *(entry.end - entry.begin for entry in entries)]


def read(piece: Piece) -> bytes:
    with lost_if_gone(piece.path), piece.path.open("rb") as file:
        data = os.pread(file.fileno(), piece.size, piece.offset)
    if len(data) != piece.size:
        raise SnapshotLost(f"{piece.path} ends at byte {piece.offset + len(data)}")
    return data
