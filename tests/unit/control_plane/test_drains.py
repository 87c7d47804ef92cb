"""A worker that is to become empty, and what becomes of its jobs."""

import pytest

from adjourn.v1.agent_service_pb2 import Assignment, SynchronizeRequest
from adjourn.v1.job_pb2 import Hold, Job, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.worker_pb2 import Drain, Worker
from adjourn_control_plane.fleet import reconcile, worker_state
from adjourn_control_plane.fleet.session import AgentSession
from adjourn_control_plane.job.events import Registered
from adjourn_control_plane.store.interface import WorkerName
from tests.harness.controllers import SETTINGS, Controllers
from tests.harness.job_life import A, B, Life, checkpoint, checkpoint_name
from tests.harness.memory_store import MemoryStore

ORDER = Drain(actor="ops", reason="new disk")


def drained() -> Life:
    return Life().running(1).drain("new disk")


def test_a_drained_job_pauses_without_a_hold_and_goes_on_elsewhere_by_itself() -> None:
    life = drained()
    assert (life.state, life.record.target, list(life.job.holds)) == ("PAUSING", Assignment.PAUSE, [])
    assert (life.job.pause.cause, life.job.pause.actor, life.job.pause.reason) == (Pause.DRAINED, "ops", "new disk")
    life.trained(2).released().rests()
    assert (life.state, life.job.restart_count, life.job.progress.epoch) == ("QUEUED", 0, 2)
    assert life.job.pause.checkpoint == checkpoint_name(2)
    life.placed(B).acknowledged().began().took_a_step()
    pause = life.job.pause
    assert (pause.from_worker, pause.to_worker, pause.verdict) == (A, B, Pause.EXACT)


def test_it_does_not_wait_before_it_goes_on() -> None:
    life = drained().trained(2).rests()
    assert not life.job.HasField("failure")


def test_a_hold_meanwhile_lets_it_rest() -> None:
    life = drained().pause()
    assert (life.state, life.job.pause.cause) == ("PAUSING", Pause.DRAINED)
    assert life.trained(2).rests().state == "PAUSED"
    assert life.resume().state == "QUEUED"


def test_a_hold_that_comes_and_goes_changes_nothing_about_the_drain() -> None:
    life = drained()
    generation = life.record.generation
    life.pause().resume()
    assert (life.state, life.record.target, life.record.generation) == ("PAUSING", Assignment.PAUSE, generation)
    assert life.trained(2).rests().state == "QUEUED"


def test_there_is_nothing_to_resume_while_only_the_drain_pauses_it() -> None:
    life = drained()
    assert life.resume().last is None
    life.trained(2).rests()
    assert (life.resume().last, life.state) == (None, "QUEUED"), "it goes on by itself"


def test_it_can_be_cancelled_on_its_way() -> None:
    assert drained().cancel().stops().state == "CANCELLED"


def test_an_undrained_job_that_has_not_left_trains_on() -> None:
    life = drained().undrain()
    assert (life.state, life.record.target, life.job.worker) == ("RUNNING", Assignment.RUN, A)
    assert life.decisions[-1].events[-1].type == JobEvent.DRAIN_WITHDRAWN
    life.trained(2).rests()
    assert (life.state, life.job.pause.note) == ("QUEUED", "resumed after training had left"), "it had left"


def test_an_undrained_job_that_has_left_goes_on_where_there_is_room() -> None:
    life = drained().trained(2).released()
    assert life.undrain().last is None
    assert life.rests().state == "QUEUED"


def test_an_undrained_job_that_is_held_still_pauses() -> None:
    life = drained().pause().undrain()
    assert (life.state, life.job.pause.cause) == ("PAUSING", Pause.HELD)
    assert life.resume().state == "RUNNING"


def test_a_run_that_ends_first_has_succeeded() -> None:
    life = Life(total_epochs=2).running(1).drain().trained(2).finishes()
    assert (life.state, life.job.pause.note) == ("SUCCEEDED", "the run finished first")


def test_a_worker_lost_on_the_way_costs_what_a_lost_worker_costs() -> None:
    life = drained().is_lost()
    assert (life.state, life.job.restart_count, life.job.pause.cause) == ("QUEUED", 1, Pause.WORKER_LOST)
    life.tell(Registered(actor=A, checkpoint=checkpoint(2))).rests()
    assert (life.state, life.job.restart_count, life.job.pause.cause) == ("QUEUED", 0, Pause.DRAINED)


def test_a_job_that_has_not_begun_pauses_at_its_first_boundary() -> None:
    assert Life().placed().drain().state == "PAUSING"


@pytest.mark.parametrize("life", [Life(total_epochs=0).running(), Life(), Life().running().cancel()])
def test_what_has_no_boundary_to_leave_at_is_left(life: Life) -> None:
    assert life.drain().last is None


def test_orders_are_told_once() -> None:
    running, pausing = Life().running(1).record, drained().record
    events = reconcile.drain_events(A, [running, pausing], drain=ORDER, draining=False)
    assert [(job, event.actor) for job, event in events] == [(running.job.name, "ops")]
    (by_agent,) = reconcile.drain_events(A, [running], drain=None, draining=True)
    assert by_agent[1].actor == A
    back = reconcile.drain_events(A, [running, pausing], drain=None, draining=False)
    assert [job for job, _ in back] == [pausing.job.name]
    left = drained().trained(2).released().record
    assert reconcile.drain_events(A, [left], drain=None, draining=False) == []


class Draining:
    """Workers, and the stream of the first."""

    def __init__(self, plane: Controllers) -> None:
        self.plane = plane

    async def connect(self, *, draining: bool = False) -> AgentSession:
        first = SynchronizeRequest(worker=Worker(name=A, cpu_slots=1), session_id="agent", draining=draining)
        plane = self.plane
        stream = AgentSession(first, plane.store, plane.updater, plane.notifier, SETTINGS)
        await plane.store.attach(stream.described(first), "agent", stream.id)
        await plane.store.heartbeat(stream.described(first), stream.id)
        return stream

    async def looks(self, stream: AgentSession) -> list[Job]:
        session = await self.plane.store.session(WorkerName(A))
        assert session
        return [record.job for record in await stream.drained(session)]


async def test_the_order_stays_with_the_worker_whatever_becomes_of_its_streams(memory_store: MemoryStore) -> None:
    plane = Controllers(memory_store)
    fleet = Draining(plane)
    job = await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    assert await plane.store.order_drain(WorkerName(A), ORDER)
    other = await plane.create("k", total_epochs=3)
    for _ in range(2):  # the agent comes back
        (mine,) = await fleet.looks(await fleet.connect())
        assert (mine.name, mine.state, mine.pause.cause) == (job, Job.PAUSING, Pause.DRAINED)
    session = await plane.store.session(WorkerName(A))
    assert session
    assert worker_state.state(session, busy=True) == Worker.DRAINING
    assert worker_state.state(session, busy=False) == Worker.DRAINED
    await plane.worker(B, cpu_slots=1)
    await plane.scheduler.place()
    assert await plane.where(job, other) == [A, B], "nothing new comes to it"
    await plane.store.order_drain(WorkerName(A), None)
    (mine,) = await fleet.looks(await fleet.connect())
    assert mine.state == Job.STARTING


async def test_an_agent_that_wants_no_new_work_drains_itself(memory_store: MemoryStore) -> None:
    plane = Controllers(memory_store)
    await plane.create("j", total_epochs=3)
    await plane.worker(A, cpu_slots=1)
    await plane.scheduler.place()
    (mine,) = await Draining(plane).looks(await Draining(plane).connect(draining=True))
    assert (mine.state, mine.pause.actor) == (Job.PAUSING, A)


def test_an_operators_hold_and_the_users_are_independent() -> None:
    life = Life().running(1).held_by(Hold.OPERATOR)
    assert (life.state, life.history[-1]) == ("PAUSING", "HELD")
    life.pause()
    assert life.decisions[-1].events[-1].details["holds"] == "OPERATOR, USER"
    life.trained(2).rests().let_go_by(Hold.OPERATOR)
    assert (life.state, life.history[-1]) == ("PAUSED", "HOLD_REMOVED")
    assert life.resume().state == "QUEUED"


def test_a_release_before_the_boundary_takes_the_pause_back() -> None:
    life = Life().running(1).held_by(Hold.OPERATOR).let_go_by(Hold.OPERATOR)
    assert (life.state, life.record.target) == ("RUNNING", Assignment.RUN)
