"""Whole training processes that cannot save for a while: what they tell, and that nothing of their work is lost."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adjourn import snapshots
from adjourn.internal.v1.trainer_pb2 import SnapshotFailed
from adjourn.shared_files import ProgressPage
from adjourn.v1.job_pb2 import JobSpec
from adjourn_worker.launcher import process_tree
from tests.harness.small_disk import SmallDisk
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, failed, read_events, until

Tmpfs = Callable[..., Path]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Tmpfs]:
    """Mounts a file system in memory of `megabytes`; called again, it resizes it."""
    if not SmallDisk.MOUNTABLE:
        pytest.skip("only root can mount a file system")
    disk = SmallDisk(tmp_path / "shm")
    yield disk.resize
    disk.unmount()


def failures(attempt: Attempt) -> list[SnapshotFailed]:
    return [event.snapshot_failed for event in attempt.events if event.HasField("snapshot_failed")]


def kinds(directory: Path) -> list[str | None]:
    return [event.WhichOneof("event") for event in read_events(directory)]


def test_too_little_shared_memory_falls_back_to_the_disk(
    trainings: TrainingProcesses, tmpfs: Tmpfs, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    attempt = trainings.run(
        "unusual:holds",
        args={"megabytes": 4},
        snapshot_directory=str(tmpfs(megabytes=8) / "snapshots"),
        fallback_snapshot_directory=str(disk),
    )
    assert attempt.kinds[-2:] == ["snapshot", "finished"]
    assert failures(attempt) == []
    assert all(Path(snapshot.directory).parent == disk for snapshot in attempt.snapshots)
    assert f"snapshots go to {disk}" in attempt.log
    assert attempt.log.count("snapshots go to") == 1


def test_enough_shared_memory_is_used(trainings: TrainingProcesses, tmpfs: Tmpfs, tmp_path: Path) -> None:
    area = tmpfs(megabytes=16) / "snapshots"
    attempt = trainings.run(
        "unusual:holds",
        epochs=4,
        args={"megabytes": 4},
        snapshot_directory=str(area),
        fallback_snapshot_directory=str(tmp_path / "disk"),
    )
    assert {Path(snapshot.directory).parent for snapshot in attempt.snapshots} == {area}
    assert [snapshot.progress.epoch for snapshot in attempt.snapshots] == [1, 2, 4]
    assert "snapshots go to" not in attempt.log


def test_lack_of_room_is_told_before_the_first_epoch_and_waited_out_at_the_end(
    trainings: TrainingProcesses, tmpfs: Tmpfs
) -> None:
    directory = trainings.prepare(
        "unusual:holds", epochs=2, args={"megabytes": 4}, snapshot_directory=str(tmpfs(megabytes=2) / "snapshots")
    )
    with trainings.running(directory) as wait:
        until(lambda: len(kinds(directory)) == 5)
        waiting = read_events(directory)
        assert kinds(directory) == ["snapshot_failed", "began", "epoch", "epoch", "snapshot_failed"]
        assert [event.snapshot_failed.last for event in waiting if event.HasField("snapshot_failed")] == [False, True]
        tmpfs(megabytes=32)
        attempt = wait()
    assert attempt.code == 0
    assert attempt.kinds[5:] == ["snapshot", "finished"]
    assert {failure.reason for failure in failures(attempt)} == {"NO_SPACE"}
    assert "a snapshot takes 4.2 MB" in failures(attempt)[0].message
    assert "has room for 2.1 MB" in failures(attempt)[0].message
    assert attempt.snapshots[0].progress.epoch == 2
    assert attempt.snapshots[0].live_digests == attempt.digests


def test_run_that_waits_for_room_shows_that_it_lives(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("unusual:lacks_room", epochs=1)
    with trainings.running(directory) as wait, closing(ProgressPage(directory / "progress")) as page:
        until(lambda: kinds(directory)[-1:] == ["snapshot_failed"])
        times = set()

        def publishes() -> bool:
            if progress := page.read():
                times.add(progress.report_time.ToNanoseconds())
            return len(times) > 2

        until(publishes)
        (directory / "work" / "room").touch()
        attempt = wait()
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "snapshot", "finished"]


def test_run_that_waits_for_room_ends_with_its_launcher(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("unusual:lacks_room", epochs=1)
    with trainings.abandoning(directory) as abandon:
        until(lambda: kinds(directory)[-1:] == ["snapshot_failed"])
        pid = int((directory / "pid").read_text())
        abandon()
        until(lambda: not process_tree.runs(pid))
    assert kinds(directory) == ["began", "epoch", "snapshot_failed"]


def test_pause_without_room_stays_pending_until_there_is_some(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:lacks_room", epochs=9, args={"room": 3}, order=PAUSE)
    assert attempt.code == 0
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "epoch", "epoch", "snapshot", "paused"]
    (failure,) = failures(attempt)
    assert (failure.reason, failure.last) == ("NO_SPACE", True)
    assert attempt.snapshots[0].last
    assert attempt.snapshots[0].progress.epoch == 3


def test_unsaved_pause_does_not_keep_a_run_from_finishing(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:lacks_room", epochs=2, args={"room": 2}, order=PAUSE)
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "epoch", "snapshot", "finished"]


def test_directory_that_cannot_be_made_is_told(trainings: TrainingProcesses, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    directory = trainings.prepare("unusual:without_steps", epochs=2, snapshot_directory=str(tmp_path / "file" / "area"))
    with trainings.running(directory) as wait:
        until(lambda: kinds(directory) == ["began", "epoch", "snapshot_failed", "epoch", "snapshot_failed"])
        (tmp_path / "file").unlink()
        attempt = wait()
    assert attempt.kinds[5:] == ["snapshot", "finished"]
    assert {failure.reason for failure in failures(attempt)} == {"SNAPSHOT_FAILED"}
    assert "training goes on without a snapshot of epoch 1" in attempt.log


def test_state_that_cannot_be_encoded_for_a_while(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("broken:is_a_function_for_a_while", epochs=4, order=PAUSE)
    assert attempt.code == 0
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "epoch", "epoch", "snapshot", "paused"]
    (failure,) = failures(attempt)
    assert failure.reason == "STATE_NOT_ENCODABLE"
    assert "ema['decay']: a builtins.builtin_function" in failure.message


def test_state_that_cannot_be_encoded_at_the_end_fails_the_run(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("broken:becomes_a_function", epochs=2)
    failed(attempt, "STATE_NOT_ENCODABLE")
    assert attempt.kinds == ["began", "epoch", "snapshot_failed", "epoch", "failed"]


def test_slots_that_someone_removed_are_made_anew(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:loses_its_slots", epochs=3)
    assert attempt.kinds == ["began", *["epoch", "snapshot"] * 3, "finished"]
    assert attempt.snapshots[-1].live_digests == attempt.digests
    assert snapshots.read_layout(Path(attempt.snapshots[-1].directory) / snapshots.TENSORS)


def test_run_that_saves_nothing_shows_at_its_first_boundary_that_it_can(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:holds", epochs=3, spec=JobSpec(checkpoint_epochs=0))
    assert attempt.kinds == ["began", "epoch", "epoch", "epoch", "snapshot", "finished"]
    attempt = trainings.run("unrestorable:tracks", args={"kind": "IgnoresState"}, spec=JobSpec(checkpoint_epochs=0))
    failed(attempt, "STATE_NOT_RESTORABLE")
    assert attempt.kinds == ["began", "epoch", "failed"]
