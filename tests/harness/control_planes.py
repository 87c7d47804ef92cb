"""Control planes in the tests' own process, and an agent that says what a test wants it to say."""

import asyncio
import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import grpc
from grpc_status import rpc_status

from adjourn import errors
from adjourn.channel import CLIENT_OPTIONS
from adjourn.local.ports import HOST, free_ports
from adjourn.objects import ObjectStore, S3Settings
from adjourn.v1 import checkpoint_service_pb2 as checkpoint_pb
from adjourn.v1 import job_service_pb2 as job_pb
from adjourn.v1 import worker_service_pb2 as worker_pb
from adjourn.v1.agent_service_pb2 import (
    Assignment,
    AssignmentStatus,
    FencingToken,
    Report,
    SeriesPart,
    SynchronizeRequest,
    SynchronizeResponse,
)
from adjourn.v1.agent_service_pb2_grpc import AgentServiceStub
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2_grpc import JobServiceStub
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn.v1.worker_service_pb2_grpc import WorkerServiceStub
from adjourn_control_plane.aio import end
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.fleet.lease_monitor import LeaseMonitor, monotonic
from adjourn_control_plane.fleet.scheduler import Scheduler
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.server import Server
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import JobStore
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.memory_objects import MemoryObjects

PATIENCE = 60.0
"""Seconds after which what should have happened never will."""
SETTINGS = Settings(
    redis_url="redis://given-as-a-store",
    s3=S3Settings(endpoint="http://none", bucket="b", access_key="k", secret_key="s"),
    listen=f"{HOST}:0",
    sync_interval=timedelta(seconds=0.1),
    lease_duration=timedelta(hours=1),
)
LEASE = 1.0
"""Seconds, where a test has leases end."""

SPEC = JobSpec(entry_point="train:main", total_epochs=3)


def creation(*, name: str = "", **fields: Any) -> job_pb.CreateJobRequest:
    """Returns a request for a job of SPEC."""
    return job_pb.CreateJobRequest(job_id=name, job=Job(spec=SPEC), **fields)


def checkpoint_of_epoch(epoch: int, attempt: int = 1) -> Checkpoint:
    """Returns a checkpoint of `jobs/j` for a report."""
    return Checkpoint(name=f"jobs/j/checkpoints/{attempt}-{epoch}", attempt=attempt, epoch=epoch, step=10 * epoch)


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A control plane that serves."""

    address: str
    store: JobStore
    objects: ObjectStore
    channel: grpc.aio.Channel

    @property
    def jobs(self) -> Any:
        return JobServiceStub(self.channel)

    async def create(
        self, name: str = "j", *, epochs: int = 5, gpus: int = 0, args: Mapping[str, str] | None = None
    ) -> Job:
        kept = JobSpec.Retention(keep_last=1000)  # tests look at all of them
        spec = JobSpec(entry_point="train:main", total_epochs=epochs, gpu_count=gpus, retention=kept)
        spec.args.update(args or {})
        job: Job = await self.jobs.CreateJob(job_pb.CreateJobRequest(job_id=name, job=Job(spec=spec)))
        return job

    async def get(self, name: str = "jobs/j") -> Job:
        job: Job = await self.jobs.GetJob(job_pb.GetJobRequest(name=name))
        return job

    async def until(self, condition: Callable[[Job], bool], name: str = "jobs/j") -> Job:
        """Waits for something that stays true of a job: a watcher is not shown all that it passes through."""
        async with asyncio.timeout(PATIENCE):
            async for response in self.jobs.WatchJobs(job_pb.WatchJobsRequest(names=[name])):
                if response.HasField("job") and condition(response.job):
                    found: Job = response.job
                    return found
        raise AssertionError("the watch ended")

    async def becomes(self, state: Job.State.ValueType, name: str = "jobs/j") -> Job:
        """Waits for a state in which a job stays."""
        return await self.until(lambda job: job.state == state, name)

    async def worker_is(self, state: Worker.State.ValueType, name: str = "workers/a") -> None:
        """Waits for a worker's state."""
        request = worker_pb.GetWorkerRequest(name=name)
        async with asyncio.timeout(PATIENCE):
            while (await self.workers.GetWorker(request)).state != state:  # noqa: ASYNC110  # it is the server's
                await asyncio.sleep(0.02)

    def calls_on(self, name: str) -> list[tuple[Any, Any]]:
        """Returns every call that takes a job's name, with a request for it."""
        return [
            (self.jobs.GetJob, job_pb.GetJobRequest(name=name)),
            (self.jobs.PauseJob, job_pb.PauseJobRequest(name=name)),
            (self.jobs.ResumeJob, job_pb.ResumeJobRequest(name=name)),
            (self.jobs.CancelJob, job_pb.CancelJobRequest(name=name)),
            (self.jobs.DeleteJob, job_pb.DeleteJobRequest(name=name)),
            (self.jobs.ListEpochMetrics, job_pb.ListEpochMetricsRequest(parent=name)),
            (self.jobs.ListStepMetrics, job_pb.ListStepMetricsRequest(parent=name)),
            (self.jobs.ListResourceSamples, job_pb.ListResourceSamplesRequest(parent=name)),
            (self.checkpoints.ListCheckpoints, checkpoint_pb.ListCheckpointsRequest(parent=name)),
        ]

    @property
    def checkpoints(self) -> Any:
        return CheckpointServiceStub(self.channel)

    @property
    def workers(self) -> Any:
        return WorkerServiceStub(self.channel)


class LeaseClock:
    """The clock that leases are counted on; it stands still but for what a test lets pass, and goes no further then."""

    def __init__(self) -> None:
        self.passed = self.limit = self.began = 0.0

    def __call__(self) -> float:
        return self.passed + min(time.monotonic() - self.began, self.limit)

    @contextlib.contextmanager
    def running(self, limit: float = math.inf) -> Iterator[None]:
        """Lets time pass; `limit`: seconds at most."""
        self.began, self.limit = time.monotonic(), limit
        try:
            yield
        finally:
            self.passed, self.limit = self(), 0.0

    async def passes(self, seconds: float) -> None:
        """Lets so much time pass, however long this process is held up meanwhile."""
        with self.running(seconds):
            await asyncio.sleep(seconds)


@asynccontextmanager
async def replica(
    store: JobStore,
    *,
    objects: ObjectStore | None = None,
    clock: LeaseClock | None = None,
    controllers: bool = True,
    patience: float = 0.0,
) -> AsyncIterator[Replica]:
    """Serves as `adjourn_control_plane.process` does, on a store that is given; drains in the end.

    `clock`: leases are of one second, and counted on it. Without it nobody's ends while a test runs.

    `patience`: seconds that the answer to a pause waits for the agent to say where it will be; most tests' agents do
    not say it.
    """
    settings = SETTINGS if clock is None else replace(SETTINGS, lease_duration=timedelta(seconds=LEASE))
    kept = objects or MemoryObjects()
    updater, notifier = JobUpdater(store), Notifier(store)
    listener = asyncio.create_task(notifier.run())
    loops: list[asyncio.Task[None]] = []
    if controllers:
        loops = [
            asyncio.create_task(Scheduler(store, updater, notifier, settings).run()),
            asyncio.create_task(LeaseMonitor(store, updater, settings, clock=clock or monotonic).run()),
            asyncio.create_task(Collector(store, kept, settings).run()),
        ]
    try:
        server = Server(settings, store, kept, updater, notifier, patience=patience)
        address = f"{HOST}:{server.port}"
        async with grpc.aio.insecure_channel(address) as channel, server:
            yield Replica(address=address, store=store, objects=kept, channel=channel)
            await end(*loops)
    finally:
        await end(listener, *loops)


class ControlPlaneProcess:
    """A process that can be killed and started again at the same address."""

    def __init__(self, environment: dict[str, str]) -> None:
        (port,) = free_ports(1)
        self.address = f"{HOST}:{port}"
        self.environment = {**os.environ, **environment, "ADJOURN_LISTEN": self.address}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "adjourn_control_plane"], env=self.environment)
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(30)


class Caught:
    error: errors.AdjournError


@contextlib.contextmanager
def refused(kind: type[errors.AdjournError]) -> Iterator[Caught]:
    """Expects a call to be answered with an error of a class."""
    caught = Caught()
    try:
        yield caught
    except grpc.aio.AioRpcError as answer:
        caught.error = typed_error(answer)
    found = getattr(caught, "error", None)
    assert type(found) is kind, f"expected {kind.__name__}, got {found!r}"
    assert found.code == kind.code


def typed_error(answer: grpc.aio.AioRpcError) -> errors.AdjournError:
    """Returns the error that an answer carries in its details."""
    status = rpc_status.from_call(answer)
    assert status is not None, answer
    assert status.code == answer.code().value[0]
    return errors.from_status(status)


@dataclass
class Agent:
    """A stream of Synchronize in a test's hands; what is heard is kept until it is looked at."""

    address: str
    name: str = "workers/a"
    cpu_slots: int = 1
    gpus: int = 0
    instance: str = ""
    session: str = field(default_factory=lambda: uuid4().hex)
    sequence: int = 0
    acted_upon: int = 0
    heard: "asyncio.Queue[SynchronizeResponse | grpc.aio.AioRpcError | None]" = field(default_factory=asyncio.Queue)

    async def __aenter__(self) -> Self:
        self.channel = grpc.aio.insecure_channel(self.address, options=CLIENT_OPTIONS)
        stub: Any = AgentServiceStub(self.channel)
        self.call = stub.Synchronize()
        self.listener = asyncio.create_task(self.listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call.cancel()
        await asyncio.gather(self.listener, return_exceptions=True)
        await self.channel.close()

    async def listen(self) -> None:
        try:
            async for response in self.call:
                self.heard.put_nowait(response)
        except grpc.aio.AioRpcError as error:
            self.heard.put_nowait(error)
        else:
            self.heard.put_nowait(None)

    async def say(
        self,
        *assignments: AssignmentStatus,
        reports: tuple[Report, ...] = (),
        series: tuple[SeriesPart, ...] = (),
        draining: bool = False,
    ) -> None:
        devices = [Device(uuid=f"{self.name}-{index}", index=index) for index in range(self.gpus)]
        worker = Worker(name=self.name, cpu_slots=self.cpu_slots, devices=devices, instance=self.instance)
        await self.call.write(
            SynchronizeRequest(
                worker=worker,
                session_id=self.session,
                assignments=assignments,
                reports=reports,
                series=series,
                draining=draining,
                acknowledged_response=self.acted_upon,
            )
        )

    async def hears(self, wanted: Callable[[SynchronizeResponse], bool] = lambda _: True) -> SynchronizeResponse:
        """Waits for a response that is wanted; those before it are passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                heard = await self.heard.get()
                if isinstance(heard, grpc.aio.AioRpcError):
                    raise heard
                assert heard is not None, "the stream has ended"
                self.acted_upon = heard.sequence
                if wanted(heard):
                    return heard

    async def given(
        self, job: str, target: Assignment.Target.ValueType = Assignment.RUN, *, attempt: int = 0
    ) -> Assignment:
        """Waits for an assignment with a target. `attempt`: of this attempt; 0: of any."""

        def mine(response: SynchronizeResponse) -> list[Assignment]:
            found = [each for each in response.assignments if each.job == job and each.target == target]
            return [each for each in found if attempt in (0, each.token.attempt)]

        return mine(await self.hears(lambda response: bool(mine(response))))[0]

    async def ended(self) -> None:
        """Waits for the end of the stream; raises the error that it ended with."""
        async with asyncio.timeout(PATIENCE):
            while (heard := await self.heard.get()) is not None:
                if isinstance(heard, grpc.aio.AioRpcError):
                    raise heard

    def report(self, job: str, token: FencingToken, **what: Any) -> Report:
        self.sequence += 1
        return Report(sequence=self.sequence, job=job, token=token, **what)


def status_of(
    order: Assignment, phase: AssignmentStatus.Phase.ValueType = AssignmentStatus.RUNNING, *, epoch: int = 0
) -> AssignmentStatus:
    """Returns the status of an attempt that has done as it was told."""
    status = AssignmentStatus(job=order.job, token=order.token, observed_generation=order.generation, phase=phase)
    status.progress.epoch, status.progress.step = epoch, 10 * epoch
    status.progress.report_time.FromSeconds(1000 * order.token.attempt + epoch)
    return status


async def to_the_end(stream: Any) -> None:
    """Reads a stream until it raises what it ended with."""
    while await stream.read() is not grpc.aio.EOF:
        pass
