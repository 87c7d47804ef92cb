"""How long a resume takes, from the agent's order until training has all of its state; its own set-up is not counted.

Two workers with agents and launchers in processes of their own, real training, the embedded S3 server; the control
plane is scripted. A job pauses at every epoch. It goes on once where it was paused, and once on the other worker.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from adjourn import bundles
from adjourn.local import s3_url
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, SynchronizeResponse
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec
from tests.harness.agents import AgentHarness, agent_harness
from tests.harness.scripted_control_plane import Job

SCRIPT = Path(__file__).parents[1] / "trainings" / "sized.py"
PATIENCE = 300.0


@dataclass(slots=True)
class Resumes:
    """Seconds of each resume."""

    same: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)


class Resuming:
    """Two workers, and one job that goes from one to the other."""

    def __init__(self, harnesses: list[AgentHarness], bundle: str, directory: Path) -> None:
        self.harnesses = harnesses
        self.bundle = bundle
        self.directory = directory
        self.attempts = 0

    async def resumes(self, blocks: int, width: int, times: int) -> Resumes:
        """Has a job of this model go on again and again."""
        found = Resumes()
        one, other = self.harnesses
        checkpoint, _ = await self.attempt(one, blocks, width, None, epochs=1)
        for number in range(times):
            checkpoint, same = await self.attempt(one, blocks, width, checkpoint, epochs=2 * number + 2)
            checkpoint, elsewhere = await self.attempt(other, blocks, width, checkpoint, epochs=2 * number + 3)
            found.same.append(same)
            found.elsewhere.append(elsewhere)
            one, other = other, one
        return found

    async def attempt(
        self, at: AgentHarness, blocks: int, width: int, restore: Checkpoint | None, *, epochs: int
    ) -> tuple[Checkpoint, float]:
        """Has an attempt train for an epoch and pause; returns its checkpoint, and how long its resume took."""
        self.attempts += 1
        told = self.directory / f"told-{self.attempts}"
        spec = JobSpec(entry_point="sized:main", bundle=self.bundle, total_epochs=epochs + 10, seed=7)
        spec.args.update({"blocks": blocks, "width": width, "told": str(told)})
        job = at.job("sized", attempt=self.attempts, hand_out=False, spec=spec, restore=restore)
        job.assignment.target = Assignment.PAUSE
        ordered = handed_out(at, job)
        await at.eventually(lambda: at.plane.ended(job) and not at.plane.phase(job), seconds=PATIENCE)
        said = json.loads(told.read_text())
        return at.plane.checkpoints(job)[-1], said["restored"] - said["set_up"] - ordered()


def handed_out(at: AgentHarness, job: Job) -> Callable[[], float]:
    """Hands a job out; returns what tells when the agent was given it."""
    answer = at.plane.response
    given: list[float] = []

    def response() -> SynchronizeResponse:
        if not given:
            given.append(time.monotonic())
        return answer()

    at.plane.response = response  # type: ignore[method-assign]
    at.plane.assignments[job.name] = job.assignment
    return lambda: given[0]


async def eventually(condition: Callable[[], object], *, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # any condition
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def two_workers(directory: Path, memory: Path, access: S3Settings, objects: S3Objects) -> AsyncIterator[Resuming]:
    """Yields two workers that have said that they are there: their launchers have loaded torch."""
    content = bundles.pack(SCRIPT)
    bundle = f"bundles/{hashlib.sha256(content).hexdigest()}"
    await objects.put(bundles.object_key(bundle), content)
    async with contextlib.AsyncExitStack() as stack:
        harnesses = []
        for name in ("one", "other"):
            (directory / name).mkdir()
            harness = await stack.enter_async_context(agent_harness(directory / name, directory, eventually, memory))
            await harness.process(**s3_url.environment(access))
            harnesses.append(harness)
        yield Resuming(harnesses, bundle, directory)
