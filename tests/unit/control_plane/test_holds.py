"""HoldJobs and ReleaseJobs: which jobs match, and what becomes of each."""

import pytest

from adjourn import errors
from adjourn.v1.job_pb2 import EPOCH, Hold, Job
from adjourn.v1.job_service_pb2 import HoldJobsRequest, ReleaseJobsRequest
from adjourn_control_plane.api import holds, validation
from adjourn_control_plane.api.holds import Holds
from adjourn_control_plane.job.events import CancelRequested, PauseRequested, ResumeRequested, UpdateRequested
from adjourn_control_plane.store.interface import Change, JobName, Stored
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


class GoesAway(MemoryStore):
    """Goes away with the second hold, before or after it is stored; counts the reads of jobs from then on."""

    holds, after, reads = 0, False, 0

    async def commit(self, change: Change) -> int:
        self.holds += change.expected > 0
        if self.holds != 2:
            return await super().commit(change)
        if self.after:
            await super().commit(change)
        self.available = False
        raise errors.StoreUnavailableError("gone")

    async def get(self, job: JobName) -> Stored | None:
        self.reads += not self.available
        return await super().get(job)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at_once", [1, 16])
async def test_what_an_outage_leaves_open_is_said_of_each_job(
    monkeypatch: pytest.MonkeyPatch, after: bool, at_once: int
) -> None:
    monkeypatch.setattr(holds, "AT_ONCE", at_once)
    store = GoesAway()
    plane = Controllers(store)
    names = [await plane.create(f"j{number:02}", total_epochs=3) for number in range(40)]
    store.after = after
    outcomes = await Holds(store, plane.updater).ask(HoldJobsRequest(all=True), HOLD)
    assert [each.job for each in outcomes] == names, "each is answered for"
    assert store.reads <= at_once, "an outage is not waited for once for each job"
    store.available = True
    changed = {each.job for each in outcomes if each.changed}
    unknown = {each.job for each in outcomes if each.unknown}
    assert unknown
    assert changed | unknown >= set(await held(plane)) >= changed
    assert len(await held(plane)) == len(changed) + after
    rest = [each for each in outcomes if not each.changed]
    assert {each.reason for each in rest} == {"STORE_UNAVAILABLE"}
    assert all(("nobody knows" if each.unknown else "nothing was done") in each.message for each in rest)
    again = await Holds(store, plane.updater).ask(HoldJobsRequest(all=True), HOLD)
    assert not any(each.reason for each in again)
    assert await held(plane) == names


async def test_who_matches_is_not_known_without_the_store(plane: Controllers, many: Holds) -> None:
    plane.store.available = False
    with pytest.raises(errors.StoreUnavailableError):
        await many.ask(HoldJobsRequest(all=True), HOLD)


def test_it_has_to_be_said_which_jobs_are_meant() -> None:
    assert "all" in validation.selection(HoldJobsRequest())
    assert "all" in validation.selection(ReleaseJobsRequest(all=True, labels={"a": "b"}))
    assert "names[1]" in validation.selection(HoldJobsRequest(names=["jobs/a", "x"]))
    assert validation.selection(HoldJobsRequest(all=True)) == {}
    assert validation.text("reason", "x" * 2000)
