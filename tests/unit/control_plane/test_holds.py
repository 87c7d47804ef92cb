"""HoldJobs and ReleaseJobs: which jobs match, and what becomes of each."""

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import EPOCH, Hold, Job
from adjourn.v1.job_service_pb2 import HoldJobsRequest, ReleaseJobsRequest
from adjourn_control_plane.api import holds, validation
from adjourn_control_plane.api.holds import Holds
from adjourn_control_plane.job.events import CancelRequested, PauseRequested, ResumeRequested, UpdateRequested
from adjourn_control_plane.store.interface import JobName
from tests.harness.controllers import Controllers
from tests.harness.memory_store import MemoryStore

HOLD = PauseRequested(actor="ops", mode=EPOCH, reason="power", kind=Hold.OPERATOR)
RELEASE = ResumeRequested(actor="ops", kind=Hold.OPERATOR)


@pytest.fixture
async def plane(memory_store: MemoryStore) -> Controllers:
    """Jobs a and b of one team, c of none, t without epochs, and e, which has ended."""
    plane = Controllers(memory_store)
    for name in "abcte":
        await plane.create(name, total_epochs=0 if name == "t" else 3)
    for name in "abt":
        event = UpdateRequested(actor="ann", job=Job(labels={"team": "a"}), fields=("labels",))
        await plane.updater.apply(JobName(f"jobs/{name}"), event)
    await plane.updater.apply(JobName("jobs/e"), CancelRequested(actor="ann", reason=""))
    return plane


@pytest.fixture
def many(plane: Controllers) -> Holds:
    return Holds(plane.store, plane.updater)


async def held(plane: Controllers) -> list[str]:
    stored, _ = await plane.store.page(states=[], labels={}, size=100, before=None)
    return sorted(item.record.job.name for item in stored if item.record.job.holds)


async def test_jobs_are_held_by_label_and_what_cannot_be_is_named(plane: Controllers, many: Holds) -> None:
    request = HoldJobsRequest(labels={"team": "a"})
    outcomes = await many.ask(request, HOLD)
    assert [(each.job, each.state, each.changed, each.reason) for each in outcomes] == [
        ("jobs/a", Job.PAUSED, True, ""),
        ("jobs/b", Job.PAUSED, True, ""),
        ("jobs/t", Job.QUEUED, False, "JOB_NOT_PAUSABLE"),
    ]
    again = await many.ask(request, HOLD)
    assert [each.changed for each in again] == [False, False, False]
    assert await held(plane) == ["jobs/a", "jobs/b"]


async def test_a_dry_run_says_the_same_and_does_nothing(plane: Controllers, many: Holds) -> None:
    token = await plane.store.latest_token()
    would_be = await many.ask(HoldJobsRequest(all=True, dry_run=True), HOLD)
    assert await plane.store.latest_token() == token
    assert would_be == await many.ask(HoldJobsRequest(all=True), HOLD)
    assert [each.job for each in would_be] == ["jobs/a", "jobs/b", "jobs/c", "jobs/t"], "what has ended is left out"


async def test_what_is_named_is_answered_even_if_it_has_ended_or_never_was(many: Holds) -> None:
    outcomes = await many.ask(HoldJobsRequest(names=["jobs/c", "jobs/e", "jobs/x"]), HOLD)
    assert [(each.job, each.reason) for each in outcomes] == [
        ("jobs/c", ""),
        ("jobs/e", "JOB_FINISHED"),
        ("jobs/x", "NOT_FOUND"),
    ]


async def test_names_and_labels_together_select_what_meets_both(plane: Controllers, many: Holds) -> None:
    await many.ask(HoldJobsRequest(names=["jobs/a", "jobs/c"], labels={"team": "a"}), HOLD)
    assert await held(plane) == ["jobs/a"]


async def test_a_release_answers_for_those_that_were_held(plane: Controllers, many: Holds) -> None:
    await many.ask(HoldJobsRequest(all=True), HOLD)
    await plane.updater.apply(JobName("jobs/b"), PauseRequested(actor="bob", mode=EPOCH, reason=""))
    outcomes = await many.ask(ReleaseJobsRequest(labels={"team": "a"}), RELEASE)
    assert [(each.job, each.state) for each in outcomes] == [("jobs/a", Job.QUEUED), ("jobs/b", Job.PAUSED)]
    assert await held(plane) == ["jobs/b", "jobs/c"]
    assert await many.ask(ReleaseJobsRequest(names=["jobs/a", "jobs/e"]), RELEASE) == []


async def test_too_many_are_refused_before_anything_is_done(
    plane: Controllers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "PAGE", 2)
    with pytest.raises(errors.InvalidRequestError, match="more than 3 jobs match"):
        await Holds(plane.store, plane.updater, most=3).ask(HoldJobsRequest(all=True), HOLD)
    assert await held(plane) == []


def test_it_has_to_be_said_which_jobs_are_meant() -> None:
    assert "all" in validation.selection(HoldJobsRequest())
    assert "all" in validation.selection(ReleaseJobsRequest(all=True, labels={"a": "b"}))
    assert "names[1]" in validation.selection(HoldJobsRequest(names=["jobs/a", "x"]))
    assert validation.selection(HoldJobsRequest(all=True)) == {}
    assert validation.text("reason", "x" * 2000)
