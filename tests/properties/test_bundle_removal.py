"""Uploads, jobs, removals and deletions of jobs in any order, with any of them slow or killed at any call."""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.fleet.bundle_collector import GRACE_SECONDS
from tests.harness.bundle_world import Actor, BundleWorld

MOST_ACTORS = 6
STEPS = {
    ("begin", "collect"): 6,
    ("begin", "create"): 5,
    ("begin", "upload"): 5,
    ("go_on", ""): 50,
    ("end", ""): 8,
    ("kill", ""): 2,
    ("delete_job", ""): 4,
    ("all_look", ""): 10,
    ("wait", ""): 4,
    ("restart", ""): 1,
    ("outage", ""): 1,
}
"""What can happen, and how often."""


class Play:
    """What happens in a world of bundles, and who is at it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.world = BundleWorld()
        self.actors: list[Actor] = []
        self.begun = 0

    async def go(self, steps: int) -> None:
        await self.world.upload().end()
        for _ in range(2):
            await self.all_look("")
        for name, which in self.chance.choices(list(STEPS), list(STEPS.values()), k=steps):
            await getattr(self, name)(which)
            self.actors = [each for each in self.actors if not each.task.done()]
            await self.world.check()
        self.world.objects.failing = False
        for actor in self.actors:
            await actor.end()
            await self.world.check()
        await self.comes_to_rest()

    async def begin(self, kind: str) -> None:
        self.begun += 1
        world = self.world
        if len(self.actors) < MOST_ACTORS:
            match kind:
                case "collect":
                    self.actors.append(world.collect(self.begun % 2))
                case "create":
                    self.actors.append(world.create(f"j{self.begun}"))
                case _:
                    self.actors.append(world.upload())

    async def all_look(self, _: str) -> None:
        """Both replicas look, and it is as long as a grace until they look again."""
        for replica in (0, 1):
            await self.world.collect(replica).end()
        self.world.seconds += GRACE_SECONDS

    async def go_on(self, _: str) -> None:
        if self.actors:
            await self.chance.choice(self.actors).step()

    async def end(self, _: str) -> None:
        if self.actors:
            await self.chance.choice(self.actors).end()

    async def kill(self, _: str) -> None:
        if self.actors:
            await self.chance.choice(self.actors).kill()

    async def delete_job(self, _: str) -> None:
        if jobs := await self.world.jobs():
            await self.world.delete(self.chance.choice(jobs).removeprefix("jobs/"))

    async def wait(self, _: str) -> None:
        self.world.seconds += GRACE_SECONDS

    async def restart(self, _: str) -> None:
        self.world.collectors[self.chance.randrange(2)] = self.world.collector()

    async def outage(self, _: str) -> None:
        self.world.objects.failing = not self.world.objects.failing

    async def comes_to_rest(self) -> None:
        """What is not needed is removed in time, and can be had again."""
        world = self.world
        for name in await world.jobs():
            await world.delete(name.removeprefix("jobs/"))
        for _ in range(4):
            await self.all_look("")
        assert not world.is_there()
        marks = await world.store.bundle_marks()
        assert not marks.doomed
        assert not marks.removing
        assert await world.upload().end() is True
        assert isinstance(await world.create("last").end(), Job)
        await world.check()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.integers(0, 80))
def test_no_job_loses_its_bundle(chance: random.Random, steps: int) -> None:
    asyncio.run(Play(chance).go(steps))
