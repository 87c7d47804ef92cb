"""One agent's stream: what it writes, and when it may not any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from adjourn import errors, reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.agent_service_pb2 import AssignmentStatus, Exit, Report, SeriesPart, SynchronizeRequest
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure, Job
from adjourn.v1.worker_pb2 import Device, Worker
from adjourn_control_plane.aio import end
from adjourn_control_plane.fleet.session import AgentSession
from adjourn_control_plane.job import releases
from adjourn_control_plane.job.events import Adopted, Event, Lost, Placed
from adjourn_control_plane.job.updater import ATTEMPTS, JobUpdater
from adjourn_control_plane.store.interface import Change, Conflict, Fence, JobName, Unconfirmed, WorkerName
from tests.harness.controllers import SETTINGS, Controllers
from tests.harness.job_life import A
from tests.harness.memory_store import MemoryStore


class Agents:
    """A worker with one job, and the streams that speak for it."""

    def __init__(self, plane: Controllers, job: JobName) -> None:
        self.plane = plane
        self.job = job

    async def connect(self, session: str = "agent") -> AgentSession:
        first = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1), session_id=session)
        plane = self.plane
        made = AgentSession(first, plane.store, plane.updater, plane.notifier, SETTINGS)
        await plane.store.attach(made.described(first), session, made.id)
        return made

    async def says(
        self, phase: AssignmentStatus.Phase.ValueType, *reports: Report, step: int = 0
    ) -> SynchronizeRequest:
        record = await self.plane.record(self.job)
        status = AssignmentStatus(job=self.job, token=record.token, observed_generation=record.generation, phase=phase)
        status.progress.step = step
        status.progress.report_time.FromSeconds(step)
        worker = Worker(name=A, cpu_slots=1)
        return SynchronizeRequest(worker=worker, session_id="agent", assignments=[status], reports=reports)

    async def report(self, sequence: int, **what: Checkpoint | Exit) -> Report:
        token = (await self.plane.record(self.job)).token
        return Report(sequence=sequence, job=self.job, token=token, **what)  # type: ignore[arg-type]

    async def version(self) -> int:
        stored = await self.plane.store.get(self.job)
        assert stored
        return stored.version


class Noting(MemoryStore):
    """Notes the state of the job when figures of it are added."""

    states: list[Job.State.ValueType]

    async def add_series(self, part: SeriesPart, fence: Fence) -> bool:
        stored = await self.get(JobName(part.job))
        assert stored
        self.states.append(stored.record.job.state)
        return await super().add_series(part, fence)


@pytest.fixture
async def agents(memory_store: MemoryStore) -> Agents:
    plane = Controllers(memory_store)
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    assert await plane.where(job) == [A]
    return Agents(plane, job)


async def test_a_replica_that_was_stopped_and_goes_on_changes_nothing(agents: Agents) -> None:
    """It stopped between the heartbeat and the message; another replica's stream has gone on meanwhile (C11)."""
    plane, job = agents.plane, agents.job
    stopped = await agents.connect()
    old = await agents.says(AssignmentStatus.RUNNING, step=7)
    assert await plane.store.heartbeat(stopped.described(old), stopped.id)

    other = await agents.connect()
    await other.handle(await agents.says(AssignmentStatus.RUNNING, step=9))
    version = await agents.version()
    with pytest.raises(errors.ShuttingDownError):
        await stopped.handle(old)
    assert await agents.version() == version
    assert (await plane.record(job)).job.progress.step == 9


async def test_reports_over_a_stream_that_was_superseded_are_not_applied(agents: Agents) -> None:
    stopped = await agents.connect()
    report = await agents.report(1, checkpoint=Checkpoint(name=f"{agents.job}/checkpoints/1", epoch=1, step=7))
    message = SynchronizeRequest(worker=Worker(name=A), session_id="agent", reports=[report])
    version = await agents.version()
    await agents.connect("another agent")
    with pytest.raises(errors.SessionSupersededError):
        await stopped.handle(message)
    assert await agents.version() == version
    assert stopped.acknowledged == 0


async def test_a_worker_does_not_count_as_silent_while_it_is_listened_to(agents: Agents) -> None:
    """However slow the store is: the message came in time."""
    stream = await agents.connect()
    stream.settings = replace(SETTINGS, sync_interval=timedelta(seconds=0.001))
    before = await agents.plane.store.session(WorkerName(A))
    assert before

    class Slow(JobUpdater):
        """Applies a report when a heartbeat was noted since the one before."""

        async def report(self, report: Report, worker: str, *, instance: str = "", fence: Fence | None = None) -> None:
            known = await self.store.session(WorkerName(A))
            while known == await self.store.session(WorkerName(A)):  # noqa: ASYNC110  # it is the store's
                await asyncio.sleep(0.001)
            await super().report(report, worker, instance=instance, fence=fence)

    stream.updater = Slow(agents.plane.store)
    reports = [
        await agents.report(number, checkpoint=Checkpoint(name=f"{agents.job}/checkpoints/{number}", epoch=number))
        for number in range(1, 11)
    ]
    async with asyncio.timeout(20):
        await stream.handle(await agents.says(AssignmentStatus.RUNNING, *reports))
    after = await agents.plane.store.session(WorkerName(A))
    assert after
    assert after.heartbeat - before.heartbeat >= 10
    assert not after.connected, "it is given nothing before all that it said is known"
    assert stream.acknowledged == 10
    checkpoints = await agents.plane.store.checkpoints(agents.job, size=20)
    assert [each.epoch for _, each in checkpoints] == list(range(10, 0, -1)), "in order"


async def test_a_report_is_applied_once_however_often_it_is_repeated(agents: Agents) -> None:
    """Messages that wait behind a slow one repeat what it told."""
    applied = []

    class Counting(JobUpdater):
        async def report(self, report: Report, worker: str, *, instance: str = "", fence: Fence | None = None) -> None:
            applied.append(report.sequence)
            await super().report(report, worker, instance=instance, fence=fence)

    stream = await agents.connect()
    stream.updater = Counting(agents.plane.store)
    first, second = [
        await agents.report(number, checkpoint=Checkpoint(name=f"{agents.job}/checkpoints/{number}", epoch=number))
        for number in (1, 2)
    ]
    for reports in ((first,), (first,), (first, second)):
        await stream.handle(await agents.says(AssignmentStatus.RUNNING, *reports))
    assert applied == [1, 2]
    assert stream.acknowledged == 2


async def test_gpus_are_not_sold_twice_when_an_attempt_comes_back_while_a_job_is_placed(
    memory_store: MemoryStore,
) -> None:
    plane = Controllers(memory_store)
    job = await plane.create("j", total_epochs=3, gpu_count=1)
    await plane.worker(A, gpus=1)
    await plane.scheduler.place()
    record = await plane.record(job)
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST))
    await plane.updater.apply(job, lost, token=record.token)
    status = AssignmentStatus(job=job, token=record.token, observed_generation=1, phase=AssignmentStatus.RUNNING)
    status.held_device_uuids.extend(record.device_uuids)
    worker = Worker(name=A, devices=[Device(uuid=uuid) for uuid in record.device_uuids])
    message = SynchronizeRequest(worker=worker, session_id="agent", assignments=[status])
    device = record.device_uuids[0]

    class Overtaken(JobUpdater):
        """Another job is given the GPU between the decision to adopt and its commit."""

        async def apply(self, job: JobName, event: Event, **guards: Any) -> JobRecord:
            if isinstance(event, Adopted):
                event_for_other = Placed(actor="control_plane", worker=A, device_uuids=(device,), nonce="n")
                await plane.updater.apply(await plane.create("other", gpu_count=1), event_for_other)
            return await super().apply(job, event, **guards)

    stream = AgentSession(message, plane.store, Overtaken(plane.store), plane.notifier, SETTINGS)
    await plane.store.attach(stream.described(message), "agent", stream.id)
    await stream.handle(message)
    assert [stored.record.job.name for stored in (await plane.store.allocation(WorkerName(A))).jobs] == ["jobs/other"]
    assert (await plane.record(job)).job.state == Job.QUEUED
    stream.updater = plane.updater
    await stream.handle(message)  # the GPU is still taken
    assert (await plane.record(job)).job.state == Job.QUEUED


@pytest.mark.parametrize("conflicts", [1, ATTEMPTS])
async def test_an_attempt_that_comes_back_while_its_job_is_written_to_is_taken_over(
    agents: Agents, conflicts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, since by the agent's next message the job may have been placed anew; then, if it is always overtaken."""
    plane, job = agents.plane, agents.job
    record = await plane.record(job)
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST))
    await plane.updater.apply(job, lost, token=record.token)
    stream, commit, tries = await agents.connect(), plane.store.commit, 0

    async def overtaken(change: Change) -> int:
        nonlocal tries
        tries += 1
        if tries <= conflicts:
            raise Conflict
        return await commit(change)

    monkeypatch.setattr(plane.store, "commit", overtaken)
    await stream.handle(await agents.says(AssignmentStatus.RUNNING))
    if conflicts == ATTEMPTS:
        assert (await plane.record(job)).job.state == Job.QUEUED
        await stream.handle(await agents.says(AssignmentStatus.RUNNING))
    record = await plane.record(job)
    assert (record.job.worker, record.job.attempt, record.job.state) == (A, 1, Job.STARTING)


async def silence() -> None:
    """An agent that says nothing more."""
    await asyncio.Event().wait()


async def test_a_message_from_before_an_attempt_arrived_does_not_say_that_it_is_gone(agents: Agents) -> None:
    """The order is on its way when the lease ends, and so is a message that cannot know of it."""
    plane = agents.plane
    stream = await agents.connect()
    empty = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1), session_id="agent")
    reader = asyncio.create_task(silence())
    try:
        async with asyncio.timeout(20), aclosing(stream.responses(reader)) as responses:
            stream.changed.set()
            assert [each.job for each in (await anext(responses)).assignments] == [agents.job]
    finally:
        await end(reader)
    record = await plane.record(agents.job)
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST), out_of_reach=True)
    await plane.updater.apply(agents.job, lost, token=record.token)
    await stream.handle(empty)
    assert (await plane.record(agents.job)).unconfirmed_releases, "the order may arrive still"
    await stream.handle(await agents.says(AssignmentStatus.RUNNING))
    assert (await plane.record(agents.job)).job.worker == A
    await plane.updater.apply(agents.job, lost, token=record.token)
    await stream.handle(empty)
    assert (await plane.record(agents.job)).unconfirmed_releases, "it was said before"
    empty.acknowledged_response = 1
    await stream.handle(empty)
    assert not (await plane.record(agents.job)).unconfirmed_releases, "it has passed the order over for a newer one"


async def test_a_stream_that_a_stopped_replica_attaches_late_says_nothing(agents: Agents) -> None:
    """It is from before the worker had its job: the job was taken from it, and its process trained on unknown."""
    plane = agents.plane
    stale = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1, instance="i"), session_id="agent", stream=1)
    late = AgentSession(stale, plane.store, plane.updater, plane.notifier, SETTINGS)
    fresh = await agents.says(AssignmentStatus.RUNNING, step=1)
    fresh.stream, fresh.worker.instance = 2, "i"
    stream = AgentSession(fresh, plane.store, plane.updater, plane.notifier, SETTINGS)
    async with aclosing(stream.run(fresh, silent())) as responses:
        await anext(responses)
        with pytest.raises(errors.ShuttingDownError):
            async with aclosing(late.run(stale, silent())) as refused:
                await anext(refused)
        record = await plane.record(agents.job)
        assert (record.job.state, record.job.worker) == (Job.RUNNING, A)
        session = await plane.store.session(WorkerName(A))
        assert session
        assert session.stream == stream.id


async def silent() -> AsyncIterator[SynchronizeRequest]:
    """The messages of an agent that says no more than the first."""
    await asyncio.Event().wait()
    yield SynchronizeRequest()


async def test_what_an_older_stream_carried_arrives_no_more(agents: Agents) -> None:
    plane = agents.plane
    record = await plane.record(agents.job)
    empty = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1), session_id="agent")
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST), out_of_reach=True)
    again = await agents.connect()
    await plane.updater.apply(agents.job, lost, token=record.token)
    empty.acknowledged_response = 1
    await again.handle(empty)
    assert not (await plane.record(agents.job)).unconfirmed_releases


async def test_nothing_is_gone_because_of_what_a_worker_said_before_its_stream_spoke_for_it(agents: Agents) -> None:
    """A replica is stopped between an agent's first message and its attaching. Another stream goes on meanwhile."""
    plane, job = agents.plane, agents.job
    current = await agents.connect()
    await current.handle(await agents.says(AssignmentStatus.RUNNING))
    late = await agents.connect()
    empty = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1), session_id="agent")
    await late.handle(empty)
    record = await plane.record(job)
    assert record.job.state == Job.RUNNING, "the message may be from before the attempt was handed out"
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST), out_of_reach=True)
    await plane.updater.apply(job, lost, token=record.token)
    await late.handle(empty)
    assert (await plane.record(job)).unconfirmed_releases
    empty.acknowledged_response = 1
    await late.handle(empty)
    assert not (await plane.record(job)).unconfirmed_releases


async def test_what_may_live_on_a_worker_is_read_when_it_has_changed_and_not_with_each_message(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, read = agents.plane, 0
    whole = plane.store.unconfirmed

    async def counted(worker: WorkerName) -> list[Unconfirmed]:
        nonlocal read
        read += 1
        return await whole(worker)

    monkeypatch.setattr(plane.store, "unconfirmed", counted)
    stream = await agents.connect()
    for step in range(1, 5):
        await stream.handle(await agents.says(AssignmentStatus.RUNNING, step=step))
    assert read == 1
    record = await plane.record(agents.job)
    lost = Lost(actor="control_plane", failure=Failure(reason=reasons.WORKER_LOST), out_of_reach=True)
    await plane.updater.apply(agents.job, lost, token=record.token)
    empty = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1), session_id="agent", acknowledged_response=1)
    await stream.handle(empty)
    assert read == 2
    assert not (await plane.record(agents.job)).unconfirmed_releases


async def test_gpus_of_an_attempt_that_nobody_remembers_are_not_offered_until_it_has_stopped(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "KEPT", 1)
    plane = Controllers(memory_store)
    job = await plane.create("j", total_epochs=3, gpu_count=1)
    orders = []
    for name in (A, "workers/b"):
        await plane.worker(name, gpus=1)
        await plane.scheduler.place()
        orders.append(record := await plane.record(job))
        failure = Failure(reason=reasons.WORKER_LOST)
        lost = Lost(actor="control_plane", failure=failure, out_of_reach=True, instance="i")
        await plane.updater.apply(job, lost, token=record.token)
    assert [entry.worker for entry in (await plane.record(job)).unconfirmed_releases] == ["workers/b"]
    first = orders[0]
    status = AssignmentStatus(job=job, token=first.token, observed_generation=1, phase=AssignmentStatus.RUNNING)
    status.held_device_uuids.extend(first.device_uuids)
    worker = Worker(name=A, instance="i", devices=[Device(uuid=uuid) for uuid in first.device_uuids])
    back = SynchronizeRequest(worker=worker, session_id="agent", assignments=[status])
    stream = AgentSession(back, plane.store, plane.updater, plane.notifier, SETTINGS)
    await plane.store.attach(stream.described(back), "agent", stream.id)
    await stream.handle(back)
    assert [device.quarantined for device in stream.described(back).devices] == [True]
    status.phase = AssignmentStatus.STOPPED
    del status.held_device_uuids[:]
    told = SynchronizeRequest(worker=worker, session_id="agent", assignments=[status])
    await stream.handle(told)
    assert [device.quarantined for device in stream.described(told).devices] == [False]


async def test_gpus_of_a_deleted_jobs_attempt_are_not_offered_while_it_lives(memory_store: MemoryStore) -> None:
    plane = Controllers(memory_store)
    job = await plane.create("j", total_epochs=3, gpu_count=1)
    await plane.worker(A, gpus=2)
    await plane.scheduler.place()
    record = await plane.record(job)
    status = AssignmentStatus(job=job, token=record.token, observed_generation=1, phase=AssignmentStatus.RUNNING)
    status.held_device_uuids.extend(record.device_uuids)
    await plane.delete(job)
    worker = Worker(name=A, devices=[Device(uuid=f"{A}-{index}") for index in range(2)])
    message = SynchronizeRequest(worker=worker, session_id="agent", assignments=[status])
    stream = AgentSession(message, plane.store, plane.updater, plane.notifier, SETTINGS)
    await plane.store.attach(stream.described(message), "agent", stream.id)
    await stream.handle(message)
    assert [device.uuid for device in stream.described(message).devices if device.quarantined] == list(
        record.device_uuids
    )


async def test_the_last_figures_of_a_job_are_there_when_it_is_told_to_have_ended() -> None:
    store = Noting()
    store.states = []
    plane = Controllers(store)
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    agents = Agents(plane, job)
    stream = await agents.connect()
    failed = Exit(phase=AssignmentStatus.FAILED, failure=Failure(reason=reasons.TRAINING_WITHOUT_EPOCHS))
    message = await agents.says(AssignmentStatus.FAILED, await agents.report(1, exit=failed))
    message.series.add(job=job, token=(await plane.record(job)).token).steps.add(step=6)
    await stream.handle(message)
    assert (store.states, (await plane.record(job)).job.state) == ([Job.STARTING], Job.FAILED)
