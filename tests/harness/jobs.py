"""Jobs as tests run them: a training that goes only as far as it is let, and what it came to."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from google.protobuf.json_format import ParseDict

from adjourn import bundles
from adjourn.client import AsyncClient
from adjourn.errors import JobFinishedError
from adjourn.shared_files import Control
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Job, JobSpec

SCRIPT: Final = Path(__file__).parents[1] / "trainings" / "mlp.py"
EPOCHS: Final = 8
SEED: Final = 7
BEFORE_TRAINING: Final = -1
"""Limit of a gate behind which not even the first epoch begins."""
WAIT_SECONDS: Final = 60.0
"""Longest to wait for what happens at once: processes of a busy machine need ten seconds to start."""
LIVE: Final = frozenset({Job.QUEUED, Job.STARTING, Job.RUNNING, Job.PAUSING, Job.CANCELLING})

Eventually = Callable[..., Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to; equal outcomes are equal bits."""

    digests: Mapping[str, str]
    """Of every component of the newest checkpoint."""
    metrics: Mapping[int, Mapping[str, float]]
    """Of every epoch."""
    best: tuple[str, float, int, int]


class Gate:
    """How far a training may go; `tests/trainings/mlp.py` has the other side, `paced.py` one that counts steps."""

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory = directory
        directory.mkdir()
        self.open(limit)

    def open(self, limit: int) -> None:
        """Lets every epoch up to `limit` end."""
        fresh = self.directory / "limit.fresh"
        fresh.write_text(str(limit))
        fresh.replace(self.directory / "limit")

    def inside(self, epoch: int) -> "Training | None":
        """Returns the process that is in the middle of `epoch`, if one is."""
        with contextlib.suppress(FileNotFoundError):
            pid, _, work = (self.directory / f"in-{epoch}").read_text().partition(" ")
            training = Training(pid=int(pid), attempt=Path(work).parent)
            return training if training.lives() else None
        return None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training process."""

    pid: int
    attempt: Path
    """Its directory."""

    def lives(self) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        return False

    def is_to_pause(self) -> bool:
        """Whether the order has arrived: what it stops at is the next boundary from there."""
        with contextlib.closing(Control(self.attempt / "control")) as control:
            return control.read().target == Assignment.PAUSE


@dataclass(kw_only=True)
class GatedJob:
    """A job behind a gate."""

    client: AsyncClient
    gate: Gate
    name: str
    eventually: Eventually

    async def get(self) -> Job:
        return await self.client.get_job(self.name)

    async def inside(self, epoch: int) -> Training:
        """Returns the process once the job is RUNNING (or STARTING, for epoch 0) in the middle of `epoch`."""
        await self.eventually(lambda: self.gate.inside(epoch), seconds=WAIT_SECONDS)
        wanted = {Job.RUNNING} if epoch else {Job.STARTING, Job.PAUSING}
        await self.until(lambda job: job.state in wanted and job.progress.epoch == max(epoch - 1, 0))
        training = self.gate.inside(epoch)
        assert training
        return training

    async def until(self, wanted: Any, *, seconds: float = WAIT_SECONDS) -> Job:
        """Returns the job once it is in the state, in one of the states, or as the predicate wants it."""
        if isinstance(wanted, int):
            wanted = {wanted}
        return await self.client.wait_job(self.name, until=wanted, timeout=seconds)

    async def durable(self, epoch: int) -> None:
        """Returns when the checkpoint of `epoch` is registered."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self._registered() < epoch:  # noqa: ASYNC110  # the control plane tells nobody
                await asyncio.sleep(0.02)

    async def _registered(self) -> int:
        name = (await self.get()).latest_checkpoint
        return (await self.client.get_checkpoint(name)).epoch if name else 0

    async def ask_for_pause(self, training: Training) -> Job:
        """Asks, and returns the answer when the training process has been told."""
        asked = await self.client.pause_job(self.name)
        assert asked.state == Job.PAUSING
        await self.eventually(training.is_to_pause, seconds=WAIT_SECONDS)
        return asked

    async def pause(self, epoch: int) -> Job:
        """Pauses after `epoch`, in which the training has to be; returns the job at rest."""
        asked = await self.ask_for_pause(await self.inside(epoch))
        assert asked.pause.boundary_epoch in (0, epoch), "it claims nothing, or what is so"
        self.gate.open(epoch)
        paused = await self.until(Job.PAUSED)
        assert (paused.progress.epoch, paused.pause.epoch) == (epoch, epoch)
        assert paused.pause.checkpoint == paused.latest_checkpoint
        return paused

    async def finish(self) -> Job:
        """Lets the training go to its end; returns the job when it has succeeded."""
        self.gate.open(EPOCHS)
        return await self.until(Job.SUCCEEDED)

    async def outcome(self) -> Outcome:
        job = await self.get()
        checkpoint = await self.client.get_checkpoint(job.latest_checkpoint)
        epochs = [metrics async for metrics in self.client.list_epoch_metrics(self.name)]
        assert [metrics.epoch for metrics in epochs] == list(range(1, job.progress.epoch + 1))
        best = job.progress.best
        return Outcome(
            digests=dict(checkpoint.component_digests),
            metrics={metrics.epoch: dict(metrics.values) for metrics in epochs},
            best=(best.metric, best.value, best.epoch, best.stale_epochs),
        )

    async def end(self) -> None:
        """Takes the job from its worker, for the next test."""
        if (await self.get()).state in LIVE | {Job.PAUSED}:
            with contextlib.suppress(JobFinishedError):  # just now
                await self.client.cancel_job(self.name)
            self.gate.open(EPOCHS)
            await self.until({Job.CANCELLED, Job.SUCCEEDED, Job.FAILED})


@dataclass(kw_only=True)
class GatedJobs:
    """Makes gated jobs, and ends them."""

    client: AsyncClient
    directory: Path
    eventually: Eventually
    made: list[GatedJob] = field(default_factory=list)

    async def start(
        self,
        name: str,
        *,
        limit: int = 0,
        epochs: int = EPOCHS,
        script: Path = SCRIPT,
        include: Sequence[Path] = (),
        spec: JobSpec | None = None,
        **args: Any,
    ) -> GatedJob:
        """Queues a job whose training may not go beyond epoch `limit`; `spec` overrides what is chosen here."""
        gate = Gate(self.directory / name, limit)
        bundle = await self.client.upload_bundle(bundles.pack(script, include))
        given = JobSpec(entry_point=f"{script.stem}:main", bundle=bundle, total_epochs=epochs, seed=SEED)
        ParseDict({"gate": str(gate.directory), **args}, given.args)
        given.retention.keep_last = 1000  # tests look at all of them
        given.MergeFrom(spec or JobSpec())
        return self.add(await self.client.create_job(given, job_id=name), gate)

    def add(self, job: Job, gate: Gate) -> GatedJob:
        gated = GatedJob(client=self.client, gate=gate, name=job.name, eventually=self.eventually)
        self.made.append(gated)
        return gated

    async def end(self) -> None:
        for gated in self.made:
            await gated.end()
