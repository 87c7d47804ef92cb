"""What pauses, resumes and checkpoints cost on real workers: times, the pace of training, the memory of the agent.

Two workers with agents and launchers in processes of their own, real training, the embedded S3 server; the control
plane is scripted. A job pauses after each epoch. It goes on once where it was paused, and once on the other worker.
"""

import asyncio
import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adjourn import bundles
from adjourn.local import s3_url
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, SynchronizeResponse
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import JobSpec, Pause
from tests.harness.agents import AgentHarness, agent_harness
from tests.harness.scripted_control_plane import Job

SCRIPT = Path(__file__).parents[1] / "trainings" / "sized.py"
PATIENCE = 300.0
LEAST_STEPS = 8
"""Of which a pace can be told."""


@dataclass(slots=True)
class Observed:
    """What was seen of the jobs of one size; times in seconds."""

    same: list[float] = field(default_factory=list)
    """From the agent's order until training has its state, without its own set-up; where it was paused."""
    elsewhere: list[float] = field(default_factory=list)
    """The same, on the other worker."""
    stalls: list[float] = field(default_factory=list)
    """Of pauses: from the boundary until the snapshot is told of."""
    gone: list[float] = field(default_factory=list)
    """From the boundary until the process is gone."""
    resumed: list[float] = field(default_factory=list)
    """Time of a step after a resume, in that of one in a new run just before."""
    new: list[float] = field(default_factory=list)
    """Time of a step in each new run."""
    beside: list[float] = field(default_factory=list)
    """Time of the steps that were made while a checkpoint became durable, in that of as many just after."""
    beside_cpu: list[float] = field(default_factory=list)
    """The same, of the CPU of the thread that trains."""
    calls: list[float] = field(default_factory=list)
    """CPU time of `run.step()`."""
    agent_growth: int = 0
    """Most bytes that an agent has held in memory so far, beyond those at its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was seen of one."""

    checkpoint: Checkpoint
    resume: float
    pause: Pause
    told: dict[str, Any]
    """By the training."""

    @property
    def pace(self) -> float:
        """The time of a calm step, in the second half of an epoch: slots are ready, and optimizers have a state."""
        steps: list[float] = [wall for wall, _ in self.told["paces"][0]]
        return statistics.quantiles(steps[len(steps) // 2 :], n=4)[0]


class Workers:
    """Two workers, and jobs that go from one to the other."""

    def __init__(self, harnesses: list[AgentHarness], bundle: str, directory: Path) -> None:
        self.harnesses = harnesses
        self.bundle = bundle
        self.directory = directory
        self.attempts = 0
        self.at_rest = [memory(harness, "VmRSS") for harness in harnesses]

    async def observed(self, *, blocks: int, width: int, steps: int, times: int) -> Observed:
        """Has jobs with this model begin, pause and go on, again and again; then one that is saved while it trains."""
        found = Observed()
        one, other = self.harnesses
        model = {"blocks": blocks, "width": width, "steps": steps}
        for _ in range(times):
            begun = await self.attempt(one, model, None)
            same = await self.attempt(one, model, begun.checkpoint)
            elsewhere = await self.attempt(other, model, same.checkpoint)
            found.same.append(same.resume)
            found.elsewhere.append(elsewhere.resume)
            found.resumed += [each.pace / begun.pace for each in (same, elsewhere)]
            found.new.append(begun.pace)
            for each in (begun, same, elsewhere):
                boundary = each.pause.boundary_time.ToNanoseconds()
                found.stalls.append((each.pause.snapshot_time.ToNanoseconds() - boundary) / 1e9)
                found.gone.append((each.pause.release_time.ToNanoseconds() - boundary) / 1e9)
                found.calls += each.told["calls"]
            one, other = other, one
        saved = await self.attempt(one, model | {"snapshots": str(one.paths.snapshots)}, None, pausing=False)
        found.new.append(saved.pace)
        for during, after in saved.told["pairs"]:
            if len(during) >= LEAST_STEPS:
                (wall, cpu), (wall_after, cpu_after) = (map(sum, zip(*steps, strict=True)) for steps in (during, after))
                found.beside.append(wall / wall_after)
                found.beside_cpu.append(cpu / cpu_after)
        found.agent_growth = max(
            memory(harness, "VmHWM") - before for harness, before in zip(self.harnesses, self.at_rest, strict=True)
        )
        return found

    async def attempt(
        self, at: AgentHarness, arguments: dict[str, Any], restore: Checkpoint | None, *, pausing: bool = True
    ) -> Attempt:
        """Has an attempt train for an epoch and pause, or to its end."""
        self.attempts += 1
        told = self.directory / f"told-{self.attempts}"
        epochs = (restore.epoch if restore else 0) + (2 if pausing else 3)
        spec = JobSpec(entry_point="sized:main", bundle=self.bundle, total_epochs=epochs, seed=7)
        spec.args.update({**arguments, "told": str(told)})
        job = at.job("sized", attempt=self.attempts, hand_out=False, spec=spec, restore=restore)
        job.assignment.target = Assignment.PAUSE if pausing else Assignment.RUN
        ordered = handed_out(at, job)
        await at.eventually(lambda: at.plane.ended(job) and not at.plane.phase(job), seconds=PATIENCE)
        said = json.loads(told.read_text())
        pauses = [report.pause for report in at.plane.of(job) if report.HasField("pause")]
        return Attempt(
            checkpoint=at.plane.checkpoints(job)[-1],
            resume=said["restored"] - said["set_up"] - ordered(),
            pause=pauses[-1] if pauses else Pause(),
            told=said,
        )


def memory(harness: AgentHarness, field_name: str) -> int:
    """Returns bytes of memory of the agent's process, as the kernel counts them in its file `status`."""
    lines = Path(f"/proc/{harness.processes[-1].pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field_name}:"))


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
async def two_workers(directory: Path, memory: Path, access: S3Settings, objects: S3Objects) -> AsyncIterator[Workers]:
    """Yields two workers that have said that they are there: their launchers have loaded torch.

    Training has one thread: what the agent does beside it has a core of its own.
    """
    content = bundles.pack(SCRIPT)
    bundle = f"bundles/{hashlib.sha256(content).hexdigest()}"
    await objects.put(bundles.object_key(bundle), content)
    async with contextlib.AsyncExitStack() as stack:
        harnesses = []
        for name in ("one", "other"):
            (directory / name).mkdir()
            harness = await stack.enter_async_context(agent_harness(directory / name, directory, eventually, memory))
            await harness.process(ADJOURN_THREADS="1", **s3_url.environment(access))
            harnesses.append(harness)
        yield Workers(harnesses, bundle, directory)
