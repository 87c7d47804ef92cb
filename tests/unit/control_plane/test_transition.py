"""What every decision does to the record: its revision, its history, its estimates."""

from datetime import timedelta
from itertools import pairwise

import pytest

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition, Job, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job.events import ConditionChanged, Observed, Unplaced
from tests.harness.job_life import START, A, Life, checkpoint_name


def test_a_new_job_is_queued() -> None:
    life = Life(labels={"team": "vision"})
    assert (life.state, life.record.revision, life.record.event_sequence) == ("QUEUED", 1, 1)
    assert life.job.create_time.ToDatetime() == life.job.state_time.ToDatetime() == START.replace(tzinfo=None)
    assert life.history == ["CREATED"]
    assert (life.decisions[0].events[0].actor, life.job.labels["team"]) == ("ann", "vision")
    assert life.job.creator == "ann"


def test_the_revision_changes_with_state_and_intent_and_not_with_progress() -> None:
    life = Life()

    def revised(after: Life) -> bool:
        return after.decisions[-1].record.revision > after.decisions[-2].record.revision

    assert revised(life.placed())
    assert revised(life.began())
    assert not revised(life.acknowledged())
    assert not revised(life.at(50))
    assert not revised(life.trained(1))
    assert not revised(life.released())
    assert revised(life.pause())
    assert revised(life.resume())
    assert revised(life.cancel())
    assert revised(life.stops())


def test_the_revision_grows_by_one() -> None:
    life = Life().running(3).pause().trained(4).rests().resume()
    revisions = [decision.record.revision for decision in life.decisions]
    assert {after - before for before, after in pairwise(revisions)} <= {0, 1}


def test_history_has_no_gaps_and_tells_every_change_of_state() -> None:
    life = Life().running(2).pause().is_lost().resume().running(1).cancel().stops().resume()
    events = [event for decision in life.decisions for event in decision.events]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    state = Job.STATE_UNSPECIFIED
    for decision in life.decisions:
        if decision.record.job.state != state:
            assert decision.events[-1].state == decision.record.job.state
        state = decision.record.job.state
    assert life.record.event_sequence == len(events)


def test_what_changes_nothing_is_no_decision() -> None:
    life = Life().running(1)
    assert life.began().last is None
    assert life.tell(Observed(actor=A, generation=0)).last is None


def test_an_older_acknowledgement_does_not_undo_a_newer_one() -> None:
    life = Life().running().pause().acknowledged()
    acknowledged = life.record.observed_generation
    life.tell(Observed(actor=A, generation=acknowledged - 1))
    assert life.record.observed_generation == acknowledged


def test_the_first_step_of_the_first_attempt_is_the_start() -> None:
    life = Life().running(1)
    began = life.job.start_time
    life.fails().running()
    assert life.job.start_time == began


@pytest.mark.parametrize(("step", "left"), [(0, 200), (150, 185), (1990, 1)])
def test_remaining_time_comes_from_measured_epochs(step: int, left: int) -> None:
    life = Life(total_epochs=20).running(1).at(step)
    assert life.job.progress.remaining_duration.ToTimedelta() == timedelta(seconds=left)


def test_before_the_first_epoch_there_is_nothing_to_judge_by() -> None:
    assert not Life().running().at(50).job.progress.HasField("remaining_duration")


def test_a_later_epoch_metric_comes_with_the_decision() -> None:
    life = Life().running(1)
    (metrics,) = [metrics for decision in life.decisions for metrics in decision.epochs]
    assert (metrics.epoch, metrics.step) == (1, 100)


def test_loss_that_is_no_number_does_no_harm() -> None:
    life = Life().running(1)
    progress = Progress(step=110, loss=float("nan"))
    life.tell(Observed(actor=A, generation=life.record.generation, progress=progress))
    before = life.record.revision
    life.pause()
    assert (life.state, life.record.revision) == ("PAUSING", before + 1)
    life.pause()
    assert life.record.revision == before + 1


def test_progress_counts_from_when_it_was_so() -> None:
    life = Life().running(1)
    progress = Progress(epoch=1, step=110)
    age = timedelta(seconds=3)
    life.tell(Observed(actor=A, generation=life.record.generation, progress=progress, progress_age=age))
    assert life.record.progress_time.ToDatetime(life.now.tzinfo) == life.now - age


def test_records_survive_their_encoding() -> None:
    record = Life(labels={"a": "b"}).running(2).pause().trained(3).released().rests().resume().record
    assert JobRecord.FromString(record.SerializeToString()) == record
    assert record.checkpoint.name == checkpoint_name(3)


def test_conditions_begin_change_and_end_with_a_trace() -> None:
    life = Life().running(1)

    def says(reason: str, message: str = "", *, ended: bool = False) -> Life:
        condition = Condition(type=Condition.STORAGE_FAILING, reason=reason, message=message)
        return life.tell(ConditionChanged(actor=A, condition=condition, ended=ended))

    says("UNREACHABLE")
    began = life.job.conditions[0].time
    says("UNREACHABLE", "still")
    assert (life.job.conditions[0].message, life.job.conditions[0].time) == ("still", began)
    says("REFUSED")
    (condition,) = life.job.conditions
    assert (condition.reason, condition.time.ToDatetime()) == ("REFUSED", life.now.replace(tzinfo=None))
    assert says("", ended=True).job.conditions == []
    assert says("", ended=True).last is None
    events = [event for decision in life.decisions for event in decision.events][-3:]
    assert [(JobEvent.Type.Name(event.type), event.details["reason"]) for event in events] == [
        ("CONDITION_BEGAN", "UNREACHABLE"),
        ("CONDITION_BEGAN", "REFUSED"),
        ("CONDITION_ENDED", "REFUSED"),
    ]
    assert {event.details["condition"] for event in events} == {"STORAGE_FAILING"}


@pytest.mark.parametrize("how", ["is_lost", "fails", "rests", "finishes", "stops"])
def test_what_a_worker_says_of_a_job_ends_when_the_job_leaves_it(how: str) -> None:
    life = Life().running(1)
    life.tell(ConditionChanged(actor=A, condition=Condition(type=Condition.SNAPSHOT_FAILING, reason="R"), ended=False))
    assert life.job.conditions
    assert not getattr(life, how)().job.conditions
    assert life.history[-2] == "CONDITION_ENDED"


def test_why_a_job_is_not_placed_is_said_until_it_is_and_costs_no_version_while_it_stays_so() -> None:
    life = Life()
    revision = life.record.revision
    life.tell(Unplaced(actor="scheduler", reason="NO_WORKER", message="none is there"))
    assert (life.job.conditions[0].type, life.job.conditions[0].reason) == (Condition.UNPLACED, "NO_WORKER")
    assert life.record.revision == revision
    assert life.tell(Unplaced(actor="scheduler", reason="NO_WORKER", message="2 were there")).last is None
    life.tell(Unplaced(actor="scheduler", reason="NO_CAPACITY", message="all are busy"))
    assert [each.reason for each in life.job.conditions] == ["NO_CAPACITY"]
    assert not life.placed().job.conditions
    assert life.tell(Unplaced(actor="scheduler", reason="NO_WORKER", message="late")).last is None
    for leave in ("pause", "cancel"):
        waits = Life().tell(Unplaced(actor="scheduler", reason="NO_WORKER", message=""))
        assert not getattr(waits, leave)().job.conditions
