"""The agent as a process of its own: killed, stopped, doubled, with a journal whose writer died; once with torch."""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from adjourn import bundles, reasons, snapshots
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.kept_snapshots import KEPT
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, Report
from adjourn.v1.job_pb2 import JobSpec, Pause
from adjourn_worker.host.kernel import NICENESS
from adjourn_worker.journal import Journal
from adjourn_worker.paths import RESTORED, WorkerPaths
from adjourn_worker.storage.fetch import fetch
from adjourn_worker.storage.parts import PartStore
from tests.harness.agents import DEADLINE, PATIENT, AgentHarness, alive
from tests.harness.jobs import Gate, Training
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUNNING, PERSISTING = AssignmentStatus.RUNNING, AssignmentStatus.PERSISTING
PAUSED, STOPPED = AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED
SCRIPT = Path(__file__).parents[1] / "trainings" / "mlp.py"
SHORT_LEASE = timedelta(seconds=6)
"""A draining agent asks the control plane for a third of it."""


@pytest.fixture
async def objects(s3_environment: dict[str, str]) -> AsyncIterator[S3Objects]:
    async with S3Objects(S3Settings.from_environment(s3_environment)) as opened:
        await opened.ensure_bucket()
        yield opened


def niceness(pid: int) -> set[int]:
    """Returns the nice values of a process's threads."""
    found = set()
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            found.add(os.getpriority(os.PRIO_PROCESS, thread.id))
    return found


async def test_training_goes_on_when_the_agent_is_killed(
    harness: AgentHarness, objects: S3Objects, s3_environment: dict[str, str]
) -> None:
    await harness.launcher()
    agent = await harness.process(**s3_environment)
    job = harness.job()
    job.do("epoch")
    await harness.until_durable(job, 1)
    area = harness.paths.snapshot_directory(harness.attempt(job))
    await harness.until(lambda: not list(area.glob(f"*/{snapshots.IN_USE}")))  # room for those of two more epochs
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert niceness(agent.pid) == {own, max(own, NICENESS)}, "made durable behind training"
    assert os.getpriority(os.PRIO_PROCESS, agent.pid) == own
    pid = harness.training(job)
    await harness.kill(agent)
    job.do("epoch", "epoch")
    await harness.until(lambda: harness.written(job).count("epoch") == 3)
    await harness.process(**s3_environment)
    await harness.until_durable(job, 3)
    assert harness.training(job) == pid
    assert alive(pid)
    job.do("epoch", "finish")
    await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == SUCCEEDED
    assert harness.plane.epochs(job) == [1, 2, 3, 4]
    assert [report.epoch.step for report in harness.plane.of(job) if report.HasField("epoch")] == [10, 20, 30, 40]
    names = [found.name for found in harness.plane.checkpoints(job)]
    assert len(names) == len(set(names))
    assert [report.sequence for report in harness.plane.reports] == list(range(1, len(harness.plane.reports) + 1))


async def test_persisting_is_finished_by_the_next_agent(
    harness: AgentHarness, objects: S3Objects, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    await harness.launcher()
    agent = await harness.process()  # storage refuses
    job = harness.job("persisted")
    harness.plane.set_target(job, Assignment.PAUSE)
    job.do("epoch")
    await harness.until_phase(job, PERSISTING)
    await harness.kill(agent)
    await harness.process(**s3_environment)
    await harness.until_forgotten(job)
    kinds = [kind for kind in harness.plane.kinds(job) if kind != "condition"]
    assert kinds == ["epoch", "pause", "checkpoint", "exit"]
    (checkpoint,) = harness.plane.checkpoints(job)
    assert (harness.plane.exit(job).phase, harness.plane.exit(job).checkpoint) == (PAUSED, checkpoint.name)
    await fetch(PartStore(objects), checkpoint, tmp_path / "fetched")
    assert snapshots.component_digests(tmp_path / "fetched") == dict(checkpoint.component_digests)


async def test_a_second_agent_is_refused(harness: AgentHarness) -> None:
    await harness.launcher()
    first = await harness.process()
    second = await harness.process()
    assert await harness.ended(second) == 1
    (entry,) = [entry for entry in harness.logged() if entry["level"] == "critical"]
    assert entry["errors"] == [f"agent {first.pid} already works in {harness.paths.data}"]
    assert first.poll() is None


async def test_an_agent_that_is_superseded_ends_and_does_not_come_back(harness: AgentHarness) -> None:
    await harness.launcher()
    agent = await harness.process()
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    harness.plane.superseding = True
    assert await harness.ended(agent) == 3
    assert [entry["errors"] for entry in harness.logged() if entry["event"] == "superseded"] == [
        ["another agent speaks"]
    ]
    assert alive(harness.training(job))


async def test_sigterm_leaves_training_alone(harness: AgentHarness) -> None:
    await harness.launcher()
    agent = await harness.process()  # storage refuses, so a snapshot is on its way all the time
    job = harness.job()
    job.do("epoch")
    await harness.until(lambda: harness.plane.epochs(job) == [1])
    pid = harness.training(job)
    agent.terminate()
    assert await harness.ended(agent) == 0  # though storage is still being tried, which has no end
    assert alive(pid)
    assert psutil.pid_exists(harness.launcher_pid())
    assert not harness.paths.notify_socket.exists()
    job.do("epoch", "finish")
    async with harness.agent(MemoryObjects()):
        await harness.until_forgotten(job)
    assert harness.plane.epochs(job) == [1, 2]
    assert harness.plane.exit(job).phase == SUCCEEDED


async def test_sigterm_can_end_everything(
    harness: AgentHarness, objects: S3Objects, s3_environment: dict[str, str]
) -> None:
    await harness.launcher()
    agent = await harness.process("-c", PATIENT, ADJOURN_ON_TERM="stop", ADJOURN_CPU_SLOTS="2", **s3_environment)
    job, other = harness.job("stopped"), harness.job("finished")
    job.do("epoch")
    other.do("finish")
    await harness.until_durable(job, 1)
    await harness.until_forgotten(other)
    pid, launcher = harness.training(job), harness.launcher_pid()
    agent.terminate()
    assert await harness.ended(agent) == 0
    assert harness.plane.requests[-1].draining
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)
    assert not alive(pid)
    assert not alive(launcher)
    assert not harness.paths.runtime.exists()
    assert not harness.paths.snapshots.exists()
    assert harness.paths.attempt_directories() == []


@pytest.mark.parametrize("point", ["worker.snapshot-kept", "worker.snapshot-claimed", "worker.manifest-read"])
async def test_an_agent_that_dies_around_a_snapshot_that_it_keeps_loses_nothing(
    harness: AgentHarness, objects: S3Objects, s3_environment: dict[str, str], point: str
) -> None:
    await harness.launcher()
    settings = {**s3_environment, "ADJOURN_FAILPOINT": f"{point}:kill"}
    agent = await harness.process(**settings)
    job = harness.job()
    harness.plane.set_target(job, Assignment.PAUSE)
    job.do("epoch")
    if point == "worker.snapshot-kept":
        assert await harness.ended(agent) == -signal.SIGKILL
        agent = await harness.process(**s3_environment)
    await harness.until_forgotten(job)
    checkpoint = harness.plane.checkpoints(job)[-1]
    assert not harness.paths.snapshot_directory(harness.attempt(job)).exists()
    assert len(list((harness.paths.snapshots / KEPT).iterdir())) == 1
    await objects.delete_prefix(f"checkpoints/{checkpoint.job_uid}/parts/")  # what is downloaded would be missing
    resumed = harness.job(attempt=2, restore=checkpoint)
    if point != "worker.snapshot-kept":
        assert await harness.ended(agent) == -signal.SIGKILL
        await harness.process(**s3_environment)
    await harness.until_phase(resumed, RUNNING)
    assert harness.plane.of(resumed)[0].pause.verdict == Pause.EXACT
    await harness.until(lambda: not list((harness.paths.snapshots / RESTORED).iterdir()))
    assert list((harness.paths.snapshots / KEPT).iterdir()) == []


async def test_what_cannot_be_stored_at_sigterm_is_kept_for_the_next_start(harness: AgentHarness) -> None:
    await harness.launcher()
    agent = await harness.process(ADJOURN_ON_TERM="stop")
    job = harness.job()
    job.do("epoch")
    await harness.until_phase(job, RUNNING)
    await harness.until(lambda: "snapshot" in harness.written(job))
    pid = harness.training(job)
    agent.terminate()
    assert await harness.ended(agent) == 0
    assert not alive(pid)
    assert not harness.plane.ended(job)
    async with harness.agent(MemoryObjects()):
        await harness.until_forgotten(job)
    assert [found.epoch for found in harness.plane.checkpoints(job)] == [1]
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)


async def test_sigterm_can_drain_the_worker(
    harness: AgentHarness, objects: S3Objects, s3_environment: dict[str, str]
) -> None:
    await harness.launcher()
    agent = await harness.process(ADJOURN_ON_TERM="drain", ADJOURN_CPU_SLOTS="2", **s3_environment)
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    launcher = harness.launcher_pid()
    agent.terminate()
    await harness.until(lambda: harness.plane.requests[-1].draining)
    harness.plane.set_target(job, Assignment.PAUSE)  # as a control plane does
    late = harness.job("late")
    await harness.until_forgotten(late)
    how = harness.plane.exit(late)
    assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)
    assert not harness.attempt(late).exists(), "nothing was made ready for it, nor launched"
    await harness.until_phase(job, AssignmentStatus.PAUSING)
    job.do("epoch")
    assert await harness.ended(agent) == 0
    how = harness.plane.exit(job)
    assert (how.phase, how.checkpoint, how.HasField("failure")) == (
        PAUSED,
        harness.plane.checkpoints(job)[-1].name,
        False,
    )
    assert list(harness.paths.unstored_logs.iterdir()) == [], "the logs of both are stored: the machine may go"
    assert not alive(launcher)
    assert not harness.paths.runtime.exists()


async def test_an_assignment_that_is_being_taken_on_as_a_drain_begins_is_ended_and_told_of(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    async with harness.agent(MemoryObjects()) as agent:
        record = agent.journal.record

        def slow(held: HeldAssignment, reports: Sequence[Report]) -> list[Report]:
            begun.set()
            assert go_on.wait(DEADLINE)
            return record(held, reports)

        monkeypatch.setattr(agent.journal, "record", slow)
        job = harness.job()
        await harness.until(begun.is_set)
        draining = asyncio.create_task(agent.drain(asyncio.Event()))
        await harness.until(lambda: harness.plane.requests[-1].draining)
        assert not draining.done(), "it would end without having told of what it was given"
        go_on.set()
        await draining
        how = harness.plane.exit(job)
        assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)
        assert not harness.attempt(job).exists()


async def test_a_drained_worker_tells_a_control_plane_that_is_back_within_the_grace(
    harness: AgentHarness, s3_environment: dict[str, str], objects: S3Objects
) -> None:
    harness.plane.lease = SHORT_LEASE
    await harness.launcher()
    agent = await harness.process(ADJOURN_ON_TERM="drain", **s3_environment)
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    await harness.plane.stop()
    agent.terminate()
    training = Training(pid=harness.training(job), attempt=harness.attempt(job))
    await harness.until(training.is_to_pause)
    job.do("epoch")
    await harness.until(lambda: not training.lives())
    await harness.plane.start()
    assert await harness.ended(agent) == 0
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (PAUSED, reasons.WORKER_STOPPED)


async def test_a_drained_worker_whose_control_plane_is_away_pauses_by_itself(
    harness: AgentHarness, s3_environment: dict[str, str], objects: S3Objects
) -> None:
    harness.plane.lease = SHORT_LEASE
    await harness.launcher()
    agent = await harness.process(ADJOURN_ON_TERM="drain", **s3_environment)
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    await harness.plane.stop()
    agent.terminate()
    training = Training(pid=harness.training(job), attempt=harness.attempt(job))
    await harness.until(training.is_to_pause)
    job.do("epoch")
    await harness.until(lambda: not training.lives())
    agent.terminate()  # as if its grace were over
    assert await harness.ended(agent) == 0
    await harness.plane.start()
    WorkerPaths.prepare(harness.paths.data, harness.paths.snapshots.parent)
    async with harness.agent(MemoryObjects()):
        await harness.until_forgotten(job)
    assert harness.plane.epochs(job) == [1]
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (PAUSED, reasons.WORKER_STOPPED)


async def test_what_does_not_reach_its_boundary_within_the_grace_is_stopped(
    harness: AgentHarness, s3_environment: dict[str, str], objects: S3Objects
) -> None:
    await harness.launcher()
    settings = {"ADJOURN_ON_TERM": "drain", "ADJOURN_DRAIN_GRACE": "1", **s3_environment}
    agent = await harness.process("-c", PATIENT, **settings)
    job = harness.job()
    job.do("epoch")
    await harness.until_durable(job, 1)
    agent.terminate()
    assert await harness.ended(agent) == 0
    how = harness.plane.exit(job)
    assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)
    assert not harness.paths.runtime.exists()


async def test_a_second_sigterm_ends_a_drain_at_once(harness: AgentHarness) -> None:
    await harness.launcher()
    agent = await harness.process("-c", PATIENT, ADJOURN_ON_TERM="drain", ADJOURN_DRAIN_GRACE="86400")
    job = harness.job()
    await harness.until_phase(job, RUNNING)
    pid = harness.training(job)
    agent.terminate()
    await harness.until(lambda: harness.plane.requests[-1].draining)
    assert (alive(pid), agent.poll()) == (True, None)
    agent.terminate()
    assert await harness.ended(agent) == 0
    assert not alive(pid)
    assert harness.plane.exit(job).phase == STOPPED


SAME_USER = """
import os, sys
import adjourn_worker.process as agent
from adjourn_worker.host import kernel

if os.getuid() == 0:  # root may read everything
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # as after an exec

def readable():
    agent, (reader, writer) = os.getpid(), os.pipe()
    if os.fork() == 0:
        try:
            found = open(f"/proc/{agent}/environ", "rb").read().split(b"ADJOURN_S3_SECRET_KEY=")[1][:4]
        except PermissionError:
            found = b"refused"
        os.write(writer, found)
        os._exit(0)
    return os.read(reader, 100).decode()

def run(work):
    work.close()
    print(readable(), [name for name in os.environ if name.endswith("_KEY")])

print(readable())
agent.asyncio.run = run
sys.exit(agent.main())
"""
"""Asks for the secret as training code of the agent's user could, before and after the agent begins."""


async def test_training_code_cannot_read_the_secrets_of_the_agent(harness: AgentHarness) -> None:
    data = {"ENDPOINT": "http://127.0.0.1:1", "ACCESS_KEY": "someone", "SECRET_KEY": "hush too"}
    settings = harness.settings(**{f"ADJOURN_DATA_S3_{name}": value for name, value in data.items()})
    environment = {**harness.environment(**settings), "ADJOURN_S3_SECRET_KEY": "hush"}
    done = await asyncio.to_thread(
        subprocess.run,
        (sys.executable, "-c", SAME_USER),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "hush\nrefused []\n", "")


async def test_with_torch_and_real_training(
    harness: AgentHarness, objects: S3Objects, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    bundle = bundles.pack(SCRIPT)
    name = f"bundles/{hashlib.sha256(bundle).hexdigest()}"
    await objects.put(bundles.object_key(name), bundle)
    await harness.process(**s3_environment)
    assert harness.plane.requests[-1].worker.environment["torch"] == metadata.version("torch")
    spec = JobSpec(entry_point="mlp:main", bundle=name, total_epochs=2, seed=7)
    gate = Gate(tmp_path / "gate", 0)
    spec.args.update({"gate": str(gate.directory), "fail_in": 2})
    job = harness.job("mlp", spec=spec)
    await harness.until(lambda: gate.inside(1))
    harness.plane.set_target(job, Assignment.PAUSE)
    await harness.until_phase(job, AssignmentStatus.PAUSING)
    gate.open(1)
    await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == PAUSED
    checkpoint = harness.plane.checkpoints(job)[-1]
    gate.open(2)
    failing = harness.job("mlp", attempt=2, spec=spec, restore=checkpoint, base=checkpoint)
    await harness.until_forgotten(failing)
    why = harness.plane.exit(failing).failure
    assert why.reason == "TRAINING_RAISED"
    assert "ConnectionError: the data went away\nThe whole log: adjourn logs mlp --attempt 2" in why.message
    assert "Traceback (most recent call last):" in harness.log(failing).read_text()
    last = harness.job("mlp", attempt=3, spec=spec, restore=checkpoint, base=checkpoint)
    await harness.until_forgotten(last)
    assert harness.plane.exit(last).phase == SUCCEEDED
    assert harness.plane.of(last)[0].pause.verdict == Pause.EXACT
    assert harness.plane.epochs(last) == [2]
    assert "epoch 2: val_loss" in harness.log(last).read_text()


RUNNING, STOPPED, SUCCEEDED = AssignmentStatus.RUNNING, AssignmentStatus.STOPPED, AssignmentStatus.SUCCEEDED


@asynccontextmanager
async def after(harness: AgentHarness, job: Job, change: Callable[[HeldAssignment], None]) -> AsyncIterator[int]:
    """Has a job trained, changes what the journal says of it, and starts the next agent; yields the training's pid."""
    objects = MemoryObjects()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        pid = harness.training(job)
    with Journal(harness.paths) as journal:
        (held,) = journal.held()
        change(held)
        journal.record(held, [])
    async with harness.agent(objects):
        yield pid


async def test_a_process_that_was_launched_and_not_journaled_is_adopted(harness: AgentHarness) -> None:
    def change(held: HeldAssignment) -> None:
        held.ClearField("process")
        held.ClearField("events_offset")
        held.status.phase = AssignmentStatus.STARTING

    job = harness.job()
    async with after(harness, job, change) as pid:
        await harness.until_phase(job, RUNNING)
        job.do("epoch", "finish")
        await harness.until_forgotten(job)
        assert not alive(pid)
    assert harness.plane.epochs(job) == [1]
    assert harness.plane.exit(job).phase == SUCCEEDED
    assert harness.log(job).read_text().count("training in") == 1


async def test_a_process_that_was_to_be_stopped_and_was_not_is_stopped(harness: AgentHarness) -> None:
    def change(held: HeldAssignment) -> None:
        held.assignment.target = Assignment.STOP
        held.assignment.generation = held.status.observed_generation = 2

    job = harness.job()
    async with after(harness, job, change) as pid:
        await harness.until_forgotten(job)
        assert not alive(pid)
    assert harness.plane.exit(job).phase == STOPPED


async def test_an_order_that_was_journaled_and_not_written_is_written(harness: AgentHarness) -> None:
    def change(held: HeldAssignment) -> None:
        held.assignment.target = Assignment.PAUSE
        held.assignment.generation = held.status.observed_generation = 2

    job = harness.job()
    async with after(harness, job, change):
        await harness.until_told(job, Assignment.PAUSE)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == AssignmentStatus.PAUSED


async def test_what_was_over_and_not_put_away_is_put_away(harness: AgentHarness) -> None:
    job = harness.job()
    harness.plane.keeping = True
    job.do("finish")
    async with harness.agent(MemoryObjects()):
        await harness.until_phase(job, SUCCEEDED)
        await harness.until(lambda: not harness.attempt(job).exists())
    snapshots = harness.paths.snapshot_directory(harness.attempt(job))
    for place in (harness.attempt(job), snapshots):
        place.mkdir()
    async with harness.agent(MemoryObjects()):
        await harness.until(lambda: not harness.attempt(job).exists() and not snapshots.exists())
        assert harness.plane.phase(job) == SUCCEEDED
        del harness.plane.assignments[job.name]
        await harness.until_forgotten(job)
    assert harness.held() == []


@pytest.mark.parametrize("lost", ["journal", "assignment"])
async def test_training_that_the_journal_does_not_know_is_ended(harness: AgentHarness, lost: str) -> None:
    job = harness.job()
    async with harness.agent(MemoryObjects()):
        await harness.until_phase(job, RUNNING)
        pid = harness.training(job)
    del harness.plane.assignments[job.name]
    if lost == "journal":
        harness.paths.journal.unlink()
    else:
        with Journal(harness.paths) as journal:
            journal.forget(job.name, job.assignment.token)
    async with harness.agent(MemoryObjects()):
        assert not alive(pid)
        assert not harness.plane.phase(job)
        assert not harness.attempt(job).exists()
