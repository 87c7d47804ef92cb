"""The agent with a real launcher, journal and control plane's stream; training is emulated, objects are in memory."""

import asyncio
import os
import signal
import threading
from datetime import UTC, datetime

import pytest

from adjourn import reasons
from adjourn.channel import MAX_MESSAGE_BYTES
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, SynchronizeRequest
from adjourn.v1.job_pb2 import Condition, Pause
from adjourn_worker import agent as agent_module
from adjourn_worker.agent import Agent
from adjourn_worker.attempt import runner as runner_module
from adjourn_worker.host.gpus import find_gpus
from adjourn_worker.settings import GpuShare
from adjourn_worker.storage import tasks
from tests.harness.agents import Bench, alive
from tests.harness.fake_nvml import FakeNvml
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUNNING, PAUSING = AssignmentStatus.RUNNING, AssignmentStatus.PAUSING
PERSISTING, PAUSED, STOPPED = AssignmentStatus.PERSISTING, AssignmentStatus.PAUSED, AssignmentStatus.STOPPED
STORAGE_FAILING = Condition.STORAGE_FAILING
SUCCEEDED, FAILED = AssignmentStatus.SUCCEEDED, AssignmentStatus.FAILED


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


async def test_a_job_runs_to_its_end_and_is_forgotten(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        snapshots = bench.paths.snapshot_directory(bench.attempt(job))
        for epoch in (1, 2):
            job.do("epoch")
            await bench.until_durable(job, epoch)
        assert bench.plane.status(job).progress.epoch == 2
        assert (bench.attempt(job).exists(), snapshots.exists()) == (True, True)
        job.do("finish")
        await bench.until_forgotten(job)
    assert bench.plane.kinds(job) == ["epoch", "checkpoint", "epoch", "checkpoint", "checkpoint", "exit"]
    assert [report.sequence for report in bench.plane.of(job)] == [1, 2, 3, 4, 5, 6]
    how = bench.plane.exit(job)
    assert (how.phase, how.checkpoint) == (SUCCEEDED, bench.plane.checkpoints(job)[-1].name)
    assert (bench.attempt(job).exists(), snapshots.exists()) == (False, False)
    assert bench.held() == []
    assert f"training in {bench.attempt(job).name}" in bench.log(job).read_text()


async def test_reports_are_repeated_until_they_are_acknowledged(bench: Bench, objects: MemoryObjects) -> None:
    bench.plane.acknowledging = False
    job = bench.job()
    job.do("epoch", "finish")
    async with bench.agent(objects):
        await bench.until_phase(job, SUCCEEDED)
        said = len(bench.plane.requests)
        await bench.until(lambda: len(bench.plane.requests) > said + 3)
        assert {len(request.reports) for request in bench.plane.requests[said + 1 :]} == {len(bench.plane.reports)}
    said = len(bench.plane.requests)
    async with bench.agent(objects):  # the next agent has them from the journal
        assert list(bench.plane.requests[said].reports) == bench.plane.reports
        bench.plane.acknowledging = True
        await bench.until_forgotten(job)
        await bench.until(lambda: not bench.plane.requests[-1].reports)
    assert bench.plane.kinds(job) == ["epoch", "checkpoint", "checkpoint", "exit"]


async def test_a_long_backlog_of_large_reports_is_sent_in_parts(bench: Bench, objects: MemoryObjects) -> None:
    """Forty epochs of 600 kB are more than a message may have."""
    bench.plane.acknowledging = False
    job = bench.job()
    job.do("metrics 10000", *["epoch"] * 40, "finish")
    async with bench.agent(objects):
        await bench.until_phase(job, SUCCEEDED)
        bench.plane.acknowledging = True
        await bench.until_forgotten(job)
    assert bench.plane.epochs(job) == list(range(1, 41))
    sizes = [request.ByteSize() for request in bench.plane.requests]
    assert sum(report.ByteSize() for report in bench.plane.reports) > MAX_MESSAGE_BYTES
    assert max(sizes) < MAX_MESSAGE_BYTES / 2


async def test_a_report_that_fits_no_message_is_cut_and_blocks_nothing(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    job.do("metrics 200000", "epoch", "metrics 1", "epoch", "finish")
    async with bench.agent(objects):
        await bench.until_forgotten(job)
    first, second = (report.epoch for report in bench.plane.of(job) if report.HasField("epoch"))
    assert (len(first.values), len(second.values)) == (100, 1)


async def test_an_assignment_without_its_spec_is_one_that_is_held(bench: Bench, objects: MemoryObjects) -> None:
    job, unknown = bench.job("a"), bench.job("b", hand_out=False)
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        for each in (job, unknown):
            each.assignment.ClearField("spec")
            bench.plane.set_target(each, Assignment.PAUSE)
        await bench.until_phase(job, PAUSING)
        assert not bench.plane.phase(unknown)
        job.do("epoch")
        await bench.until_forgotten(job)
    assert bench.plane.exit(job).phase == PAUSED


async def test_nothing_that_is_journaled_waits_behind_other_work(bench: Bench, objects: MemoryObjects) -> None:
    """As when many large snapshots are hashed at once."""
    released = threading.Event()
    loop = asyncio.get_running_loop()
    job = bench.job()
    async with bench.agent(objects) as agent:
        await bench.until_phase(job, RUNNING)
        hashing = [loop.run_in_executor(None, released.wait) for _ in range(100)]
        try:
            await asyncio.wait_for(agent.journal.run(agent.journal.reports), 10)
        finally:
            released.set()
            await asyncio.gather(*hashing)


async def test_a_pause_and_its_resume(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    job.do("epoch")
    async with bench.agent(objects):
        await bench.until_durable(job, 1)
        pid = bench.training(job)
        bench.plane.set_target(job, Assignment.PAUSE)
        await bench.until_phase(job, PAUSING)
        assert bench.plane.status(job).observed_generation == 2
        job.do("epoch")
        await bench.until_forgotten(job)
        assert not alive(pid)
        assert set(bench.plane.kinds(job)[2:]) == {"epoch", "pause", "checkpoint", "exit"}
        checkpoint, how = bench.plane.checkpoints(job)[-1], bench.plane.exit(job)
        assert (how.phase, how.checkpoint, checkpoint.epoch) == (PAUSED, checkpoint.name, 2)
        resumed = bench.job(attempt=2, restore=checkpoint, base=checkpoint)
        resumed.do("epoch")
        await bench.until_durable(resumed, 3)
        pause = bench.plane.of(resumed)[0].pause
        assert (pause.verdict, pause.HasField("resume_time")) == (Pause.EXACT, True)
        resumed.do("finish")
        await bench.until_forgotten(resumed)
    assert bench.plane.epochs(resumed) == [3]


async def test_a_pause_that_is_taken_back(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        bench.plane.set_target(job, Assignment.PAUSE)
        await bench.until_phase(job, PAUSING)
        bench.plane.set_target(job, Assignment.RUN)
        await bench.until_phase(job, RUNNING)
        job.do("epoch", "finish")
        await bench.until_forgotten(job)
    assert bench.plane.exit(job).phase == SUCCEEDED


async def test_a_stop(bench: Bench, objects: MemoryObjects) -> None:
    job, other = bench.job("a"), bench.job("b", hand_out=False)
    bench.plane.set_target(other, Assignment.STOP)
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        pid = bench.training(job)
        bench.plane.set_target(job, Assignment.STOP)
        await bench.until_forgotten(job)
        await bench.until_forgotten(other)
        assert not alive(pid)
    assert bench.plane.kinds(job) == bench.plane.kinds(other) == ["exit"]
    assert [bench.plane.of(each)[0].exit.phase for each in (job, other)] == [STOPPED, STOPPED]
    assert bench.held() == []


async def test_absent_and_live_is_left_alone(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        del bench.plane.assignments[job.name]
        said = len(bench.plane.requests)
        job.do("epoch")
        await bench.until_durable(job, 1)
        await bench.until(lambda: len(bench.plane.requests) > said + 3)
        assert bench.plane.phase(job) == RUNNING
        assert alive(bench.training(job))


async def test_two_jobs_at_once_are_told_in_order(bench: Bench, objects: MemoryObjects) -> None:
    jobs = [bench.job("a"), bench.job("b")]
    async with bench.agent(objects):
        for job in jobs:
            job.do(*["epoch"] * 20, "finish")
        for job in jobs:
            await bench.until_forgotten(job)
    assert [bench.plane.epochs(job) for job in jobs] == [list(range(1, 21))] * 2
    sequences = [report.sequence for report in bench.plane.reports]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_the_control_plane_is_away_for_a_while(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects) as agent:
        await bench.until_phase(job, RUNNING)
        await bench.plane.stop()
        await bench.until(lambda: not agent.stream.connected)
        job.do("epoch", "epoch", "epoch", "finish")
        pid = bench.training(job)
        await bench.until(lambda: not alive(pid))
        assert bench.plane.reports == []
        await bench.plane.start()
        await bench.until_forgotten(job)
    assert bench.plane.epochs(job) == [1, 2, 3]
    assert bench.plane.exit(job).phase == SUCCEEDED


class Away(MemoryObjects):
    """Object storage that cannot be reached."""

    away = True

    async def put(self, key: str, data: bytes) -> bool:
        if self.away:
            raise ObjectStoreUnavailableError("it is away", bucket=self.bucket)
        return await super().put(key, data)


async def test_object_storage_is_away_during_a_pause(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BACKOFF_MOST", 0.2)
    objects = Away()
    job = bench.job()
    bench.plane.set_target(job, Assignment.PAUSE)
    job.do("epoch")
    async with bench.agent(objects):
        await bench.until_phase(job, PERSISTING)
        assert not alive(bench.training(job))
        said = len(bench.plane.requests)
        await bench.until(lambda: len(bench.plane.requests) > said + 3)
        assert bench.plane.phase(job) == PERSISTING
        await bench.until(lambda: "condition" in bench.plane.kinds(job))
        assert sorted(bench.plane.kinds(job), key=str) == ["condition", "epoch", "pause"]
        objects.away = False
        await bench.until_forgotten(job)
    assert bench.plane.kinds(job)[-3:] == ["condition", "checkpoint", "exit"]
    began, ended = (report.condition for report in bench.plane.of(job) if report.HasField("condition"))
    assert (began.condition.type, began.condition.reason) == (STORAGE_FAILING, reasons.OBJECT_STORE_UNAVAILABLE)
    assert (began.condition.message, began.ended) == ("it is away", False)
    assert (ended.condition.type, ended.ended) == (STORAGE_FAILING, True)
    assert bench.plane.exit(job).phase == PAUSED


GIB = 1 << 30


async def trained_on_gpu(bench: Bench, agent: Agent, nvml: FakeNvml) -> Job:
    """Returns a job that has paused, while 5 GiB that its process had used are in use still."""
    job = bench.job(device_uuids=["GPU-0"])
    await bench.until_phase(job, RUNNING)
    nvml.used[0] += 5 * GIB
    (runner,) = agent.runners.values()
    await bench.until(lambda: [gpu.memory_used_bytes for gpu in runner.held.usage.gpus] == [nvml.used[0]])
    pid = bench.training(job)
    bench.plane.set_target(job, Assignment.PAUSE)
    await bench.until_phase(job, PAUSING)
    job.do("epoch")
    await bench.until(lambda: not alive(pid))
    return job


async def test_gpus_are_held_until_their_memory_is_free(
    bench: Bench, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RELEASE_SHOWN_SECONDS", 0.1)
    nvml = FakeNvml()
    async with bench.agent(objects, find_gpus(GpuShare(), nvml)) as agent:
        job = await trained_on_gpu(bench, agent, nvml)
        await bench.until(lambda: bench.plane.kinds(job).count("condition") == 1)
        assert list(bench.plane.status(job).held_device_uuids) == ["GPU-0"]
        assert not {"pause", "exit"} & set(bench.plane.kinds(job))
        nvml.used[0] -= 4 * GIB
        begin = datetime.now(UTC)
        nvml.used[0] -= GIB
        await bench.until_forgotten(job)
    shown, over = (report.condition for report in bench.plane.of(job) if report.HasField("condition"))
    assert (shown.condition.reason, over.ended) == (reasons.GPU_MEMORY_IN_USE, True)
    assert "5.0 GiB on GPU-0" in shown.condition.message
    (pause,) = (report.pause for report in bench.plane.of(job) if report.HasField("pause"))
    assert pause.release_time.ToDatetime(UTC) >= begin
    assert pause.released_gpu_memory_bytes == 5 * GIB


async def test_gpus_whose_memory_is_never_released_are_quarantined_until_it_is(
    bench: Bench, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RELEASE_SECONDS", 0.2)
    monkeypatch.setattr(agent_module, "GPU_SECONDS", 0.05)

    def quarantined() -> list[bool]:
        return [device.quarantined for device in bench.plane.requests[-1].worker.devices]

    nvml = FakeNvml()
    async with bench.agent(objects, find_gpus(GpuShare(), nvml)) as agent:
        assert quarantined() == [False, False]
        job = await trained_on_gpu(bench, agent, nvml)
        await bench.until_forgotten(job)
        released = [each for each in bench.plane.requests if each.assignments and not held(each, job)]
        assert all(each.worker.devices[0].quarantined for each in released), "it was offered for a moment"
        assert quarantined() == [True, False]
        nvml.used[0] -= 5 * GIB
        await bench.until(lambda: quarantined() == [False, False])
    assert bench.plane.exit(job).phase == PAUSED


def held(request: SynchronizeRequest, job: Job) -> list[str]:
    (status,) = (status for status in request.assignments if status.job == job.name)
    return list(status.held_device_uuids)


async def test_a_training_process_that_is_killed(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    job.do("epoch")
    async with bench.agent(objects):
        await bench.until_durable(job, 1)
        os.kill(bench.training(job), signal.SIGKILL)
        await bench.until_forgotten(job)
    how = bench.plane.exit(job)
    assert (how.phase, how.code, how.failure.reason) == (FAILED, -signal.SIGKILL, reasons.PROCESS_KILLED)
    assert how.failure.message == f"ended by SIGKILL\nThe whole log: {bench.log(job)} on workers/w"


async def test_a_launcher_that_is_killed_takes_its_training_along(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects):
        await bench.until_phase(job, RUNNING)
        pid, launcher = bench.training(job), bench.launcher_pid()
        os.kill(launcher, signal.SIGKILL)
        await bench.until_forgotten(job)
        assert not alive(pid)
        how = bench.plane.exit(job)
        assert (how.phase, how.failure.reason) == (FAILED, reasons.PROCESS_LOST)
        again = bench.job(attempt=2)
        again.do("finish")
        await bench.until_forgotten(again)
        assert bench.launcher_pid() != launcher
    assert bench.plane.exit(again).phase == SUCCEEDED


async def test_the_log_of_a_failure_is_kept_whole(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    job.do("fail")
    async with bench.agent(objects):
        await bench.until_forgotten(job)
    how = bench.plane.exit(job)
    assert (how.phase, how.code, how.failure.reason) == (FAILED, 1, "TRAINING_RAISED")
    message, _, place = how.failure.message.partition(reasons.WHOLE_LOG)
    assert (message, place) == ("ValueError: no", f"{bench.log(job)} on workers/w")
    assert "the whole story" in bench.log(job).read_text()


async def test_a_storm_of_rings_is_weathered(bench: Bench, objects: MemoryObjects) -> None:
    job = bench.job()
    async with bench.agent(objects) as agent:
        await bench.until_phase(job, RUNNING)
        (holder,) = agent.runners.values()
        said, sizes = len(bench.plane.requests), [0]
        job.do("storm", "epoch")

        def over() -> bool:
            sizes.append(holder.inbox.qsize())
            return bench.plane.epochs(job) == [1]

        await bench.until(over)
        assert len(bench.plane.requests) > said + 5
        assert max(sizes) <= 3
