"""What workers report, and what is deleted: once, by the right attempt, in the right state."""

import asyncio

import pytest
from google.protobuf.duration_pb2 import Duration

from adjourn import errors, reasons
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, FencingToken, Report
from adjourn.v1.job_pb2 import Failure, Job
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.job.events import Began, Lost
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.store.interface import Fence, Fenced, WorkerName
from tests.harness.job_life import GONE, A, B, checkpoint
from tests.harness.job_requests import CANCEL, JOB, PAUSE, fresh, place, there
from tests.harness.memory_store import MemoryStore

pytestmark = pytest.mark.usefixtures("one_job")


async def test_a_report_is_applied_once(updater: JobUpdater, memory_store: MemoryStore) -> None:
    token = await place(updater)
    report = Report(sequence=5, job=JOB, token=token, epoch=EpochMetrics(epoch=1, active_duration=Duration(seconds=10)))
    for _ in range(3):
        await updater.report(report, A)
    record = await there(memory_store)
    assert (record.applied_report, record.timed_epochs) == (5, 1)
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
    assert await memory_store.checkpoints(JOB, size=10, skip=0) == []


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
    for wish in (None, PAUSE):
        if wish:
            await updater.request(JOB, wish, fresh())
        with pytest.raises(errors.JobNotFinishedError) as caught:
            await updater.delete(JOB, fresh())
        assert caught.value.metadata["allowed_states"] == "CANCELLED, FAILED, SUCCEEDED"
    await updater.request(JOB, CANCEL, fresh())
    uid = (await there(memory_store)).job.uid
    await updater.delete(JOB, fresh())
    assert await memory_store.get(JOB) is None
    assert await memory_store.tombstones() == [uid]


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
