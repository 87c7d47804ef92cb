"""Workers as the control plane meets them, modelled; and a store that looks at every change of a job."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf.duration_pb2 import Duration

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import (
    Assignment,
    AssignmentStatus,
    Exit,
    Report,
    SynchronizeRequest,
    SynchronizeResponse,
)
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.fleet.session import AgentSession
from adjourn_control_plane.job.machine import ENDED, HELD
from adjourn_control_plane.store.interface import Change, JobName
from tests.harness.job_history import Told
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore

Status = AssignmentStatus
OVER = {Status.PAUSED, Status.STOPPED, Status.SUCCEEDED, Status.FAILED}
SLOTS = {"workers/a": 1, "workers/b": 2}


class CheckedStore(MemoryStore):
    """Looks at every change of a job before it is made; each call takes its own time."""

    def __init__(self) -> None:
        super().__init__()
        self.resuming = False
        self.chance = random.Random(0)

    async def _reach(self) -> None:
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)
        await super()._reach()

    async def commit(self, change: Change) -> int:
        before = self._entries.get(change.job)
        if before and change.record and before.version == change.expected and not self._seen(change):
            self._look(before.read().record, change.record, change)
        return await super().commit(change)

    def _seen(self, change: Change) -> bool:
        return bool(change.request and change.request.id in self._requests)

    def _look(self, old: JobRecord, new: JobRecord, change: Change) -> None:
        assert new.revision in (old.revision, old.revision + 1)
        assert Told.of(old).after(change.events) == Told.of(new), "the history tells of every change"
        assert old.job.uid == new.job.uid == new.token.job_uid
        if new.job.state != old.job.state:
            assert new.revision > old.revision
            back = old.job.state == Job.FAILED and old.HasField("lost_attempt")
            assert old.job.state not in ENDED or self.resuming or back, "the end is the end, unless somebody resumes"
        if old.job.worker and not new.job.worker and change.events[-1].actor == "control_plane":
            assert self._sessions[old.job.worker].lost, "only from a lost worker jobs are taken away"
        for checkpoint in change.checkpoints:
            if checkpoint.name == new.checkpoint.name != old.checkpoint.name:
                assert checkpoint.name.endswith(f"{old.token.attempt}-{old.token.nonce}-{checkpoint.epoch}")
                assert checkpoint.epoch > old.checkpoint.epoch
                assert checkpoint.job_uid == new.job.uid, "a job takes over nothing of one that had its name"
        assert all(metrics.attempt == old.token.attempt for metrics in change.epochs)
        if new.token != old.token:
            assert new.token.attempt == old.token.attempt + 1
            assert not old.job.worker, "whoever had it before has lost it"
            self._has_room(new.job.worker)

    def _has_room(self, worker: str) -> None:
        held = [entry.read().record for entry in self._entries.values() if entry.worker == worker]
        assert sum(not record.released for record in held) < SLOTS[worker], "a slot is sold once"

    async def keeps_its_promises(self, record: JobRecord) -> None:
        """Fails if a record says what must never be."""
        job, name = record.job, JobName(record.job.name)
        assert (job.state in HELD) == bool(job.worker)
        assert job.state in HELD or record.released or not record.token.attempt
        assert job.restart_count <= job.spec.max_restarts
        assert job.state not in ENDED or not job.holds
        assert job.state not in (Job.STARTING, Job.RUNNING) or not job.holds
        assert job.HasField("end_time") == (job.state in ENDED)
        if job.state == Job.PAUSED:
            assert job.holds
            assert (job.progress.epoch, job.progress.step) == (record.checkpoint.epoch, record.checkpoint.step)
            assert job.pause.checkpoint == record.checkpoint.name
            assert job.pause.step == record.checkpoint.step
            assert job.pause.HasField("pause_time")
        if record.checkpoint.name:
            registered = await self.checkpoints(name, size=1)
            assert [each.name for _, each in registered] == [record.checkpoint.name]
        if job.state == Job.SUCCEEDED:
            epochs = [metrics.epoch for metrics in await self.epochs(name, after=0, size=100)]
            assert epochs == list(range(1, job.spec.total_epochs + 1)), "nothing of its training is missing"
        events = await self.events(name, after=0, size=10_000)
        assert [event.sequence for event in events] == list(range(1, record.event_sequence + 1))
        assert Told().after(events) == Told.of(record), "replaying the history gives the record"


Key: TypeAlias = tuple[str, str, int, str]


def key(about: Assignment | Report) -> Key:
    """Names an attempt."""
    return about.job, about.token.job_uid, about.token.attempt, about.token.nonce


def key_of(record: JobRecord) -> Key:
    """Names the running or last attempt of a job."""
    return record.job.name, record.token.job_uid, record.token.attempt, record.token.nonce


def manifest(made: Checkpoint) -> str:
    """Returns the key of a checkpoint's manifest in object storage."""
    return f"checkpoints/{made.job_uid}/manifests/{made.name.rpartition('/')[2]}"


@dataclass
class Attempt:
    """An assignment as a worker has it."""

    order: Assignment
    phase: Status.Phase.ValueType = Status.STARTING
    epoch: int = 0
    persisted: str = ""

    @property
    def over(self) -> bool:
        return self.phase in OVER

    @property
    def trains(self) -> bool:
        return self.phase in (Status.RUNNING, Status.PAUSING)

    @property
    def key(self) -> Key:
        return key(self.order)

    def status(self) -> AssignmentStatus:
        status = AssignmentStatus(
            job=self.order.job,
            token=self.order.token,
            observed_generation=self.order.generation,
            phase=self.phase,
        )
        status.progress.epoch, status.progress.step = self.epoch, 10 * self.epoch
        status.progress.report_time.FromNanoseconds(1 + self.order.token.attempt * 1000 + self.epoch)
        return status


@dataclass
class WorkerModel:
    """A worker: what it holds, what it has yet to report, and what is on its way."""

    name: str
    objects: MemoryObjects
    life: int = 0
    sessions: int = 0
    draining: bool = False
    stream: AgentSession | None = None
    attempts: dict[Key, Attempt] = field(default_factory=dict)
    sequence: int = 0
    reports: list[Report] = field(default_factory=list)
    sent: list[Report] = field(default_factory=list)
    acknowledged: list[Report] = field(default_factory=list)
    travelling: list[tuple[AgentSession, SynchronizeRequest]] = field(default_factory=list)

    @property
    def session(self) -> str:
        return f"{self.name}-{self.life}-{self.sessions}"

    def says(self) -> SynchronizeRequest:
        return SynchronizeRequest(
            worker=Worker(name=self.name, cpu_slots=SLOTS[self.name]),
            session_id=self.session,
            draining=self.draining,
            assignments=[attempt.status() for attempt in self.attempts.values()],
            reports=self.reports,
        )

    def report(self, attempt: Attempt, **what: Any) -> None:
        self.sequence += 1
        report = Report(sequence=self.sequence, job=attempt.order.job, token=attempt.order.token, **what)
        self.reports.append(report)
        self.sent.append(report)

    def hear(self, response: SynchronizeResponse) -> None:
        done = response.acknowledged_report
        self.acknowledged += [report for report in self.reports if report.sequence <= done]
        self.reports = [report for report in self.reports if report.sequence > done]
        wanted = set()
        for order in response.assignments:
            attempt = Attempt(order=order, epoch=order.restore.epoch)
            wanted.add(attempt.key)
            if attempt.key not in self.attempts and order.target != Assignment.STOP and not order.HasField("spec"):
                continue  # an answer to what was said before the machine was replaced; the next one has the spec
            known = self.attempts.setdefault(attempt.key, attempt)
            if known is attempt or order.generation > known.order.generation:
                self.obey(known, order)
        unheard = {key(report) for report in self.reports}
        for known_key, attempt in list(self.attempts.items()):
            if known_key not in wanted and attempt.over and known_key not in unheard:
                del self.attempts[known_key]

    async def listen(self, stream: AgentSession) -> None:
        """Hears what the control plane says next; the stream may have ended instead."""
        stream.changed.set()
        reading: Any = asyncio.get_running_loop().create_future()
        try:
            self.hear(await anext(stream.responses(reading)))
        except (errors.ShuttingDownError, errors.SessionSupersededError):
            self.stream = None

    def obey(self, attempt: Attempt, order: Assignment) -> None:
        attempt.order.generation, attempt.order.target = order.generation, order.target
        if attempt.over:
            return
        if order.target == Assignment.STOP:
            self.end(attempt, Status.STOPPED)
        elif attempt.trains:
            attempt.phase = Status.PAUSING if order.target == Assignment.PAUSE else Status.RUNNING

    def end(self, attempt: Attempt, phase: Status.Phase.ValueType, failure: Failure | None = None) -> None:
        attempt.phase = phase
        rests = phase in (Status.PAUSED, Status.SUCCEEDED)
        checkpoint = attempt.persisted if rests else ""
        self.report(attempt, exit=Exit(phase=phase, checkpoint=checkpoint, failure=failure))

    def begin(self, attempt: Attempt) -> None:
        attempt.phase = Status.PAUSING if attempt.order.target == Assignment.PAUSE else Status.RUNNING
        if attempt.order.HasField("restore"):
            progress_events = Pause()
            progress_events.resume_time.FromSeconds(1)
            self.report(attempt, pause=progress_events)

    def train(self, attempt: Attempt) -> None:
        """An epoch ends; at a boundary that a pause asked for the process leaves, its checkpoint yet to persist."""
        spec = attempt.order.spec
        if spec.total_epochs == 0:
            self.end(attempt, Status.SUCCEEDED)
            return
        attempt.epoch += 1
        metrics = EpochMetrics(
            epoch=attempt.epoch, attempt=attempt.order.token.attempt, active_duration=Duration(seconds=1)
        )
        self.report(attempt, epoch=metrics)
        if attempt.phase == Status.PAUSING or attempt.epoch == spec.total_epochs:
            if attempt.epoch < spec.total_epochs:
                left = Pause()
                left.release_time.FromSeconds(1)
                self.report(attempt, pause=left)
            attempt.phase = Status.PERSISTING
        else:
            self.persist(attempt)

    def persist(self, attempt: Attempt) -> None:
        token = attempt.order.token
        name = f"{attempt.order.job}/checkpoints/{token.attempt}-{token.nonce}-{attempt.epoch}"
        attempt.persisted = name
        made = Checkpoint(
            name=name, attempt=token.attempt, epoch=attempt.epoch, step=10 * attempt.epoch, job_uid=token.job_uid
        )
        self.objects.contents[manifest(made)] = b"complete"
        self.report(attempt, checkpoint=made)
        if attempt.phase == Status.PERSISTING:
            finished = attempt.epoch == attempt.order.spec.total_epochs
            self.end(attempt, Status.SUCCEEDED if finished else Status.PAUSED)

    def advance(self, attempt: Attempt) -> None:
        if attempt.phase == Status.STARTING:
            self.begin(attempt)
        elif attempt.trains:
            self.train(attempt)
        elif attempt.phase == Status.PERSISTING:
            self.persist(attempt)
