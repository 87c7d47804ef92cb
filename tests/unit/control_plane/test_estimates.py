"""How long things will take, judged by what the job has done."""

from datetime import UTC, datetime, timedelta

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
    for number, seconds in enumerate(epoch_seconds, start=1):
        estimates.count_epoch(record, EpochMetrics(epoch=number, active_duration=lasting(seconds)))
    record.job.progress.epoch, record.job.progress.epoch_step = epoch, epoch_step
    record.job.progress.steps_per_epoch = 100
    return record


def test_the_mean_leaves_out_the_first_epoch_of_an_attempt_once_there_are_others() -> None:
    assert estimates.epoch_seconds(after(90)) == 90
    assert estimates.epoch_seconds(after(90, 20)) == 20
    record = after(90, 20, 40)
    before = estimates.epoch_seconds(record)
    assert before == pytest.approx((20 * estimates.FADING + 40) / (estimates.FADING + 1)), "newer ones count for more"
    estimates.count_epoch(record, EpochMetrics(epoch=4, attempt=2, active_duration=lasting(80)))
    assert estimates.epoch_seconds(record) == before, "it has warmed up again"


def test_the_newest_epochs_count() -> None:
    assert estimates.epoch_seconds(after(*[99.0] * 50, *[7.0] * estimates.KEPT)) == pytest.approx(7)


def counted(*told: tuple[int, int, float, float | None]) -> list[float]:
    """Returns what epochs took: of each the epoch, the attempt, its own time and the job's until then."""
    record = JobRecord()
    for epoch, attempt, own, total in told:
        metrics = EpochMetrics(epoch=epoch, attempt=attempt, active_duration=lasting(own))
        if total is not None:
            metrics.total_active_duration.CopyFrom(lasting(total))
        estimates.count_epoch(record, metrics)
    return [each.seconds for each in record.epoch_times]


def test_an_epoch_is_all_that_comes_between_the_ends_of_two() -> None:
    assert counted((1, 1, 10, 11), (2, 1, 10, 23)) == [10, 12], "checkpoints included"
    assert counted((1, 1, 10, 10), (2, 2, 4, 20)) == [10, 10], "the attempt before did a part of it"
    assert counted((1, 1, 10, 10), (1, 2, 9, 9)) == [10, 9], "it is done again"
    assert counted((1, 1, 10, 10), (3, 1, 8, 28)) == [10, 8], "one is missing"
    assert counted((1, 1, 10, 10), (2, 1, 8, 5)) == [10, 8], "that makes no sense"
    assert counted((1, 1, 10, None), (2, 1, 8, 18), (3, 1, 8, None)) == [10, 8, 8], "an older worker does not tell"


def test_validation_comes_after_the_steps() -> None:
    record = JobRecord(job=Job(spec=JobSpec(total_epochs=10)))
    estimates.count_epoch(record, EpochMetrics(epoch=1, active_duration=lasting(20), end_duration=lasting(8)))
    record.job.progress.epoch, record.job.progress.steps_per_epoch = 1, 100
    expected = {0: 20, 50: 14, 100: 8}
    for step, seconds in expected.items():
        record.job.progress.epoch_step = step
        assert estimates.to_boundary(record) == timedelta(seconds=seconds)


def test_the_running_epoch_shows_its_pace_the_more_of_it_is_done() -> None:
    """Epochs take 20 s, of which 2 are a checkpoint and 8 validation; the running one is three times as slow."""
    record = JobRecord(job=Job(spec=JobSpec(total_epochs=10)))
    for epoch in (1, 2):
        metrics = EpochMetrics(epoch=epoch, attempt=1, active_duration=lasting(18), end_duration=lasting(8))
        metrics.total_active_duration.CopyFrom(lasting(20 * epoch))
        estimates.count_epoch(record, metrics)
    progress = record.job.progress
    progress.epoch, progress.steps_per_epoch = 2, 100

    def left(step: int) -> float:
        progress.epoch_step = step
        progress.active_duration.CopyFrom(lasting(42 + 0.3 * step))
        found = estimates.to_boundary(record)
        assert found
        return found.total_seconds()

    assert left(0) == 20
    assert left(25) == pytest.approx(0.75 * (30 + 10) / 2 + 8), "a quarter of it counts as much as what was before"
    assert left(100) == 8
    two = estimates.to_boundary(record, 4)
    assert two
    weight = 1 / (1 + estimates.FADING)
    assert two.total_seconds() == pytest.approx(8 + 10 + weight * 30 + (1 - weight) * 10)
    record.timed_epoch.ClearField("total_active_duration")
    assert left(25) == pytest.approx(0.75 * 10 + 8), "nobody knows when it began"


def test_what_was_trained_since_the_last_report_counts() -> None:
    record = after(20, epoch_step=50)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert estimates.to_boundary(record, now=now) == timedelta(seconds=10), "no report is known"
    record.progress_time.FromDatetime(now - timedelta(seconds=4))
    assert estimates.to_boundary(record, now=now) == timedelta(seconds=6)
    assert estimates.to_boundary(record, now=now + timedelta(hours=1)) == timedelta()
    assert estimates.to_boundary(record, now=now - timedelta(hours=1)) == timedelta(seconds=10), "the clock was set"
    assert estimates.to_boundary(record) == timedelta(seconds=10)


def test_the_spread_is_that_of_the_epochs_and_wider_with_few_of_them() -> None:
    def around(*seconds: float) -> timedelta | None:
        return estimates.spread(after(*seconds), timedelta(seconds=100))

    assert around(10) is None
    assert around(10, 10) is None, "the first one has warmed up"
    assert around(10, 10, 10) == timedelta()
    few, many = around(1, 9, 11), around(1, *[9, 11] * 6)
    assert few is not None
    assert many is not None
    assert few > 2 * many > timedelta()


def test_a_job_shows_what_is_left_with_its_spread_and_how_good_its_estimates_were() -> None:
    record = after(10, 10, epoch=2)
    estimates.update_remaining(record)
    progress = record.job.progress
    assert not progress.HasField("least_remaining_duration")
    assert progress.estimate_error == 0
    record = after(10, 8, 12, epoch=3)
    left = 7 * (8 * estimates.FADING + 12) / (estimates.FADING + 1)
    estimates.update_remaining(record)
    progress = record.job.progress
    least, most = progress.least_remaining_duration.ToTimedelta(), progress.most_remaining_duration.ToTimedelta()
    assert least < progress.remaining_duration.ToTimedelta() < most
    assert progress.remaining_duration.ToTimedelta().total_seconds() == pytest.approx(left)
    assert progress.estimate_error == pytest.approx((2 / 8 + 4 / 12) / 2)
    estimates.forget_remaining(record.job)
    assert not progress.HasField("most_remaining_duration")
    unknown = after(10)
    estimates.update_remaining(unknown)
    assert not unknown.job.progress.HasField("estimate_error"), "nothing was expected of the first"


def test_from_the_boundary_to_the_release_before_the_first_pause() -> None:
    record = JobRecord()
    assert estimates.to_release(record) is None
    record.checkpoint.snapshot_duration.FromSeconds(3)
    assert estimates.to_release(record) == timedelta(seconds=3) + estimates.PROCESS_END
    for seconds in (4, 6):
        past = record.job.past_pauses.add()
        past.boundary_time.FromSeconds(100)
        past.release_time.FromSeconds(100 + seconds)
    record.job.past_pauses.add()  # it never came to rest
    assert estimates.to_release(record) == timedelta(seconds=5)


def test_errors_of_predictions_are_noted_as_they_become_known() -> None:
    pause = Pause()
    pause.boundary_time.FromSeconds(100)
    pause.release_time.FromSeconds(110)
    estimates.note_errors(pause)
    assert not pause.HasField("boundary_error"), "nothing was predicted"
    assert not pause.HasField("release_error")
    pause.predicted_boundary_time.FromSeconds(97)
    pause.predicted_release_time.FromSeconds(115)
    estimates.note_errors(pause)
    assert pause.boundary_error.ToTimedelta() == timedelta(seconds=3)
    assert pause.release_error.ToTimedelta() == timedelta(seconds=-5)


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
