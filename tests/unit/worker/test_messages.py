from datetime import UTC, datetime, timedelta

from adjourn.v1.agent_service_pb2 import AssignmentStatus, ConditionChange, Exit, Report
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Condition, Failure, Pause, Progress
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn_worker import messages

LARGE = "x" * (2 << 20)
METRICS = {f"{number:05}": 1.0 for number in range(100_000)}


def report(size: int) -> Report:
    return Report(exit=Exit(failure=Failure(message="x" * size)))


def test_a_status_that_is_sent_says_how_old_its_progress_is() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    status = AssignmentStatus()
    assert messages.aged(status, now) == status, "training has told nothing"
    for age in (-5, 0, 3):
        status.progress.report_time.FromDatetime(now - timedelta(seconds=age))
        assert messages.aged(status, now).progress_age.ToTimedelta() == timedelta(seconds=max(age, 0))
    assert not status.HasField("progress_age")


def test_the_oldest_reports_that_fit_are_sent_and_one_at_least() -> None:
    reports = [report(size) for size in (10, 100, 100, 1000)]
    sizes = [each.ByteSize() for each in reports]
    assert messages.next_reports(reports) == reports
    assert messages.next_reports(reports, sum(sizes[:3])) == reports[:3]
    assert messages.next_reports(reports, sum(sizes[:3]) - 1) == reports[:2]
    assert messages.next_reports(reports[3:], 10) == reports[3:]
    assert messages.next_reports([]) == []


def test_statuses_that_are_too_large_leave_their_metrics_out() -> None:
    statuses = [AssignmentStatus(progress=Progress(epoch=3, metrics={"a": 1.0, "b": 2.0})) for _ in range(10)]
    size = sum(each.ByteSize() for each in statuses)
    assert messages.fitting_statuses(statuses, size) == statuses
    assert messages.fitting_statuses(statuses, size - 1) == [AssignmentStatus(progress=Progress(epoch=3))] * 10
    assert statuses[0].progress.metrics, "what the worker holds was changed"


def test_a_report_that_is_too_large_is_cut() -> None:
    found = {
        each.WhichOneof("report"): messages.cut(each)
        for each in (
            Report(epoch=EpochMetrics(epoch=1, values={**METRICS, "0" * 300: 1.0})),
            Report(checkpoint=Checkpoint(name="c", metrics=METRICS, progress=Progress(metrics=METRICS))),
            Report(exit=Exit(failure=Failure(reason="R", message=f"first{LARGE}last"))),
            Report(condition=ConditionChange(condition=Condition(reason="R", message=LARGE))),
            Report(pause=Pause(verdict_reasons=[LARGE] * 10)),
        )
    }
    assert all(each.ByteSize() <= messages.REPORT_BYTES for each in found.values())
    assert sorted(found["epoch"].epoch.values) == sorted(METRICS)[:100]
    assert len(found["checkpoint"].checkpoint.metrics) == len(found["checkpoint"].checkpoint.progress.metrics) == 100
    message = found["exit"].exit.failure.message
    assert message.startswith("first")
    assert message.endswith("last")
    assert "characters are left out here" in message
    assert len(found["pause"].pause.verdict_reasons) == 10


def test_a_report_that_fits_is_sent_as_it_is() -> None:
    given = report(100)
    assert messages.cut(given) is given
