"""The agent as a process of its own: killed, stopped, doubled; and once with torch and real training."""

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from adjourn import bundles, reasons, snapshots
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.job_pb2 import JobSpec, Pause
from adjourn_worker.storage.fetch import fetch
from adjourn_worker.storage.parts import PartStore
from tests.harness.agents import Bench, alive
from tests.harness.jobs import Gate
from tests.harness.memory_objects import MemoryObjects

RUNNING, PERSISTING = AssignmentStatus.RUNNING, AssignmentStatus.PERSISTING
PAUSED, STOPPED = AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED
SCRIPT = Path(__file__).parents[1] / "trainings" / "mlp.py"


@pytest.fixture
async def objects(s3_environment: dict[str, str]) -> AsyncIterator[S3Objects]:
    async with S3Objects(S3Settings.from_environment(s3_environment)) as opened:
        await opened.ensure_bucket()
        yield opened


async def test_training_goes_on_when_the_agent_is_killed(
    bench: Bench, objects: S3Objects, s3_environment: dict[str, str]
) -> None:
    await bench.launcher()
    agent = await bench.process(**s3_environment)
    job = bench.job()
    job.do("epoch")
    await bench.until_durable(job, 1)
    pid = bench.training(job)
    await bench.kill(agent)
    job.do("epoch", "epoch")
    await bench.until(lambda: bench.written(job).count("epoch") == 3)
    await bench.process(**s3_environment)
    await bench.until_durable(job, 3)
    assert bench.training(job) == pid
    assert alive(pid)
    job.do("epoch", "finish")
    await bench.until_forgotten(job)
    assert bench.plane.exit(job).phase == SUCCEEDED
    assert bench.plane.epochs(job) == [1, 2, 3, 4]
    assert [report.epoch.step for report in bench.plane.of(job) if report.HasField("epoch")] == [10, 20, 30, 40]
    names = [found.name for found in bench.plane.checkpoints(job)]
    assert len(names) == len(set(names))
    assert [report.sequence for report in bench.plane.reports] == list(range(1, len(bench.plane.reports) + 1))


async def test_persisting_is_finished_by_the_next_agent(
    bench: Bench, objects: S3Objects, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    await bench.launcher()
    agent = await bench.process()  # storage refuses
    job = bench.job("persisted")
    bench.plane.set_target(job, Assignment.PAUSE)
    job.do("epoch")
    await bench.until_phase(job, PERSISTING)
    await bench.kill(agent)
    await bench.process(**s3_environment)
    await bench.until_forgotten(job)
    kinds = [kind for kind in bench.plane.kinds(job) if kind != "condition"]
    assert kinds == ["epoch", "pause", "checkpoint", "exit"]
    (checkpoint,) = bench.plane.checkpoints(job)
    assert (bench.plane.exit(job).phase, bench.plane.exit(job).checkpoint) == (PAUSED, checkpoint.name)
    await fetch(PartStore(objects), checkpoint, tmp_path / "fetched")
    assert snapshots.component_digests(tmp_path / "fetched") == dict(checkpoint.component_digests)


async def test_a_second_agent_is_refused(bench: Bench) -> None:
    await bench.launcher()
    first = await bench.process()
    second = await bench.process()
    assert await bench.ended(second) == 1
    (entry,) = [entry for entry in bench.logged() if entry["level"] == "critical"]
    assert entry["errors"] == [f"agent {first.pid} already works in {bench.paths.data}"]
    assert first.poll() is None


async def test_an_agent_that_is_superseded_ends_and_does_not_come_back(bench: Bench) -> None:
    await bench.launcher()
    agent = await bench.process()
    job = bench.job()
    await bench.until_phase(job, RUNNING)
    bench.plane.superseding = True
    assert await bench.ended(agent) == 3
    assert [entry["errors"] for entry in bench.logged() if entry["event"] == "superseded"] == [["another agent speaks"]]
    assert alive(bench.training(job))


async def test_sigterm_leaves_training_alone(bench: Bench) -> None:
    await bench.launcher()
    agent = await bench.process()  # storage refuses, so a snapshot is on its way all the time
    job = bench.job()
    job.do("epoch")
    await bench.until(lambda: bench.plane.epochs(job) == [1])
    pid = bench.training(job)
    agent.terminate()
    assert await asyncio.to_thread(agent.wait, 2) == 0  # though storage is still being tried
    assert alive(pid)
    assert psutil.pid_exists(bench.launcher_pid())
    assert not bench.paths.notify_socket.exists()
    job.do("epoch", "finish")
    async with bench.agent(MemoryObjects()):
        await bench.until_forgotten(job)
    assert bench.plane.epochs(job) == [1, 2]
    assert bench.plane.exit(job).phase == SUCCEEDED


async def test_sigterm_can_end_everything(bench: Bench, objects: S3Objects, s3_environment: dict[str, str]) -> None:
    await bench.launcher()
    agent = await bench.process(ADJOURN_ON_TERM="stop", ADJOURN_CPU_SLOTS="2", **s3_environment)
    job, other = bench.job("stopped"), bench.job("finished")
    job.do("epoch")
    other.do("finish")
    await bench.until_durable(job, 1)
    await bench.until_forgotten(other)
    pid, launcher = bench.training(job), bench.launcher_pid()
    agent.terminate()
    assert await bench.ended(agent) == 0
    assert bench.plane.requests[-1].draining
    how = bench.plane.exit(job)
    assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)
    assert not alive(pid)
    assert not alive(launcher)
    assert not bench.paths.runtime.exists()
    assert not bench.paths.snapshots.exists()
    assert bench.paths.attempt_directories() == []


async def test_what_cannot_be_stored_at_sigterm_is_kept_for_the_next_start(bench: Bench) -> None:
    await bench.launcher()
    agent = await bench.process(ADJOURN_ON_TERM="stop")
    job = bench.job()
    job.do("epoch")
    await bench.until(lambda: bench.plane.epochs(job) == [1])
    pid = bench.training(job)
    agent.terminate()
    assert await bench.ended(agent) == 0
    assert not alive(pid)
    assert not bench.plane.ended(job)
    async with bench.agent(MemoryObjects()):
        await bench.until_forgotten(job)
    assert [found.epoch for found in bench.plane.checkpoints(job)] == [1]
    how = bench.plane.exit(job)
    assert (how.phase, how.failure.reason) == (STOPPED, reasons.WORKER_STOPPED)


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


async def test_training_code_cannot_read_the_secrets_of_the_agent(bench: Bench) -> None:
    environment = {**bench.environment(**bench.settings()), "ADJOURN_S3_SECRET_KEY": "hush"}
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
    bench: Bench, objects: S3Objects, s3_environment: dict[str, str], tmp_path: Path
) -> None:
    bundle = bundles.pack(SCRIPT)
    name = f"bundles/{hashlib.sha256(bundle).hexdigest()}"
    await objects.put(bundles.object_key(name), bundle)
    await bench.process(**s3_environment)
    assert bench.plane.requests[-1].worker.environment["torch"] == metadata.version("torch")
    spec = JobSpec(entry_point="mlp:main", bundle=name, total_epochs=2, seed=7)
    gate = Gate(tmp_path / "gate", 0)
    spec.args.update({"gate": str(gate.directory), "fail_in": 2})
    job = bench.job("mlp", spec=spec)
    await bench.until(lambda: gate.inside(1))
    bench.plane.set_target(job, Assignment.PAUSE)
    await bench.until_phase(job, AssignmentStatus.PAUSING)
    gate.open(1)
    await bench.until_forgotten(job)
    assert bench.plane.exit(job).phase == PAUSED
    checkpoint = bench.plane.checkpoints(job)[-1]
    gate.open(2)
    failing = bench.job("mlp", attempt=2, spec=spec, restore=checkpoint, base=checkpoint)
    await bench.until_forgotten(failing)
    why = bench.plane.exit(failing).failure
    assert why.reason == "TRAINING_RAISED"
    assert f"ConnectionError: the data went away\nThe whole log: {bench.log(failing)} on workers/w" in why.message
    assert "Traceback (most recent call last):" in bench.log(failing).read_text()
    last = bench.job("mlp", attempt=3, spec=spec, restore=checkpoint, base=checkpoint)
    await bench.until_forgotten(last)
    assert bench.plane.exit(last).phase == SUCCEEDED
    assert bench.plane.of(last)[0].pause.verdict == Pause.EXACT
    assert bench.plane.epochs(last) == [2]
    assert "epoch 2: val_loss" in bench.log(last).read_text()
