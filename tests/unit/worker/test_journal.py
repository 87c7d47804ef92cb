import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import Assignment, AssignmentStatus, FencingToken, Report
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_worker.journal import Journal, JournalDamaged, JournalTaken, JournalUnwritable
from adjourn_worker.paths import WorkerPaths


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", tmp_path)
    yield made
    made.remove_volatile()


def held(
    job: str = "jobs/a", attempt: int = 1, nonce: str = "n", phase: str = "RUNNING", uid: str = "u"
) -> HeldAssignment:
    token = FencingToken(attempt=attempt, nonce=nonce, job_uid=uid)
    status = AssignmentStatus(job=job, token=token, phase=AssignmentStatus.Phase.Value(phase))
    return HeldAssignment(assignment=Assignment(job=job, token=token), status=status)


def epoch(number: int) -> Report:
    return Report(job="jobs/a", epoch=EpochMetrics(epoch=number))


def test_what_was_recorded_is_there_after_a_restart(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        journal.record(held(), [])
        numbered = journal.record(held(phase="PAUSING"), [epoch(1), epoch(2)])
        assert [report.sequence for report in numbered] == [1, 2]
    with Journal(paths) as journal:
        assert journal.held() == [held(phase="PAUSING")]
        assert journal.reports() == numbered


def test_an_assignment_is_known_by_its_whole_token(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        for item in (held(attempt=2), held(nonce="m"), held(uid="v"), held(), held(job="jobs/0")):
            journal.record(item, [])
        assert journal.held() == [held(job="jobs/0"), held(nonce="m"), held(), held(attempt=2), held(uid="v")]
        journal.forget("jobs/a", FencingToken(attempt=1, nonce="n", job_uid="u"))
        assert journal.held() == [held(job="jobs/0"), held(nonce="m"), held(attempt=2), held(uid="v")]


def test_reports_outlive_their_assignment_until_acknowledged(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        journal.record(held(), [epoch(1), epoch(2), epoch(3)])
        journal.forget("jobs/a", FencingToken(attempt=1, nonce="n", job_uid="u"))
        journal.acknowledge(2)
        assert [report.epoch.epoch for report in journal.reports()] == [3]


def test_no_sequence_is_given_twice(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        journal.record(held(), [epoch(1), epoch(2)])
        journal.acknowledge(2)
    with Journal(paths) as journal:
        assert [report.sequence for report in journal.record(held(), [epoch(3)])] == [3]


def test_state_and_reports_are_stored_together_or_not_at_all(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(paths) as journal:
        journal.record(held(), [])
        broken = epoch(2)
        monkeypatch.setattr("adjourn_worker.journal.Report", FailsAfterOne())
        with pytest.raises(RuntimeError, match="enough"):
            journal.record(held(phase="PAUSED"), [epoch(1), broken])
        monkeypatch.undo()
        assert journal.held() == [held()]
        assert journal.reports() == []


class FailsAfterOne:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Report:
        self.made += 1
        if self.made > 1:
            raise RuntimeError("enough")
        return Report()


def test_a_second_agent_is_refused(paths: WorkerPaths) -> None:
    with Journal(paths), pytest.raises(JournalTaken, match=r"agent \d+ already works in"):
        Journal(paths)
    Journal(paths).close()


def test_an_agent_that_was_killed_leaves_what_it_recorded_and_no_lock(paths: WorkerPaths) -> None:
    script = """if True:
        import os, pathlib, signal, sys
        from adjourn.v1.agent_service_pb2 import Report
        from adjourn.internal.v1.trainer_pb2 import HeldAssignment
        from adjourn_worker.journal import Journal
        from adjourn_worker.paths import WorkerPaths
        journal = Journal(WorkerPaths.prepare(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))
        held = HeldAssignment()
        held.assignment.job = "jobs/a"
        journal.record(held, [Report(job="jobs/a")])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script, str(paths.data), str(paths.snapshots.parent)], check=False)
    assert done.returncode == -9
    with Journal(paths) as journal:
        assert [item.assignment.job for item in journal.held()] == ["jobs/a"]
        assert [report.sequence for report in journal.reports()] == [1]


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_damaged_journal_is_not_guessed_at(paths: WorkerPaths, content: bytes) -> None:
    paths.journal.write_bytes(content)
    with pytest.raises(JournalDamaged, match=r"journal\.sqlite"):
        Journal(paths)
    paths.journal.unlink()
    Journal(paths).close()


def test_only_its_user_can_read_it(paths: WorkerPaths) -> None:
    paths.data.chmod(0o755)
    with Journal(paths) as journal:
        journal.record(held(), [])
        modes = [path.stat().st_mode & 0o777 for path in paths.data.glob("journal.sqlite*")]
    assert set(modes) == {0o600}
    assert len(modes) > 1


def test_an_entry_that_is_no_message_is_damage(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        journal._database.execute("INSERT INTO held VALUES ('jobs/a', 'u', 1, 'n', x'ffff')")
        with pytest.raises(JournalDamaged):
            journal.held()


@pytest.mark.parametrize("version", [1, 99])
def test_a_journal_of_another_version_is_refused_with_what_to_do(paths: WorkerPaths, version: int) -> None:
    with Journal(paths) as journal:
        journal._database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(JournalDamaged, match=f"is of version {version}, and this agent knows version 2 only; start"):
        Journal(paths)


async def test_calls_are_made_in_a_thread_of_its_own_one_after_another(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        threads = await asyncio.gather(*(journal.run(threading.current_thread) for _ in range(20)))
        assert [thread.name for thread in threads] == ["journal_0"] * 20
        numbered = await asyncio.gather(*(journal.run(journal.record, held(), [epoch(1)]) for _ in range(20)))
        assert [reports[0].sequence for reports in numbered] == list(range(1, 21))


def test_each_agent_has_a_number_above_those_before_whatever_the_clock_says(paths: WorkerPaths) -> None:
    numbers = []
    for clock in (1000, 2000, 1500, 1500, 3000):
        with Journal(paths) as journal:
            numbers.append(journal.begin_life(clock))
    assert numbers == [1000, 2000, 2001, 2002, 3000]
    paths.journal.unlink()
    with Journal(paths) as journal:
        assert journal.begin_life(4000) == 4000


def test_a_full_disk_changes_nothing(paths: WorkerPaths) -> None:
    with Journal(paths) as journal:
        journal.record(held(), [])
        (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        large = held(phase="PAUSED")
        large.assignment.spec.model_name = "x" * 100_000
        with pytest.raises(JournalUnwritable, match="full"):
            journal.record(large, [epoch(1)])
        assert journal.held() == [held()]
        assert journal.reports() == []
