"""Which checkpoints are kept: every rule, and that nothing else is."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import retention
from adjourn_control_plane.job.events import Registered
from tests.harness.job_life import A, Life

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MINIMUM, MAXIMUM = JobSpec.Retention.MINIMUM, JobSpec.Retention.MAXIMUM


def checkpoint(number: int, *, damage: str = "", **metrics: float) -> Checkpoint:
    return Checkpoint(name=f"jobs/j/checkpoints/{number}", epoch=number, step=number, damage=damage, metrics=metrics)


def record_of(newest: int, **policy: Any) -> JobRecord:
    """Returns the record of a job that rests on nothing but its newest checkpoint."""
    record = JobRecord(job=Job(name="jobs/j", uid="u", spec=JobSpec(retention=JobSpec.Retention(**policy))))
    if newest:
        record.checkpoint.CopyFrom(checkpoint(newest))
        record.job.latest_checkpoint = record.checkpoint.name
    return record


def kept(record: JobRecord, *checkpoints: Checkpoint) -> list[int]:
    numbered = [(each.epoch, each) for each in checkpoints][::-1]
    gone = {each.name for each in retention.review(record, numbered).retired}
    return [each.epoch for each in checkpoints if each.name not in gone]


def plain(count: int, values: Mapping[int, float] | None = None, name: str = "loss") -> list[Checkpoint]:
    made = [checkpoint(number) for number in range(1, count + 1)]
    for each in made if values else ():
        each.metrics[name] = (values or {})[each.epoch]
    return made


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, [5, 6, 7]),
        ({"keep_last": 1}, [7]),
        ({"keep_last": 2}, [6, 7]),
        ({"keep_last": 7}, [1, 2, 3, 4, 5, 6, 7]),
        ({"keep_last": 1_000_000}, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_newest_are_kept(policy: dict[str, Any], expected: list[int]) -> None:
    assert kept(record_of(7, **policy), *plain(7)) == expected


NAN = float("nan")
VALUES = {1: 0.9, 2: 0.1, 3: 0.95, 4: 0.5, 5: 0.6, 6: 0.7, 7: 0.8}


@pytest.mark.parametrize(
    ("policy", "name", "values", "best"),
    [
        ({}, "loss", VALUES, 2),
        ({}, "val_loss", VALUES, 2),
        ({}, "accuracy", VALUES, None),
        ({"best_metric": "accuracy"}, "accuracy", VALUES, 2),
        ({"best_metric": "accuracy", "best": MINIMUM}, "accuracy", VALUES, 2),
        ({"best_metric": "accuracy", "best": MAXIMUM}, "accuracy", VALUES, 3),
        ({"best": MAXIMUM}, "loss", VALUES, 3),
        ({"best_metric": "accuracy"}, "loss", VALUES, None),
        ({}, "loss", dict.fromkeys(VALUES, 0.5), 7),
        ({}, "loss", {**VALUES, 2: NAN}, 4),
        ({}, "loss", {**VALUES, 2: -float("inf")}, 4),
    ],
)
def test_the_best_is_kept(policy: dict[str, Any], name: str, values: dict[int, float], best: int | None) -> None:
    record, checkpoints = record_of(7, keep_last=1, **policy), plain(7, values, name)
    assert kept(record, *checkpoints) == sorted({best or 7, 7})
    found = retention.review(record, [(each.epoch, each) for each in checkpoints]).best
    assert found == (f"jobs/j/checkpoints/{best}" if best else "")


def test_val_loss_goes_before_loss() -> None:
    checkpoints = [checkpoint(1, loss=0.1, val_loss=0.9), checkpoint(2, loss=0.2, val_loss=0.8), checkpoint(3)]
    assert kept(record_of(3, keep_last=1), *checkpoints) == [2, 3]


def test_what_is_pinned_is_kept() -> None:
    record = record_of(7, keep_last=1)
    record.pinned_checkpoints.extend(["jobs/j/checkpoints/2", "jobs/j/checkpoints/4"])
    assert kept(record, *plain(7)) == [2, 4, 7]


def test_what_a_pause_rests_on_is_kept_until_it_has_gone_on() -> None:
    record = record_of(7, keep_last=1)
    record.job.pause.checkpoint = "jobs/j/checkpoints/3"
    assert kept(record, *plain(7)) == [7], "it never came to rest"
    record.job.pause.pause_time.FromDatetime(NOW)
    assert kept(record, *plain(7)) == [3, 7]
    record.job.pause.resume_time.FromDatetime(NOW)
    assert kept(record, *plain(7)) == [7]


def test_what_an_attempt_is_restored_from_is_kept_while_it_may_live() -> None:
    record = record_of(7, keep_last=1)
    record.restored_checkpoint = "jobs/j/checkpoints/3"
    assert kept(record, *plain(7)) == [7]
    record.job.worker = "workers/a"
    assert kept(record, *plain(7)) == [3, 7]
    record.job.worker = ""
    record.lost_attempt.restart_count = 0
    assert kept(record, *plain(7)) == [3, 7]


def test_what_the_job_goes_on_from_is_kept_although_newer_ones_are_there() -> None:
    """It fell back to an older one: what is newer is damaged, or of an attempt that has not told yet."""
    assert kept(record_of(2, keep_last=1), *plain(4)) == [2, 4]


def test_damaged_ones_are_not_counted_and_go_once_sound_ones_are_newer() -> None:
    checkpoints = [checkpoint(number, damage="flipped" if number in (3, 5, 6) else "") for number in range(1, 8)]
    assert kept(record_of(7, keep_last=1), *checkpoints) == [7]
    assert kept(record_of(7, keep_last=2), *checkpoints) == [4, 5, 6, 7]
    assert kept(record_of(7, keep_last=3), *checkpoints) == [2, 3, 4, 5, 6, 7]
    assert kept(record_of(7), *checkpoints[:3]) == [1, 2, 3]


def test_a_damaged_one_is_no_best() -> None:
    checkpoints = [checkpoint(1, loss=0.1, damage="flipped"), checkpoint(2, loss=0.2), checkpoint(3, loss=0.3)]
    assert kept(record_of(3, keep_last=1), *checkpoints) == [2, 3]


def test_without_checkpoints_nothing_follows() -> None:
    assert retention.reviewed(record_of(0), [], NOW) is None


def test_a_review_is_told_once() -> None:
    record, checkpoints = record_of(5, keep_last=1), [(each.epoch, each) for each in plain(5, VALUES)]
    found = retention.reviewed(record, checkpoints, NOW)
    assert found is not None
    decision, review = found
    assert [each.epoch for each in review.retired] == [1, 3, 4]
    assert decision.record.best_checkpoint.name == "jobs/j/checkpoints/2"
    (event,) = decision.events
    assert (event.type, dict(event.details)) == (JobEvent.CHECKPOINTS_RETIRED, {"count": "3", "retired": "1, 3, 4"})
    left = [(number, each) for number, each in checkpoints if each not in review.retired]
    assert retention.reviewed(decision.record, left, NOW) is None


@pytest.mark.parametrize(
    "values", [VALUES, {1: 0.2, 2: 0.2}, {1: NAN, 2: 0.5}, {3: 0.3}, {}], ids=["all", "equal", "nan", "one", "none"]
)
@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_the_best_is_known_at_its_registration_so_that_a_review_that_retires_nothing_changes_nothing(
    values: dict[int, float], name: str
) -> None:
    """A watcher would be told of a job that had ended, and not changed."""
    life = Life(retention=JobSpec.Retention(keep_last=9)).running(0)
    made: list[tuple[int, Checkpoint]] = []
    for each in plain(7):
        if each.epoch in values:
            each.metrics[name] = values[each.epoch]
        elif each.epoch == 4:
            each.metrics["loss"] = 0.4  # where the others have val_loss, it is none to compare with
        life.tell(Registered(actor=A, checkpoint=each))
        made.insert(0, (each.epoch, each))
        assert retention.reviewed(life.record, made, NOW) is None
        assert life.record.best_checkpoint.name == retention.review(life.record, made).best
    life.record.best_checkpoint.name = "jobs/j/checkpoints/another"
    assert retention.reviewed(life.record, made, NOW) is not None


def test_why_each_is_kept_is_shown() -> None:
    record = record_of(5)
    record.checkpoint.retained_for.append(Checkpoint.LATEST)
    record.pinned_checkpoints.append("jobs/j/checkpoints/2")
    record.best_checkpoint.name = "jobs/j/checkpoints/2"
    shown = [list(retention.shown(record, each).retained_for) for each in (*plain(4)[1:3], record.checkpoint)]
    assert shown == [[Checkpoint.BEST, Checkpoint.PINNED], [Checkpoint.RECENT], [Checkpoint.LATEST]]
