"""One job and what happens to it, for the tests of the pure core."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from google.protobuf.duration_pb2 import Duration

from adjourn import reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import AssignmentStatus, FencingToken
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import PAUSE_MODE_UNSPECIFIED, Failure, Hold, Job, JobSpec, Pause, PauseMode, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.events import (
    Began,
    CancelRequested,
    DrainRequested,
    DrainWithdrawn,
    EpochEnded,
    Event,
    Failed,
    Finished,
    Lost,
    Observed,
    PausePhase,
    PauseRequested,
    Placed,
    Registered,
    ReleaseConfirmed,
    Rested,
    ResumeRequested,
    Stopped,
)
from adjourn_control_plane.job.transition import Decision

START = datetime(2030, 1, 1, tzinfo=UTC)
NAME = "jobs/j"
UID = "6e0d1f3a-0000-4000-8000-000000000001"
A, B = "workers/a", "workers/b"
RAISED = Failure(reason=reasons.TRAINING_RAISED, message="ValueError: no")
ALONE = Failure(reason=reasons.WORKER_OUT_OF_CONTACT, message="it heard nobody, and paused")
GONE = Failure(reason=reasons.WORKER_LOST, message="silent")


def checkpoint_name(epoch: int) -> str:
    return f"{NAME}/checkpoints/{epoch}"


def checkpoint(epoch: int, *, seconds_per_epoch: float = 10) -> Checkpoint:
    """Returns the checkpoint after an epoch of 100 steps."""
    made = Checkpoint(name=checkpoint_name(epoch), epoch=epoch, step=100 * epoch)
    made.active_duration.FromTimedelta(timedelta(seconds=seconds_per_epoch * epoch))
    return made


def checkpoint_at(step: int) -> Checkpoint:
    """Returns a checkpoint amid an epoch of 100 steps, each 0.1 s long."""
    epoch, epoch_step = divmod(step, 100)
    made = Checkpoint(name=f"{NAME}/checkpoints/step-{step}", epoch=epoch, step=step, epoch_step=epoch_step)
    made.active_duration.FromTimedelta(timedelta(seconds=step / 10))
    return made


class Life:
    """Tells the job machine what happens, a second apart, and remembers what came of it."""

    def __init__(self, *, labels: Mapping[str, str] | None = None, **spec: Any) -> None:
        self.now = START
        fields = {"entry_point": "train:main", "total_epochs": 20, **spec}
        job = Job(name=NAME, spec=JobSpec(**fields), labels=labels)
        self.decisions: list[Decision] = [machine.create(job, uid=UID, actor="ann", now=self.now)]
        self.last: Decision | None = self.decisions[0]
        """What came of the last event; None if nothing did."""

    @property
    def record(self) -> JobRecord:
        return self.decisions[-1].record

    @property
    def job(self) -> Job:
        return self.record.job

    @property
    def state(self) -> str:
        return Job.State.Name(self.job.state)

    @property
    def worker(self) -> str:
        return self.job.worker or A

    @property
    def history(self) -> list[str]:
        return [JobEvent.Type.Name(event.type) for decision in self.decisions for event in decision.events]

    def tell(self, event: Event) -> Self:
        self.now += timedelta(seconds=1)
        self.last = machine.decide(self.record, event, self.now)
        if self.last is not None:
            self.decisions.append(self.last)
        return self

    def placed(self, worker: str = A, *devices: str) -> Self:
        nonce = f"{self.record.token.attempt + 1:032x}"
        return self.tell(Placed(actor="control_plane", worker=worker, device_uuids=devices, nonce=nonce))

    def acknowledged(self) -> Self:
        return self.tell(Observed(actor=self.worker, generation=self.record.generation))

    def at(self, step: int, *, of_epoch: int = 100, seconds: float | None = None) -> Self:
        """The worker tells of progress."""
        progress = Progress(epoch=step // of_epoch, step=step, epoch_step=step % of_epoch, steps_per_epoch=of_epoch)
        progress.active_duration.FromTimedelta(timedelta(seconds=step / 10 if seconds is None else seconds))
        progress.report_time.FromDatetime(self.now)
        return self.tell(Observed(actor=self.worker, generation=self.record.generation, progress=progress))

    def told(self, boundary_epoch: int, *, generation: int | None = None) -> Self:
        """The worker tells at which epoch it pauses; 0: it does not know any more."""
        generation = self.record.generation if generation is None else generation
        return self.tell(Observed(actor=self.worker, generation=generation, boundary_epoch=boundary_epoch))

    def began(self) -> Self:
        return self.tell(Began(actor=self.worker))

    def trained(self, epoch: int) -> Self:
        """An epoch of 10 s ends, and its checkpoint is registered."""
        metrics = EpochMetrics(epoch=epoch, step=100 * epoch, active_duration=Duration(seconds=10))
        self.tell(EpochEnded(actor=self.worker, metrics=metrics)).at(100 * epoch)
        return self.tell(Registered(actor=self.worker, checkpoint=checkpoint(epoch)))

    def saved_at(self, step: int) -> Self:
        """A checkpoint amid an epoch is registered."""
        return self.at(step).tell(Registered(actor=self.worker, checkpoint=checkpoint_at(step)))

    def running(self, epochs: int = 0) -> Self:
        """The job is placed and takes its first step, and then `epochs` epochs more than it has."""
        self.placed().acknowledged().began()
        first = self.record.checkpoint.epoch + 1
        for epoch in range(first, first + epochs):
            self.trained(epoch)
        return self

    def released(self) -> Self:
        """The process has left at the boundary."""
        pause = Pause()
        for field in (pause.boundary_time, pause.snapshot_time, pause.release_time):
            field.FromDatetime(self.now)
        return self.tell(PausePhase(actor=self.worker, pause=pause))

    def left(self) -> Self:
        """The process was killed, and its GPUs are free."""
        pause = Pause()
        pause.release_time.FromDatetime(self.now)
        return self.tell(PausePhase(actor=self.worker, pause=pause))

    def took_a_step(self) -> Self:
        """The first step after a checkpoint was restored."""
        pause = Pause(verdict=Pause.EXACT)
        pause.resume_time.FromDatetime(self.now)
        return self.tell(PausePhase(actor=self.worker, pause=pause))

    def rests(self, on: str | None = None, failure: Failure | None = None) -> Self:
        checkpoint = self.record.checkpoint.name if on is None else on
        return self.tell(Rested(actor=self.worker, checkpoint=checkpoint, failure=failure))

    def finishes(self, on: str | None = None) -> Self:
        return self.tell(Finished(actor=self.worker, checkpoint=self.record.checkpoint.name if on is None else on))

    def stops(self, failure: Failure | None = None) -> Self:
        return self.tell(Stopped(actor=self.worker, failure=failure))

    def fails(self, failure: Failure = RAISED) -> Self:
        return self.tell(Failed(actor=self.worker, failure=failure))

    def is_lost(self) -> Self:
        return self.tell(Lost(actor="control_plane", failure=GONE))

    def goes_out_of_reach(self, instance: str = "i") -> Self:
        """The lease of its worker ends: nobody knows what its process does."""
        return self.tell(Lost(actor="control_plane", failure=GONE, out_of_reach=True, instance=instance))

    def is_gone(self, attempt: int | None = None) -> Self:
        """It becomes known that the process of an attempt that was out of reach is gone; of the last one by default."""
        entries = self.record.unconfirmed_releases
        entry = next((each for each in entries if attempt in (None, each.token.attempt)), None)
        token = entry.token if entry else self.record.token
        return self.tell(ReleaseConfirmed(actor=A, token=token))

    def pause(self, reason: str = "", *, mode: PauseMode.ValueType = PAUSE_MODE_UNSPECIFIED) -> Self:
        return self.tell(PauseRequested(actor="bob", mode=mode, reason=reason))

    def resume(self, *, allow_inexact: bool = False) -> Self:
        return self.tell(ResumeRequested(actor="eve", allow_inexact=allow_inexact))

    def cancel(self, *, save_checkpoint: bool = False, mode: PauseMode.ValueType = PAUSE_MODE_UNSPECIFIED) -> Self:
        return self.tell(CancelRequested(actor="bob", reason="", save_checkpoint=save_checkpoint, mode=mode))

    def held_by(self, kind: Hold.Kind.ValueType, *, mode: PauseMode.ValueType = PAUSE_MODE_UNSPECIFIED) -> Self:
        """Somebody else holds the job too."""
        return self.tell(PauseRequested(actor="ops", mode=mode, reason="", kind=kind))

    def let_go_by(self, kind: Hold.Kind.ValueType) -> Self:
        return self.tell(ResumeRequested(actor="ops", kind=kind))

    def drain(self, reason: str = "") -> Self:
        return self.tell(DrainRequested(actor="ops", reason=reason))

    def undrain(self) -> Self:
        return self.tell(DrainWithdrawn(actor="ops"))


def paused(*, epochs: int = 2, **spec: Any) -> Life:
    """A job that was paused after some epochs."""
    life = Life(**spec).running(epochs).pause().trained(epochs + 1).released().rests()
    assert life.state == "PAUSED"
    return life


def status(
    record: JobRecord,
    phase: AssignmentStatus.Phase.ValueType = AssignmentStatus.RUNNING,
    *,
    attempt: int | None = None,
    nonce: str | None = None,
    uid: str | None = None,
    generation: int | None = None,
    progress: Progress | None = None,
    devices: tuple[str, ...] = (),
) -> AssignmentStatus:
    """Returns what a worker says of the job's own attempt, or of another."""
    token = FencingToken()
    token.CopyFrom(record.token)
    token.attempt = record.token.attempt if attempt is None else attempt
    if attempt not in (None, record.token.attempt):
        token.nonce = f"{attempt:032x}"
    if nonce is not None:
        token.nonce = nonce
    if uid is not None:
        token.job_uid = uid
    return AssignmentStatus(
        job=record.job.name,
        token=token,
        observed_generation=record.generation if generation is None else generation,
        phase=phase,
        progress=progress,
        held_device_uuids=devices,
    )
