"""Brings a checkpoint back: whole and verified to the last byte, or not at all."""

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

from blake3 import blake3

from adjourn import failpoints
from adjourn.manifests import (
    MANIFEST_LIMIT,
    ManifestInvalid,
    Place,
    chunks,
    file_size,
    key_of,
    part_key,
    places,
    total_size,
    verified,
)
from adjourn.objects import ObjectMissing, ObjectTooLong
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.paths import free_bytes
from adjourn_worker.storage.parts import PartStore, each

STRETCH_BYTES: Final = 16 << 20
"""Of a file that is here already, compared at a time."""


class CheckpointCorrupt(Exception):
    """A checkpoint cannot be restored: an object of it is missing or damaged. Trying again would not help."""

    def __init__(self, checkpoint: str, key: str, why: str) -> None:
        super().__init__(f"{checkpoint}: object {key} {why}")
        self.checkpoint = checkpoint
        """`jobs/{job}/checkpoints/{checkpoint}`."""
        self.key = key
        """The object."""


async def fetch(store: PartStore, checkpoint: Checkpoint, into: Path) -> Manifest:
    """Makes the directory `into` with the snapshot's files, replacing what is there; returns the manifest.

    Raises CheckpointCorrupt, ObjectStoreUnavailableError, ObjectStoreRefusedError, OSError.
    """
    manifest = await wanted_manifest(store, checkpoint)
    fresh = into.with_name(f".{into.name}.fetching")

    wanted = places(manifest)

    async def bring(part: Manifest.Part) -> None:
        key = part_key(manifest.job_uid, part.digest)
        async with store.memory:
            with explained(checkpoint, key):
                data = await store.download(key, part.digest, part.size_bytes)
            if data is None:
                raise CheckpointCorrupt(checkpoint.name, key, "is damaged")
            await store.run(put, fresh, wanted[part.digest], data)

    try:
        await store.run(lay_out, fresh, manifest)
        await each(manifest.parts, bring)
        await store.run(publish, fresh, into)
    finally:
        await store.run(shutil.rmtree, fresh, ignore_errors=True)
    return manifest


async def wanted_manifest(store: PartStore, checkpoint: Checkpoint) -> Manifest:
    """Reads the manifest of what is to be restored; raises as `read_manifest`."""
    manifest = await read_manifest(store, checkpoint)
    failpoints.hit("worker.manifest-read")
    return manifest


async def is_here(store: PartStore, checkpoint: Checkpoint, directory: Path) -> bool:
    """Returns whether a directory has the snapshot's files, each chunk with the content that the manifest says.

    Raises CheckpointCorrupt, ObjectStoreUnavailableError, ObjectStoreRefusedError.
    """
    manifest = await wanted_manifest(store, checkpoint)
    right = []

    async def look(piece: tuple[Path, int, Sequence[tuple[int, bytes]]]) -> None:
        right.append(await store.run(has_chunks, *piece))

    try:
        for file in manifest.files:
            status = (directory / file.name).lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != file_size(file):
                return False
            await each(stretches(directory / file.name, chunks(file)), look)
    except OSError:
        return False
    return all(right)


def stretches(
    path: Path, found: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[Path, int, Sequence[tuple[int, bytes]]]]:
    """Yields the file, an offset in it, and the chunks from there on: as many as make up STRETCH_BYTES."""
    begin, end = 0, 0
    stretch: list[tuple[int, bytes]] = []
    for size, digest in found:
        stretch.append((size, digest))
        end += size
        if end - begin >= STRETCH_BYTES:
            yield path, begin, stretch
            begin, stretch = end, []
    if stretch:
        yield path, begin, stretch


def has_chunks(path: Path, offset: int, expected: Sequence[tuple[int, bytes]]) -> bool:
    """Returns whether a file has these chunks, by size and BLAKE3, one after another from an offset on.

    They are read into one buffer, and not mapped: a file that somebody cuts short meanwhile must not end the agent.
    """
    buffer = memoryview(bytearray(max(size for size, _ in expected)))
    with path.open("rb", buffering=0) as file:
        for size, digest in expected:
            if os.preadv(file.fileno(), [buffer[:size]], offset) != size or blake3(buffer[:size]).digest() != digest:
                return False
            offset += size
    return True


async def read_manifest(store: PartStore, checkpoint: Checkpoint) -> Manifest:
    """Returns the manifest of a checkpoint.

    Raises CheckpointCorrupt, ObjectStoreUnavailableError, ObjectStoreRefusedError.
    """
    try:
        key = key_of(checkpoint, store.objects.bucket)
    except ManifestInvalid as error:
        raise CheckpointCorrupt(checkpoint.name, checkpoint.uri, str(error)) from error
    with explained(checkpoint, key):
        data = await store.objects.get(key, limit=MANIFEST_LIMIT)
    try:
        return await store.run(verified, data, checkpoint)
    except ManifestInvalid as error:
        raise CheckpointCorrupt(checkpoint.name, key, str(error)) from error


@contextmanager
def explained(checkpoint: Checkpoint, key: str) -> Iterator[None]:
    """Turns the absence of an object, and one that is too long, into CheckpointCorrupt."""
    try:
        yield
    except ObjectMissing as error:
        raise CheckpointCorrupt(checkpoint.name, key, "is missing") from error
    except ObjectTooLong as error:
        raise CheckpointCorrupt(checkpoint.name, key, "is damaged: it is too long") from error


def lay_out(directory: Path, manifest: Manifest) -> None:
    """Makes the files at their full size; raises OSError if there is no room for them, before anything is fetched.

    The room is taken as parts come in, and not now: to have the kernel find it all takes as long as to fill it.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    if free_bytes(directory) < total_size(manifest):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    for file in manifest.files:
        with (directory / file.name).open("wb") as output:
            output.truncate(file_size(file))


def put(directory: Path, wanted: Sequence[Place], data: bytes) -> None:
    """Writes the bytes of a part to where they go."""
    content = memoryview(data)
    for name, found in groupby(wanted, key=lambda place: place.file):
        with (directory / name).open("r+b", buffering=0) as output:
            for place in found:
                output.seek(place.offset)
                rest = content[place.begin : place.end]
                while rest:
                    rest = rest[output.write(rest) or 0 :]


def publish(fresh: Path, into: Path) -> None:
    """Gives a directory its name; it is not synced, since an attempt that a power failure ends is prepared again."""
    shutil.rmtree(into, ignore_errors=True)
    fresh.rename(into)
