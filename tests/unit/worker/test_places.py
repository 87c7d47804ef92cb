import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adjourn.v1.agent_service_pb2 import FencingToken
from adjourn_worker import paths as module
from adjourn_worker.paths import Places, UnsafePlace

TOKEN = FencingToken(attempt=3, nonce="0123456789abcdef" * 2)


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    path = tmp_path / "shm"
    path.mkdir()
    return path


@pytest.fixture
def places(tmp_path: Path, memory: Path) -> Iterator[Places]:
    made = Places.prepare(tmp_path / "data", {}, memory)
    yield made
    made.remove_volatile()


def test_all_places_are_made_and_ours_alone(places: Places, memory: Path) -> None:
    assert places.snapshots.parent == memory
    for path in (places.data, places.runtime, places.snapshots, places.attempts, places.bundles, places.logs):
        assert path.is_dir()
        assert path.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(places.doorbell)) <= module.SOCKET_PATH_BYTES


def test_without_shared_memory_snapshots_go_to_the_data_directory(tmp_path: Path) -> None:
    places = Places.prepare(tmp_path / "data", {}, tmp_path / "none")
    assert places.snapshots.parent == places.data
    places.remove_volatile()


def test_the_runtime_directory_of_the_session_is_used_if_short_enough(tmp_path: Path) -> None:
    short = Path("/tmp/adjourn-test-runtime")
    long = tmp_path / ("x" * 90)
    for directory in (short, long):
        directory.mkdir()
    try:
        first = Places.prepare(tmp_path / "a", {"XDG_RUNTIME_DIR": str(short)}, tmp_path)
        second = Places.prepare(tmp_path / "b", {"XDG_RUNTIME_DIR": str(long)}, tmp_path)
        assert first.runtime.is_relative_to(short)
        assert second.runtime.parent == Path(f"/tmp/adjourn-{os.getuid()}")
        first.remove_volatile()
        second.remove_volatile()
    finally:
        shutil.rmtree(short)


def test_what_was_chosen_is_found_again_though_the_variables_differ(places: Places, tmp_path: Path) -> None:
    other = Path("/tmp/adjourn-test-other")
    other.mkdir()
    try:
        assert Places.prepare(tmp_path / "data", {"XDG_RUNTIME_DIR": str(other)}, tmp_path) == places
    finally:
        shutil.rmtree(other)


def test_a_copied_data_directory_shares_nothing_with_its_original(places: Places, tmp_path: Path, memory: Path) -> None:
    shutil.copytree(places.data, tmp_path / "copy", symlinks=True)
    copy = Places.prepare(tmp_path / "copy", {}, memory)
    assert copy.runtime != places.runtime
    assert copy.snapshots != places.snapshots
    copy.remove_volatile()


def test_a_place_that_was_laid_out_for_us_is_refused(tmp_path: Path, memory: Path) -> None:
    made = Places.prepare(tmp_path / "data", {}, memory)
    made.remove_volatile()
    made.snapshots.symlink_to(tmp_path)
    with pytest.raises(UnsafePlace, match="is not a directory of ours"):
        Places.prepare(tmp_path / "data", {}, memory)
    made.snapshots.unlink()
    made.remove_volatile()


def test_a_place_open_to_others_is_closed(places: Places, tmp_path: Path, memory: Path) -> None:
    places.snapshots.chmod(0o777)
    Places.prepare(tmp_path / "data", {}, memory)
    assert places.snapshots.stat().st_mode & 0o777 == 0o700


def test_names(places: Places) -> None:
    attempt = places.attempt("jobs/digits-1", TOKEN)
    assert attempt == places.attempts / "digits-1-3-01234567"
    assert places.snapshot_directory(attempt) == places.snapshots / "digits-1-3-01234567"
    assert places.log("jobs/digits-1", 3) == places.logs / "digits-1" / "3.log"


@pytest.mark.parametrize("job", ["jobs/../../etc", "jobs/", "digits", "jobs/a/b", "jobs/A"])
def test_what_is_no_name_becomes_no_path(places: Places, job: str) -> None:
    with pytest.raises(ValueError, match="no name of a job"):
        places.attempt(job, TOKEN)
    with pytest.raises(ValueError, match="nonce"):
        places.attempt("jobs/a", FencingToken(attempt=1, nonce="../"))


def test_a_retired_attempt_leaves_its_log(places: Places) -> None:
    attempt = places.attempt("jobs/a", TOKEN)
    (attempt / "work").mkdir(parents=True)
    (attempt / "log").write_text("hello\n")
    places.snapshot_directory(attempt).mkdir()
    log = places.log("jobs/a", 3)
    places.retire(attempt, log)
    places.retire(attempt, log)
    assert log.read_text() == "hello\n"
    assert not attempt.exists()
    assert not places.snapshot_directory(attempt).exists()


def test_tidying_removes_all_but_what_is_held(places: Places, memory: Path, tmp_path: Path) -> None:
    held, forgotten = places.attempts / "a-1-00000000", places.attempts / "b-1-00000000"
    for attempt in (held, forgotten):
        attempt.mkdir()
        places.snapshot_directory(attempt).mkdir()
    (places.scratch / "half").write_text("made")
    gone = Places.prepare(tmp_path / "gone", {}, memory)
    shutil.rmtree(gone.data)
    places.tidy([held])
    assert places.attempt_directories() == [held]
    assert places.snapshot_directory(held).is_dir()
    assert not places.snapshot_directory(forgotten).exists()
    assert list(places.scratch.iterdir()) == []
    assert not gone.snapshots.exists()
    assert not gone.runtime.exists()
    assert (places.snapshots / module.OWNER_FILE).exists()
    assert (places.runtime / module.OWNER_FILE).exists()
