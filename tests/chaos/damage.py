"""Objects of checkpoints that the storage damages or loses, each of a job that has another checkpoint to go on from."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adjourn.errors import NotFoundError
from adjourn.manifests import ManifestInvalid, decode, part_key
from adjourn.objects import STORAGE_ERRORS, ObjectMissing, ObjectStore
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from tests.chaos.control_planes import ControlPlanes
from tests.chaos.oracle import LIMIT_BYTES, listed
from tests.chaos.schedule import Action
from tests.harness.checkpoint_objects import manifest_key


@dataclass(kw_only=True)
class Damage:
    """Damages objects, and knows which checkpoints may lack them."""

    planes: ControlPlanes
    objects: ObjectStore
    draw: random.Random
    spoiled: set[str] = field(default_factory=set)
    """Names of checkpoints. What is registered later is whole: the product verifies what it rests on."""

    async def befall_one(self, action: Action, names: Iterable[str]) -> bool:
        """Damages an object of the first of these jobs that can lose it; returns False if none can."""
        for name in names:
            if await self.befall(action, name):
                return True
        return False

    async def befall(self, action: Action, name: str) -> bool:
        """Damages an object of the newest checkpoint of a job; returns False if it had none that it could lose.

        It must be training towards another one, and have a second that is sound.
        """
        try:
            checkpoints: list[Checkpoint] = await self.planes.ask(lambda client: listed(client.list_checkpoints(name)))
            job = await self.planes.ask(lambda client: client.get_job(name))
        except NotFoundError:
            return False
        sound = [each for each in checkpoints if each.job_uid == job.uid and each.name not in self.spoiled]
        newest = sound[0] if sound and sound[0] == checkpoints[0] else None
        if (
            newest is None
            or job.state != Job.RUNNING
            or newest.epoch == job.spec.total_epochs
            or all(each.epoch == newest.epoch for each in sound)
        ):
            return False
        try:
            return await self._damage(action, job, newest, [each for each in checkpoints if each != newest])
        except (*STORAGE_ERRORS, ObjectMissing):
            return False

    async def _damage(self, action: Action, job: Job, newest: Checkpoint, others: Sequence[Checkpoint]) -> bool:
        of_others: set[str] = set().union(*[await self._parts(each) for each in others if each.job_uid == job.uid])
        own = sorted(await self._parts(newest) - of_others)
        key = self.draw.choice([manifest_key(newest), *(part_key(job.uid, digest) for digest in own)])
        data = await self.objects.get(key, limit=LIMIT_BYTES)
        self.spoiled.add(newest.name)
        if action is Action.LOSE:
            await self.objects.delete_prefix(key)
        else:
            await self.objects.put(key, data[:-1] + bytes([data[-1] ^ 1]))
        try:
            now = await self.planes.ask(lambda client: client.get_job(job.name))
        except NotFoundError:
            now = Job()
        if now.uid != job.uid:  # it may have been purged before we wrote
            await self.objects.delete_prefix(key)
        return True

    async def _parts(self, checkpoint: Checkpoint) -> set[str]:
        """Returns the digests of a checkpoint's parts; none of one whose manifest was damaged or lost."""
        try:
            raw = await self.objects.get(manifest_key(checkpoint), limit=LIMIT_BYTES)
            return {part.digest for part in decode(raw).parts}
        except (ManifestInvalid, ObjectMissing):
            return set()
