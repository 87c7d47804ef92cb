"""Read, decide, commit: conflicts, repeated requests, reports, deletion."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, FencingToken, Report
from adjourn.v1.job_pb2 import Failure, Job, JobSpec
from adjourn.v1.job_service_pb2 import DeleteJobRequest, JobEvent, PauseJobRequest, ResumeJobRequest
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.job import machine
from adjourn_control_plane.job import updater as updaters
from adjourn_control_plane.job.events import Began, Lost, Placed, Requested
from adjourn_control_plane.job.updater import Call, JobUpdater
from adjourn_control_plane.store.interface import Change, Conflict, Fence, Fenced, JobName, WorkerName
from tests.harness.job_life import GONE, A, B, checkpoint
from tests.harness.job_requests import CANCEL, JOB, PAUSE, RESUME, fresh, place, there
from tests.harness.memory_store import MemoryStore

pytestmark = pytest.mark.usefixtures("one_job")


async def test_a_wish_is_stored_with_its_history(updater: JobUpdater, memory_store: MemoryStore) -> None:
    answer = await updater.request(JOB, PAUSE, fresh())
    record = await there(memory_store)
    assert (answer.state, record.job.state) == (Job.PAUSED, Job.PAUSED)
    assert answer.etag == str(record.revision)
    assert [event.type for event in await memory_store.events(JOB, after=0, size=10)] == [
        JobEvent.CREATED,
        JobEvent.PAUSE_REQUESTED,
        JobEvent.PAUSED,
    ]


async def test_an_unknown_job(updater: JobUpdater) -> None:
    for call in (
        updater.request(JobName("jobs/no"), PAUSE, fresh()),
        updater.apply(JobName("jobs/no"), PAUSE),
        updater.delete(JobName("jobs/no"), fresh()),
    ):
        with pytest.raises(errors.NotFoundError) as caught:
            await call
        assert caught.value.metadata == {"job": "jobs/no"}


async def test_a_stale_etag_is_refused_and_a_fresh_one_taken(updater: JobUpdater, memory_store: MemoryStore) -> None:
    first = (await updater.request(JOB, PAUSE, fresh(etag="1"))).etag
    with pytest.raises(errors.StaleEtagError) as caught:
        await updater.request(JOB, RESUME, fresh(etag="1"))
    assert caught.value.metadata == {"job": JOB, "etag": "1"}
    assert (await updater.request(JOB, RESUME, fresh(etag=first))).state == Job.QUEUED


async def test_a_repeated_request_has_one_effect_and_the_first_answer(
    updater: JobUpdater, memory_store: MemoryStore
) -> None:
    call = fresh()
    first = await updater.request(JOB, PAUSE, call)
    await updater.request(JOB, RESUME, fresh())
    assert await updater.request(JOB, PAUSE, call) == first
    assert (await there(memory_store)).job.state == Job.QUEUED


async def test_answers_are_stored_without_args_and_given_with_them(memory_store: MemoryStore) -> None:
    """C21: args may take 256 KiB, and each request is remembered for a day."""
    updater = JobUpdater(memory_store)
    name = JobName("jobs/args")
    job = Job(name=name, spec=JobSpec(total_epochs=1))
    job.spec.args["lr"] = 0.1
    decision = machine.create(job, uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
    await memory_store.commit(Change(job=name, expected=0, record=decision.record))
    call = fresh(name=name)
    first = await updater.request(name, PAUSE, call)
    assert first.spec.args["lr"] == 0.1
    remembered = await memory_store.answered(call.request_id)
    assert remembered
    assert not remembered[1].spec.HasField("args")
    assert await updater.request(name, PAUSE, call) == first
    await updater.request(name, CANCEL, fresh())
    await updater.delete(name, fresh())
    again = machine.create(Job(name=name), uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
    await memory_store.commit(Change(job=name, expected=0, record=again.record))
    assert await updater.request(name, PAUSE, call) == remembered[1], "not of the job that has the name now"


async def test_a_repeat_of_what_changed_nothing_has_no_effect_either(
    updater: JobUpdater, memory_store: MemoryStore
) -> None:
    await updater.request(JOB, PAUSE, fresh())
    call = fresh()
    first = await updater.request(JOB, PAUSE, call)
    assert first.state == Job.PAUSED
    await updater.request(JOB, RESUME, fresh())
    assert await updater.request(JOB, PAUSE, call) == first
    assert (await there(memory_store)).job.state == Job.QUEUED, "somebody else's resume stands"


async def test_what_changed_nothing_has_no_history_and_keeps_the_etag(
    updater: JobUpdater, memory_store: MemoryStore
) -> None:
    first = await updater.request(JOB, PAUSE, fresh())
    again = await updater.request(JOB, PAUSE, fresh())
    assert again == first
    assert len(await memory_store.events(JOB, after=0, size=10)) == 3


async def test_without_a_request_id_what_changed_nothing_is_not_stored(
    updater: JobUpdater, memory_store: MemoryStore
) -> None:
    await updater.request(JOB, PAUSE, fresh(""))
    token = await memory_store.latest_token()
    await updater.request(JOB, PAUSE, fresh(""))
    assert await memory_store.latest_token() == token


async def test_a_request_id_belongs_to_one_request(updater: JobUpdater) -> None:
    await updater.request(JOB, PAUSE, fresh("r"))
    other = Call.of(ResumeJobRequest(name=JOB, request_id="r"), request_id="r")
    with pytest.raises(errors.RequestIdReusedError) as caught:
        await updater.request(JOB, RESUME, other)
    assert caught.value.metadata == {"request_id": "r"}


async def test_requests_of_other_kinds_and_content_have_other_digests() -> None:
    calls = [
        Call.of(PauseJobRequest(name=JOB), request_id="r"),
        Call.of(PauseJobRequest(name=JOB, reason="x"), request_id="r"),
        Call.of(ResumeJobRequest(name=JOB), request_id="r"),
        Call.of(DeleteJobRequest(name=JOB), request_id="r"),
    ]
    assert len({call.digest for call in calls}) == 4


@pytest.mark.parametrize("event", [PAUSE, RESUME, CANCEL])
async def test_the_same_request_twice_at_once_has_one_effect(
    event: Requested, updater: JobUpdater, memory_store: MemoryStore
) -> None:
    if event is RESUME:
        await updater.request(JOB, PAUSE, fresh())
    etag = str((await there(memory_store)).revision)
    call = fresh(etag=etag)
    answers = await asyncio.gather(*(updater.request(JOB, event, call) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert (await there(memory_store)).revision == int(etag) + 1


async def test_a_try_that_was_overtaken_by_its_twin_gets_the_twins_answer(memory_store: MemoryStore) -> None:
    """The first try is on its way while the second has been answered and others have gone on."""

    class Overtaken(JobUpdater):
        async def answered(self, call: Call) -> Job | None:
            answer = await super().answered(call)
            if answer is None and call == late:
                await twin.request(JOB, PAUSE, replace(call, etag="1"))
            return answer

    late, twin = fresh(etag="1"), JobUpdater(memory_store)
    answer = await Overtaken(memory_store).request(JOB, PAUSE, late)
    assert (answer.state, answer.etag) == (Job.PAUSED, "2")


async def test_two_resumes_at_once_start_one_run(updater: JobUpdater, memory_store: MemoryStore) -> None:
    await updater.request(JOB, PAUSE, fresh())
    answers = await asyncio.gather(*(updater.request(JOB, RESUME, fresh()) for _ in range(5)))
    assert {answer.state for answer in answers} == {Job.QUEUED}
    placements = await asyncio.gather(*(place(updater, worker) for worker in (A, B, A, B)))
    record = await there(memory_store)
    assert (record.job.attempt, record.job.state) == (1, Job.STARTING)
    assert all(token == record.token for token in placements)


async def test_a_pause_and_the_end_at_once_have_one_outcome(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    await updater.report(Report(sequence=1, job=JOB, token=token, checkpoint=checkpoint(10)), A)
    ended = Exit(phase=AssignmentStatus.SUCCEEDED, checkpoint=checkpoint(10).name)
    answers = await asyncio.gather(
        updater.request(JOB, PAUSE, fresh()),
        updater.report(Report(sequence=2, job=JOB, token=token, exit=ended), A),
        return_exceptions=True,
    )
    assert (await there(memory_store)).job.state == Job.SUCCEEDED
    assert isinstance(answers[0], Job | errors.JobFinishedError)


class Busy(MemoryStore):
    """Somebody else is always faster."""

    lost = 0

    async def commit(self, change: Change) -> int:
        if change.expected:
            self.lost += 1
            raise Conflict(change.job)
        return await super().commit(change)


async def test_a_race_that_is_lost_for_ever_is_given_up() -> None:
    store = Busy()
    decision = machine.create(
        Job(name=JOB, spec=JobSpec(total_epochs=1)), uid=str(uuid4()), actor="ann", now=datetime.now(UTC)
    )
    await store.commit(Change(job=JOB, expected=0, record=decision.record))
    with pytest.raises(errors.ContentionError):
        await JobUpdater(store).request(JOB, CANCEL, fresh())
    assert store.lost == updaters.ATTEMPTS


async def test_an_event_of_an_attempt_that_is_over_has_no_effect(
    updater: JobUpdater, memory_store: MemoryStore
) -> None:
    first = await place(updater, A)
    lost = Lost(actor="control_plane", failure=GONE)
    await updater.apply(JOB, lost, token=first)
    await place(updater, B)
    record = await updater.apply(JOB, lost, token=first)
    assert (record.job.state, record.job.worker) == (Job.STARTING, B), "another replica had noticed the loss first"


async def test_a_placement_is_not_repeated_on_another_occupancy(updater: JobUpdater, memory_store: MemoryStore) -> None:
    seen = await memory_store.allocation(WorkerName(A))
    event = Placed(actor="control_plane", worker=A, device_uuids=(), nonce="n")
    await updater.apply(JOB, event, allocation=seen)
    other = machine.create(
        Job(name="jobs/k", spec=JobSpec(total_epochs=1)), uid=str(uuid4()), actor="ann", now=datetime.now(UTC)
    )
    await memory_store.commit(Change(job=JobName("jobs/k"), expected=0, record=other.record))
    with pytest.raises(Conflict):
        await updater.apply(JobName("jobs/k"), event, allocation=seen)


pytestmark = pytest.mark.usefixtures("one_job")


async def test_a_report_is_applied_once(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    report = Report(sequence=5, job=JOB, token=token, epoch=EpochMetrics(epoch=1, active_duration=Duration(seconds=10)))
    for _ in range(3):
        await updater.report(report, A)
    record = await there(memory_store)
    assert (record.applied_report, len(record.epoch_times)) == (5, 1)
    older = Report(sequence=4, job=JOB, token=token, epoch=EpochMetrics(epoch=2))
    await updater.report(older, A)
    assert [each.epoch for each in await memory_store.epochs(JOB, after=0, size=10)] == [1]


async def test_a_report_of_another_token_is_refused(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    for wrong in (
        FencingToken(attempt=token.attempt, nonce="f" * 32, job_uid=token.job_uid),
        FencingToken(attempt=token.attempt + 1, nonce=token.nonce, job_uid=token.job_uid),
        FencingToken(attempt=token.attempt, nonce=token.nonce, job_uid="another"),
        FencingToken(),
    ):
        await updater.report(Report(sequence=9, job=JOB, token=wrong, checkpoint=checkpoint(3)), A)
    record = await there(memory_store)
    assert (record.checkpoint.name, record.applied_report) == ("", 0)
    assert await memory_store.checkpoints(JOB, size=10) == []


async def test_after_a_new_hand_out_the_old_token_has_no_effect(updater: JobUpdater, memory_store: MemoryStore) -> None:
    old = await place(updater)
    await updater.apply(JOB, Lost(actor="control_plane", failure=GONE))
    new = await place(updater, B)
    await updater.report(Report(sequence=1, job=JOB, token=old, checkpoint=checkpoint(1)), A)
    ended = Exit(phase=AssignmentStatus.FAILED, failure=Failure(reason=reasons.PROCESS_KILLED))
    await updater.report(Report(sequence=2, job=JOB, token=old, exit=ended), A)
    record = await there(memory_store)
    assert (record.token, record.job.state, record.checkpoint.name) == (new, Job.STARTING, "")


async def test_what_a_stream_tells_after_another_has_taken_over_changes_nothing(
    updater: JobUpdater, memory_store: MemoryStore
) -> None:
    """A replica that was stopped while it took a message in, and goes on (C11)."""
    token = await place(updater)
    fence = Fence(worker=WorkerName(A), stream="stream-1")
    await memory_store.attach(Worker(name=A), "session", "stream-1")
    await updater.report(Report(sequence=1, job=JOB, token=token, checkpoint=checkpoint(1)), A, fence=fence)
    await memory_store.attach(Worker(name=A), "session", "stream-2")
    before = await memory_store.get(JOB)
    with pytest.raises(Fenced):
        await updater.report(Report(sequence=2, job=JOB, token=token, checkpoint=checkpoint(2)), A, fence=fence)
    with pytest.raises(Fenced):
        await updater.apply(JOB, Began(actor=A), token=token, fence=fence)
    assert await memory_store.get(JOB) == before


async def test_a_report_of_an_unknown_job_or_kind_is_let_go(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    await updater.report(Report(sequence=1, job="jobs/no", token=token), A)
    await updater.report(Report(sequence=1, job=JOB, token=token), A)
    assert (await there(memory_store)).applied_report == 0


async def test_late_news_of_a_job_that_has_ended_is_let_go(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    stopped = Report(sequence=1, job=JOB, token=token, exit=Exit(phase=AssignmentStatus.STOPPED))
    await updater.request(JOB, CANCEL, fresh())
    await updater.report(stopped, A)
    await updater.report(Report(sequence=2, job=JOB, token=token, epoch=EpochMetrics(epoch=1)), A)
    assert (await there(memory_store)).job.state == Job.CANCELLED
    assert await memory_store.epochs(JOB, after=0, size=10) == []


async def test_a_later_attempt_replaces_an_epoch(updater: JobUpdater, memory_store: MemoryStore) -> None:
    for attempt in (1, 2):
        token = await place(updater)
        metrics = EpochMetrics(epoch=1, attempt=attempt)
        await updater.report(Report(sequence=attempt, job=JOB, token=token, epoch=metrics), A)
        await updater.apply(JOB, Lost(actor="control_plane", failure=GONE))
    assert [each.attempt for each in await memory_store.epochs(JOB, after=0, size=10)] == [2]


async def test_only_what_has_ended_is_deleted(updater: JobUpdater, memory_store: MemoryStore) -> None:
    for request in (None, PAUSE):
        if request:
            await updater.request(JOB, request, fresh())
        with pytest.raises(errors.JobNotFinishedError) as caught:
            await updater.delete(JOB, fresh())
        assert caught.value.metadata["allowed_states"] == "CANCELLED, FAILED, SUCCEEDED"
    await updater.request(JOB, CANCEL, fresh())
    uid = (await there(memory_store)).job.uid
    await updater.delete(JOB, fresh())
    assert await memory_store.get(JOB) is None
    assert [each.uid for each in await memory_store.tombstones()] == [uid]


async def test_a_stale_etag_deletes_nothing(updater: JobUpdater, memory_store: MemoryStore) -> None:
    await updater.request(JOB, CANCEL, fresh())
    with pytest.raises(errors.StaleEtagError):
        await updater.delete(JOB, fresh(etag="1"))
    await updater.delete(JOB, fresh(etag="2"))


async def test_a_repeat_is_no_error(updater: JobUpdater, memory_store: MemoryStore) -> None:
    await updater.request(JOB, CANCEL, fresh())
    call = fresh("d")
    await asyncio.gather(*(updater.delete(JOB, call) for _ in range(3)))
    await updater.delete(JOB, call)
    with pytest.raises(errors.NotFoundError):
        await updater.delete(JOB, fresh())


async def test_what_a_worker_says_of_a_deleted_job_is_let_go(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    await updater.request(JOB, CANCEL, fresh())
    await updater.apply(JOB, Lost(actor="control_plane", failure=GONE))
    await updater.delete(JOB, fresh())
    await updater.report(Report(sequence=1, job=JOB, token=token, epoch=EpochMetrics(epoch=1)), A)
    with pytest.raises(errors.NotFoundError):
        await updater.apply(JOB, Began(actor=A))
