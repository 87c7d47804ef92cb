"""What goes wrong around an attempt ends it with the reason, soon, and nothing else."""

import asyncio
import errno
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from adjourn import bundles, reasons, snapshots
from adjourn.internal.v1.trainer_pb2 import Snapshot
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, JobSpec, Progress
from adjourn_worker import journal as journal_module
from adjourn_worker.attempt import runner as runner_module
from adjourn_worker.attempt.runner import drop
from adjourn_worker.journal import Journal, JournalUnwritable
from adjourn_worker.storage import tasks
from tests.harness.agents import AgentHarness, alive
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

RUNNING, FAILED = AssignmentStatus.RUNNING, AssignmentStatus.FAILED
MISSING = f"bundles/{'0' * 64}"


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


async def failure(harness: AgentHarness, job: Job) -> Failure:
    """Returns why an attempt failed, once it is forgotten."""
    await harness.until_forgotten(job)
    how = harness.plane.exit(job)
    assert how.phase == FAILED
    assert how.failure.attempt == job.assignment.token.attempt
    assert not harness.attempt(job).exists()
    return how.failure


async def goes_on(harness: AgentHarness) -> None:
    """Asserts that the agent carries on with other jobs."""
    other = harness.job("other")
    other.do("finish")
    await harness.until_forgotten(other)
    assert harness.plane.exit(other).phase == AssignmentStatus.SUCCEEDED


async def test_a_bundle_that_is_missing_or_damaged(harness: AgentHarness, objects: MemoryObjects) -> None:
    async with harness.agent(objects):
        missing = await failure(harness, harness.job("a", spec=JobSpec(bundle=MISSING)))
        await objects.put(bundles.object_key(MISSING), b"something else")
        damaged = await failure(harness, harness.job("b", spec=JobSpec(bundle=MISSING)))
        await goes_on(harness)
    assert missing.reason == damaged.reason == reasons.BUNDLE_UNUSABLE
    assert MISSING in missing.message
    assert "is damaged" in damaged.message
    assert reasons.WHOLE_LOG not in missing.message  # there is none


async def durable(harness: AgentHarness) -> Checkpoint:
    """Returns the checkpoint of a job's first epoch; the job has ended."""
    job = harness.job()
    harness.plane.set_target(job, Assignment.PAUSE)
    job.do("epoch")
    await harness.until_forgotten(job)
    return harness.plane.checkpoints(job)[-1]


async def test_a_checkpoint_that_is_not_whole(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "DAMAGE_AGAIN_SECONDS", 0.0)
    async with harness.agent(objects, ADJOURN_KEPT_SNAPSHOT_BYTES="0"):
        checkpoint = await durable(harness)
        for attempt, what in enumerate(("manifests/", "parts/"), start=2):
            key = next(key for key in objects.contents if what in key)
            content = objects.contents.pop(key)
            job = harness.job("a", attempt=attempt, restore=checkpoint)
            missing = await failure(harness, job)
            assert harness.plane.exit(job).checkpoint == checkpoint.name
            objects.contents[key] = content[:-1] + b"\xff"
            damaged = await failure(harness, harness.job("b", attempt=attempt, restore=checkpoint))
            objects.contents[key] = content
            assert missing.reason == damaged.reason == reasons.CHECKPOINT_CORRUPT
            assert missing.message.endswith(f"{key} is missing")
            assert damaged.message.endswith(f"{key} is damaged")


class NothingComes(MemoryObjects):
    """Object storage with a fault of ours in it: no bundle can be read."""

    async def get(self, key: str, *, limit: int) -> bytes:
        if key.startswith("bundles/"):
            raise ZeroDivisionError("never foreseen")
        return await super().get(key, limit=limit)


class NothingGoes(MemoryObjects):
    """The same, the other way, for as long as `full`."""

    full = True
    refused = 0

    async def put(self, key: str, data: bytes) -> bool:
        if self.full:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return await super().put(key, data)


async def test_a_fault_in_preparing_is_no_silence(harness: AgentHarness) -> None:
    job = harness.job(spec=JobSpec(bundle=MISSING))
    with capture_logs() as logs:
        async with harness.agent(NothingComes()):
            why = await failure(harness, job)
            await goes_on(harness)
    assert (why.reason, why.message) == (reasons.LAUNCH_FAILED, "ZeroDivisionError: never foreseen")
    assert [entry["exc_info"] for entry in logs if entry["event"] == "work_failed" and entry["log_level"] == "error"]


async def test_a_fault_in_persisting_costs_no_finished_run(
    harness: AgentHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "PERSIST_AGAIN_SECONDS", 0.01)
    objects = NothingGoes()
    job = harness.job()
    job.do("epoch", "epoch", "epoch", "epoch", "finish")
    async with harness.agent(objects):
        await harness.until_phase(job, AssignmentStatus.PERSISTING)
        await harness.until(lambda: objects.refused > 10)
        assert harness.plane.phase(job) == AssignmentStatus.PERSISTING
        objects.full = False
        await harness.until_forgotten(job)
    changes = [report.condition for report in harness.plane.of(job) if report.HasField("condition")]
    assert [(change.condition.reason, change.ended) for change in changes] == [
        (reasons.PERSIST_FAILED, False),
        ("", True),
    ]
    assert changes[0].condition.message == "SNAPSHOT_FAILED: OSError: [Errno 28] No space left on device"
    how = harness.plane.exit(job)
    assert (how.phase, how.checkpoint) == (AssignmentStatus.SUCCEEDED, harness.plane.checkpoints(job)[-1].name)
    assert harness.plane.epochs(job) == [1, 2, 3, 4]


async def test_a_snapshot_that_training_cannot_take_is_shown_and_the_pause_stays_pending(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        harness.plane.set_target(job, Assignment.PAUSE)
        await harness.until_phase(job, AssignmentStatus.PAUSING)
        job.do("fill", "epoch")
        await harness.until(lambda: "condition" in harness.plane.kinds(job))
        assert harness.plane.phase(job) == AssignmentStatus.PAUSING
        job.do("room", "epoch")
        await harness.until_forgotten(job)
    changes = [report.condition for report in harness.plane.of(job) if report.HasField("condition")]
    assert [(change.condition.reason, change.ended) for change in changes] == [("NO_SPACE", False), ("", True)]
    assert (harness.plane.exit(job).phase, harness.plane.epochs(job)) == (AssignmentStatus.PAUSED, [1, 2])


async def test_a_disk_that_takes_no_attempt(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job(hand_out=False)
    async with harness.agent(objects):
        (harness.attempt(job) / "start").mkdir(parents=True)
        harness.plane.assignments[job.name] = job.assignment
        why = await failure(harness, job)
    assert why.reason == reasons.LAUNCH_FAILED
    assert "cannot prepare the attempt: " in why.message


async def test_a_snapshot_that_is_gone_when_it_is_to_be_kept(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    job.do("lose", "finish")
    async with harness.agent(objects):
        why = await failure(harness, job)
    assert (why.reason, "there is no snapshot" in why.message) == (reasons.SNAPSHOT_FAILED, True)


async def test_events_that_cannot_be_read_end_the_attempt(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    job.do("epoch")
    async with harness.agent(objects):
        await harness.until_durable(job, 1)
        pid = harness.training(job)
        job.do("garble events", "epoch")
        why = await failure(harness, job)
        assert not alive(pid)
        await goes_on(harness)
    assert (why.reason, "events" in why.message) == (reasons.PROCESS_ENDED, True)
    assert harness.plane.epochs(job) == [1]


async def test_an_exit_that_cannot_be_read_ends_the_attempt(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        pid = harness.training(job)
        garbage = harness.attempt(job) / "garbage"
        garbage.write_bytes(b"\xff")
        garbage.rename(harness.attempt(job) / "exit")  # as a whole: an empty one can be read
        why = await failure(harness, job)
        assert not alive(pid)
    assert (why.reason, "exit" in why.message) == (reasons.PROCESS_ENDED, True)


async def test_progress_that_cannot_be_read_is_not_shown(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        job.do("epoch", "garble progress")
        await harness.until_durable(job, 1)
        job.do("finish")
        await harness.until_forgotten(job)
    assert harness.plane.exit(job).phase == AssignmentStatus.SUCCEEDED


async def test_an_order_that_cannot_be_written_ends_the_attempt(harness: AgentHarness, objects: MemoryObjects) -> None:
    job = harness.job()
    async with harness.agent(objects):
        await harness.until_phase(job, RUNNING)
        pid = harness.training(job)
        control = harness.attempt(job) / "control"
        control.unlink()
        control.mkdir()
        harness.plane.set_target(job, Assignment.PAUSE)
        why = await failure(harness, job)
        assert not alive(pid)
    assert (why.reason, "control" in why.message) == (reasons.PROCESS_ENDED, True)


async def test_an_agent_short_of_files_ends_no_training(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "FILES_AGAIN_SECONDS", 0.05)
    job = harness.job()
    opened = Path.open

    def short(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name in ("exit", "events", "control", "process"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return opened(path, *arguments, **named)

    with capture_logs() as logs:
        async with harness.agent(objects):
            await harness.until_phase(job, RUNNING)
            pid = harness.training(job)
            with monkeypatch.context() as patched:
                patched.setattr(Path, "open", short)
                job.do("epoch")
                await harness.until(lambda: any(entry["event"] == "files_unusable" for entry in logs))
                await harness.until_decides_at(job, 2)
                harness.plane.set_target(job, Assignment.PAUSE)
            await harness.until_phase(job, AssignmentStatus.PAUSING)
            assert alive(pid)
            job.do("epoch")
            await harness.until_forgotten(job)
    assert (harness.plane.exit(job).phase, harness.plane.epochs(job)) == (AssignmentStatus.PAUSED, [1, 2])


def fill_disk(journal: Journal) -> None:
    (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages}")


def make_room(journal: Journal) -> None:
    journal._database.execute("PRAGMA max_page_count = 1000000")


async def test_an_agent_whose_disk_is_full_waits_and_goes_on(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.05)
    job = harness.job()
    with capture_logs() as logs:
        async with harness.agent(objects) as agent:
            await harness.until_phase(job, RUNNING)
            await agent.journal.run(fill_disk, agent.journal)
            job.do("metrics 1000", *["epoch"] * 5)
            await harness.until(lambda: any(entry["event"] == "journal_unwritable" for entry in logs))
            heard = len(harness.plane.requests)
            await harness.until(lambda: len(harness.plane.requests) > heard + 3)  # the worker is not lost meanwhile
            assert harness.plane.phase(job) == RUNNING
            assert harness.plane.epochs(job) == []
            await agent.journal.run(make_room, agent.journal)
            job.do("finish")
            await harness.until_forgotten(job)
    assert harness.plane.epochs(job) == [1, 2, 3, 4, 5]
    assert harness.plane.exit(job).phase == AssignmentStatus.SUCCEEDED


async def test_an_agent_whose_disk_stays_full_gives_its_worker_up(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(journal_module, "UNWRITABLE_SECONDS", 0.1)
    job = harness.job()
    with pytest.RaisesGroup(JournalUnwritable):
        async with harness.agent(objects) as agent:
            await harness.until_phase(job, RUNNING)
            await agent.journal.run(fill_disk, agent.journal)
            job.do("metrics 1000", *["epoch"] * 5)
            await asyncio.wait(agent.tasks.values())
    async with harness.agent(objects):  # training went on
        await harness.until(lambda: harness.plane.epochs(job) == [1, 2, 3, 4, 5])


async def test_a_contact_that_cannot_be_noted_gives_no_worker_up(
    harness: AgentHarness, objects: MemoryObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(journal_module, "UNWRITABLE_SECONDS", 0.1)
    harness.plane.lease = timedelta(seconds=1)

    def full(*_: object) -> None:
        raise JournalUnwritable("full")

    monkeypatch.setattr(Journal, "note_contact", full)
    job = harness.job()
    with capture_logs() as logs:
        async with harness.agent(objects):
            await harness.until_phase(job, RUNNING)
            await harness.until(lambda: [each["event"] for each in logs].count("contact_not_noted") > 1)
            assert harness.plane.phase(job) == RUNNING


async def test_an_attempt_that_cannot_be_put_away_is_forgotten_all_the_same(
    harness: AgentHarness, objects: MemoryObjects
) -> None:
    job = harness.job()
    with capture_logs() as logs:
        async with harness.agent(objects):
            await harness.until_phase(job, RUNNING)
            harness.paths.logs.rmdir()
            harness.paths.logs.touch()
            job.do("finish")
            await harness.until_forgotten(job)
    assert [entry for entry in logs if entry["event"] == "not_cleaned_up"]
    assert harness.held() == []
    assert harness.attempt(job).exists()
    harness.paths.logs.unlink()
    async with harness.agent(objects):
        assert not harness.attempt(job).exists()


def test_a_slot_that_training_has_taken_again_is_not_given_back(tmp_path: Path) -> None:
    def taken(epoch: int) -> Snapshot:
        progress = Progress(epoch=epoch)
        progress.report_time.FromSeconds(epoch)
        shown = {"report_time": progress.report_time.ToJsonString()}
        document = {"format": snapshots.FORMAT, "components": {}, "environment": {}, "progress": shown}
        (tmp_path / "state.json").write_text(json.dumps(document))
        (tmp_path / "in-use").touch()
        return Snapshot(directory=str(tmp_path), progress=progress)

    first = taken(1)
    drop(first)
    assert not (tmp_path / "in-use").exists()
    drop(first)
    second = taken(2)
    drop(first)
    assert (tmp_path / "in-use").exists()
    (tmp_path / "state.json").write_text("{")
    drop(second)
    assert not (tmp_path / "in-use").exists()
