"""The stream of all events."""

import pytest

from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.store.interface import Conflict, Happened, JobName, JobStore, TokenTooOld
from tests.contract.test_changes import MANY, NO_TOKENS
from tests.harness.store_records import change, created, creation, deletion, there

A, B = JobName("jobs/a"), JobName("jobs/b")


async def told(store: JobStore, job: JobName, *kinds: JobEvent.Type.ValueType, first: int = 1) -> None:
    """Changes a job, with events."""
    events = [JobEvent(sequence=first + place, type=kind) for place, kind in enumerate(kinds)]
    await store.commit(change(await there(store, job), events=events))


def brief(found: list[Happened]) -> list[tuple[str, int]]:
    return [(each.job, each.event.sequence) for each in found]


async def test_events_of_all_jobs_come_in_order_from_any_token(store: JobStore) -> None:
    start = await store.latest_event_token()
    assert await store.happened(start, size=9) == await store.happened("", size=9) == []
    await created(store, "jobs/a", labels={"team": "x"})
    await created(store, "jobs/b")
    assert await store.latest_event_token() == start, "they were made without an event"
    await told(store, A, JobEvent.PLACED, JobEvent.BEGAN)
    await told(store, B, JobEvent.PAUSED)
    await store.commit(change(await there(store, A), state=Job.RUNNING))
    await told(store, A, JobEvent.FAILED, first=3)
    expected = [(A, 1), (A, 2), (B, 1), (A, 3)]
    found = await store.happened(start, size=9)
    assert brief(found) == brief(await store.happened("", size=9)) == expected
    assert found[-1].token == await store.latest_event_token()
    for place, each in enumerate(found):
        assert brief(await store.happened(each.token, size=2)) == expected[place + 1 : place + 3]
    record = (await there(store, A)).record
    assert (found[0].uid, found[0].labels, found[2].labels) == (record.job.uid, {"team": "x"}, {})
    assert found[0].event.type == JobEvent.PLACED


async def test_a_deleted_jobs_events_stay_and_its_successors_have_another_uid(store: JobStore) -> None:
    for _ in range(2):
        await created(store, "jobs/a")
        await told(store, A, JobEvent.CANCELLED)
        await store.commit(deletion(await there(store, A)))
    found = await store.happened("", size=9)
    assert brief(found) == [(A, 1), (A, 1)]
    assert found[0].uid != found[1].uid


async def test_what_was_refused_or_repeated_tells_nothing_more(store: JobStore) -> None:
    await store.commit(creation(A))
    old = await there(store, A)
    once = change(old, events=[JobEvent(sequence=1, type=JobEvent.PLACED)])
    await store.commit(once)
    await store.commit(once)
    with pytest.raises(Conflict):
        await store.commit(change(old, events=[JobEvent(sequence=1, type=JobEvent.FAILED)]))
    assert [each.event.type for each in await store.happened("", size=9)] == [JobEvent.PLACED]


async def test_a_token_that_was_trimmed_is_too_old_and_the_oldest_kept_can_be_read(forgetful_store: JobStore) -> None:
    store = forgetful_store
    start = await store.latest_event_token()
    await created(store, "jobs/a")
    await told(store, A, JobEvent.PLACED)
    first = await store.latest_event_token()
    for number in range(2, MANY, 50):
        await told(store, A, *[JobEvent.UPDATED] * 50, first=number)
    for token in (start, first):
        with pytest.raises(TokenTooOld):
            await store.happened(token, size=9)
    oldest = await store.happened("", size=9)
    assert oldest[0].event.sequence > 1
    assert (await store.happened(oldest[0].token, size=1))[0].event.sequence == oldest[0].event.sequence + 1
    assert await store.happened(await store.latest_event_token(), size=9) == []


@pytest.mark.parametrize("token", ["1000-7", "18446744073709551615-0"])
async def test_token_of_another_time_line_is_too_old(store: JobStore, token: str) -> None:
    with pytest.raises(TokenTooOld):
        await store.happened(token, size=9)


@pytest.mark.parametrize("token", [token for token in NO_TOKENS if token])
async def test_what_is_no_token_is_refused(store: JobStore, token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        await store.happened(token, size=9)
