"""Compare-and-set: one winner, all or nothing, once."""

import asyncio
from datetime import timedelta

import pytest

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store import redis, redis_codec
from adjourn_control_plane.store.interface import (
    Change,
    Conflict,
    Fence,
    Fenced,
    JobName,
    JobStore,
    JobUid,
    Request,
    RequestSeen,
    Tombstone,
    WorkerName,
)
from tests.harness import memory_store
from tests.harness.store_records import change, created, creation, deletion, record, there

A = JobName("jobs/a")
WORKER = WorkerName("workers/w")


async def attempt(store: JobStore, wanted: Change) -> bool:
    try:
        await store.commit(wanted)
    except Conflict:
        return False
    return True


async def test_what_was_stored_is_read_back(store: JobStore) -> None:
    assert await store.get(A) is None
    new = record(A, state=Job.RUNNING, worker="workers/w", labels={"team": "vision"})
    version = await store.commit(Change(job=A, expected=0, record=new))
    stored = await there(store, A)
    assert stored.version == version == 1
    assert stored.record.number == 1
    new.number = 1
    assert stored.record == new


async def test_number_stays_and_version_grows(store: JobStore) -> None:
    first = await created(store, "jobs/a")
    other = await created(store, "jobs/b")
    assert other.record.number > first.record.number
    assert await store.commit(change(first, state=Job.STARTING)) > other.version
    assert (await there(store, A)).record.number == first.record.number


async def test_what_is_read_is_a_copy(store: JobStore) -> None:
    stored = await created(store, "jobs/a")
    stored.record.job.state = Job.FAILED
    assert (await there(store, A)).record.job.state == Job.QUEUED


async def test_conflict_changes_nothing(store: JobStore) -> None:
    old = await created(store, "jobs/a")
    await store.commit(change(old, state=Job.STARTING, worker="workers/w"))
    before = await there(store, A)
    token = await store.latest_token()
    allocation = await store.allocation(WORKER)
    stale = change(
        old,
        state=Job.FAILED,
        worker="",
        events=[JobEvent(sequence=1)],
        epochs=[EpochMetrics(epoch=1)],
        checkpoints=[Checkpoint(name="jobs/a/checkpoints/1")],
        request=Request(id="r", digest="d", answer=Job()),
    )
    with pytest.raises(Conflict):
        await store.commit(stale)
    with pytest.raises(Conflict):
        await store.commit(creation(A))
    with pytest.raises(Conflict):
        await store.commit(deletion(old))
    assert await there(store, A) == before
    assert await store.latest_token() == token
    assert await store.allocation(allocation.worker) == allocation
    assert not await store.events(A, after=0, size=9)
    assert not await store.epochs(A, after=0, size=9)
    assert not await store.checkpoints(A, size=9)
    assert await store.answered("r") is None
    assert [stored.version for stored in (await store.page(states=[], labels={}, size=9, before=None))[0]] == [
        before.version
    ]


async def test_of_many_commits_on_one_version_one_wins(store: JobStore) -> None:
    old = await created(store, "jobs/a")
    won = await asyncio.gather(*(attempt(store, change(old, worker=f"workers/{i}")) for i in range(20)))
    assert won.count(True) == 1
    assert (await there(store, A)).record.job.worker == f"workers/{won.index(True)}"


async def test_of_many_creators_one_wins(store: JobStore) -> None:
    won = await asyncio.gather(*(attempt(store, creation(A, labels={"by": str(i)})) for i in range(20)))
    assert won.count(True) == 1
    assert (await there(store, A)).record.job.labels["by"] == str(won.index(True))


async def test_no_update_is_lost(store: JobStore) -> None:
    await created(store, "jobs/a")

    async def advance(times: int) -> None:
        while times:
            times -= await attempt(store, change(await there(store, A)))

    await asyncio.gather(*(advance(5) for _ in range(8)))
    assert (await there(store, A)).record.revision == 40


async def test_repeated_change_happens_once(store: JobStore) -> None:
    old = await created(store, "jobs/a")
    wanted = change(
        old,
        state=Job.STARTING,
        worker="workers/w",
        events=[JobEvent(sequence=1)],
        request=Request(id="r", digest="d", answer=Job()),
    )
    versions = [await store.commit(wanted), await store.commit(wanted)]
    later = change(await there(store, A), state=Job.RUNNING)
    await store.commit(later)
    versions.append(await store.commit(wanted))  # its answer came late: others went on already
    assert len(set(versions)) == 1
    assert (await there(store, A)).record.job.state == Job.RUNNING
    assert len(await store.events(A, after=0, size=9)) == 1


async def test_repeated_creation_and_deletion_happen_once(store: JobStore) -> None:
    birth = creation(A)
    assert await store.commit(birth) == await store.commit(birth)
    death = deletion(await there(store, A))
    assert [await store.commit(death), await store.commit(death)] == [0, 0]
    await created(store, "jobs/a")
    assert await store.commit(death) == 0
    assert await store.get(A) is not None


async def test_request_is_remembered_with_its_answer(store: JobStore) -> None:
    assert await store.answered("r") is None
    answer = Job(name=A, etag="1")
    await store.commit(creation(A, request=Request(id="r", digest="d", answer=answer)))
    assert await store.answered("r") == ("d", answer)
    again = change(await there(store, A), request=Request(id="r", digest="other", answer=Job()))
    with pytest.raises(RequestSeen) as seen:
        await store.commit(again)
    assert (seen.value.digest, seen.value.answer) == ("d", answer)
    assert (await there(store, A)).version == 1


async def test_of_requests_the_newest_are_remembered(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis_codec, memory_store):
        monkeypatch.setattr(module, "REQUESTS_KEPT", 3)
    for number in range(5):
        request = Request(id=f"r{number}", digest="d", answer=Job(name=f"jobs/{number}"))
        await store.commit(creation(JobName(f"jobs/{number}"), request=request))
    assert [bool(await store.answered(f"r{number}")) for number in range(5)] == [False, False, True, True, True]
    with pytest.raises(RequestSeen):
        await store.commit(creation(A, request=Request(id="r2", digest="d", answer=Job())))
    await store.commit(creation(A, request=Request(id="r0", digest="d", answer=Job(name="anew"))))
    assert await store.answered("r0") == ("d", Job(name="anew"))
    assert await store.answered("r2") is None
    for module in (redis_codec, memory_store):
        monkeypatch.setattr(module, "REQUESTS_KEPT", 1)
    await store.commit(change(await there(store, A), request=Request(id="r9", digest="d", answer=Job())))
    assert [bool(await store.answered(name)) for name in ("r0", "r3", "r4", "r9")] == [False, False, False, True]


async def test_answer_of_a_request_is_made_to_say_more_once(store: JobStore) -> None:
    await store.commit(creation(A, request=Request(id="r", digest="d", answer=Job(name=A))))
    more = Job(name=A, etag="2")
    assert await store.settle("r", more) == more
    assert await store.settle("r", Job(name=A, etag="3")) == more
    assert await store.answered("r") == ("d", more)
    assert await store.settle("unknown", more) is None
    assert await store.answered("unknown") is None


async def test_request_has_one_effect_though_sent_twice_at_once(store: JobStore) -> None:
    changes = [creation(JobName(f"jobs/{i}"), request=Request(id="r", digest="d", answer=Job())) for i in range(10)]
    outcomes = await asyncio.gather(*(store.commit(each) for each in changes), return_exceptions=True)
    assert sum(isinstance(outcome, RequestSeen) for outcome in outcomes) == 9
    assert len((await store.page(states=[], labels={}, size=99, before=None))[0]) == 1


async def test_deletion_takes_everything_with_it(store: JobStore) -> None:
    old = await created(store, "jobs/a", state=Job.RUNNING, worker="workers/w")
    await store.commit(
        change(
            old,
            events=[JobEvent(sequence=1)],
            epochs=[EpochMetrics(epoch=1)],
            checkpoints=[Checkpoint(name="jobs/a/checkpoints/1")],
        )
    )
    old = await there(store, A)
    allocation = await store.allocation(WORKER)
    assert await store.commit(deletion(old)) == 0
    assert await store.get(A) is None
    assert not await store.events(A, after=0, size=9)
    assert not await store.epochs(A, after=0, size=9)
    assert not await store.checkpoints(A, size=9)
    assert await store.checkpoint(A, "jobs/a/checkpoints/1") is None
    assert await store.page(states=[], labels={}, size=9, before=None) == ([], None)
    assert await store.page(states=[Job.RUNNING], labels={}, size=9, before=None) == ([], None)
    after = await store.allocation(allocation.worker)
    assert not after.jobs
    assert after.version > allocation.version


async def test_deletion_leaves_a_tombstone_and_frees_the_name_at_once(store: JobStore) -> None:
    old = await created(store, "jobs/a")
    uid = JobUid(old.record.job.uid)
    await store.commit(deletion(old))
    assert await store.tombstones() == [Tombstone(uid)]
    new = await created(store, "jobs/a")
    assert await store.tombstones() == [Tombstone(uid)]
    await store.remove_tombstone(Tombstone(uid))
    await store.remove_tombstone(Tombstone(uid))
    assert await store.tombstones() == []
    assert new.record.number > old.record.number
    assert new.version > old.version
    with pytest.raises(Conflict):  # whoever read the deleted job cannot change the new one
        await store.commit(change(old, state=Job.FAILED))


async def test_a_deleted_jobs_uid_stays_known_when_its_objects_are_gone(store: JobStore) -> None:
    old, kept = await created(store, "jobs/a"), await created(store, "jobs/b")
    uid, other = JobUid(old.record.job.uid), JobUid(kept.record.job.uid)
    assert await store.deleted([uid, other]) == set()
    await store.commit(deletion(old))
    await store.remove_tombstone(Tombstone(uid))
    await created(store, "jobs/a")
    assert await store.deleted([uid, other, JobUid("never")]) == {uid}
    assert await store.deleted([]) == set()
    await store.add_tombstone(uid)
    await store.add_tombstone(uid)
    assert await store.tombstones() == [Tombstone(uid)]


async def test_a_deleted_jobs_objects_are_looked_for_again_and_not_for_ever(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after(*delays: timedelta) -> None:
        for module in (redis, memory_store):
            monkeypatch.setattr(module, "PURGE_AGAIN", delays)

    now, later = timedelta(), timedelta(hours=1)
    old = await created(store, "jobs/a")
    uid = JobUid(old.record.job.uid)
    await store.commit(deletion(old))
    after(now, later)
    await store.remove_tombstone(Tombstone(uid))
    assert await store.tombstones() == [Tombstone(uid, 1)]
    await store.remove_tombstone(Tombstone(uid))  # a slow replica has done the first look, too
    assert await store.tombstones() == [Tombstone(uid, 1)]
    await store.remove_tombstone(Tombstone(uid, 1))
    await store.remove_tombstone(Tombstone(uid, 1))
    assert await store.tombstones() == []
    after(now, now)
    assert await store.tombstones() == [Tombstone(uid, 2)], "as after a clock that was set back by more than an hour"
    await store.remove_tombstone(Tombstone(uid, 2))
    assert await store.tombstones() == []


async def test_many_deleted_jobs_are_looked_at_again_a_few_at_a_time(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (redis, memory_store):
        monkeypatch.setattr(module, "PURGE_AGAIN", (timedelta(),))
    for name in "abc":
        old = await created(store, f"jobs/{name}")
        await store.commit(deletion(old))
        await store.remove_tombstone(Tombstone(JobUid(old.record.job.uid)))
    assert len(await store.tombstones()) == 3
    for left in (3, 2, 1):
        found = await store.tombstones(size=2)
        assert len(found) == min(left, 2)
        await store.remove_tombstone(found[0])
    assert await store.tombstones() == []


async def test_of_deleted_jobs_the_newest_are_known(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (redis_codec, memory_store):
        monkeypatch.setattr(module, "DELETED_KEPT", 2)
    uids = []
    for name in ("jobs/a", "jobs/b", "jobs/c"):
        old = await created(store, name)
        uids.append(JobUid(old.record.job.uid))
        await store.commit(deletion(old))
    assert await store.deleted(uids) == set(uids[1:])


async def test_change_from_a_stream_that_speaks_no_more_is_fenced(store: JobStore) -> None:
    """A replica that was stopped goes on with what an agent said over a stream that has ended since (C11)."""
    old = await created(store, "jobs/a")
    fenced = change(old, state=Job.RUNNING, fence=Fence(worker=WORKER, stream="stream-1"))
    with pytest.raises(Fenced):  # nobody speaks for the worker
        await store.commit(fenced)
    await store.attach(Worker(name=WORKER), "session", "stream-1")
    version = await store.commit(fenced)
    await store.attach(Worker(name=WORKER), "session", "stream-2")
    assert await store.commit(fenced) == version, "the repeat of what was carried out before"
    current = await there(store, A)
    with pytest.raises(Fenced):
        await store.commit(change(current, state=Job.PAUSED, fence=Fence(worker=WORKER, stream="stream-1")))
    assert await there(store, A) == current
    await store.commit(change(current, state=Job.PAUSED, fence=Fence(worker=WORKER, stream="stream-2")))


async def test_change_that_follows_from_silence_is_fenced_once_the_worker_has_spoken(store: JobStore) -> None:
    old = await created(store, "jobs/a")
    await store.attach(Worker(name=WORKER), "session", "stream-1")
    await store.heartbeat(Worker(name=WORKER), "stream-1")
    session = await store.session(WORKER)
    assert session
    assert await store.mark_lost(WORKER, session.heartbeat)
    silent = Fence(worker=WORKER, stream="stream-1", heartbeat=session.heartbeat)
    await store.commit(change(old, state=Job.RUNNING, fence=silent))
    await store.heartbeat(Worker(name=WORKER), "stream-1")
    current = await there(store, A)
    with pytest.raises(Fenced):
        await store.commit(change(current, state=Job.PAUSED, fence=silent))
    assert await there(store, A) == current


def test_change_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="names the version"):
        Change(job=A, expected=0, record=None)
    with pytest.raises(ValueError, match="jobs/b"):
        Change(job=A, expected=0, record=record(JobName("jobs/b")))
    with pytest.raises(ValueError, match="no uid"):
        Change(job=A, expected=0, record=JobRecord(job=Job(name=A)))
