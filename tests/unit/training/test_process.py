"""Whole training processes: every way one can go, and what the agent is told of it."""

import socket
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from adjourn.shared_files import ProgressPage
from adjourn.v1.job_pb2 import JobSpec, Pause
from tests.harness.training_processes import PAUSE, TrainingProcesses, failed, read_events, until


@pytest.mark.parametrize(
    ("entry_point", "reason", "message"),
    [
        ("nowhere:main", "ENTRY_POINT_NOT_IMPORTABLE", "No module named 'nowhere'"),
        ("unimportable:main", "ENTRY_POINT_NOT_IMPORTABLE", "No module named 'no_such_module_anywhere'"),
        ("lacks_rows:main", "TRAINING_RAISED", "No such file or directory: 'rows.csv'"),
        ("broken:nothing", "ENTRY_POINT_NOT_FOUND", "broken has no function 'nothing'"),
        ("broken:not_a_function", "ENTRY_POINT_NOT_FOUND", "broken has no function 'not_a_function'"),
        ("broken:raises", "TRAINING_RAISED", "ValueError: the loss is made of cheese"),
        ("broken:never_asks", "TRAINING_WITHOUT_EPOCHS", r"run.epochs()"),
        ("broken:tracks_a_function", "STATE_NOT_ENCODABLE", "ema['decay'][1]: a builtins.function"),
        ("broken:tracks_late", "TRAINING_RAISED", "run.replace(model=...)"),
        ("broken:tracks_twice", "TRAINING_RAISED", "'model' is taken"),
        ("broken:steps_early", "TRAINING_RAISED", "before run.epochs()"),
    ],
)
def test_failures_are_told(trainings: TrainingProcesses, entry_point: str, reason: str, message: str) -> None:
    attempt = trainings.run(entry_point)
    assert message in failed(attempt, reason)
    assert message in attempt.log
    assert "Traceback" in attempt.log


def test_message_is_the_end_of_the_traceback(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("broken:raises")
    message = failed(attempt, "TRAINING_RAISED")
    assert "raise ValueError" in message
    assert 'File "broken.py", line' in message, "the same words from whichever attempt's copy of the code"
    assert len(message.splitlines()) <= 5
    assert attempt.last.progress.step == 1
    assert len(failed(trainings.run("broken:says_a_lot"), "TRAINING_RAISED")) <= 4000


def test_exit_with_an_error_is_a_failure(trainings: TrainingProcesses) -> None:
    assert "SystemExit: 3" in failed(trainings.run("broken:exits", args={"code": 3}), "TRAINING_RAISED")


def test_exit_without_one_ends_the_training(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("broken:exits", args={"code": 0})
    assert attempt.code == 0
    assert attempt.kinds == ["began", "epoch", "snapshot", "finished"]


def test_training_is_told_step_by_step(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("tiny:main", epochs=2, args={"workers": 0})
    assert attempt.code == 0
    assert attempt.kinds == ["began", "epoch", "snapshot", "epoch", "snapshot", "finished"]
    began, epoch, snapshot = attempt.events[:3]
    assert (began.progress.epoch, began.progress.step, began.progress.steps_per_epoch) == (0, 1, 5)
    assert began.began.verdict == Pause.Verdict.VERDICT_UNSPECIFIED
    metrics = epoch.epoch
    assert (metrics.epoch, metrics.attempt, metrics.step) == (1, int(attempt.directory.name), 5)
    assert set(metrics.values) == {"train_loss", "val_loss", "learning_rate"}
    assert metrics.values["learning_rate"] == 0.1
    assert metrics.best
    assert metrics.active_duration.ToTimedelta() > metrics.end_duration.ToTimedelta() > timedelta()
    assert metrics.total_active_duration.ToTimedelta() >= metrics.active_duration.ToTimedelta()
    assert (epoch.progress.epoch, epoch.progress.step, epoch.progress.epoch_step) == (1, 5, 0)
    assert epoch.progress.best.metric == "val_loss"
    assert epoch.progress.best.value == metrics.values["val_loss"]
    assert not snapshot.snapshot.last
    assert snapshot.snapshot.metrics == metrics.values
    assert attempt.snapshots[-1].last
    assert [snapshot.sequence for snapshot in attempt.snapshots] == [1, 2]
    size = sum(file.stat().st_size for file in Path(attempt.snapshots[-1].directory).iterdir())
    assert attempt.snapshots[-1].size_bytes == size
    with closing(ProgressPage(attempt.directory / "progress")) as progress_page:
        progress = progress_page.read()
    assert progress
    assert (progress.epoch, progress.step) == (2, 10)


def test_each_event_is_notified_of(trainings: TrainingProcesses, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify_socket:
        notify_socket.bind(str(tmp_path / "notify"))
        attempt = trainings.run("unusual:without_steps", epochs=1, notify_socket=str(tmp_path / "notify"))
        notify_socket.setblocking(False)
        assert [notify_socket.recv(8) for _ in attempt.events] == [b"!"] * len(attempt.events)


def test_training_without_steps_begins_with_its_first_epoch(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:without_steps", epochs=2)
    assert attempt.kinds == ["began", "epoch", "snapshot", "epoch", "snapshot", "finished"]
    assert attempt.values == {1: {"number": 1}, 2: {"number": 2}}


def test_task_without_epochs(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:task", epochs=0, order=PAUSE)
    assert attempt.code == 0
    assert attempt.kinds == ["began", "finished"]
    assert attempt.last.progress.step == 3
    assert attempt.last.progress.metrics == {"rows": 100}
    assert attempt.last.progress.active_duration.ToNanoseconds() > 0


def test_a_task_whose_code_asks_for_epochs_does_not_end_as_if_it_had_trained(trainings: TrainingProcesses) -> None:
    message = failed(trainings.run("unusual:without_steps", epochs=0), "EPOCHS_NOT_GIVEN")
    assert "submit it with `--epochs N`" in message


def test_arguments_seed_and_threads(trainings: TrainingProcesses) -> None:
    args = {"lr": 0.5, "width": 64, "deep": {"list": [1, 2.5, "x", None, True]}}
    attempt = trainings.run("unusual:shows_arguments", epochs=1, args=args)
    first, second = attempt.log.splitlines()
    shown, rest = first.rsplit("}", 1)
    assert eval(shown + "}") == args
    assert "'width': 64" in first
    assert "64.0" not in first
    assert rest == " 7 cpu 1"
    assert second.startswith("1  ")
    assert attempt.log == trainings.run("unusual:shows_arguments", epochs=1, args=args).log


def test_users_module_comes_before_one_that_was_imported(trainings: TrainingProcesses) -> None:
    assert "the user's own worker" in trainings.run("worker:main").log


def test_every_module_of_the_users_comes_before_one_that_was_imported(
    trainings: TrainingProcesses, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "entry.py").write_text(
        "import random, settings\ndef main(run):\n    print(settings.WHOSE, random.random() < 1)\n"
        "    for _ in run.epochs(): pass\n"
    )
    (code / "settings.py").write_text("WHOSE = 'the user\\'s'")
    (code / "random.py").write_text("raise RuntimeError('not this one')")
    attempt = trainings.run("entry:main", epochs=1, code_directory=str(code))
    assert attempt.code == 0
    assert "the user's True" in attempt.log
    assert "random in the code of this job is not imported: the name belongs to Python" in attempt.log


def test_a_job_has_its_own_variables_and_they_make_no_other_environment(
    trainings: TrainingProcesses, tmp_path: Path
) -> None:
    (tmp_path / "entry.py").write_text(
        "import os, time\nFOUND = os.environ['RATE'], time.tzname[0]\n"
        "def main(run):\n    print('found', *FOUND, os.environ['PATH'] != '')\n    for _ in run.epochs(): pass\n"
    )
    spec = JobSpec(environment={"RATE": "0.5 a", "TZ": "XYZ-3", "NVIDIA_TF32_OVERRIDE": "0"})
    first = trainings.run("entry:main", epochs=2, code_directory=str(tmp_path), spec=spec, order=PAUSE)
    assert "found 0.5 a XYZ True" in first.log
    second = trainings.run("entry:main", epochs=2, code_directory=str(tmp_path), spec=spec, restore=first)
    assert second.events[0].began.verdict == Pause.EXACT


def test_what_is_not_installed_is_told_before_the_code_is_imported(
    trainings: TrainingProcesses, tmp_path: Path
) -> None:
    (tmp_path / "entry.py").write_text("print('imported')\ndef main(run):\n    for _ in run.epochs(): pass\n")
    for requirement, told in (
        ("no-such-thing>=1", "no-such-thing>=1 is not installed"),
        ("torch<2; python_version>'3'", "is installed in version 2."),
        ("no-such-thing; python_version<'3'", ""),
        ("torch[opt-einsum]>=2", ""),
    ):
        spec = JobSpec(requirements=["numpy", requirement])
        attempt = trainings.run("entry:main", epochs=1, code_directory=str(tmp_path), spec=spec)
        assert not told or told in failed(attempt, "REQUIREMENTS_UNMET")
        assert ("imported" in attempt.log.splitlines()) == (not told)


def test_a_file_that_did_not_go_along_is_told_with_what_takes_it(trainings: TrainingProcesses, tmp_path: Path) -> None:
    (tmp_path / "entry.py").write_text("def main(run):\n    open(run.args['name'])\n")
    advice = "`adjourn submit --include PATH` takes a file along"
    for name, told in (("rows.csv", True), ("/no/such/rows.csv", False)):
        attempt = trainings.run("entry:main", code_directory=str(tmp_path), args={"name": name})
        *_, last = failed(attempt, "TRAINING_RAISED").splitlines()
        assert (f"No such file or directory: {name!r}" in last, advice in last) == (True, told)


def test_early_stop_ends_the_training_after_its_epoch(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:stops_early", epochs=5, args={"stop": 2})
    assert attempt.kinds == ["began", "epoch", "snapshot", "epoch", "snapshot", "finished"]
    assert attempt.values[2] == {"train_loss": 2, "val_loss": 0.5, "test_loss": 0.25}
    assert attempt.last.progress.epoch == 2


def test_early_stop_wins_over_a_pause_in_the_same_epoch(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:stops_early", epochs=5, args={"stop": 1}, order=PAUSE)
    assert attempt.kinds[-2:] == ["snapshot", "finished"]


def test_pause_in_the_last_epoch_finishes(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:without_steps", epochs=1, order=PAUSE)
    assert attempt.kinds == ["began", "epoch", "snapshot", "finished"]


def test_pause(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:without_steps", epochs=3, order=PAUSE)
    assert attempt.code == 0
    assert attempt.kinds == ["began", "epoch", "snapshot", "paused"]
    assert attempt.snapshots[0].last
    assert attempt.last.paused.boundary_time.ToNanoseconds() <= attempt.events[2].time.ToNanoseconds()


def test_user_code_cannot_swallow_a_pause(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:catches_everything", order=PAUSE)
    assert attempt.code == 0
    assert attempt.kinds[-1] == "paused"
    assert "caught StopTraining" in attempt.log


@pytest.mark.parametrize(("interval", "epochs"), [(0, [6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6])])
def test_snapshots_are_taken_when_due(trainings: TrainingProcesses, interval: int, epochs: list[int]) -> None:
    attempt = trainings.run("unusual:frees_slots", epochs=6, spec=JobSpec(checkpoint_epochs=interval))
    assert [snapshot.progress.epoch for snapshot in attempt.snapshots] == epochs


def test_snapshots_are_skipped_while_no_slot_is_free_but_not_the_last(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("unusual:without_steps", epochs=6)
    assert [snapshot.progress.epoch for snapshot in attempt.snapshots] == [1, 2, 6]
    assert len({snapshot.directory for snapshot in attempt.snapshots}) == 3


def test_refused_state_may_be_done_without(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("broken:does_without")
    assert attempt.last.HasField("finished")
    assert "ema" in attempt.digests


def test_workers_of_a_loader_end_with_the_training(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("broken:raises_amid_workers")
    assert "amid workers" in failed(attempt, "TRAINING_RAISED")
    (workers,) = (line.split() for line in attempt.log.splitlines() if line.replace(" ", "").isdigit())
    assert len(workers) == 2
    assert not [worker for worker in workers if Path("/proc", worker).exists()]


def test_orphan_ends_itself_with_a_snapshot(trainings: TrainingProcesses) -> None:
    directory = trainings.prepare("unusual:outlives_its_launcher")
    with trainings.abandoning(directory) as abandon:
        until(lambda: read_events(directory))
        abandon()
        until(lambda: any(event.HasField("snapshot") for event in read_events(directory)))
    *_, snapshot = read_events(directory)
    assert snapshot.snapshot.last
    assert snapshot.progress.epoch == 1
