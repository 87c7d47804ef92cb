"""Brings a user's code to the worker: `bundles/{sha256}`, verified and unpacked once."""

import asyncio
import hashlib
import io
import os
import re
import secrets
import tarfile
from pathlib import Path

from adjourn import bundles
from adjourn.channel import BUNDLE_LIMIT_BYTES
from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong
from adjourn_worker.attempt.files import sync
from adjourn_worker.paths import WorkerPaths, remove


class BundleCorrupt(Exception):
    """A bundle is missing, is not what its name says, or cannot be unpacked. Trying again would not help."""


async def fetch_bundle(objects: ObjectStore, bundle: str, paths: WorkerPaths) -> Path:
    """Returns the directory with the code of `bundles/{sha256}`.

    Raises BundleCorrupt, ObjectStoreUnavailableError, OSError.
    """
    match = re.fullmatch(r"bundles/([0-9a-f]{64})", bundle)
    if not match:
        raise BundleCorrupt(f"{bundle!r} is no name of a bundle")
    target = paths.bundle(match[1])
    if target.is_dir():
        return target
    try:
        data = await objects.get(bundles.object_key(bundle), limit=BUNDLE_LIMIT_BYTES)
    except (ObjectMissing, ObjectTooLong) as error:
        raise BundleCorrupt(f"{bundle}: {error}") from error
    await asyncio.to_thread(unpack, data, match[1], target, paths.scratch / secrets.token_hex(8))
    return target


def unpack(data: bytes, sha256: str, target: Path, fresh: Path) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleCorrupt(f"bundles/{sha256} is damaged")
    try:
        bundles.verify(data)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            archive.extractall(fresh, filter="data")
        publish(fresh, target)
    except (bundles.BundleInvalid, tarfile.TarError) as error:
        raise BundleCorrupt(f"bundles/{sha256} cannot be unpacked: {error}") from error
    finally:
        remove(fresh)


def publish(fresh: Path, target: Path) -> None:
    """Gives a tree its name once all of it is on the disk; that another was faster is fine."""
    for folder, _, names in os.walk(fresh):
        for name in names:
            with Path(folder, name).open("rb") as file:
                os.fsync(file.fileno())
        sync(Path(folder))
    try:
        fresh.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    sync(target.parent)
