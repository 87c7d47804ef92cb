"""Reads checkpoints for callers, who have no key to object storage: verified part by part, in bounded memory."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from adjourn import errors, manifests
from adjourn.channel import CHUNK_BYTES
from adjourn.manifests import ManifestInvalid
from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest

T = TypeVar("T")

AT_ONCE: Final = 8
"""Callers that are read for at a time, by this process. Each has PARTS_HELD in memory."""
PARTS_HELD: Final = 2
"""A file goes to and fro between the part that most of it is in, and those of later checkpoints."""
DAMAGE_LOOKS: Final = 3
AGAIN_SECONDS: Final = 1.0
"""Times that an object has to be found damaged to count as that, and the time in between, as for a restore."""


class Reads:
    """Reads the files of checkpoints."""

    def __init__(self, objects: ObjectStore, *, at_once: int = AT_ONCE, again_seconds: float = AGAIN_SECONDS) -> None:
        self._objects = objects
        self._free = at_once
        self._again_seconds = again_seconds

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Takes one of the places for callers; raises TooManyReadsError if there is none."""
        if not self._free:
            raise errors.TooManyReadsError("other readers use all the memory for parts of checkpoints; try again")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def chunks(self, checkpoint: Checkpoint, file: str, offset: int) -> AsyncGenerator[bytes, None]:
        """Yields a file of a checkpoint from `offset` on; its manifest, if no file is named.

        Raises InvalidRequestError, CheckpointDamagedError, ObjectStoreUnavailableError, ObjectStoreRefusedError.
        """
        data, manifest = await self._manifest(checkpoint)
        if not file:
            refuse_beyond(offset, len(data))
            for chunk in cut(data[offset:]):
                yield chunk
            return
        found = next((each for each in manifest.files if each.name == file), None)
        if found is None:
            names = ", ".join(each.name for each in manifest.files)
            raise errors.InvalidRequestError({"file": f"must be one of {names}, or empty for the manifest"})
        refuse_beyond(offset, manifests.file_size(found))
        held: OrderedDict[int, bytes] = OrderedDict()
        begin = 0
        for span in found.spans:
            skipped = max(offset - begin, 0)
            begin += span.size_bytes
            if skipped >= span.size_bytes:
                continue
            if span.part not in held:
                while len(held) >= PARTS_HELD:
                    held.popitem(last=False)
                held[span.part] = await self._part(checkpoint, manifest.parts[span.part])
            held.move_to_end(span.part)
            content = memoryview(held[span.part])[span.offset : span.offset + span.size_bytes]
            for chunk in cut(content[skipped:]):
                yield chunk

    async def _manifest(self, checkpoint: Checkpoint) -> tuple[bytes, Manifest]:
        try:
            key = manifests.key_of(checkpoint, self._objects.bucket)
        except ManifestInvalid as error:
            raise damaged(checkpoint, checkpoint.uri, str(error)) from error
        return await self._whole(
            checkpoint, key, manifests.MANIFEST_LIMIT, lambda data: (data, manifests.verified(data, checkpoint))
        )

    async def _part(self, checkpoint: Checkpoint, part: Manifest.Part) -> bytes:
        def right(data: bytes) -> bytes:
            if len(data) != part.size_bytes or manifests.digest(data) != part.digest:
                raise ManifestInvalid("is damaged")
            return data

        return await self._whole(
            checkpoint, manifests.part_key(checkpoint.job_uid, part.digest), part.size_bytes, right
        )

    async def _whole(self, checkpoint: Checkpoint, key: str, limit: int, verify: Callable[[bytes], T]) -> T:
        """Returns an object once it is verified; raises CheckpointDamagedError if that fails several times in a row."""
        why = ""
        for look in range(DAMAGE_LOOKS):
            if look:
                await asyncio.sleep(self._again_seconds)
            try:
                return await asyncio.to_thread(verify, await self._objects.get(key, limit=limit))
            except ObjectMissing:
                why = "is missing"
            except ObjectTooLong:
                why = "is damaged: it is too long"
            except ManifestInvalid as error:
                why = str(error)
        raise damaged(checkpoint, key, why)


def damaged(checkpoint: Checkpoint, key: str, why: str) -> errors.CheckpointDamagedError:
    return errors.CheckpointDamagedError(f"{checkpoint.name}: object {key} {why}", checkpoint=checkpoint.name, key=key)


def refuse_beyond(offset: int, size: int) -> None:
    if not 0 <= offset <= size:
        raise errors.InvalidRequestError({"offset": f"must be 0 to {size}, the size of the file; is {offset}"})


def cut(data: bytes | memoryview) -> Iterator[bytes]:
    """Returns pieces that fit into a message."""
    view = memoryview(data)
    return (bytes(view[begin : begin + CHUNK_BYTES]) for begin in range(0, len(data), CHUNK_BYTES))
