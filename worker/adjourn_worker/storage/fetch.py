"""Brings a checkpoint back: whole and verified to the last byte, or not at all."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn_worker.attempt.files import sync
from adjourn_worker.storage.manifest import Manifest, ManifestInvalid, Part
from adjourn_worker.storage.parts import MANIFEST_LIMIT, digest, each, part_key


class CheckpointCorrupt(Exception):
    """A checkpoint cannot be restored: an object of it is missing or damaged. Trying again would not help."""

    def __init__(self, checkpoint: str, key: str, why: str) -> None:
        super().__init__(f"{checkpoint}: object {key} {why}")
        self.checkpoint = checkpoint
        """`jobs/{job}/checkpoints/{checkpoint}`."""
        self.key = key
        """The object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where a part goes."""

    path: Path
    offset: int
    part: Part


async def fetch(
    objects: ObjectStore, checkpoint: Checkpoint, into: Path, on_fraction: Callable[[float], None] = lambda _: None
) -> Manifest:
    """Makes the directory `into` with the snapshot's files, replacing what is there; returns the manifest.

    `on_fraction` hears how much has come, 0 to 1. Raises CheckpointCorrupt, ObjectStoreUnavailableError, OSError.
    """
    manifest = await read_manifest(objects, checkpoint)
    fresh = into.with_name(f".{into.name}.fetching")
    received = 0

    async def bring(span: Span) -> None:
        nonlocal received
        key = part_key(manifest.job, span.part.digest)
        data = await obtain(objects, checkpoint, key, span.part.size)
        if len(data) != span.part.size or await asyncio.to_thread(digest, data) != span.part.digest:
            raise CheckpointCorrupt(checkpoint.name, key, "is damaged")
        await asyncio.to_thread(place, span, data)
        received += len(data)
        on_fraction(received / manifest.size)

    try:
        await asyncio.to_thread(lay_out, fresh, manifest)
        await each(spans(fresh, manifest), bring)
        await asyncio.to_thread(publish, fresh, into)
    finally:
        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
    return manifest


async def read_manifest(objects: ObjectStore, checkpoint: Checkpoint) -> Manifest:
    """Returns the manifest of a checkpoint; raises CheckpointCorrupt, ObjectStoreUnavailableError."""
    place_ = urlsplit(checkpoint.uri)
    key = place_.path.lstrip("/")
    if (place_.scheme, place_.netloc) != ("s3", objects.bucket):
        raise CheckpointCorrupt(checkpoint.name, checkpoint.uri, f"is not in the bucket {objects.bucket}")
    data = await obtain(objects, checkpoint, key, MANIFEST_LIMIT)
    if digest(data) != checkpoint.manifest_digest:
        raise CheckpointCorrupt(checkpoint.name, key, "is damaged")
    try:
        manifest = Manifest.from_json(data)
    except ManifestInvalid as error:
        raise CheckpointCorrupt(checkpoint.name, key, f"is no manifest: {error}") from error
    if not checkpoint.name.startswith(f"{manifest.job}/checkpoints/"):
        raise CheckpointCorrupt(checkpoint.name, key, f"belongs to {manifest.job}")
    return manifest


async def obtain(objects: ObjectStore, checkpoint: Checkpoint, key: str, limit: int) -> bytes:
    try:
        return await objects.get(key, limit=limit)
    except ObjectMissing as error:
        raise CheckpointCorrupt(checkpoint.name, key, "is missing") from error
    except ObjectTooLong as error:
        raise CheckpointCorrupt(checkpoint.name, key, "is damaged: it is too long") from error


def spans(directory: Path, manifest: Manifest) -> Iterator[Span]:
    for file in manifest.files:
        offset = 0
        for part in file.parts:
            yield Span(path=directory / file.name, offset=offset, part=part)
            offset += part.size


def lay_out(directory: Path, manifest: Manifest) -> None:
    """Makes the files at their full size, so that a full disk is known before anything is fetched."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    for file in manifest.files:
        with (directory / file.name).open("wb") as output:
            if file.size:
                os.posix_fallocate(output.fileno(), 0, file.size)


def place(span: Span, data: bytes) -> None:
    with span.path.open("r+b") as output:
        output.seek(span.offset)
        output.write(data)


def publish(fresh: Path, into: Path) -> None:
    """Gives a directory its name once all of it is on the disk."""
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync(fresh)
    if into.exists():
        shutil.rmtree(into)
    fresh.rename(into)
    sync(into.parent)
