"""Objects in a dictionary; passes the contract tests of the real store."""

from collections.abc import Mapping

from adjourn.objects import ObjectMissing, ObjectTooLong


class MemoryObjects:
    """Objects in a dictionary, for tests; keeps to the same contract."""

    def __init__(self, bucket: str = "memory") -> None:
        self.contents: dict[str, bytes] = {}
        self._bucket = bucket

    @property
    def bucket(self) -> str:
        return self._bucket

    async def ensure_bucket(self) -> None:
        """Is always there."""

    async def put(self, key: str, data: bytes) -> None:
        self.contents[key] = bytes(data)

    async def get(self, key: str, *, limit: int) -> bytes:
        if key not in self.contents:
            raise ObjectMissing(key)
        if len(self.contents[key]) > limit:
            raise ObjectTooLong(key, limit)
        return self.contents[key]

    async def size(self, key: str) -> int | None:
        return len(self.contents[key]) if key in self.contents else None

    async def list(self, prefix: str) -> Mapping[str, int]:
        return {key: len(data) for key, data in sorted(self.contents.items()) if key.startswith(prefix)}

    async def delete_prefix(self, prefix: str) -> int:
        doomed = await self.list(prefix)
        for key in doomed:
            del self.contents[key]
        return len(doomed)
