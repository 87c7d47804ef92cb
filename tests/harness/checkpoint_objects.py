"""The objects of a checkpoint, read as they lie in the storage."""

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from blake3 import blake3
from google.protobuf.json_format import Parse

from adjourn.kept_snapshots import KEPT
from adjourn.manifests import part_key
from adjourn.objects import ObjectMissing, ObjectTooLong
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.paths import SHARED_MEMORY
from adjourn_worker.storage.kept import kept_name


def manifest_key(checkpoint: Checkpoint) -> str:
    return urlsplit(checkpoint.uri).path.lstrip("/")


def kept_on(workers: Path, checkpoint: Checkpoint) -> list[Path]:
    """Returns where workers, whose data directories are below `workers`, have kept a checkpoint's snapshot."""
    ids = [path.read_text().strip() for path in workers.glob("*/id")]
    found = [SHARED_MEMORY / f"adjourn-{os.getuid()}-{each}" / KEPT / kept_name(checkpoint) for each in ids]
    return [path for path in found if path.is_dir()]


async def keep_no_longer(workers: Path, checkpoint: Checkpoint, eventually: Callable[..., Awaitable[None]]) -> None:
    """Waits until a worker has kept a checkpoint's snapshot, and removes it, as if another job had needed its room."""
    await eventually(lambda: kept_on(workers, checkpoint))
    for path in kept_on(workers, checkpoint):
        shutil.rmtree(path)


async def damage(checkpoint: Checkpoint, read: Callable[[str], Awaitable[bytes]]) -> str:
    """Returns what is wrong with a checkpoint's objects; empty: they are all there, bit for bit."""
    try:
        key = manifest_key(checkpoint)
        raw = await read(key)
        if blake3(raw).hexdigest() != checkpoint.manifest_digest:
            return f"{key} is not the manifest that was registered"
        manifest = Parse(raw, Manifest())
        if dict(manifest.component_digests) != dict(checkpoint.component_digests):
            return f"{key} has other digests of components than the registered checkpoint"
        for part in manifest.parts:
            data = await read(part_key(checkpoint.job_uid, part.digest))
            if (blake3(data).hexdigest(), len(data)) != (part.digest, part.size_bytes):
                return f"part {part.digest} is damaged"
    except (ObjectMissing, ObjectTooLong) as error:
        return str(error)
    return ""
