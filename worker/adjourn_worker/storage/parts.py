"""The parts of checkpoints in object storage: where they are, and whether their content is right.

    checkpoints/{job_uid}/parts/{blake3}                                pieces of files, by their content
    checkpoints/{job_uid}/manifests/{attempt}-{nonce8}-{sequence}.json  which pieces make up a snapshot

No key is ever used for other content, so an agent that should have stopped can damage nothing. A manifest is created if
absent and never put in place of another. Under its key may also lie bytes that are no manifest of anybody: storage has
damaged ours, as it may damage a part, and like a part it is written again.

A part counts as stored when its content was verified: by the store, which has compared the SHA-256 of what it received,
or else by reading the part back, which costs its bytes once more. A part of an earlier checkpoint is read before a new
one rests on it, once in an agent's life. From then on its version tells whether somebody has written it again; that
costs one HEAD a part. A disk of the store that loses bits later is not seen by that. So the last checkpoint of an
attempt, which a pause or the end of the run rests on, has all its parts read that were there before.
"""

import asyncio
import contextlib
import copy
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

import structlog

from adjourn.errors import ObjectStoreUnavailableError
from adjourn.manifests import MANIFEST_LIMIT, claims, digest
from adjourn.objects import ObjectMissing, ObjectStore, ObjectTooLong, ObjectVersion, Watcher
from adjourn_worker.storage.background import Background

log: structlog.stdlib.BoundLogger = structlog.get_logger()
T = TypeVar("T")
P = ParamSpec("P")

IN_FLIGHT: Final = 4
"""Parts of one checkpoint that are worked on at a time."""
PARTS_IN_MEMORY: Final = 16
"""Parts of all checkpoints of an agent that are in memory at a time; each may be there twice, sent and read back."""
THREADS: Final = 4
"""For hashing and files. Whatever else an agent does in threads never waits behind them."""
VERSIONS_KEPT: Final = 65_536
"""Verified parts that an agent remembers: 512 GiB of state."""
DAMAGE_LOOKS: Final = 3
DAMAGE_AGAIN_SECONDS: Final = 1.0
"""Times that an object has to be found damaged, or another's, to count as that, and the time in between."""


class PartStore:
    """Object storage as the checkpoints of an agent use it. Lives as long as the agent."""

    def __init__(
        self,
        objects: ObjectStore,
        *,
        background: Background | None = None,
        again_seconds: float = DAMAGE_AGAIN_SECONDS,
    ) -> None:
        self.objects = objects
        self._background = background
        self._background_objects = background.objects if background else objects
        self._beside: Callable[[], bool] = never
        self.again_seconds = again_seconds
        self.memory = asyncio.Semaphore(PARTS_IN_MEMORY)
        """Taken by whoever has a part in memory."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="parts")
        self._verified: OrderedDict[str, ObjectVersion] = OrderedDict()
        """Versions whose content was right, by key; the longest unused first."""
        self.collections: dict[str, float] = {}
        """When the note of each collection was seen first, by key: see `collected.gone`."""

    def watched(self, watcher: Watcher) -> "PartStore":
        """Returns this store with somebody who hears how its calls go."""
        view = copy.copy(self)
        view.objects = self.objects.watched(watcher)
        view._background_objects = self._background_objects.watched(watcher)  # noqa: SLF001
        return view

    def beside(self, training: Callable[[], bool]) -> "PartStore":
        """Returns this store as it works in the background for as long as `training` says that training goes on."""
        view = copy.copy(self)
        view._beside = training  # noqa: SLF001
        return view

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[tuple[ObjectStore, Executor]]:
        """Yields where the next piece of work is done: what sends and receives, and threads."""
        if self._background is None or not self._beside():
            yield self.objects, self._pool
            return
        async with self._background.turn(self._beside):
            if self._beside():
                yield self._background_objects, self._background.pool
            else:  # meanwhile somebody waits for it
                yield self.objects, self._pool

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs work that blocks or computes in a thread."""
        async with self.turn() as (_, pool):
            return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*args, **kwargs))

    def knows(self, key: str) -> bool:
        """Returns whether a part was in the store, with the right content, when it was last sent or read."""
        return key in self._verified

    async def holds(self, key: str, part: str, size: int, *, anew: bool = False) -> bool:
        """Returns whether the store has a part, with the right content. `anew`: reads it, whatever was known of it."""
        version = await self.objects.stat(key)
        if version is None or version.size != size:
            return False
        if self._verified.get(key) == version and not anew:
            self._verified.move_to_end(key)
            return True
        if not await self._readable(key, part, size):
            log.warning("part_damaged", key=key)  # whoever has its content uploads it again
            return False
        self._remember(key, version)
        return True

    async def upload(self, key: str, part: str, data: bytes) -> None:
        """Stores a part; returns once its content is verified. Raises ObjectStoreUnavailableError if it is wrong."""
        async with self.turn() as (objects, _):
            compared = await objects.put(key, data)
        if not compared and not await self._readable(key, part, len(data)):
            raise self.wrong(f"object {key} is not what was written")
        version = await self.objects.stat(key)
        if version is None or version.size != len(data):
            found = "is not there" if version is None else f"has {version.size}"
            raise self.wrong(f"object {key} was written with {len(data)} bytes and {found}")
        self._remember(key, version)

    async def download(self, key: str, part: str, size: int) -> bytes | None:
        """Returns a part; None: its content is wrong. Raises ObjectMissing, ObjectTooLong."""
        data, version = await self.objects.get_with_version(key, limit=size)
        if len(data) != size or await self.run(digest, data) != part:
            return None
        if version is not None:
            self._remember(key, version)
        return data

    async def create_manifest(self, key: str, data: bytes) -> None:
        """Stores a manifest under a key that no other manifest has or will get.

        It may be there already. Other content counts once it was read DAMAGE_LOOKS times in a row: a bit that the
        network flips is none that lies there. Raises KeyTaken if that is a manifest, ObjectStoreUnavailableError.
        """
        for look in range(DAMAGE_LOOKS):
            if look:
                await asyncio.sleep(self.again_seconds)
            found = await self._content(key)
            if found is None:
                await self.objects.create(key, data)
                found = await self._content(key)  # as it lies there, whoever wrote it
            if found == data:
                return
            log.warning("manifest_differs", key=key, is_there=found is not None, look=look + 1)
        if found is None:
            raise self.wrong(f"object {key} was written and is not there")
        if claims(found):
            raise KeyTaken(key, found)
        await self.replace_manifest(key, data)

    async def replace_manifest(self, key: str, data: bytes) -> None:
        """Stores a manifest in place of one that nobody can use: its bytes are damaged, or those of its parts are."""
        await self.objects.put(key, data)
        if await self._content(key) != data:
            raise self.wrong(f"object {key} was written and is not there")
        log.warning("manifest_mended", key=key)

    async def _content(self, key: str) -> bytes | None:
        """Returns what lies under the key of a manifest; of what is too long to be one, nothing."""
        try:
            return await self.objects.get(key, limit=MANIFEST_LIMIT)
        except ObjectMissing:
            return None
        except ObjectTooLong:
            return b""

    async def _readable(self, key: str, part: str, size: int) -> bool:
        """Returns whether a part can be read and is right. A store that fails at reading it has lost it."""
        try:
            async with self.turn() as (objects, _):
                data = await objects.get(key, limit=size)
        except (ObjectMissing, ObjectTooLong, ObjectStoreUnavailableError):
            return False
        return len(data) == size and await self.run(digest, data) == part

    def _remember(self, key: str, version: ObjectVersion) -> None:
        self._verified[key] = version
        self._verified.move_to_end(key)
        if len(self._verified) > VERSIONS_KEPT:
            self._verified.popitem(last=False)

    def wrong(self, why: str) -> ObjectStoreUnavailableError:
        return ObjectStoreUnavailableError(f"bucket {self.objects.bucket}: {why}", bucket=self.objects.bucket)


def never() -> bool:
    return False


class KeyTaken(Exception):
    """Another manifest has the key of ours."""

    def __init__(self, key: str, found: bytes) -> None:
        super().__init__(f"object {key} is another manifest; it was left as it is")
        self.key = key
        self.found = found
        """That manifest."""


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Does the work for every item, a few at a time. The first error ends it all and is raised."""
    waiting = iter(items)

    async def take_turns() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(take_turns())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
