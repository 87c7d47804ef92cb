"""The mapped files of agent and training process."""

import errno
import os
from contextlib import closing
from pathlib import Path

import pytest

from adjourn.desired_state import DesiredState
from adjourn.next_boundary import MOST, NextBoundary
from adjourn.pulse import Phase, Pulse
from adjourn.shared_files import PROGRESS_BYTES, BoundaryFile, Control, ProgressPage, PulseFile
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import Progress


def test_what_is_mapped_is_on_the_disk_already(tmp_path: Path) -> None:
    """Or a full disk ends whoever writes to it first by SIGBUS."""
    with closing(ProgressPage(tmp_path / "progress")), closing(Control(tmp_path / "control")):
        assert (tmp_path / "progress").stat().st_blocks * 512 >= PROGRESS_BYTES
        assert (tmp_path / "control").stat().st_blocks > 0


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        Control(tmp_path / "control")


def test_both_sides_see_what_was_written(tmp_path: Path) -> None:
    desired = DesiredState(generation=7, target=Assignment.PAUSE)
    with closing(Control(tmp_path / "control")) as ours, closing(Control(tmp_path / "control")) as theirs:
        ours.write(desired)
        assert theirs.read() == desired
    with closing(ProgressPage(tmp_path / "progress")) as written, closing(ProgressPage(tmp_path / "progress")) as read:
        assert read.read() is None
        written.write(Progress(step=3, metrics={"x" * PROGRESS_BYTES: 1.0}))
        assert read.read() == Progress(step=3)


@pytest.mark.parametrize("epoch", [1, 10_000_000, MOST])
@pytest.mark.parametrize("deciding", [False, True])
def test_where_training_decides_is_one_word(tmp_path: Path, epoch: int, deciding: bool) -> None:
    boundary = NextBoundary(epoch=epoch, deciding=deciding)
    with closing(BoundaryFile(tmp_path / "b")) as written, closing(BoundaryFile(tmp_path / "b")) as read:
        assert read.read() is None
        written.write(boundary)
        assert read.read() == boundary


@pytest.mark.parametrize("word", [1, MOST + 1 << 1, 2**64 - 1])
def test_what_training_does_not_write_says_nothing(tmp_path: Path, word: int) -> None:
    (tmp_path / "b").write_bytes(word.to_bytes(8, "little"))
    with closing(BoundaryFile(tmp_path / "b")) as read:
        assert read.read() is None


def test_a_pulse_is_seen_beat_by_beat(tmp_path: Path) -> None:
    with closing(PulseFile(tmp_path / "pulse")) as written, closing(PulseFile(tmp_path / "pulse")) as read:
        assert read.read() is None
        written.beat(Phase.STARTING)
        assert read.read() == Pulse(beats=1, phase=Phase.STARTING)
        written.step(Phase.STEPPING)
        written.step(Phase.BOUNDARY)
        written.epoch()
        assert read.read() == Pulse(beats=4, phase=Phase.BOUNDARY, steps=2, epochs=1)


def test_a_phase_of_a_later_version_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "pulse").write_bytes((1 << 8 | 200).to_bytes(8, "little") + bytes(16))
    with closing(PulseFile(tmp_path / "pulse")) as read:
        assert read.read() is None
