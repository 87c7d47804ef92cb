"""When a run is cut amid an epoch, by steps and by the clock."""

from datetime import timedelta

import pytest

from adjourn.training.schedule import NEVER, RETRY_SECONDS, Schedule
from adjourn.v1.job_pb2 import JobSpec


def begun(*, steps: int | None = None, seconds: int = 0) -> Schedule:
    """Returns a schedule that counts from step 10 and second 100."""
    spec = JobSpec(checkpoint_steps=steps)
    spec.checkpoint_interval.FromTimedelta(timedelta(seconds=seconds))
    schedule = Schedule(spec)
    schedule.begin(10, 100.0)
    return schedule


def test_without_a_wish_no_cut_is_due_amid_an_epoch() -> None:
    schedule = begun()
    assert (schedule.step, schedule.time) == (NEVER, NEVER)
    assert not schedule.wants_cut(10**9, 1e9, pausing=False)


def test_steps_are_counted_from_the_newest_checkpoint() -> None:
    schedule = begun(steps=5)
    assert (schedule.step, schedule.time) == (15, NEVER)
    assert not schedule.wants_cut(14, 1e9, pausing=False)
    assert schedule.wants_cut(15, 0.0, pausing=False)
    schedule.begin(17, 0.0)  # the first place where it could be cut
    assert not schedule.wants_cut(17, 0.0, pausing=False)
    assert schedule.step == 22


def test_so_is_time() -> None:
    schedule = begun(seconds=60)
    assert (schedule.step, schedule.time) == (NEVER, 160.0)
    assert not schedule.wants_cut(10**9, 159.9, pausing=False)
    assert schedule.wants_cut(10, 160.0, pausing=False)


def test_what_comes_first_is_due() -> None:
    schedule = begun(steps=5, seconds=60)
    assert schedule.due(15, 100.0)
    assert schedule.due(10, 160.0)
    assert not schedule.due(14, 159.0)


def test_nothing_is_looked_for_while_a_cut_is_wanted_already() -> None:
    schedule = begun(steps=5, seconds=60)
    assert schedule.wants_cut(15, 100.0, pausing=False)
    assert (schedule.step, schedule.time) == (NEVER, NEVER)


def test_a_pause_that_could_not_be_saved_is_tried_again_after_a_while() -> None:
    schedule = begun()
    assert schedule.wants_cut(11, 101.0, pausing=True)
    schedule.unsaved(101.0)
    assert not schedule.wants_cut(12, 101.0 + RETRY_SECONDS / 2, pausing=True)
    assert schedule.wants_cut(13, 101.0 + RETRY_SECONDS, pausing=True)


@pytest.mark.parametrize(
    ("epochs", "due"),
    [(None, [1, 2, 3, 4]), (2, [2, 4]), (0, [])],
)
def test_epochs_are_due_by_their_number(epochs: int | None, due: list[int]) -> None:
    schedule = Schedule(JobSpec(checkpoint_epochs=epochs))
    assert [epoch for epoch in range(1, 5) if schedule.due_after(epoch)] == due
