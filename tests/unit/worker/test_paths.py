import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn_worker import paths as module
from adjourn_worker.journal import Journal, JournalTaken
from adjourn_worker.paths import AGENT_LOCK, Kept, UnsafePath, WorkerPaths, bound

UID = "89abcdef-0123-4567-89ab-cdef01234567"
TOKEN = FencingToken(attempt=3, nonce="0123456789abcdef" * 2, job_uid=UID)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "shm"
    path.mkdir()
    return path


@pytest.fixture
def paths(tmp_path: Path, memory: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", memory)
    yield made
    made.remove_volatile()


def test_all_places_are_made_and_ours_alone(paths: WorkerPaths, memory: Path) -> None:
    assert paths.snapshots.parent == memory
    for path in (paths.data, paths.runtime, paths.snapshots, paths.attempts, paths.bundles, paths.logs):
        assert path.is_dir()
        assert path.stat().st_mode & 0o777 == 0o700
    for socket in (paths.notify_socket, paths.launcher_socket):
        assert len(os.fsencode(socket)) <= 107


@pytest.mark.parametrize("shared_memory", [None, Path("/none")])
def test_without_shared_memory_snapshots_go_to_the_disk(tmp_path: Path, shared_memory: Path | None) -> None:
    paths = WorkerPaths.prepare(tmp_path / "data", shared_memory)
    assert paths.snapshots == paths.disk_snapshots == paths.data / "disk-snapshots"
    paths.remove_volatile()


def test_places_are_found_again(paths: WorkerPaths, tmp_path: Path, memory: Path) -> None:
    assert WorkerPaths.prepare(tmp_path / "data", memory) == paths
    moved = paths.data.rename(tmp_path / "moved")
    assert WorkerPaths.prepare(moved, memory).snapshots == paths.snapshots


def test_an_id_that_is_none_is_refused(paths: WorkerPaths, tmp_path: Path, memory: Path) -> None:
    before = (paths.data / "id").read_text()
    (paths.data / "id").write_text("../..")
    with pytest.raises(UnsafePath, match="id of a worker"):
        WorkerPaths.prepare(tmp_path / "data", memory)
    (paths.data / "id").write_text(before)


def test_a_copied_data_directory_is_noticed(paths: WorkerPaths, tmp_path: Path, memory: Path) -> None:
    shutil.copytree(paths.data, tmp_path / "copy")
    copy = WorkerPaths.prepare(tmp_path / "copy", memory)
    with Journal(paths), pytest.raises(JournalTaken, match=r"one of them is a copy.*instead of .*copy"):
        Journal(copy)
    Journal(copy).close()
    Journal(paths).close()


def attempts(paths: WorkerPaths) -> list[Path]:
    """Returns the files of an attempt in every place of a worker."""
    attempt = paths.attempt("jobs/a", TOKEN)
    made = [attempt, paths.snapshot_directory(attempt), paths.disk_snapshot_directory(attempt)]
    for path in made:
        path.mkdir()
        (path / "file").write_text("kept")
    return [path / "file" for path in made]


def test_workers_that_share_memory_leave_each_other_alone(paths: WorkerPaths, tmp_path: Path, memory: Path) -> None:
    other = WorkerPaths.prepare(tmp_path / "other", memory)
    hidden = tmp_path / "hidden"
    try:
        with Journal(paths), Journal(other):
            ours, theirs = attempts(paths), attempts(other)
            shutil.move(other.data, hidden)  # as if it were in another container: not to be seen from here
            paths.collect_garbage([])
            assert not any(path.exists() for path in ours)
            assert (other.snapshots / theirs[1].parent.name / "file").read_text() == "kept"
            assert other.runtime.is_dir()
    finally:
        other.remove_volatile()


WORKER_IN_A_ROOT_OF_ITS_OWN = """if True:
    import sys
    from pathlib import Path
    from adjourn_worker.journal import Journal
    from adjourn_worker.paths import WorkerPaths
    paths = WorkerPaths.prepare(Path("/mnt/data"), Path(sys.argv[1]))
    with Journal(paths):
        paths.collect_garbage([])
        made = paths.snapshots / "attempt"
        made.mkdir()
        print(made, flush=True)
        sys.stdin.readline()
        print(made.exists(), flush=True)
    paths.remove_volatile()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mount namespaces need root")
def test_workers_whose_data_directories_have_one_path_in_two_containers(tmp_path: Path, memory: Path) -> None:
    def worker(root: Path) -> subprocess.Popen[str]:
        root.mkdir()
        mounted = f'mount --bind {root} /mnt && exec "$0" -c "$1" {memory}'
        return subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", mounted, sys.executable, WORKER_IN_A_ROOT_OF_ITS_OWN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    first = worker(tmp_path / "a")
    assert first.stdout
    here = first.stdout.readline()
    second = worker(tmp_path / "b")  # collects its garbage while the first works
    assert second.stdout
    there = second.stdout.readline()
    assert here != there
    for each in (first, second):
        output, _ = each.communicate("\n", timeout=60)
        assert (output, each.returncode) == ("True\n", 0)


def test_a_place_that_was_laid_out_for_us_is_refused(tmp_path: Path, memory: Path) -> None:
    made = WorkerPaths.prepare(tmp_path / "data", memory)
    made.remove_volatile()
    made.snapshots.symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="is not a directory of ours"):
        WorkerPaths.prepare(tmp_path / "data", memory)
    made.snapshots.unlink()
    made.remove_volatile()


def test_a_place_open_to_others_is_closed(paths: WorkerPaths, tmp_path: Path, memory: Path) -> None:
    paths.snapshots.chmod(0o777)
    WorkerPaths.prepare(tmp_path / "data", memory)
    assert paths.snapshots.stat().st_mode & 0o777 == 0o700


def test_names(paths: WorkerPaths) -> None:
    attempt = paths.attempt("jobs/digits-1", TOKEN)
    name = "digits-1-89abcdef-3-01234567"
    assert attempt == paths.attempts / name
    assert paths.snapshot_directory(attempt) == paths.snapshots / name
    assert paths.disk_snapshot_directory(attempt) == paths.data / "disk-snapshots" / name
    assert paths.log("jobs/digits-1", TOKEN) == paths.logs / f"{name}.log"


@pytest.mark.parametrize("job", ["jobs/../../etc", "jobs/", "digits", "jobs/a/b", "jobs/A"])
def test_what_is_no_name_becomes_no_path(paths: WorkerPaths, job: str) -> None:
    with pytest.raises(ValueError, match="no name of a job"):
        paths.attempt(job, TOKEN)
    with pytest.raises(ValueError, match="nonce"):
        paths.attempt("jobs/a", FencingToken(attempt=1, nonce="../", job_uid=UID))
    with pytest.raises(ValueError, match="uid"):
        paths.attempt("jobs/a", FencingToken(attempt=1, nonce=TOKEN.nonce))


def test_a_retired_attempt_leaves_its_log(paths: WorkerPaths) -> None:
    made = attempts(paths)
    attempt = paths.attempt("jobs/a", TOKEN)
    (attempt / "log").write_text("hello\n")
    log = paths.log("jobs/a", TOKEN)
    for _ in range(2):
        paths.retire(attempt, log, Kept())
    assert log.read_text() == "hello\n"
    assert not any(path.parent.exists() for path in made)


def test_logs_are_kept_up_to_a_number_and_a_size(paths: WorkerPaths) -> None:
    logs = [paths.logs / f"{number}.log" for number in range(6)]
    for number, path in enumerate(logs):
        path.write_bytes(bytes(10))
        os.utime(path, ns=(number, number))
    gone = paths.attempt("jobs/a", TOKEN)
    paths.retire(gone, paths.log("jobs/a", TOKEN), Kept(logs=4))
    assert sorted(paths.logs.iterdir()) == logs[2:]
    paths.retire(gone, paths.log("jobs/a", TOKEN), Kept(log_bytes=25))
    assert sorted(paths.logs.iterdir()) == logs[4:]
    bound(paths.logs.iterdir(), count=0, size=100)
    assert list(paths.logs.iterdir()) == []


def test_what_others_remove_at_the_same_time_is_passed_over(paths: WorkerPaths) -> None:
    stays, gone = paths.logs / "stays", paths.logs / "gone"
    stays.touch()
    bound([gone, stays], count=1, size=100)
    assert stays.exists()
    (paths.logs / "made by user code").mkdir()
    bound(paths.logs.iterdir(), count=0, size=100)
    assert list(paths.logs.iterdir()) == []


def test_room_is_told_of_directories_that_are_being_removed(
    paths: WorkerPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (paths.snapshots / name).mkdir()
        (paths.snapshots / name / "file").write_bytes(bytes(1 << 20))
    scandir = os.scandir

    def overtaken(path: Any) -> Any:
        if path in (str(paths.snapshots / "a"), str(paths.snapshots / "b")):  # listed, and not yet looked into
            shutil.rmtree(paths.snapshots / "a", ignore_errors=True)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", overtaken)
    assert 1 << 20 <= module.used_bytes(paths.snapshots) < 2 << 20


def test_garbage_is_all_but_what_is_held(paths: WorkerPaths) -> None:
    held, forgotten = paths.attempts / "a-1-00000000", paths.attempts / "b-1-00000000"
    for attempt in (held, forgotten):
        attempt.mkdir()
        paths.snapshot_directory(attempt).mkdir()
        paths.disk_snapshot_directory(attempt).mkdir()
    (paths.scratch / "half").write_text("made")
    with Journal(paths):
        paths.collect_garbage([held])
        assert all(lock.exists() for lock in paths.agent_locks)
        with pytest.raises(JournalTaken):
            Journal(paths)
    assert paths.attempt_directories() == [held]
    assert paths.snapshot_directory(held).is_dir()
    assert paths.disk_snapshot_directory(held).is_dir()
    assert not paths.snapshot_directory(forgotten).exists()
    assert not paths.disk_snapshot_directory(forgotten).exists()
    assert list(paths.scratch.iterdir()) == []


def test_room_is_told(paths: WorkerPaths) -> None:
    before = module.used_bytes(paths.snapshots)
    (paths.snapshots / "file").write_bytes(bytes(1 << 20))
    assert module.used_bytes(paths.snapshots) - before >= 1 << 20
    assert module.used_bytes(paths.snapshots / "none") == 0
    assert module.free_bytes(paths.snapshots) > 0


def left_behind(memory: Path, *, days: float, name: str = f"adjourn-{os.getuid()}-{'a' * 16}") -> Path:
    """Makes what another worker has left in shared memory so many days ago."""
    place = memory / name
    (place / "attempt").mkdir(parents=True)
    for path in (place / AGENT_LOCK, place / "attempt" / "tensors"):
        path.touch()
    for path in (*place.rglob("*"), place):
        os.utime(path, (time.time() - days * 86400,) * 2)
    return place


def test_what_a_worker_left_that_does_not_come_back_is_removed_after_days(tmp_path: Path) -> None:
    paths = WorkerPaths.prepare(tmp_path / "data", tmp_path)
    old = left_behind(tmp_path, days=8)
    assert paths.collect_abandoned(9) == []
    assert paths.collect_abandoned(7) == [old]
    assert not old.exists()
    assert paths.snapshots.exists()
    paths.remove_volatile()


def test_what_an_agent_holds_or_is_no_workers_is_left_alone(tmp_path: Path) -> None:
    paths = WorkerPaths.prepare(tmp_path / "data", tmp_path)
    for name in (f"adjourn-{os.getuid()}-notes", "adjourn-99999-" + "b" * 16):
        left_behind(tmp_path, days=100, name=name)
    held = left_behind(tmp_path, days=100)
    descriptor = os.open(held / AGENT_LOCK, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert paths.collect_abandoned(7) == []
    finally:
        os.close(descriptor)
    fresh = held / "attempt" / "fresh"
    fresh.touch()
    assert paths.collect_abandoned(7) == [], "training without an agent writes there still"
    paths.remove_volatile()
