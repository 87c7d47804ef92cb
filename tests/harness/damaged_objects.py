"""Objects in memory that a test takes away, damages and loses."""

from collections.abc import Collection

from adjourn.errors import ObjectStoreUnavailableError
from adjourn.manifests import decode, digest, manifest_key, part_key, prefix
from adjourn.objects import ObjectVersion
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest
from tests.harness.memory_objects import MemoryObjects


class DamagedObjects(MemoryObjects):
    """Knows what the test has damaged, so that it can tell that from what is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        """Every call fails."""
        self.broken: set[str] = set()
        """Keys whose content the test has changed or removed since they were last written."""
        self.silent: set[str] = set()
        """Those of them of which no version tells: a disk has lost bits."""
        self.sound: dict[str, tuple[bytes, tuple[str, str]]] = {}
        """What lay there, and its version, of each key that was damaged once."""
        self.ever_broken: set[str] = set()
        """Keys that were damaged once, whatever lies there now."""
        self.purged: set[str] = set()
        """Prefixes of which everything was removed."""

    async def put(self, key: str, data: bytes) -> bool:
        self._reach()
        replaces = key in self.contents and self.contents[key] != data
        assert not replaces or key in self.broken, "an object is written once, whoever writes it"
        self.broken.discard(key)
        self.silent.discard(key)
        return await super().put(key, data)

    async def get(self, key: str, *, limit: int) -> bytes:
        self._reach()
        return await super().get(key, limit=limit)

    async def stat(self, key: str) -> ObjectVersion | None:
        self._reach()
        return await super().stat(key)

    async def delete(self, keys: Collection[str]) -> None:
        self._reach()
        await super().delete(keys)

    async def delete_prefix(self, prefix: str) -> int:
        self._reach()
        self.purged.add(prefix)
        return await super().delete_prefix(prefix)

    def _reach(self) -> None:
        if self.away:
            raise ObjectStoreUnavailableError("bucket memory: the test took it away", bucket="memory")

    def damage(self, key: str, how: str) -> None:
        """Does to an object what `how` says: flip, cut, remove, or rot, which is a flip that no version tells of."""
        data = self.contents[key]
        self.broken.add(key)
        self.ever_broken.add(key)
        self.sound[key] = data, self.versions[key]
        if how == "remove":
            del self.contents[key]
            return
        self.contents[key] = data[:-1] if how == "cut" else bytes([data[0] ^ 1]) + data[1:]
        if how == "rot":
            self.silent.add(key)
        else:
            etag, modified = self.versions[key]
            self.versions[key] = f"{etag}-{how}", modified

    def put_back(self, key: str) -> None:
        """Puts back what was damaged: an operator has found a copy."""
        self.contents[key], self.versions[key] = self.sound[key]
        self.broken.discard(key)
        self.silent.discard(key)

    def damaged(self, manifest: Manifest) -> list[str]:
        """Returns the parts of a checkpoint that are not what they should be."""
        keys = {part_key(manifest.job_uid, part.digest): part for part in manifest.parts}
        return [
            key for key, part in keys.items() if key not in self.contents or digest(self.contents[key]) != part.digest
        ]

    def assert_whole(self, checkpoint: Checkpoint) -> None:
        """Fails if anything of a checkpoint is not as it was written, but for what the test has damaged, or purged."""
        place = manifest_key(checkpoint.job_uid, checkpoint.name.rpartition("/")[2])
        if place in self.broken or prefix(checkpoint.job_uid) in self.purged:
            return
        assert place in self.contents, "nobody purges a living job"
        assert digest(self.contents[place]) == checkpoint.manifest_digest, "its manifest is the one that was registered"
        missing = self.damaged(decode(self.contents[place]))
        assert not set(missing) - self.broken, "every part of it is whole"

    def was_damaged(self, checkpoint: Checkpoint) -> bool:
        """Returns whether the test has ever damaged, or purged, anything of a checkpoint."""
        place = manifest_key(checkpoint.job_uid, checkpoint.name.rpartition("/")[2])
        if place in self.ever_broken or prefix(checkpoint.job_uid) in self.purged:
            return True
        manifest = decode(self.contents[place])
        keys = {part_key(manifest.job_uid, part.digest) for part in manifest.parts}
        return not keys.isdisjoint(self.ever_broken)
