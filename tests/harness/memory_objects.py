"""Objects in a dictionary; passes the contract tests of the real store."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta

from adjourn.errors import ObjectStoreRefusedError
from adjourn.objects import DELETION_SECONDS, Deletion, ObjectMissing, ObjectTooLong, ObjectVersion, Watcher


class MemoryObjects:
    """Objects in a dictionary, for tests; keeps to the same contract."""

    def __init__(self, bucket: str = "memory") -> None:
        self.contents: dict[str, bytes] = {}
        """What lies there. A test that changes it does what a disk does that loses bits: no version tells of it."""
        self.versions: dict[str, tuple[str, str]] = {}
        """ETag and time of the last write, by key."""
        self.written_at: dict[str, datetime] = {}
        """When each was written."""
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._bucket = bucket

    @property
    def bucket(self) -> str:
        return self._bucket

    def watched(self, watcher: Watcher) -> "MemoryObjects":
        return self  # it never fails

    async def ensure_bucket(self) -> None:
        """Is always there."""

    async def put(self, key: str, data: bytes) -> bool:
        self.contents[key] = bytes(data)
        self.written_at[key] = self.now()
        _, before = self.versions.get(key, ("", "0"))
        self.versions[key] = (hashlib.md5(data, usedforsecurity=False).hexdigest(), str(int(before) + 1))
        return True

    async def create(self, key: str, data: bytes) -> bool:
        if key in self.contents:
            return False
        await self.put(key, data)
        return True

    async def get(self, key: str, *, limit: int) -> bytes:
        if key not in self.contents:
            raise ObjectMissing(key)
        if len(self.contents[key]) > limit:
            raise ObjectTooLong(key, limit)
        return self.contents[key]

    async def get_with_version(self, key: str, *, limit: int) -> tuple[bytes, ObjectVersion | None]:
        version = await self.stat(key)
        return await self.get(key, limit=limit), version

    async def stat(self, key: str) -> ObjectVersion | None:
        if key not in self.contents:
            return None
        etag, modified = self.versions.get(key, ("", "0"))
        return ObjectVersion(size=len(self.contents[key]), etag=etag, modified=modified)

    async def list(self, prefix: str) -> Mapping[str, int]:
        return {key: len(data) for key, data in sorted(self.contents.items()) if key.startswith(prefix)}

    async def written(self, prefix: str) -> Mapping[str, datetime]:
        return {key: self.written_at[key] for key in await self.list(prefix)}

    async def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self.contents.pop(key, None)

    async def delete_prefix(self, prefix: str) -> int:
        doomed = await self.list(prefix)
        for key in doomed:
            del self.contents[key]
        return len(doomed)

    def deletion(self, key: str) -> Deletion:
        prepared = self.now()

        async def delete() -> None:
            if self.now() - prepared > timedelta(seconds=DELETION_SECONDS):
                raise ObjectStoreRefusedError("Request has expired")
            self.contents.pop(key, None)

        return delete
