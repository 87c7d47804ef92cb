import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn_worker import paths as module
from adjourn_worker.paths import UnsafePath, WorkerPaths

UID = "89abcdef-0123-4567-89ab-cdef01234567"
TOKEN = FencingToken(attempt=3, nonce="0123456789abcdef" * 2, job_uid=UID)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "shm"
    path.mkdir()
    return path


@pytest.fixture
def paths(tmp_path: Path, memory: Path) -> Iterator[WorkerPaths]:
    made = WorkerPaths.prepare(tmp_path / "data", {}, memory)
    yield made
    made.remove_volatile()


def test_all_places_are_made_and_ours_alone(paths: WorkerPaths, memory: Path) -> None:
    assert paths.snapshots.parent == memory
    for path in (paths.data, paths.runtime, paths.snapshots, paths.attempts, paths.bundles, paths.logs):
        assert path.is_dir()
        assert path.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(paths.notify_socket)) <= module.SOCKET_PATH_BYTES


def test_without_shared_memory_snapshots_go_to_the_data_directory(tmp_path: Path) -> None:
    paths = WorkerPaths.prepare(tmp_path / "data", {}, tmp_path / "none")
    assert paths.snapshots.parent == paths.data
    paths.remove_volatile()


def test_the_runtime_directory_of_the_session_is_used_if_short_enough(tmp_path: Path) -> None:
    short = Path("/tmp/adjourn-test-runtime")
    long = tmp_path / ("x" * 90)
    for directory in (short, long):
        directory.mkdir()
    try:
        first = WorkerPaths.prepare(tmp_path / "a", {"XDG_RUNTIME_DIR": str(short)}, tmp_path)
        second = WorkerPaths.prepare(tmp_path / "b", {"XDG_RUNTIME_DIR": str(long)}, tmp_path)
        assert first.runtime.is_relative_to(short)
        assert second.runtime.parent == Path(f"/tmp/adjourn-{os.getuid()}")
        first.remove_volatile()
        second.remove_volatile()
    finally:
        shutil.rmtree(short)


def test_what_was_chosen_is_found_again_though_the_variables_differ(paths: WorkerPaths, tmp_path: Path) -> None:
    other = Path("/tmp/adjourn-test-other")
    other.mkdir()
    try:
        assert WorkerPaths.prepare(tmp_path / "data", {"XDG_RUNTIME_DIR": str(other)}, tmp_path) == paths
    finally:
        shutil.rmtree(other)


def test_a_copied_data_directory_shares_nothing_with_its_original(
    paths: WorkerPaths, tmp_path: Path, memory: Path
) -> None:
    shutil.copytree(paths.data, tmp_path / "copy", symlinks=True)
    copy = WorkerPaths.prepare(tmp_path / "copy", {}, memory)
    assert copy.runtime != paths.runtime
    assert copy.snapshots != paths.snapshots
    copy.remove_volatile()


def test_a_place_that_was_laid_out_for_us_is_refused(tmp_path: Path, memory: Path) -> None:
    made = WorkerPaths.prepare(tmp_path / "data", {}, memory)
    made.remove_volatile()
    made.snapshots.symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="is not a directory of ours"):
        WorkerPaths.prepare(tmp_path / "data", {}, memory)
    made.snapshots.unlink()
    made.remove_volatile()


def test_a_place_open_to_others_is_closed(paths: WorkerPaths, tmp_path: Path, memory: Path) -> None:
    paths.snapshots.chmod(0o777)
    WorkerPaths.prepare(tmp_path / "data", {}, memory)
    assert paths.snapshots.stat().st_mode & 0o777 == 0o700


def test_names(paths: WorkerPaths) -> None:
    attempt = paths.attempt("jobs/digits-1", TOKEN)
    assert attempt == paths.attempts / "digits-1-89abcdef-3-01234567"
    assert paths.snapshot_directory(attempt) == paths.snapshots / "digits-1-89abcdef-3-01234567"
    assert paths.log("jobs/digits-1", TOKEN) == paths.logs / "digits-1-89abcdef-3-01234567.log"


@pytest.mark.parametrize("job", ["jobs/../../etc", "jobs/", "digits", "jobs/a/b", "jobs/A"])
def test_what_is_no_name_becomes_no_path(paths: WorkerPaths, job: str) -> None:
    with pytest.raises(ValueError, match="no name of a job"):
        paths.attempt(job, TOKEN)
    with pytest.raises(ValueError, match="nonce"):
        paths.attempt("jobs/a", FencingToken(attempt=1, nonce="../", job_uid=UID))
    with pytest.raises(ValueError, match="uid"):
        paths.attempt("jobs/a", FencingToken(attempt=1, nonce=TOKEN.nonce))


def test_a_retired_attempt_leaves_its_log(paths: WorkerPaths) -> None:
    attempt = paths.attempt("jobs/a", TOKEN)
    (attempt / "work").mkdir(parents=True)
    (attempt / "log").write_text("hello\n")
    paths.snapshot_directory(attempt).mkdir()
    log = paths.log("jobs/a", TOKEN)
    paths.retire(attempt, log)
    paths.retire(attempt, log)
    assert log.read_text() == "hello\n"
    assert not attempt.exists()
    assert not paths.snapshot_directory(attempt).exists()


def test_tidying_removes_all_but_what_is_held(paths: WorkerPaths, memory: Path, tmp_path: Path) -> None:
    held, forgotten = paths.attempts / "a-1-00000000", paths.attempts / "b-1-00000000"
    for attempt in (held, forgotten):
        attempt.mkdir()
        paths.snapshot_directory(attempt).mkdir()
    (paths.scratch / "half").write_text("made")
    gone = WorkerPaths.prepare(tmp_path / "gone", {}, memory)
    shutil.rmtree(gone.data)
    paths.collect_garbage([held])
    assert paths.attempt_directories() == [held]
    assert paths.snapshot_directory(held).is_dir()
    assert not paths.snapshot_directory(forgotten).exists()
    assert list(paths.scratch.iterdir()) == []
    assert not gone.snapshots.exists()
    assert not gone.runtime.exists()
    assert (paths.snapshots / module.OWNER_FILE).exists()
    assert (paths.runtime / module.OWNER_FILE).exists()
