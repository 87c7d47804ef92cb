"""Updates of a job: labels in every state, the spec while it matters, more epochs while no worker has the job."""

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.job import machine, requests
from adjourn_control_plane.job.events import UpdateRequested
from adjourn_control_plane.job.machine import ENDED, HELD, State
from adjourn_control_plane.job.transition import Decision
from tests.harness.job_life import START, Life

STATES = [state for state in Job.State.values() if state != Job.STATE_UNSPECIFIED]


def asked(life: Life, state: State, *fields: str, **given: object) -> Decision | None:
    record = type(life.record).FromString(life.record.SerializeToString())
    record.job.state = state
    record.job.worker = "workers/a" if state in HELD else ""
    labels = given.pop("labels", {})
    job = Job(spec=JobSpec(**given), labels=labels)  # type: ignore[arg-type]
    return machine.decide(record, UpdateRequested(actor="bob", job=job, fields=fields), START)


@pytest.mark.parametrize("state", STATES, ids=Job.State.Name)
def test_labels_are_replaced_in_every_state(state: State) -> None:
    life = Life()
    life.record.job.labels["old"] = "1"
    decision = asked(life, state, "labels", labels={"a": "b"})
    assert decision
    assert dict(decision.record.job.labels) == {"a": "b"}
    assert decision.record.revision == life.record.revision + 1
    (event,) = decision.events
    assert (event.type, event.actor, event.state) == (JobEvent.UPDATED, "bob", state)
    assert dict(event.details) == {"labels": "a=b"}


@pytest.mark.parametrize("state", STATES, ids=Job.State.Name)
def test_the_spec_is_changed_until_the_job_ends(state: State) -> None:
    refusals = dict.fromkeys(ENDED, errors.JobFinishedError) | {Job.CANCELLING: errors.JobCancellingError}
    if state in refusals:
        with pytest.raises(refusals[state]) as caught:
            asked(Life(), state, "labels", "spec.max_restarts", max_restarts=9, labels={"a": "b"})
        assert "RUNNING" in caught.value.metadata["allowed_states"]
        return
    decision = asked(Life(), state, "spec.max_restarts", max_restarts=9)
    assert decision
    assert decision.record.job.spec.max_restarts == 9


@pytest.mark.parametrize("state", requests.LIVE, ids=Job.State.Name)
def test_epochs_grow_while_no_worker_has_the_job(state: State) -> None:
    life = Life(total_epochs=3)
    if state in HELD:
        with pytest.raises(errors.JobHeldByWorkerError) as caught:
            asked(life, state, "spec.total_epochs", total_epochs=5)
        assert caught.value.metadata["allowed_states"] == "QUEUED, PAUSED"
        return
    decision = asked(life, state, "spec.total_epochs", total_epochs=5)
    assert decision
    assert decision.record.job.spec.total_epochs == 5
    assert dict(decision.events[0].details) == {"spec.total_epochs": "5"}


@pytest.mark.parametrize("pausing", [False, True])
def test_epochs_stay_while_an_attempt_that_was_lost_may_still_train(pausing: bool) -> None:
    life = Life(total_epochs=3).running(1)
    if pausing:
        life.pause()
    life.is_lost()
    assert life.record.job.state == (Job.PAUSED if pausing else Job.QUEUED)
    with pytest.raises(errors.JobHeldByWorkerError, match="out of reach"):
        asked(life, life.record.job.state, "spec.total_epochs", total_epochs=5)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (3, 0), (0, 3)])
def test_epochs_never_shrink_and_a_task_without_epochs_gets_none(before: int, after: int) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        asked(Life(total_epochs=before), Job.QUEUED, "spec.total_epochs", total_epochs=after)
    assert list(caught.value.violations) == ["job.spec.total_epochs"]


def test_what_is_so_already_changes_nothing() -> None:
    life = Life(total_epochs=3, max_restarts=2)
    fields = ("labels", "spec.max_restarts", "spec.total_epochs")
    assert asked(life, Job.RUNNING, *fields, total_epochs=3, max_restarts=2) is None


def test_a_limit_of_restarts_is_taken_back_to_the_default() -> None:
    decision = asked(Life(max_restarts=2), Job.RUNNING, "spec.max_restarts")
    assert decision
    assert not decision.record.job.spec.HasField("max_restarts")


def test_fields_that_are_not_named_stay() -> None:
    decision = asked(Life(total_epochs=3), Job.QUEUED, "spec.max_restarts", max_restarts=1, total_epochs=9)
    assert decision
    assert decision.record.job.spec.total_epochs == 3
