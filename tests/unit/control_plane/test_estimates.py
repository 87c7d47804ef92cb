"""How long things will take, judged by what the job has done."""

from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job, JobSpec, Pause
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_control_plane.job import estimates


def lasting(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration


def after(*epoch_seconds: float, epoch: int = 0, epoch_step: int = 0, total: int = 10) -> JobRecord:
    record = JobRecord(job=Job(spec=JobSpec(total_epochs=total)))
    for seconds in epoch_seconds:
        estimates.count_epoch(record, EpochMetrics(active_duration=lasting(seconds)))
    record.job.progress.epoch, record.job.progress.epoch_step = epoch, epoch_step
    record.job.progress.steps_per_epoch = 100
    return record


def test_the_mean_counts_every_epoch() -> None:
    record = after(10, 20, 60)
    assert record.epoch_duration.ToTimedelta() == timedelta(seconds=30)
    assert record.timed_epochs == 3


def test_nothing_to_judge_by() -> None:
    assert estimates.to_boundary(after()) is None
    assert estimates.remaining(after()) is None


@pytest.mark.parametrize(("epoch_step", "seconds"), [(0, 20), (50, 10), (100, 0), (130, 0)])
def test_to_the_boundary(epoch_step: int, seconds: int) -> None:
    assert estimates.to_boundary(after(20, epoch_step=epoch_step)) == timedelta(seconds=seconds)


@pytest.mark.parametrize(("epoch", "seconds"), [(3, 0), (4, 10), (5, 30), (10, 130)])
def test_to_the_boundary_of_an_epoch(epoch: int, seconds: int) -> None:
    assert estimates.to_boundary(after(20, epoch=3, epoch_step=50), epoch) == timedelta(seconds=seconds)


def test_without_a_length_of_epochs_a_whole_one_is_left() -> None:
    record = after(20, epoch_step=50)
    record.job.progress.ClearField("steps_per_epoch")
    assert estimates.to_boundary(record) == timedelta(seconds=20)


@pytest.mark.parametrize(("epoch", "epoch_step", "seconds"), [(0, 0, 200), (3, 50, 130), (9, 0, 20), (10, 0, 0)])
def test_to_the_end(epoch: int, epoch_step: int, seconds: int) -> None:
    assert estimates.remaining(after(20, epoch=epoch, epoch_step=epoch_step)) == timedelta(seconds=seconds)


def test_from_the_boundary_to_the_release() -> None:
    pause = Pause()
    assert estimates.release_after_boundary(pause) is None
    pause.boundary_time.FromSeconds(100)
    assert estimates.release_after_boundary(pause) is None
    pause.release_time.FromSeconds(103)
    assert estimates.release_after_boundary(pause) == timedelta(seconds=3)
