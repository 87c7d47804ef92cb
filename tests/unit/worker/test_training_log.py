import errno
import os
from pathlib import Path

import pytest

from adjourn_worker.attempt import training_log

LIMIT = 256 * 1024
LINE = b"x" * 99 + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "log"
    made.write_bytes(b"begin\n" + LINE * 20_000 + b"end\n")
    return made


def test_a_long_log_gives_its_middle_back_and_keeps_its_length(path: Path) -> None:
    size = path.stat().st_size
    training_log.bound(path, LIMIT)
    content = path.read_bytes()
    assert len(content) == size
    assert path.stat().st_blocks * 512 <= LIMIT + 2 * os.statvfs(path).f_frsize
    assert content[: LIMIT // 2].startswith(b"begin\nxxx")
    assert b"\0" not in content[-LIMIT // 2 :]
    assert content.endswith(b"end\n")


def test_the_log_that_is_kept_says_what_is_left_out(path: Path) -> None:
    size = path.stat().st_size
    training_log.bound(path, LIMIT)
    training_log.compact(path, LIMIT)
    content = path.read_bytes()
    left_out = f"\n[adjourn: {size - LIMIT} bytes are left out here; ADJOURN_LOG_BYTES limits a log to {LIMIT}]\n"
    assert content.startswith(b"begin\nxxx")
    assert content.endswith(b"end\n")
    assert left_out.encode() in content
    assert len(content) == LIMIT + len(left_out)
    assert [each.name for each in path.parent.iterdir()] == ["log"]


def test_a_log_within_its_limit_is_left_alone(path: Path) -> None:
    before = path.read_bytes()
    training_log.bound(path, len(before))
    training_log.compact(path, len(before))
    assert path.read_bytes() == before


def test_without_holes_the_newest_lines_are_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(training_log, "punch_hole", refuse)
    training_log.bound(path, LIMIT)
    content = path.read_bytes()
    assert content.startswith(b"begin\nxxx")
    assert b"bytes are left out here" in content[LIMIT // 2 :]
    assert len(content) < LIMIT


def test_a_log_that_is_gone_or_none_is_no_error(tmp_path: Path) -> None:
    for each in (tmp_path / "none", tmp_path):
        training_log.bound(each, LIMIT)
        training_log.compact(each, LIMIT)
