"""Events, epochs, checkpoints, resource samples and step metrics of a job."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from adjourn.series import thinned
from adjourn.v1.agent_service_pb2 import FencingToken, SeriesPart
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import Change, Fence, JobName, JobStore, WorkerName
from tests.contract.conftest import SERIES, SHORT
from tests.harness.store_records import change, created, there

A = JobName("jobs/a")


async def test_job_without_series_has_none(store: JobStore) -> None:
    for job in (A, JobName((await created(store, "jobs/b")).record.job.name)):
        assert await store.events(job, after=0, size=9) == []
        assert await store.epochs(job, after=0, size=9) == []
        assert await store.checkpoints(job, size=9) == []
        assert await store.checkpoint(job, f"{job}/checkpoints/1") is None


async def test_events_are_in_order(store: JobStore) -> None:
    await created(store, "jobs/a")
    events = [JobEvent(sequence=i, type=JobEvent.BEGAN) for i in range(1, 6)]
    await store.commit(change(await there(store, A), events=events[:2]))
    await store.commit(change(await there(store, A)))
    await store.commit(change(await there(store, A), events=events[2:]))
    assert await store.events(A, after=0, size=9) == events
    assert await store.events(A, after=2, size=2) == events[2:4]
    assert await store.events(A, after=5, size=2) == []


async def test_later_value_of_an_epoch_replaces_the_earlier(store: JobStore) -> None:
    await created(store, "jobs/a")
    first = [EpochMetrics(epoch=epoch, attempt=1, values={"loss": 1 / epoch}) for epoch in range(1, 12)]
    again = [EpochMetrics(epoch=epoch, attempt=2, values={"loss": 2 / epoch}) for epoch in (10, 11, 12)]
    await store.commit(change(await there(store, A), epochs=first))
    await store.commit(change(await there(store, A), epochs=again[:1]))
    await store.commit(change(await there(store, A), epochs=again[1:]))
    expected = first[:9] + again
    assert await store.epochs(A, after=0, size=99) == expected
    assert await store.epochs(A, after=8, size=2) == expected[8:10]
    assert await store.epochs(A, after=12, size=2) == []


async def test_same_metrics_in_two_epochs_are_two(store: JobStore) -> None:
    await created(store, "jobs/a")
    epochs = [EpochMetrics(epoch=epoch, values={"loss": 0.5}) for epoch in (1, 2)]
    await store.commit(change(await there(store, A), epochs=epochs))
    assert await store.epochs(A, after=0, size=9) == epochs


async def test_checkpoints_have_the_newest_first(store: JobStore) -> None:
    await created(store, "jobs/a")
    checkpoints = [Checkpoint(name=f"jobs/a/checkpoints/{name}", step=i) for i, name in enumerate("zyxab")]
    await store.commit(change(await there(store, A), checkpoints=checkpoints[:2]))
    for checkpoint in checkpoints[2:]:
        await store.commit(change(await there(store, A), checkpoints=[checkpoint]))
    numbered = list(enumerate(checkpoints, start=1))[::-1]
    assert await store.checkpoints(A, size=9) == numbered
    assert await store.checkpoints(A, size=2, before=5) == numbered[1:3]
    assert await store.checkpoints(A, size=2, before=1) == []
    assert await store.checkpoint(A, "jobs/a/checkpoints/x") == checkpoints[2]


async def test_checkpoint_registered_again_keeps_its_place(store: JobStore) -> None:
    await created(store, "jobs/a")
    one, two = (Checkpoint(name=f"jobs/a/checkpoints/{name}") for name in ("one", "two"))
    await store.commit(change(await there(store, A), checkpoints=[one, two]))
    one.retained_for.append(Checkpoint.FINAL)
    await store.commit(change(await there(store, A), checkpoints=[one]))
    assert await store.checkpoints(A, size=9) == [(2, two), (1, one)]
    assert await store.checkpoint(A, one.name) == one


async def test_pages_of_checkpoints_repeat_none_that_is_registered_between_them(store: JobStore) -> None:
    """C22."""
    await created(store, "jobs/a")
    made = [Checkpoint(name=f"jobs/a/checkpoints/{epoch}", epoch=epoch) for epoch in range(1, 6)]
    await store.commit(change(await there(store, A), checkpoints=made[:4]))
    first = await store.checkpoints(A, size=2)
    await store.commit(change(await there(store, A), checkpoints=made[4:]))
    second = await store.checkpoints(A, size=2, before=first[-1][0])
    assert [checkpoint.epoch for _, checkpoint in (*first, *second)] == [4, 3, 2, 1]


async def test_the_newest_events_are_kept(forgetful_store: JobStore) -> None:
    """C21."""
    await created(forgetful_store, "jobs/a")
    events = [JobEvent(sequence=number) for number in range(1, 2 * SHORT + 4)]
    for chunk in (events[:SHORT], events[SHORT:-1], events[-1:]):
        await forgetful_store.commit(change(await there(forgetful_store, A), events=chunk))
    assert await forgetful_store.events(A, after=0, size=2 * SHORT) == events[-SHORT:]
    assert await forgetful_store.events(A, after=SHORT + 10, size=3) == events[SHORT + 10 : SHORT + 13]
    assert await forgetful_store.events(A, after=len(events), size=3) == []


async def test_series_of_jobs_do_not_mix(store: JobStore) -> None:
    for name in ("jobs/a", "jobs/b"):
        job = await created(store, name)
        await store.commit(change(job, events=[JobEvent(sequence=1, message=name)], epochs=[EpochMetrics(epoch=1)]))
    assert await store.events(A, after=0, size=9) == [JobEvent(sequence=1, message="jobs/a")]
    assert len(await store.epochs(A, after=0, size=9)) == 1


async def test_retired_checkpoints_are_checkpoints_no_more_until_they_are_forgotten(store: JobStore) -> None:
    await created(store, "jobs/a")
    checkpoints = [Checkpoint(name=f"jobs/a/checkpoints/{name}", step=i) for i, name in enumerate("abcd", start=1)]
    names = [each.name for each in checkpoints]
    await store.commit(change(await there(store, A), checkpoints=checkpoints))
    await store.commit(change(await there(store, A), retired=[names[0], names[2], "jobs/a/checkpoints/none"]))
    assert await store.checkpoints(A, size=9) == [(4, checkpoints[3]), (2, checkpoints[1])]
    assert await store.checkpoint(A, names[0]) is None
    assert sorted(await store.retired(A), key=lambda each: each.step) == [checkpoints[0], checkpoints[2]]
    fresh = Checkpoint(name="jobs/a/checkpoints/e")
    await store.commit(change(await there(store, A), checkpoints=[fresh]))
    assert (await store.checkpoints(A, size=1)) == [(5, fresh)]
    for _ in range(2):
        await store.forget_retired(A, [names[0]])
    assert await store.retired(A) == [checkpoints[2]]
    await store.forget_retired(A, [])
    await store.commit(Change(job=A, expected=(await there(store, A)).version, record=None))
    await created(store, "jobs/a")
    assert await store.retired(A) == []
    await store.forget_retired(JobName("jobs/none"), names)


async def test_jobs_whose_checkpoints_are_to_be_looked_at_are_told_in_order_until_they_were(store: JobStore) -> None:
    b = JobName("jobs/b")
    for job in (A, b):
        await created(store, job)
    assert await store.to_review(size=9) == []
    first = await store.commit(change(await there(store, b), checkpoints=[Checkpoint(name=f"{b}/checkpoints/1")]))
    again = Checkpoint(name=f"{b}/checkpoints/1", damage="flipped")
    await store.commit(change(await there(store, b), checkpoints=[again]))
    second = await store.commit(change(await there(store, A), review=True))
    assert await store.to_review(size=9) == [(b, first), (A, second)], "what is known of one asks for nothing"
    assert await store.to_review(size=1) == [(b, first)]
    third = await store.commit(change(await there(store, b), retired=[f"{b}/checkpoints/1"]))
    await store.reviewed(b, first)
    assert await store.to_review(size=9) == [(A, second), (b, third)]
    for _ in range(2):
        await store.reviewed(b, third)
    assert await store.to_review(size=9) == [(A, second)]
    await store.commit(Change(job=A, expected=(await there(store, A)).version, record=None))
    assert await store.to_review(size=9) == []
    await store.reviewed(JobName("jobs/none"), 1)


NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
FENCE = Fence(worker=WorkerName("workers/w"), stream="stream")


def sample(second: float, memory: int = 1) -> ResourceSample:
    time = Timestamp()
    time.FromDatetime(NOON + timedelta(seconds=second))
    return ResourceSample(time=time, memory_bytes=memory)


async def added(
    store: JobStore, job: str, samples: Sequence[ResourceSample] = (), steps: Sequence[StepMetrics] = ()
) -> None:
    """Adds to the series of a job that is made if it is not there, as the stream of a worker."""
    await store.attach(Worker(name=FENCE.worker), "session", FENCE.stream)
    stored = await store.get(JobName(job)) or await created(store, job)
    token = FencingToken(job_uid=stored.record.job.uid)
    assert await store.add_series(SeriesPart(job=job, token=token, samples=samples, steps=steps), FENCE)


async def test_samples_are_read_by_time(store: JobStore) -> None:
    made = [sample(second) for second in (0, 5, 10.5)]
    await added(store, A, made[:1])
    await added(store, A, made[1:])
    assert await store.samples(A) == made
    assert await store.samples(A, start=NOON + timedelta(seconds=5)) == made[1:]
    assert await store.samples(A, end=NOON + timedelta(seconds=5)) == made[:2]
    assert await store.samples(A, start=NOON + timedelta(seconds=6), end=NOON + timedelta(seconds=10)) == []
    assert await store.samples(JobName("jobs/none")) == await store.steps(JobName("jobs/none")) == []


async def test_a_sample_of_an_earlier_time_takes_its_place(store: JobStore) -> None:
    await added(store, A, [sample(5), sample(0), sample(5, memory=2)])
    assert await store.samples(A) == [sample(0), sample(5, memory=2)]


async def test_steps_that_are_done_again_replace_those_that_were_given_up(store: JobStore) -> None:
    first = [StepMetrics(step=step, attempt=1, loss=1 / step) for step in (1, 4, 7, 9)]
    again = [StepMetrics(step=step, attempt=2, loss=1 / step) for step in (6, 8)]
    await added(store, A, steps=first)
    await added(store, A, steps=again)
    assert await store.steps(A) == [*first[:2], *again]
    assert await store.steps(A, start=4, end=6) == [first[1], again[0]]
    await added(store, A, [sample(0)])
    assert len(await store.steps(A)) == 4, "what brings no steps replaces none"


async def test_old_samples_and_steps_are_thinned_and_the_newest_kept(forgetful_store: JobStore) -> None:
    expected: list[int] = []
    for second in range(100):
        await added(forgetful_store, A, [sample(second)], [StepMetrics(step=second + 1)])
        expected.append(second)
        if len(expected) > SERIES.newest + SERIES.older:
            old, new = expected[: -SERIES.newest], expected[-SERIES.newest :]
            expected = [*thinned(old, SERIES.older // 2, int), *new]
    seconds = [(each.time.ToDatetime(UTC) - NOON).seconds for each in await forgetful_store.samples(A)]
    assert seconds == [each.step - 1 for each in await forgetful_store.steps(A)]
    assert seconds == expected
    assert len(seconds) <= SERIES.newest + SERIES.older
    assert seconds[-SERIES.newest :] == [96, 97, 98, 99]
    assert seconds[0] < 25


async def test_many_samples_at_once_are_bounded_too(forgetful_store: JobStore) -> None:
    await added(forgetful_store, A, [sample(second) for second in range(50)])
    assert len(await forgetful_store.samples(A)) == SERIES.newest + SERIES.older // 2


async def test_series_are_of_one_job_and_go_with_it(store: JobStore) -> None:
    await added(store, "jobs/a", [sample(0)], [StepMetrics(step=1)])
    await added(store, "jobs/b")
    assert await store.samples(JobName("jobs/b")) == []
    old = await there(store, A)
    await store.commit(change(old))
    assert await store.samples(A) == [sample(0)], "a change leaves them"
    await store.commit(Change(job=A, expected=(await there(store, A)).version, record=None))
    late = SeriesPart(job=A, token=FencingToken(job_uid=old.record.job.uid), samples=[sample(1)])
    assert not await store.add_series(late, FENCE), "the job is gone"
    await created(store, "jobs/a")
    assert not await store.add_series(late, FENCE), "another has its name"
    assert await store.samples(A) == await store.steps(A) == []


async def test_series_come_from_the_stream_that_speaks_for_the_worker(store: JobStore) -> None:
    await added(store, A)
    part = SeriesPart(job=A, token=FencingToken(job_uid=(await there(store, A)).record.job.uid), samples=[sample(0)])
    await store.attach(Worker(name=FENCE.worker), "session", "newer")
    assert not await store.add_series(part, FENCE)
    assert not await store.add_series(part, Fence(worker=WorkerName("workers/none"), stream="stream"))
    assert await store.samples(A) == []


async def test_samples_change_no_version_and_tell_nobody(store: JobStore) -> None:
    await added(store, A)
    before, token = await there(store, A), await store.latest_token()
    await added(store, A, [sample(0)])
    assert await there(store, A) == before
    assert await store.latest_token() == token
