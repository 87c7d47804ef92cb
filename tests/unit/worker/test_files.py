import errno
import os
from functools import partial
from pathlib import Path

import pytest

from adjourn import frames
from adjourn.internal.v1.trainer_pb2 import TrainingEvent, TrainingProcess, TrainingStart
from adjourn.v1.job_pb2 import Progress
from adjourn_worker.attempt import files
from adjourn_worker.attempt.files import AttemptDamaged


def event(step: int) -> TrainingEvent:
    return TrainingEvent(progress=Progress(step=step))


def test_files_say_what_was_written(tmp_path: Path) -> None:
    directory = tmp_path / "attempt"
    start = TrainingStart(job="jobs/a", attempt=2)
    process = TrainingProcess(pid=7, nonce="n")
    files.write_start(directory, start)
    files.write_process(directory, process)
    files.write_exit(directory, code=-9, killed=True)
    ended = files.read_exit(directory)
    assert files.read_start(directory) == start
    assert files.read_process(directory) == process
    assert ended is not None
    assert (ended.code, ended.killed) == (-9, True)
    assert ended.time.seconds > 0
    assert sorted(path.name for path in directory.iterdir()) == ["exit", "process", "start"]


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert files.read_start(tmp_path) is None
    assert files.read_process(tmp_path) is None
    assert files.read_exit(tmp_path) is None
    assert files.read_events(tmp_path, 0) == []


def test_events_are_read_from_where_one_stopped(tmp_path: Path) -> None:
    whole = [frames.encode(event(step)) for step in (1, 2, 3)]
    (tmp_path / "events").write_bytes(whole[0] + whole[1] + whole[2][:-1])
    first = files.read_events(tmp_path, 0)
    assert [item.progress.step for item, _ in first] == [1, 2]
    offset = first[-1][1]
    assert files.read_events(tmp_path, offset) == []
    with (tmp_path / "events").open("ab") as file:
        file.write(whole[2][-1:])
    assert files.read_events(tmp_path, offset) == [(event(3), sum(map(len, whole)))]


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\2\xff\xff"])
def test_garbage_among_events_is_named(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "events").write_bytes(frames.encode(event(1)) + garbage)
    with pytest.raises(AttemptDamaged, match="events"):
        files.read_events(tmp_path, 0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_system_that_is_short_of_something_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def short(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", short)
    for read in (files.read_start, files.read_process, files.read_exit, partial(files.read_events, offset=0)):
        with pytest.raises(OSError, match=os.strerror(number)):
            read(tmp_path)


def test_a_damaged_exit_is_named(tmp_path: Path) -> None:
    (tmp_path / "exit").write_bytes(b"\xff\xff")
    with pytest.raises(AttemptDamaged, match="exit"):
        files.read_exit(tmp_path)


def test_the_tail_of_a_file_is_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert files.tail(path) == ""
    path.write_bytes(b"one\ntwo\nthr\xffee\n")
    assert files.tail(path) == "one\ntwo\nthr\ufffdee\n"
    assert files.tail(path, size=10) == "thr\ufffdee\n"
    path.write_text("x" * 100)
    assert files.tail(path, size=10) == "x" * 10
