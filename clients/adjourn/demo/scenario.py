"""The steps of the demonstration. Every wait has a deadline, and every step is printed as it happens."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.struct_pb2 import Struct

from adjourn.client import AsyncClient
from adjourn.demo.comparison import Comparison, Run, compare
from adjourn.demo.printer import Printer
from adjourn.errors import DeadlineError, JobFinishedError
from adjourn.local.stack import Stack
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, JobSpec

ENTRY_POINT: Final = "adjourn.examples.digits:main"
ARGS: Final[Mapping[str, int]] = {}
"""Arguments of the training, beside its defaults."""
EPOCHS: Final = 12
PAUSE_IN: Final = (3, 6, 9)
"""Epochs during which a pause is asked for."""
SEED: Final = 20260
WAIT_SECONDS: Final = 60.0
"""Longest wait for the next change of a job, in seconds."""
POLL_SECONDS: Final = 0.05


class DemoError(Exception):
    """A step of the demonstration did not have the expected result."""


@dataclass(slots=True)
class Scenario:
    """One demonstration on a running stack."""

    stack: Stack
    client: AsyncClient
    printer: Printer
    _shown: dict[str, int] = field(default_factory=dict, init=False)
    """Epochs already printed, by job."""

    async def run(self) -> Comparison:
        """Runs every step and returns the comparison. Raises DemoError, AdjournError, ProgramError."""
        self.printer.chapter(f"Reference: {EPOCHS} epochs of {ENTRY_POINT}, not interrupted")
        reference = await self._finish(await self._create("reference"))
        self.printer.chapter(f"The same with the same seed, paused in epochs {', '.join(map(str, PAUSE_IN))}")
        name = await self._create("interrupted")
        for number, epoch in enumerate(PAUSE_IN, start=1):
            paused = await self._pause(name, epoch)
            if number == 1:
                self.printer.view(paused)
                await self._resume_elsewhere(paused)
            else:
                await self._resume(paused)
        interrupted = await self._finish(name)
        self.printer.phases(interrupted.pauses)
        comparison = compare(reference, interrupted)
        self.printer.comparison_table(comparison)
        if comparison.pauses != len(PAUSE_IN) or comparison.workers < 2 or comparison.epochs != EPOCHS:
            raise DemoError(f"this was to be {EPOCHS} epochs, {len(PAUSE_IN)} pauses and 2 workers: {comparison}")
        return comparison

    async def _create(self, job_id: str) -> str:
        spec = JobSpec(entry_point=ENTRY_POINT, total_epochs=EPOCHS, seed=SEED, args=Struct())
        spec.args.update(ARGS)
        job = await self.client.create_job(spec, job_id=job_id)
        self.printer.step(f"{job.name} created: {Job.State.Name(job.state)}")
        return job.name

    async def _finish(self, name: str) -> Run:
        job = await self._follow(name, "its end", lambda job: job.state == Job.SUCCEEDED)
        self.printer.step(f"{name} SUCCEEDED")
        history = [measured async for measured in self.client.list_epoch_metrics(name)]
        return Run(job=job, checkpoint=await self._checkpoint(job), history=history)

    async def _checkpoint(self, job: Job) -> Checkpoint:
        if not job.latest_checkpoint:
            raise DemoError(f"{job.name} ended without a checkpoint")
        checkpoint = await self.client.get_checkpoint(job.latest_checkpoint)
        if checkpoint.epoch != job.progress.epoch:
            raise DemoError(f"{checkpoint.name} is of epoch {checkpoint.epoch}, not of the last, {job.progress.epoch}")
        return checkpoint

    async def _pause(self, name: str, epoch: int) -> Job:
        """Asks for a pause while `epoch` runs, and returns the paused job."""
        await self._follow(
            name, f"epoch {epoch}", lambda job: job.state == Job.RUNNING and job.progress.epoch >= epoch - 1
        )
        job = await self.client.pause_job(name, reason=f"demonstration, in epoch {epoch}")
        self.printer.situation("pause asked for", job)
        job = await self._follow(name, "the pause", lambda job: job.state == Job.PAUSED)
        self.printer.situation("paused", job)
        self.printer.step(f"it rests on {job.pause.checkpoint}")
        return job

    async def _resume(self, paused: Job) -> Job:
        asked = await self.client.resume_job(paused.name)
        self.printer.situation("resume asked for", asked)
        job = await self._follow(
            paused.name, "the resume", lambda job: job.state == Job.RUNNING and job.pause.HasField("resume_time")
        )
        self.printer.situation(f"resumed from epoch {paused.progress.epoch}", job)
        return job

    async def _resume_elsewhere(self, paused: Job) -> None:
        """Kills the worker that held the job, resumes the job on another, then starts the killed worker again."""
        worker = paused.pause.from_worker.removeprefix("workers/")
        if worker not in self.stack.workers:
            raise DemoError(f"the pause does not say which worker held the job: {paused.pause.from_worker!r}")
        killed = await self.stack.kill(worker)
        self.printer.step(f"{worker} killed with SIGKILL, {len(killed)} processes: {', '.join(map(str, killed))}")
        job = await self._resume(paused)
        if job.worker == paused.pause.from_worker:
            raise DemoError(f"{job.name} was resumed on {job.worker}, which is dead")
        self.stack.revive(worker)
        self.printer.step(f"{worker} may come back")

    async def _follow(self, name: str, what: str, done: Callable[[Job], bool]) -> Job:
        """Prints epochs as they end; returns the job when `done` accepts it. `what` names the goal in errors."""
        while True:
            job = await self._changed_job(name, what, done)
            await self._show(job)
            if done(job):
                return job

    async def _show(self, job: Job) -> None:
        """Prints the metrics of epochs that ended since the last call; they may arrive a moment after the progress."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (shown := self._shown.get(job.name, 0)) < job.progress.epoch:
            async for measured in self.client.list_epoch_metrics(job.name):
                if shown < measured.epoch:
                    self.printer.epoch(job, measured)
                    self._shown[job.name] = measured.epoch
            if time.monotonic() > deadline:
                raise DemoError(f"{job.name} has no metrics of epoch {job.progress.epoch}")
            await asyncio.sleep(POLL_SECONDS)

    async def _changed_job(self, name: str, what: str, done: Callable[[Job], bool]) -> Job:
        shown = self._shown.get(name, 0)
        try:
            return await self.client.wait_job(
                name, until=lambda job: done(job) or job.progress.epoch > shown, timeout=WAIT_SECONDS
            )
        except (DeadlineError, JobFinishedError):
            job = await self.client.get_job(name)
            why = f", {job.failure.reason}: {job.failure.message}" if job.failure.reason else ""
            raise DemoError(f"while waiting for {what}: {name} is {Job.State.Name(job.state)}{why}") from None
