"""The chaos program itself: its schedule can be repeated, and its oracle sees what it is there for."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pytest
from blake3 import blake3
from google.protobuf.json_format import MessageToJson

from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import STEP, Condition, Job, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.manifest_pb2 import Manifest
from adjourn.v1.usage_pb2 import EpochMetrics
from tests.chaos import schedule
from tests.chaos.damage import Damage
from tests.chaos.oracle import Oracle, Outcome
from tests.chaos.processes import live_trainings
from tests.chaos.schedule import GENTLE, TABLE, Action, Row, Verb
from tests.chaos.timeline import Timeline
from tests.harness.checkpoint_objects import damage
from tests.harness.memory_objects import MemoryObjects

T = TypeVar("T")
UID = "0123abcd-0000-4000-8000-000000000000"
ATTEMPT = "j-0123abcd-2-00000000"


def test_a_seed_repeats_faults_commands_and_trainings() -> None:
    def everything(seed: int) -> list[object]:
        return [
            list(islice(schedule.steps(seed, gap=(1, 2)), 50)),
            list(islice(schedule.commands(seed, 1, slots=8, gap=(1, 2)), 50)),
            list(islice(schedule.trainings(seed, 3, epochs=(4, 8)), 50)),
        ]

    assert everything(7) == everything(7)
    assert everything(7) != everything(8)
    assert everything(7)[1] != list(islice(schedule.commands(7, 2, slots=8, gap=(1, 2)), 50))


@pytest.mark.parametrize("table", [TABLE, GENTLE], ids=["all", "gentle"])
def test_every_row_of_the_table_comes_up(table: Sequence[Row]) -> None:
    steps = list(islice(schedule.steps(1, gap=(1, 2), table=table), 5000))
    faults = [fault for step in steps for fault in step.faults]
    assert {(fault.action, fault.part) for fault in faults} == {(row[1], row[2]) for row in table}
    assert all(1 <= fault.number <= schedule.COUNTS[fault.part] for fault in faults)
    assert any(len(step.faults) == 2 for step in steps)


def test_every_verb_comes_up() -> None:
    commands = list(islice(schedule.commands(1, 1, slots=8, gap=(1, 2)), 1000))
    assert {command.verb for command in commands} == set(Verb)
    assert {command.slot for command in commands} == set(range(8))
    assert {command.repeated for command in commands} == {True, False}


@contextmanager
def training(workers: Path, worker: str = "worker-1", attempt: str = ATTEMPT) -> Iterator[int]:
    """Runs a process where the training process of an attempt is."""
    work = workers / worker / "attempts" / attempt / "work"
    work.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen((sys.executable, "-c", "input()"), cwd=work, stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.stdin
        process.stdin.close()
        process.kill()


def test_training_processes_are_found_by_their_attempt(tmp_path: Path) -> None:
    assert live_trainings(tmp_path) == []
    with training(tmp_path) as pid:
        (found,) = live_trainings(tmp_path)
    assert (found.worker, found.attempt, found.pid) == ("worker-1", ATTEMPT, pid)
    assert (found.uid8, found.number) == (UID[:8], 2)
    assert live_trainings(tmp_path) == []


class Planes:
    """Answers as control planes do, from what a test puts into it."""

    def __init__(self) -> None:
        self.job = Job(name="jobs/j", uid=UID)
        self.checkpoints: list[Checkpoint] = []
        self.epochs: list[EpochMetrics] = []
        self.events: list[JobEvent] = []
        self.address = "here"

    async def ask(self, call: Callable[["Planes"], Awaitable[T]]) -> T:
        return await call(self)

    async def get_job(self, name: str) -> Job:
        return self.job

    async def get_checkpoint(self, name: str) -> Checkpoint:
        return next(each for each in self.checkpoints if each.name == name)

    async def list_checkpoints(self, name: str) -> AsyncIterator[Checkpoint]:
        for each in reversed(self.checkpoints):
            yield each

    async def list_epoch_metrics(self, name: str) -> AsyncIterator[EpochMetrics]:
        for each in self.epochs:
            yield each

    async def list_job_events(self, name: str) -> AsyncIterator[JobEvent]:
        for each in self.events:
            yield each


@pytest.fixture
def planes() -> Planes:
    return Planes()


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def oracle(planes: Planes, objects: MemoryObjects, tmp_path: Path) -> Iterator[Oracle]:
    with Timeline(tmp_path / "timeline.jsonl") as timeline:
        yield Oracle(
            planes=planes,  # type: ignore[arg-type]
            objects=objects,
            workers=tmp_path,
            may_be_silent="workers/touched".__eq__,
            timeline=timeline,
        )


async def registered(planes: Planes, objects: MemoryObjects, *, attempt: int, epoch: int) -> Checkpoint:
    """Makes a checkpoint whose objects are whole."""
    part = f"epoch {epoch}".encode()
    manifest = Manifest(job_uid=UID, component_digests={"model": str(epoch)})
    manifest.parts.add(digest=blake3(part).hexdigest(), size_bytes=len(part))
    raw = MessageToJson(manifest).encode()
    key = f"checkpoints/{UID}/manifests/{attempt}-{epoch}.json"
    await objects.put(f"checkpoints/{UID}/parts/{blake3(part).hexdigest()}", part)
    await objects.put(key, raw)
    checkpoint = Checkpoint(
        name=f"jobs/j/checkpoints/{attempt}-{epoch}",
        attempt=attempt,
        epoch=epoch,
        uri=f"s3://{objects.bucket}/{key}",
        manifest_digest=blake3(raw).hexdigest(),
        component_digests=manifest.component_digests,
        job_uid=UID,
    )
    planes.checkpoints.append(checkpoint)
    planes.epochs.append(EpochMetrics(epoch=epoch, attempt=attempt, values={"loss": 1 / epoch}))
    planes.events.append(
        JobEvent(
            sequence=len(planes.events) + 1,
            type=JobEvent.CHECKPOINT_REGISTERED,
            attempt=attempt,
            details={"checkpoint": checkpoint.name},
        )
    )
    return checkpoint


def paused(checkpoint: Checkpoint) -> Job:
    job = Job(name="jobs/j", uid=UID, state=Job.PAUSED, attempt=2, latest_checkpoint=checkpoint.name)
    job.progress.epoch = job.pause.epoch = checkpoint.epoch
    job.pause.cause, job.pause.checkpoint = Pause.HELD, checkpoint.name
    job.pause.release_time.GetCurrentTime()
    return job


async def test_a_pause_that_is_true(oracle: Oracle, planes: Planes, objects: MemoryObjects) -> None:
    oracle.look("here", paused(await registered(planes, objects, attempt=2, epoch=3)))
    await oracle.settled()
    assert oracle.timeline.findings == []
    assert oracle.timeline.counts["rests whose checkpoint was read whole"] == 1


async def test_a_pause_that_became_earlier_than_was_said_is_no_finding(
    oracle: Oracle, planes: Planes, objects: MemoryObjects
) -> None:
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    pausing = Job(name=job.name, uid=job.uid, state=Job.PAUSING, attempt=2, pause=Pause(boundary_epoch=4))
    oracle.look("here", pausing)
    job.pause.mode = STEP
    oracle.look("here", job)
    await oracle.settled()
    assert oracle.timeline.findings == []


@pytest.mark.parametrize(("named", "found"), [(3, 0), (2, 1)])
async def test_a_pause_at_another_epoch_than_was_named_is_found(
    oracle: Oracle, planes: Planes, objects: MemoryObjects, named: int, found: int
) -> None:
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    pausing = Job(name=job.name, uid=job.uid, state=Job.PAUSING, attempt=2, pause=Pause(boundary_epoch=named))
    for replica in ("here", "there"):
        oracle.look(replica, pausing)
    for replica in ("here", "there"):
        oracle.look(replica, job)
    await oracle.settled()
    assert ["than was named" in finding for finding in oracle.timeline.findings] == [True] * found
    assert oracle.timeline.counts["pauses at the epoch that was named"] == 1 - found


async def test_a_pause_whose_attempt_was_lost_is_where_it_can_be(
    oracle: Oracle, planes: Planes, objects: MemoryObjects
) -> None:
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    oracle.look("here", Job(name=job.name, uid=job.uid, state=Job.PAUSING, attempt=2, pause=Pause(boundary_epoch=4)))
    job.pause.lost_duration.FromSeconds(1)
    oracle.look("here", job)
    await oracle.settled()
    assert oracle.timeline.findings == []


@pytest.mark.parametrize("state", [Job.PAUSED, Job.CANCELLED, Job.SUCCEEDED, Job.FAILED])
async def test_rest_with_a_process_is_found(
    oracle: Oracle, planes: Planes, objects: MemoryObjects, tmp_path: Path, state: Job.State.ValueType
) -> None:
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    job.state = state
    with training(tmp_path):
        oracle.look("here", job)
    (finding,) = oracle.timeline.findings
    assert "while a training process lived" in finding
    await oracle.settled()


async def test_rest_with_a_process_that_is_told_of_is_none(
    oracle: Oracle, planes: Planes, objects: MemoryObjects, tmp_path: Path
) -> None:
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    job.pause.cause = Pause.WORKER_LOST
    job.pause.ClearField("release_time")
    job.conditions.add(type=Condition.RELEASE_UNCONFIRMED)
    with training(tmp_path):
        oracle.look("here", job)
    await oracle.settled()
    assert oracle.timeline.findings == []


async def test_a_process_of_a_later_attempt_is_none(
    oracle: Oracle, planes: Planes, objects: MemoryObjects, tmp_path: Path
) -> None:
    """The job has been resumed since."""
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    with training(tmp_path, attempt="j-0123abcd-3-00000000"):
        oracle.look("here", job)
    await oracle.settled()
    assert oracle.timeline.findings == []


@pytest.mark.parametrize("kind", ["parts", "manifests"])
@pytest.mark.parametrize("damage", ["changed", "gone"])
async def test_a_pause_on_a_damaged_checkpoint_is_found(
    oracle: Oracle, planes: Planes, objects: MemoryObjects, kind: str, damage: str
) -> None:
    job = paused(await registered(planes, objects, attempt=2, epoch=3))
    planes.job = job
    (key,) = await objects.list(f"checkpoints/{UID}/{kind}/")
    await (objects.put(key, b"other") if damage == "changed" else objects.delete_prefix(key))
    oracle.look("here", job)
    await oracle.settled()
    assert ["not whole" in finding for finding in oracle.timeline.findings] == [True]


async def test_a_pause_on_a_checkpoint_that_a_fault_has_damaged_is_none(
    oracle: Oracle, planes: Planes, objects: MemoryObjects
) -> None:
    planes.job = job = paused(await registered(planes, objects, attempt=2, epoch=3))
    (key,) = await objects.list(f"checkpoints/{UID}/parts/")
    await objects.put(key, b"other")
    oracle.spoiled = {job.latest_checkpoint}
    oracle.look("here", job)
    await oracle.settled()
    assert oracle.timeline.findings == []


@pytest.mark.parametrize("action", [Action.FLIP, Action.LOSE])
async def test_damage_befalls_only_a_checkpoint_that_its_job_can_lose(
    planes: Planes, objects: MemoryObjects, action: Action
) -> None:
    async def read(key: str) -> bytes:
        return await objects.get(key, limit=1 << 20)

    faults = Damage(planes=planes, objects=objects, draw=random.Random(1))  # type: ignore[arg-type]
    planes.job = Job(name="jobs/j", uid=UID, state=Job.RUNNING)
    planes.job.spec.total_epochs = 3
    first = await registered(planes, objects, attempt=1, epoch=1)
    assert not await faults.befall(action, "jobs/j"), "it has no other"
    second = await registered(planes, objects, attempt=1, epoch=2)
    planes.job.state = Job.PAUSED
    assert not await faults.befall(action, "jobs/j"), "it rests on it"
    planes.job.state = Job.RUNNING
    assert await faults.befall_one(action, ["jobs/j"])
    assert faults.spoiled == {second.name}
    assert await damage(second, read)
    assert not await damage(first, read)
    assert not await faults.befall(action, "jobs/j"), "the newest is damaged already"
    await registered(planes, objects, attempt=1, epoch=3)
    assert not await faults.befall_one(action, ["jobs/j"]), "it is the result"


async def test_a_pause_without_a_checkpoint_after_an_epoch_is_found(oracle: Oracle) -> None:
    job = paused(Checkpoint(name="", epoch=1))
    oracle.look("here", job)
    await oracle.settled()
    assert ["without a checkpoint" in finding for finding in oracle.timeline.findings] == [True]


async def test_two_processes_of_an_attempt_are_found(
    oracle: Oracle, tmp_path: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    watching = asyncio.create_task(oracle.watch_processes())
    with training(tmp_path), training(tmp_path, "worker-2"):
        await eventually(lambda: oracle.timeline.findings)
    watching.cancel()
    assert "more than one process" in oracle.timeline.findings[0]


@pytest.mark.parametrize(("lost", "found"), [("workers/touched", 0), ("workers/untouched", 1)])
async def test_a_loss_of_a_worker_that_was_never_silenced_is_found(oracle: Oracle, lost: str, found: int) -> None:
    job = Job(name="jobs/j", uid=UID, state=Job.QUEUED, attempt=1)
    job.failure.reason, job.failure.message, job.failure.attempt = "WORKER_LOST", f"{lost} was not heard from", 1
    for replica in ("here", "there"):
        oracle.look(replica, job)
    assert ["taken for lost" in finding for finding in oracle.timeline.findings] == [True] * found


async def finished(planes: Planes, objects: MemoryObjects) -> tuple[Job, Outcome]:
    for epoch in (1, 2, 3):
        last = await registered(planes, objects, attempt=1 + epoch // 3, epoch=epoch)
    job = Job(name="jobs/j", uid=UID, state=Job.SUCCEEDED, attempt=2, latest_checkpoint=last.name)
    job.spec.total_epochs = 3
    planes.job = job
    planes.events.append(JobEvent(sequence=4, type=JobEvent.SUCCEEDED, state=job.state, attempt=job.attempt))
    metrics = {epoch: {"loss": 1 / epoch} for epoch in (1, 2, 3)}
    return job, Outcome(digests={"model": "3"}, metrics=metrics)


async def test_a_job_equal_to_its_twin(oracle: Oracle, planes: Planes, objects: MemoryObjects) -> None:
    await oracle.verify(*await finished(planes, objects))
    assert oracle.timeline.findings == []
    assert oracle.timeline.counts["jobs equal to their uninterrupted twins"] == 1


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda planes: planes.epochs.pop(1), "missing or double"),
        (lambda planes: planes.epochs.append(planes.epochs[-1]), "missing or double"),
        (lambda planes: planes.epochs[1].values.update({"loss": 0.7}), "other values"),
        (lambda planes: planes.checkpoints[-1].component_digests.update({"model": "4"}), "digests differ"),
        (lambda planes: setattr(planes.checkpoints[0], "attempt", 2), "older attempt"),
        (lambda planes: setattr(planes.events[1], "attempt", 2), "not current any more"),
        (lambda planes: planes.events.pop(1), "gaps"),
        (lambda planes: planes.events.pop(), "history tells something else"),
    ],
)
async def test_a_job_that_differs_from_its_twin_is_found(
    oracle: Oracle, planes: Planes, objects: MemoryObjects, spoil: Callable[[Planes], object], found: str
) -> None:
    job, twin = await finished(planes, objects)
    spoil(planes)
    await oracle.verify(job, twin)
    assert any(found in finding for finding in oracle.timeline.findings)
    assert not oracle.timeline.counts["jobs equal to their uninterrupted twins"]
