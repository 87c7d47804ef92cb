"""The agent with a real launcher, journal and control plane's stream; training is emulated, objects are in memory."""

import asyncio
import os
import signal
import threading
from collections import Counter
from datetime import UTC, datetime

import pytest

from adjourn import reasons
from adjourn.channel import MAX_MESSAGE_BYTES
from adjourn.errors import ObjectStoreUnavailableError
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, SeriesPart, SynchronizeRequest
from adjourn.v1.job_pb2 import Condition, Pause
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn_worker import agent as agent_module
from adjourn_worker.agent import Agent
from adjourn_worker.attempt import runner as runner_module
from adjourn_worker.attempt.runner import AttemptRunner
from adjourn_worker.host.gpus import find_gpus
from adjourn_worker.settings import GpuShare
from adjourn_worker.storage import tasks
from tests.harness.agents import DEADLINE, AgentHarness, alive
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


async def test_a_job_runs_to_its_end_and_is_forgotten(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        snapshots = harness.paths.snapshot_directory(harness.attempt(job))
        for epoch in (1, 2):
            job.do("epoch")
            await harness.until_durable(job, epoch)
        assert harness.plane.status(job).progress.epoch == 2
        assert (harness.attempt(job).exists(), snapshots.exists()) == (True, True)
        job.do("finish")
        await harness.until_forgotten(job)
        assert harness.plane.requests[-1].worker.instance == (harness.paths.data / "id").read_text().strip()
    assert harness.plane.kinds(job) == ["epoch", "checkpoint", "epoch", "checkpoint", "checkpoint", "exit"]
    assert [report.sequence for report in harness.plane.of(job)] == [1, 2, 3, 4, 5, 6]
    how = harness.plane.exit(job)
    assert (how.phase, how.checkpoint) == (SUCCEEDED, harness.plane.checkpoints(job)[-1].name)
    assert (harness.attempt(job).exists(), snapshots.exists()) == (False, False)
    assert harness.held() == []
    assert f"training in {harness.attempt(job).name}" in harness.log(job).read_text()


async def test_reports_are_repeated_until_they_are_acknowledged(harness: AgentHarness, objects: MemoryObjects) -> None:
    harness.plane.acknowledging = False
    job = harness.job()
    job.do("epoch", "finish")
    async with harness.agent(objects):
        await harness.until_phase(job, SUCCEEDED)
        said = len(harness.plane.requests)
        await harness.until(lambda: len(harness.plane.requests) > said + 3)
        assert {len(request.reports) for request in harness.plane.requests[said + 1 :]} == {len(harness.plane.reports)}
    said = len(harness.plane.requests)
    async with harness.agent(objects):  # the next agent has them from the journal
        assert list(harness.plane.requests[said].reports) == harness.plane.reports
        harness.plane.acknowledging = True
        await harness.until_forgotten(job)
        await harness.until(lambda: not harness.plane.requests[-1].reports)
    assert harness.plane.kinds(job) == ["epoch", "checkpoint", "checkpoint", "exit"]


async def test_figures_go_along_with_what_is_sent_and_are_not_repeated(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()

    def parts() -> list[SeriesPart]:
        return [part for request in harness.plane.requests for part in request.series]

    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        await harness.until(lambda: any(part.samples for part in parts()))
        job.do("epoch", "finish")
        await harness.until_forgotten(job)
    assert {part.job for part in parts()} == {job.name}
    assert all(part.token == job.assignment.token for part in parts())
    samples = [sample for part in parts() for sample in part.samples]
    assert all(sample.memory_bytes > 0 and sample.host_memory_bytes > 0 for sample in samples)
    assert {sample.attempt for sample in samples} == {job.assignment.token.attempt}
    times = [sample.time.ToMicroseconds() for sample in samples]
    assert times == sorted(set(times))
    steps = [each.step for part in parts() for each in part.steps]
    assert steps == sorted(set(steps))
    assert steps[-1] == harness.plane.checkpoints(job)[-1].step


async def test_streams_are_numbered_over_the_lives_of_agents(harness: AgentHarness, objects: MemoryObjects) -> None:
    for _ in range(2):
        async with harness.agent(objects):
            await harness.plane.stop()
            said = len(harness.plane.requests)
            await harness.plane.start()
            await harness.until(lambda: len(harness.plane.requests) > said)  # noqa: B023  # within the round
    numbers = [request.stream for request in harness.plane.requests]
    assert numbers == sorted(numbers)
    agents = Counter(session for session, _ in {(each.session_id, each.stream) for each in harness.plane.requests})
    assert len(agents) == 2
    assert min(agents.values()) >= 2, "each agent has opened two"
    assert agents.total() == len(set(numbers))
    assert numbers[0] > 1 << 20


async def test_a_long_backlog_of_large_reports_is_sent_in_parts(harness: AgentHarness, objects: MemoryObjects) -> None:
    """Forty epochs of 600 kB are more than a message may have."""
    harness.plane.acknowledging = False
    job = harness.job()
    job.do("metrics 10000", *["epoch"] * 40, "finish")
    async with harness.agent(objects):
        await harness.until_phase(job, SUCCEEDED)
        harness.plane.acknowledging = True
        await harness.until_forgotten(job)
    assert harness.plane.epochs(job) == list(range(1, 41))
    sizes = [request.ByteSize() for request in harness.plane.requests]
    assert sum(report.ByteSize() for report in harness.plane.reports) > MAX_MESSAGE_BYTES
    assert max(sizes) < MAX_MESSAGE_BYTES / 2


async def test_a_report_that_fits_no_message_is_cut_and_blocks_nothing(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    job.do("metrics 200000", "epoch", "metrics 1", "epoch", "finish")
    async with harness.agent(objects):
        await harness.until_forgotten(job)
    first, second = (report.epoch for report in harness.plane.of(job) if report.HasField("epoch"))
    assert (len(first.values), len(second.values)) == (100, 1)


async def test_an_assignment_without_its_spec_is_one_that_is_held(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job, unknown = harness.job("a"), harness.job("b", hand_out=False)
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        for each in (job, unknown):
            each.assignment.ClearField("spec")
            harness.plane.set_target(each, Assignment.PAUSE)
        await harness.until_phase(job, PAUSING)
        assert not harness.plane.phase(unknown)
        job.do("epoch")
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == PAUSED


async def test_nothing_that_is_journaled_waits_behind_other_work(harness: AgentHarness, objects: MemoryObjects) -> None:
    """As when many large snapshots are hashed at once."""
    released = threading.Event()
    loop = asyncio.get_running_loop()
    job = harness.job()
    async with harness.agent(objects) as agent:
        await harness.until_phase(job, RUNNING)
        hashing = [loop.run_in_executor(None, released.wait) for _ in range(100)]
        try:
            await asyncio.wait_for(agent.journal.run(agent.journal.reports), DEADLINE)
        finally:
            released.set()
            await asyncio.gather(*hashing)


async def test_a_pause_and_its_resume(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    job.do("epoch")
    async with harness.agent(objects):
        await harness.until_durable(job, 1)
        pid = harness.training(job)
        harness.plane.set_target(job, Assignment.PAUSE)
        await harness.until_phase(job, PAUSING)
        assert harness.plane.status(job).observed_generation == 2
        job.do("epoch")
        await harness.until_forgotten(job)
        assert not alive(pid)
        assert set(harness.plane.kinds(job)[2:]) == {"epoch", "pause", "checkpoint", "exit"}
        checkpoint, how = harness.plane.checkpoints(job)[-1], harness.plane.exit(job)
        assert (how.phase, how.checkpoint, checkpoint.epoch) == (PAUSED, checkpoint.name, 2)
        resumed = harness.job(attempt=2, restore=checkpoint, base=checkpoint)
        resumed.do("epoch")
        await harness.until_durable(resumed, 3)
        pause = harness.plane.of(resumed)[0].pause
        assert (pause.verdict, pause.HasField("resume_time")) == (Pause.EXACT, True)
        resumed.do("finish")
        await harness.until_forgotten(resumed)
    assert harness.plane.epochs(resumed) == [3]


class Background(MemoryObjects):
    """Other objects in the same place."""

    def __init__(self, objects: MemoryObjects) -> None:
        super().__init__()
        self.contents, self.versions = objects.contents, objects.versions
        self.puts: list[str] = []

    async def put(self, key: str, data: bytes) -> bool:
        self.puts.append(key)
        return await super().put(key, data)


async def test_a_snapshot_is_made_durable_in_the_background_as_long_as_nobody_waits_for_it(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    behind = Background(objects)
    job = harness.job()
    job.do("epoch")
    async with harness.agent(objects, background=behind) as agent:
        await harness.until_durable(job, 1)
        assert agent.training() == [harness.training(job)]
        sent = len(behind.puts)
        assert sent
        harness.plane.set_target(job, Assignment.PAUSE)
        await harness.until_phase(job, PAUSING)
        job.do("epoch")
        await harness.until_forgotten(job)
        assert agent.training() == []
    assert len(behind.puts) == sent
    assert harness.plane.checkpoints(job)[-1].epoch == 2


async def test_a_pause_that_is_taken_back(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        harness.plane.set_target(job, Assignment.PAUSE)
        await harness.until_phase(job, PAUSING)
        harness.plane.set_target(job, Assignment.RUN)
        await harness.until_phase(job, RUNNING)
        job.do("epoch", "finish")
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == SUCCEEDED


async def test_a_stop(harness: AgentHarness, objects: MemoryObjects) -> None:
    job, other = harness.job("a"), harness.job("b", hand_out=False)
    harness.plane.set_target(other, Assignment.STOP)
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        pid = harness.training(job)
        harness.plane.set_target(job, Assignment.STOP)
        await harness.until_forgotten(job)
        await harness.until_forgotten(other)
        assert not alive(pid)
    assert harness.plane.kinds(job) == harness.plane.kinds(other) == ["exit"]
    assert [harness.plane.of(each)[0].exit.phase for each in (job, other)] == [STOPPED, STOPPED]
    assert harness.held() == []


async def test_absent_and_live_is_left_alone(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        del harness.plane.assignments[job.name]
        said = len(harness.plane.requests)
        job.do("epoch")
        await harness.until_durable(job, 1)
        await harness.until(lambda: len(harness.plane.requests) > said + 3)
        assert harness.plane.phase(job) == RUNNING
        assert alive(harness.training(job))


async def test_two_jobs_at_once_are_told_in_order(harness: AgentHarness, objects: MemoryObjects) -> None:
    jobs = [harness.job("a"), harness.job("b")]
    async with harness.agent(objects):
        for job in jobs:
            job.do(*["epoch"] * 20, "finish")
        for job in jobs:
            await harness.until_forgotten(job)
    assert [harness.plane.epochs(job) for job in jobs] == [list(range(1, 21))] * 2
    sequences = [report.sequence for report in harness.plane.reports]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_the_control_plane_is_away_for_a_while(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects) as agent:
        await harness.until_phase(job, RUNNING)
        await harness.plane.stop()
        await harness.until(lambda: not agent.stream.connected)
        job.do("epoch", "epoch", "epoch", "finish")
        pid = harness.training(job)
        await harness.until(lambda: not alive(pid))
        assert harness.plane.reports == []
        await harness.plane.start()
        await harness.until_forgotten(job)
    assert harness.plane.epochs(job) == [1, 2, 3]
    assert harness.plane.exit(job).phase == SUCCEEDED


class Away(MemoryObjects):
    """Object storage that cannot be reached."""

    away = True

    async def put(self, key: str, data: bytes) -> bool:
        if self.away:
            raise ObjectStoreUnavailableError("it is away", bucket=self.bucket)
        return await super().put(key, data)


async def test_object_storage_is_away_during_a_pause(harness: AgentHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BACKOFF_MOST", 0.2)
    objects = Away()
    job = harness.job()
    harness.plane.set_target(job, Assignment.PAUSE)
    job.do("epoch")
    async with harness.agent(objects):
        await harness.until_phase(job, PERSISTING)
        assert not alive(harness.training(job))
        said = len(harness.plane.requests)
        await harness.until(lambda: len(harness.plane.requests) > said + 3)
        assert harness.plane.phase(job) == PERSISTING
        await harness.until(lambda: "condition" in harness.plane.kinds(job))
        assert sorted(harness.plane.kinds(job), key=str) == ["condition", "epoch", "pause"]
        objects.away = False
        await harness.until_forgotten(job)
    assert harness.plane.kinds(job)[-3:] == ["condition", "checkpoint", "exit"]
    began, ended = (report.condition for report in harness.plane.of(job) if report.HasField("condition"))
    assert (began.condition.type, began.condition.reason) == (STORAGE_FAILING, reasons.OBJECT_STORE_UNAVAILABLE)
    assert (began.condition.message, began.ended) == ("it is away", False)
    assert (ended.condition.type, ended.ended) == (STORAGE_FAILING, True)
    assert harness.plane.exit(job).phase == PAUSED


GIB = 1 << 30


def newest_usage(runner: AttemptRunner) -> ResourceSample:
    return runner.held.usages[-1] if runner.held.usages else ResourceSample()


async def trained_on_gpu(harness: AgentHarness, agent: Agent, nvml: FakeNvml) -> Job:
    """Returns a job that has paused, while 5 GiB that its process had used are in use still."""
    job = harness.job(device_uuids=["GPU-0"])
    await harness.until_phase(job, RUNNING)
    nvml.used[0] += 5 * GIB
    (runner,) = agent.runners.values()
    await harness.until(lambda: [gpu.memory_used_bytes for gpu in newest_usage(runner).gpus] == [nvml.used[0]])
    pid = harness.training(job)
    harness.plane.set_target(job, Assignment.PAUSE)
    await harness.until_phase(job, PAUSING)
    job.do("epoch")
    await harness.until(lambda: not alive(pid))
    return job


async def test_gpus_are_held_until_their_memory_is_free(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RELEASE_SHOWN_SECONDS", 0.1)
    nvml = FakeNvml()
    async with harness.agent(objects, find_gpus(GpuShare(), nvml)) as agent:
        job = await trained_on_gpu(harness, agent, nvml)
        await harness.until(lambda: harness.plane.kinds(job).count("condition") == 1)
        assert list(harness.plane.status(job).held_device_uuids) == ["GPU-0"]
        assert not {"pause", "exit"} & set(harness.plane.kinds(job))
        nvml.used[0] -= 4 * GIB
        begin = datetime.now(UTC)
        nvml.used[0] -= GIB
        await harness.until_forgotten(job)
    shown, over = (report.condition for report in harness.plane.of(job) if report.HasField("condition"))
    assert (shown.condition.reason, over.ended) == (reasons.GPU_MEMORY_IN_USE, True)
    assert "5.0 GiB on GPU-0" in shown.condition.message
    (pause,) = (report.pause for report in harness.plane.of(job) if report.HasField("pause"))
    assert pause.release_time.ToDatetime(UTC) >= begin
    assert pause.released_gpu_memory_bytes == 5 * GIB


async def test_gpus_that_stop_answering_are_held_until_they_tell_that_they_are_free(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RELEASE_SHOWN_SECONDS", 0.1)
    monkeypatch.setattr(agent_module, "GPU_SECONDS", 600)  # what is found out at that time does not last until the next
    nvml = FakeNvml()
    async with harness.agent(objects, find_gpus(GpuShare(), nvml)) as agent:
        job = harness.job(device_uuids=["GPU-0"])
        await harness.until_phase(job, RUNNING)
        nvml.broken.add("DeviceGetMemoryInfo")
        job.do("epoch", "finish")
        await harness.until(lambda: harness.plane.kinds(job).count("condition") == 1)
        assert list(harness.plane.status(job).held_device_uuids) == ["GPU-0"]
        assert "exit" not in harness.plane.kinds(job)
        nvml.broken.clear()
        await harness.until_forgotten(job)
        assert not any(device.quarantined for device in agent.gpus.devices())
    shown = next(report.condition for report in harness.plane.of(job) if report.HasField("condition"))
    assert "an unknown number of bytes (NVML does not answer) on GPU-0" in shown.condition.message


async def test_gpus_whose_memory_is_never_released_are_quarantined_until_it_is(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RELEASE_SECONDS", 0.2)
    monkeypatch.setattr(agent_module, "GPU_SECONDS", 0.05)

    def quarantined() -> list[bool]:
        return [device.quarantined for device in harness.plane.requests[-1].worker.devices]

    nvml = FakeNvml()
    async with harness.agent(objects, find_gpus(GpuShare(), nvml)) as agent:
        assert quarantined() == [False, False]
        job = await trained_on_gpu(harness, agent, nvml)
        await harness.until_forgotten(job)
        released = [each for each in harness.plane.requests if each.assignments and not held(each, job)]
        assert all(each.worker.devices[0].quarantined for each in released), "it was offered for a moment"
        assert quarantined() == [True, False]
        nvml.used[0] -= 5 * GIB
        await harness.until(lambda: quarantined() == [False, False])
    assert harness.plane.exit(job).phase == PAUSED


def held(request: SynchronizeRequest, job: Job) -> list[str]:
    (status,) = (status for status in request.assignments if status.job == job.name)
    return list(status.held_device_uuids)


async def test_a_training_process_that_is_killed(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    job.do("epoch")
    async with harness.agent(objects):
        await harness.until_durable(job, 1)
        os.kill(harness.training(job), signal.SIGKILL)
        await harness.until_forgotten(job)
    how = harness.plane.exit(job)
    assert (how.phase, how.code, how.failure.reason) == (FAILED, -signal.SIGKILL, reasons.PROCESS_KILLED)
    assert how.failure.message == "ended by SIGKILL\nThe whole log: adjourn logs a --attempt 1"


async def test_a_launcher_that_is_killed_takes_its_training_along(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        pid, launcher = harness.training(job), harness.launcher_pid()
        os.kill(launcher, signal.SIGKILL)
        await harness.until_forgotten(job)
        assert not alive(pid)
        how = harness.plane.exit(job)
        assert (how.phase, how.failure.reason) == (FAILED, reasons.PROCESS_LOST)
        again = harness.job(attempt=2)
        again.do("finish")
        await harness.until_forgotten(again)
        assert harness.launcher_pid() != launcher
    assert harness.plane.exit(again).phase == SUCCEEDED


async def test_the_log_of_a_failure_is_kept_whole(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    job.do("fail")
    async with harness.agent(objects):
        await harness.until_forgotten(job)
    how = harness.plane.exit(job)
    assert (how.phase, how.code, how.failure.reason) == (FAILED, 1, "TRAINING_RAISED")
    message, _, command = how.failure.message.partition(reasons.WHOLE_LOG)
    assert (message, command) == ("ValueError: no", "adjourn logs a --attempt 1")
    assert "the whole story" in harness.log(job).read_text()


async def test_a_storm_of_rings_is_weathered(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects) as agent:
        await harness.until_phase(job, RUNNING)
        (holder,) = agent.runners.values()
        said, wakes = len(harness.plane.requests), [0]
        job.do("storm", "epoch")

        def over() -> bool:
            wakes.append([*holder.inbox._queue].count(None))  # type: ignore[attr-defined]
            return len(harness.plane.requests) > said + 5

        await harness.until(over)
        (harness.attempt(job) / "calm").touch()
        await harness.until(lambda: harness.plane.epochs(job) == [1])
        assert max(wakes) <= 1
