"""Agents as tests run them, in this process or their own, with a scripted control plane."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch
from uuid import uuid4

import psutil

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.local import process_cleanup
from adjourn.next_boundary import NextBoundary
from adjourn.objects import ObjectStore
from adjourn.shared_files import BoundaryFile, Control
from adjourn.v1.agent_service_pb2 import (
    Assignment,
    AssignmentStatus,
    FencingToken,
)
from adjourn.v1.job_pb2 import PauseMode
from adjourn_worker import sync
from adjourn_worker.agent import Agent
from adjourn_worker.attempt import files
from adjourn_worker.host import locks
from adjourn_worker.host.gpus import Gpus, NoGpus
from adjourn_worker.journal import Journal
from adjourn_worker.launcher.client import LauncherClient
from adjourn_worker.paths import WorkerPaths
from adjourn_worker.settings import Settings
from tests.harness.emulated_training import ENTRY, SOFTWARE
from tests.harness.scripted_control_plane import ControlPlane, Job

ROOT: Final = Path(__file__).parents[2]
DEADLINE: Final = 60.0
"""Seconds that a busy machine may take for anything."""
WORKER: Final = "w"
NOWHERE: Final = "http://127.0.0.1:1"
"""An S3 endpoint that refuses."""

TOLD: Final = {AssignmentStatus.RUNNING: Assignment.RUN, AssignmentStatus.PAUSING: Assignment.PAUSE}
"""What training is to do in each phase in which it goes on."""
PATIENT: Final = (
    "import runpy; from adjourn_worker import agent, sync; agent.STOP_SECONDS = 60.0; sync.SILENCE_INTERVALS = 600;"
    "runpy.run_module('adjourn_worker', run_name='__main__')"
)
"""An agent that waits for what a busy machine takes to end all training."""

Eventually = Callable[..., Awaitable[None]]
Process = subprocess.Popen[bytes]


@dataclass(kw_only=True)
class AgentHarness:
    """A worker's data directory, a control plane, and jobs for it."""

    directory: Path
    marker: Path
    plane: ControlPlane
    paths: WorkerPaths
    eventually: Eventually
    jobs: list[Job] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def job(self, name: str = "a", *, attempt: int = 1, hand_out: bool = True, **fields: Any) -> Job:
        commands = self.directory / f"{name}-{attempt}-commands"
        os.mkfifo(commands)
        assignment = Assignment(
            job=f"jobs/{name}",
            token=FencingToken(attempt=attempt, nonce=secrets.token_hex(16), job_uid=str(uuid4())),
            generation=1,
            target=Assignment.RUN,
            **fields,
        )
        assignment.spec.args["commands"] = str(commands)
        job = Job(assignment=assignment, commands=os.open(commands, os.O_RDWR))
        self.jobs.append(job)
        if hand_out:
            self.plane.assignments[job.name] = assignment
        return job

    def attempt(self, job: Job) -> Path:
        return self.paths.attempt(job.name, job.assignment.token)

    def log(self, job: Job) -> Path:
        return self.paths.log(job.name, job.assignment.token)

    async def until(self, condition: Callable[[], object]) -> None:
        await self.eventually(condition, seconds=DEADLINE)

    async def until_phase(self, job: Job, phase: AssignmentStatus.Phase.ValueType) -> None:
        """Returns once the agent has said so, and training that goes on has been told: that comes a moment later."""
        await self.until(lambda: self.plane.phase(job) == phase)
        if phase in TOLD:
            await self.until_told(job, TOLD[phase])

    async def until_told(
        self, job: Job, target: Assignment.Target.ValueType, mode: PauseMode.ValueType | None = None
    ) -> None:
        """Returns once the training of a job finds what is wanted: the agent tells it after it has decided that."""
        with contextlib.closing(Control(self.attempt(job) / "control")) as control:
            await self.until(lambda: control.read().target == target and mode in (None, control.read().mode))

    async def until_decides_at(self, job: Job, epoch: int) -> None:
        """Returns once the training of a job has the boundary before this one behind it."""
        with contextlib.closing(BoundaryFile(self.attempt(job) / "boundary")) as file:
            await self.until(lambda: file.read() == NextBoundary(epoch=epoch))

    async def until_forgotten(self, job: Job) -> None:
        """Returns once the agent says nothing of the job any more."""
        await self.until(lambda: self.plane.ended(job) and not self.plane.phase(job))

    async def until_durable(self, job: Job, epoch: int) -> None:
        """Returns once the checkpoint of an epoch was reported."""
        await self.until(lambda: any(found.epoch == epoch for found in self.plane.checkpoints(job)))

    def environment(self, **variables: str) -> dict[str, str]:
        """Returns what agents and launchers get: whatever is left of them is ended with the tests."""
        return {**os.environ, **process_cleanup.marker(self.marker), "PYTHONPATH": str(ROOT), **variables}

    @asynccontextmanager
    async def agent(
        self,
        objects: ObjectStore,
        gpus: Gpus | None = None,
        background: ObjectStore | None = None,
        **settings: str,
    ) -> AsyncIterator[Agent]:
        """An agent in this process, once it has spoken; leaves training alone when it ends."""
        chosen = Settings.from_environment(self.settings(**settings))
        earlier = self.sessions()
        stop = asyncio.Event()
        with Journal(self.paths) as journal:
            async with LauncherClient(self.paths, self.environment(), entry=ENTRY, software=SOFTWARE) as launcher:
                agent = Agent(chosen, self.paths, journal, launcher, objects, gpus or NoGpus(), background)
                with patch.object(sync, "SILENCE_INTERVALS", 600):  # those of tests are short
                    task = asyncio.create_task(agent.run(stop))
                    try:
                        await self.until(lambda: self.sessions() - earlier)
                        yield agent
                    finally:
                        stop.set()
                        await task

    def sessions(self) -> set[str]:
        """Returns who has spoken; what an agent that has ended said last may come after its end."""
        return {request.session_id for request in self.plane.requests}

    def settings(self, **others: str) -> dict[str, str]:
        """Returns an agent's variables, with storage that refuses."""
        return {
            "ADJOURN_CONTROL_PLANE": self.plane.address,
            "ADJOURN_WORKER": WORKER,
            "ADJOURN_DATA": str(self.paths.data),
            "ADJOURN_SHARED_MEMORY": str(self.paths.snapshots.parent),
            "ADJOURN_S3_ENDPOINT": NOWHERE,
            "ADJOURN_S3_BUCKET": "models",
            "ADJOURN_S3_ACCESS_KEY": "a",
            "ADJOURN_S3_SECRET_KEY": "b",
            **others,
        }

    async def process(self, *how: str, **settings: str) -> Process:
        """An agent in a process of its own, once it has spoken; the launcher must be there, or torch is loaded.

        `how`: arguments of Python in place of the usual ones.
        """
        earlier = self.sessions()
        with (self.directory / "agent.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220  # takes milliseconds
                (sys.executable, *(how or ("-m", "adjourn_worker"))),
                env=self.environment(**self.settings(**settings)),
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        await self.until(lambda: self.sessions() - earlier or process.poll() is not None)
        return process

    async def launcher(self) -> None:
        """Starts the launcher that the next agent will find: it forks the emulation, without torch."""
        async with LauncherClient(self.paths, self.environment(), entry=ENTRY, software=SOFTWARE):
            pass

    async def ended(self, process: Process) -> int:
        return await asyncio.to_thread(process.wait, DEADLINE)

    async def kill(self, process: Process) -> None:
        process.kill()
        assert await self.ended(process) == -signal.SIGKILL

    def logged(self) -> list[dict[str, Any]]:
        """Returns what agents in processes of their own have logged."""
        lines = (self.directory / "agent.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def training(self, job: Job) -> int:
        """Returns the pid of a job's training process."""
        process = files.read_process(self.attempt(job))
        assert process
        return process.pid

    def written(self, job: Job) -> list[str | None]:
        """Returns the kinds of events that a job's training process has written, heard or not."""
        return [event.WhichOneof("event") for event, _ in files.read_events(self.attempt(job), 0)]

    def launcher_pid(self) -> int:
        pid = locks.holder(self.paths.launcher_lock)
        assert pid
        return pid

    def held(self) -> list[HeldAssignment]:
        """Returns what the journal has; for when no agent runs."""
        with Journal(self.paths) as journal:
            return journal.held()

    async def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for job in self.jobs:
            os.close(job.commands)
        await LauncherClient(self.paths, self.environment()).shutdown()
        await self.plane.stop()
        self.paths.remove_volatile()


@asynccontextmanager
async def agent_harness(
    directory: Path, marker: Path, eventually: Eventually, shared_memory: Path | None = None
) -> AsyncIterator[AgentHarness]:
    """Yields a harness; all that was started with it ends with it."""
    shared_memory = shared_memory or directory / "shm"
    shared_memory.mkdir(exist_ok=True)
    paths = WorkerPaths.prepare(directory / "data", shared_memory)
    plane = ControlPlane()
    await plane.start()
    harness = AgentHarness(directory=directory, marker=marker, plane=plane, paths=paths, eventually=eventually)
    try:
        yield harness
    finally:
        await harness.close()


def oversleep(agent: Agent) -> None:
    """Has an agent find that it slept for longer than its lease."""
    agent.contact.ran -= agent.contact.lease
    agent.contact.heard -= 2 * agent.contact.lease
    assert agent.woke()


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
