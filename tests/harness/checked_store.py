"""The store in memory that looks at every change of a job, and the gate that a replica's calls to it pass."""

import asyncio
import copy
import random
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from typing import Any

from adjourn import reasons
from adjourn.errors import StoreUnavailableError
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import Assignment, Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import retries
from adjourn_control_plane.job.machine import ENDED, HELD
from adjourn_control_plane.job.transition import WORKER_CONDITIONS
from adjourn_control_plane.store.interface import Change, JobName, Session, WorkerName
from tests.harness.damaged_objects import DamagedObjects
from tests.harness.job_history import Told
from tests.harness.memory_store import Entry, MemoryStore
from tests.harness.training_model import expected_value

Key = tuple[str, str, int, str]
FREE = retries.WORKERS_FAULT | {reasons.WORKER_STOPPED}
"""Reasons of ends that cost no restart."""


class Gate:
    """What lies between a process and the store: it may be held up at any call, or cut off."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        """Cleared: the process is stopped, or was killed; it goes no further."""
        self.open.set()
        self.reaches_store = True
        self.answers_lost = False
        """What is written is written, and the process hears that the store is away."""

    async def passed(self) -> None:
        await self.open.wait()


GATE: ContextVar[Gate | None] = ContextVar("gate", default=None)
"""Of the process that the running task is part of."""


def key(about: Assignment | Report) -> Key:
    """Names an attempt."""
    return about.job, about.token.job_uid, about.token.attempt, about.token.nonce


def key_of(record: JobRecord) -> Key:
    """Names the running or last attempt of a job."""
    return record.job.name, record.token.job_uid, record.token.attempt, record.token.nonce


class CheckedStore(MemoryStore):
    """Looks at every change of a job as it is made; each call takes its own time."""

    def __init__(self, slots: dict[str, int], now_ns: Callable[[], int], objects: DamagedObjects) -> None:
        super().__init__(now_ns=now_ns)
        self.slots = slots
        self.objects = objects
        self.resuming = False
        self.chance = random.Random(0)
        self.on_lost: Callable[[Session], None] | None = None
        """Hears of each worker that is marked lost."""
        self.on_change: Callable[[JobRecord | None, JobRecord | None], None] | None = None
        """Hears of each change of a record: before, after."""
        self.strict = True
        """False: the store was set back once, so that what it says may contradict what it said."""

    async def _reach(self) -> None:
        gate = GATE.get()
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)
        if gate:
            await gate.passed()
            if not gate.reaches_store:
                raise StoreUnavailableError("The store is out of reach: the test cut it off", store="memory")
        await super()._reach()

    async def commit(self, change: Change) -> int:
        version = await super().commit(change)
        gate = GATE.get()
        if gate and gate.answers_lost:
            gate.answers_lost = False
            raise StoreUnavailableError("The store's answer was lost: the test cut it off", store="memory")
        return version

    async def mark_lost(self, worker: WorkerName, heartbeat: int) -> bool:
        before = self._sessions.get(worker)
        lost = await super().mark_lost(worker, heartbeat)
        if lost and before is not None and not before.lost and self.on_lost:
            self.on_lost(before)
        return lost

    def _write(self, change: Change, old: Entry | None) -> Entry | None:
        before = old.read().record if old else None
        if before and change.record:
            assert old
            self._look(before, change.record, change, old.checkpoints.keys())
            self._look_at_damage(before, change, [Checkpoint.FromString(each) for each in old.checkpoints.values()])
        new = super()._write(change, old)
        if self.on_change:
            self.on_change(before, change.record)
        return new

    def kept(self) -> dict[str, Any]:
        """Returns a copy of all that the store holds."""
        held = {
            name: copy.copy(value)
            for name, value in vars(self).items()
            if name.startswith("_") and name not in ("_listeners", "_now_ns")
        }
        return held | self._by_worker()

    def _by_worker(self) -> dict[str, Any]:
        """Returns a copy of what is kept by worker and job."""
        return {
            "_holding": {worker: dict(jobs) for worker, jobs in self._holding.items()},
            "_unconfirmed": {worker: dict(jobs) for worker, jobs in self._unconfirmed.items()},
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Sets the store back to an earlier copy; what happened since never happened."""
        self.strict = False
        vars(self).update({name: copy.copy(value) for name, value in kept.items()})
        vars(self).update(self._by_worker())
        self.reconnect()

    def _look(self, old: JobRecord, new: JobRecord, change: Change, known: Collection[str]) -> None:
        assert new.revision in (old.revision, old.revision + 1)
        assert Told.of(old).after(change.events) == Told.of(new), "the history tells of every change"
        assert old.job.uid == new.job.uid == new.token.job_uid
        if new.job.state != old.job.state:
            assert new.revision > old.revision
            back = old.job.state == Job.FAILED and old.HasField("lost_attempt")
            assert old.job.state not in ENDED or self.resuming or back, "the end is the end, unless somebody resumes"
        if not self.strict:
            return
        if old.job.worker and not new.job.worker and change.events[-1].actor == "control_plane":
            assert self._sessions[old.job.worker].lost, "only from a lost worker jobs are taken away"
        for checkpoint in change.checkpoints:
            if checkpoint.name == new.checkpoint.name and checkpoint.name not in known:
                assert checkpoint.name.split("/")[-1].startswith(f"{old.token.attempt}-{old.token.nonce[:8]}-")
                again = checkpoint.epoch == old.checkpoint.epoch == new.job.spec.total_epochs  # it had restored the end
                assert again or checkpoint.step > old.checkpoint.step
                assert checkpoint.epoch >= old.checkpoint.epoch
                assert checkpoint.job_uid == new.job.uid, "a job takes over nothing of one that had its name"
        assert all(metrics.attempt == old.token.attempt for metrics in change.epochs)
        if new.job.restart_count > old.job.restart_count:
            assert new.job.failure.reason not in FREE, "restarts are for what costs"
            assert new.job.restart_count == old.job.restart_count + 1
        if new.token != old.token:
            assert new.token.attempt == old.token.attempt + 1
            assert not old.job.worker, "whoever had it before has lost it"
            self._has_room(new)

    def _look_at_damage(self, old: JobRecord, change: Change, known: Sequence[Checkpoint]) -> None:
        """What is called damaged is, and what that costs is said; the job ends of it only if nothing else is left."""
        new = change.record
        assert new is not None
        marked = {each.name: each for each in change.checkpoints if each.damage}
        fresh = [each for each in known if each.name in marked and not each.damage]
        assert all(self.objects.was_damaged(each) for each in fresh), "nobody gives up what is whole"
        whole = [each for each in known if not each.damage and each.name not in marked]
        if new.job.failure.reason == reasons.CHECKPOINT_CORRUPT and new.job.state == Job.FAILED != old.job.state:
            assert not whole, "there is a checkpoint to go on from"
        told = [event for event in change.events if event.type == JobEvent.FELL_BACK]
        assert len(told) <= 1
        for event in told:
            assert new.checkpoint.name == event.details["checkpoint"] == whole[-1].name, "the newest that is whole"
            assert event.details["damaged"] == old.checkpoint.name
            assert int(event.details["epochs"]) == old.checkpoint.epoch - new.checkpoint.epoch
            assert int(event.details["steps"]) == old.checkpoint.step - new.checkpoint.step
            assert float(event.details["seconds"]) == int(event.details["steps"]), "one step takes a second"
            assert new.job.restart_count <= old.job.restart_count, "it costs no restart"
            if new.job.state == Job.PAUSED:
                seconds = new.job.pause.lost_duration.ToTimedelta().total_seconds()
                assert seconds >= float(event.details["seconds"]), "a pause says what it cost"
                assert new.checkpoint.name in new.job.pause.note
        if marked and not told and new.job.state == Job.PAUSED:
            assert not fresh, "a pause that rests on what is damaged has gone over to another"

    def _has_room(self, new: JobRecord) -> None:
        held = [entry.read().record for entry in self._entries.values() if entry.worker == new.job.worker]
        busy = [record for record in held if not record.released and record.job.name != new.job.name]
        if new.device_uuids:
            taken = {uuid for record in busy for uuid in record.device_uuids}
            assert taken.isdisjoint(new.device_uuids), "a GPU is sold once"
        else:
            on_slots = sum(not record.device_uuids for record in busy)
            assert on_slots < self.slots[new.job.worker], "a slot is sold once"

    async def keeps_its_promises(self, record: JobRecord) -> None:
        """Fails if a record says what must never be."""
        job, name = record.job, JobName(record.job.name)
        self._agrees_with_itself(record)
        if record.checkpoint.name:
            registered = await self.checkpoints(name, size=1000)
            whole = [each.name for _, each in registered if not each.damage]
            newest = [registered[0][1].name]  # a job without one that is whole keeps it, for a resume to try again
            assert record.checkpoint.name == (whole or newest)[0]
        events = await self.events(name, after=0, size=10_000)
        assert [event.sequence for event in events] == list(range(1, record.event_sequence + 1))
        assert Told().after(events) == Told.of(record), "replaying the history gives the record"
        epochs = await self.epochs(name, after=0, size=100)
        for metrics in epochs:
            assert dict(metrics.values) == {"value": expected_value(job.uid, metrics.step)}
        if not self.strict:
            return
        numbers = [metrics.epoch for metrics in epochs]
        assert numbers == list(range(1, len(numbers) + 1)), "no epoch is missing or there twice"
        assert len(numbers) >= record.checkpoint.epoch, "what is durable is told"
        if job.state == Job.SUCCEEDED:
            assert len(numbers) == job.spec.total_epochs, "nothing of its training is missing"

    def _agrees_with_itself(self, record: JobRecord) -> None:
        job = record.job
        assert (job.state in HELD) == bool(job.worker)
        assert job.state in HELD or record.released or not record.token.attempt
        assert job.state in HELD or not {each.type for each in job.conditions} & {*WORKER_CONDITIONS}
        assert job.restart_count <= job.spec.max_restarts
        assert job.state not in ENDED or not job.holds
        assert job.state not in (Job.STARTING, Job.RUNNING) or not job.holds
        lost = job.pause.lost_duration.ToTimedelta().total_seconds()
        assert lost == job.pause.lost_steps, "one step takes a second"
        restored = job.state in HELD and record.began and record.restored_checkpoint == record.checkpoint.name
        assert not (restored and record.checkpoint.damage), "what was restored is whole again"
        assert job.HasField("end_time") == (job.state in ENDED)
        if job.state == Job.PAUSED:
            assert job.holds
            assert position(job.progress) == position(record.checkpoint)
            assert job.pause.checkpoint == record.checkpoint.name
            assert job.pause.step == record.checkpoint.step
            assert job.pause.HasField("pause_time")


def position(of: Progress | Checkpoint) -> tuple[int, int, int]:
    return of.epoch, of.step, of.epoch_step
