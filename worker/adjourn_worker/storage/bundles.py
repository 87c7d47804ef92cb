"""Brings a user's code to an attempt: `bundles/{sha256}`, kept packed, verified and unpacked for each attempt.

Each attempt has its own copy: code that writes beside its files, or changes them, changes no other attempt.
"""

import hashlib
import io
import os
import re
import secrets
import tarfile
from contextlib import suppress
from pathlib import Path

from adjourn import bundles
from adjourn.channel import BUNDLE_LIMIT_BYTES
from adjourn.objects import ObjectMissing, ObjectTooLong
from adjourn_worker.paths import Kept, WorkerPaths, bound, remove
from adjourn_worker.storage.parts import PartStore


class BundleCorrupt(Exception):
    """A bundle is missing, is not what its name says, or cannot be unpacked. Trying again would not help."""


async def fetch_bundle(store: PartStore, bundle: str, paths: WorkerPaths, kept: Kept, into: Path) -> None:
    """Makes the directory `into` with the code of `bundles/{sha256}`, replacing what is there.

    Raises BundleCorrupt, ObjectStoreUnavailableError, ObjectStoreRefusedError, OSError.
    """
    match = re.fullmatch(r"bundles/([0-9a-f]{64})", bundle)
    if not match:
        raise BundleCorrupt(f"{bundle!r} is no name of a bundle")
    packed = paths.bundles / f"{match[1]}.tar.gz"
    data = await store.run(read_kept, packed, match[1])
    if data is None:
        try:
            data = await store.objects.get(bundles.object_key(bundle), limit=BUNDLE_LIMIT_BYTES)
        except (ObjectMissing, ObjectTooLong) as error:
            raise BundleCorrupt(f"{bundle}: {error}") from error
        await store.run(keep, data, match[1], packed, paths, kept)
    await store.run(unpack, data, bundle, into)


def read_kept(packed: Path, sha256: str) -> bytes | None:
    """Returns a bundle that is kept here; None if there is none, or a damaged one, which is removed."""
    try:
        data = packed.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(data).hexdigest() != sha256:
        packed.unlink(missing_ok=True)
        return None
    with suppress(FileNotFoundError):  # another attempt needed its room meanwhile
        os.utime(packed)  # the longest unused is the first to be removed
    return data


def keep(data: bytes, sha256: str, packed: Path, paths: WorkerPaths, kept: Kept) -> None:
    """Keeps a bundle for later attempts, in place of what was not used for longest."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BundleCorrupt(f"bundles/{sha256} is damaged")
    fresh = paths.scratch / secrets.token_hex(8)
    try:
        fresh.write_bytes(data)
        fresh.replace(packed)
    finally:
        remove(fresh)
    bound(paths.bundles.iterdir(), size=kept.bundle_bytes)


def unpack(data: bytes, bundle: str, into: Path) -> None:
    fresh = into.with_name(f".{into.name}.unpacking")
    remove(fresh)
    try:
        bundles.verify(data)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            archive.extractall(fresh, filter="data")
        remove(into)
        fresh.rename(into)  # not synced: an attempt that a power failure ends is prepared again
    except (bundles.BundleInvalid, tarfile.TarError) as error:
        raise BundleCorrupt(f"{bundle} cannot be unpacked: {error}") from error
    finally:
        remove(fresh)
