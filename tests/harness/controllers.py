"""The controllers of a replica, on a store that may be shared; a test runs each round by hand."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.objects import S3Settings
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.fleet.lease_monitor import LeaseMonitor
from adjourn_control_plane.fleet.scheduler import Scheduler
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Change, JobName, WorkerName
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore

SETTINGS = Settings(
    redis_url="redis://none", s3=S3Settings(endpoint="http://none", bucket="b", access_key="k", secret_key="s")
)


class Controllers:
    """A replica's controllers, and what they need to be given."""

    def __init__(self, store: MemoryStore, objects: MemoryObjects | None = None) -> None:
        self.store = store
        self.updater = JobUpdater(store)
        self.objects = objects or MemoryObjects()
        self.notifier = Notifier(store)
        self.scheduler = Scheduler(store, self.updater, self.notifier, SETTINGS)
        self.monitor = LeaseMonitor(store, self.updater, SETTINGS)
        self.collector = Collector(store, self.objects, SETTINGS)

    async def create(self, name: str, **spec: Any) -> JobName:
        job = Job(name=f"jobs/{name}", spec=JobSpec(entry_point="m:f", **spec))
        decision = machine.create(job, uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
        await self.store.commit(Change(job=JobName(job.name), expected=0, record=decision.record))
        return JobName(job.name)

    async def worker(self, name: str, *, cpu_slots: int = 0, gpus: int = 0, **description: Any) -> str:
        """Connects a worker; returns its stream."""
        devices = [Device(uuid=f"{name}-{index}", index=index) for index in range(gpus)]
        stream = uuid4().hex
        worker = Worker(name=name, cpu_slots=cpu_slots, devices=devices, **description)
        await self.store.attach(worker, f"session of {stream}", stream)
        await self.store.heartbeat(worker, stream)
        return stream

    async def loses(self, name: str) -> None:
        """Marks a worker lost."""
        session = await self.store.session(WorkerName(name))
        assert session
        await self.store.mark_lost(WorkerName(name), session.heartbeat)

    async def record(self, job: JobName) -> JobRecord:
        stored = await self.store.get(job)
        assert stored
        return stored.record

    async def manifest(self, job: JobName) -> str:
        """Returns the key of a manifest of the job."""
        return f"checkpoints/{(await self.record(job)).job.uid}/manifests/1"

    async def saves(self, job: JobName) -> str:
        key = await self.manifest(job)
        await self.objects.put(key, b"x")
        return key

    async def delete(self, job: JobName) -> None:
        stored = await self.store.get(job)
        assert stored
        await self.store.commit(Change(job=job, expected=stored.version, record=None))

    async def where(self, *names: JobName) -> list[str]:
        return [(await self.record(name)).job.worker for name in names]
