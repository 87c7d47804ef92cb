"""A quarter, half, three quarters and all of the epochs are told once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import milestones
from adjourn_control_plane.job.events import EpochEnded, UpdateRequested
from tests.harness.job_life import A, Life


def of(total: int) -> JobRecord:
    return JobRecord(job=Job(spec=JobSpec(total_epochs=total)))


@pytest.mark.parametrize(
    ("total", "told"),
    [
        (20, {5: 25, 10: 50, 15: 75, 20: 100}),
        (6, {2: 25, 3: 50, 5: 75, 6: 100}),
        (3, {1: 25, 2: 50, 3: 100}),
        (1, {1: 100}),
        (0, {}),
    ],
)
def test_each_quarter_is_told_by_the_epoch_that_completes_it(total: int, told: dict[int, int]) -> None:
    record = of(total)
    found = {epoch: percent for epoch in range(1, total + 1) if (percent := milestones.reached(record, epoch))}
    assert found == told


@given(st.integers(1, 50), st.lists(st.integers(1, 50), max_size=60))
def test_no_percentage_comes_twice_and_none_too_early(total: int, epochs: list[int]) -> None:
    record, told = of(total), []
    for epoch in epochs:
        if percent := milestones.reached(record, epoch):
            assert 100 * epoch >= percent * total
            told.append(percent)
    assert told == sorted(set(told))
    furthest = max(epochs, default=0)
    assert (told or [0])[-1] == milestones.passed(furthest, total)


def test_a_job_tells_of_them_in_its_history() -> None:
    life = Life(total_epochs=4).running(2)
    (event,) = [event for decision in life.decisions for event in decision.events if event.details.get("epoch") == "2"]
    assert (event.type, event.actor, event.state, event.attempt) == (JobEvent.MILESTONE_REACHED, A, Job.RUNNING, 1)
    assert (event.details["percent"], event.message) == ("50", "50 % of its epochs are trained")


def test_epochs_that_are_trained_again_reach_nothing_again() -> None:
    life = Life(total_epochs=4).running(1)
    life.tell(EpochEnded(actor=A, metrics=life.decisions[-3].epochs[0]))
    life.is_lost().placed().began()
    for epoch in (1, 2):
        life.trained(epoch)
    assert life.history.count("MILESTONE_REACHED") == 2


def test_a_job_that_is_given_more_epochs_counts_by_the_new_number() -> None:
    life = Life(total_epochs=2).running(1)
    life.pause().trained(2).released().rests()
    more = Job(spec=JobSpec(total_epochs=8))
    life.tell(UpdateRequested(actor="bob", job=more, fields=("spec.total_epochs",))).resume().placed().began()
    for epoch in range(3, 9):
        life.trained(epoch)
    events = [event for decision in life.decisions for event in decision.events]
    told = [(event.details["epoch"], event.details["percent"]) for event in events if "percent" in event.details]
    assert told == [("1", "50"), ("2", "100"), ("4", "50"), ("6", "75"), ("8", "100")]
