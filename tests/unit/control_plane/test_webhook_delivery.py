"""Every event reaches the sink, each job's in order and under one id, whatever the sink answers, whoever delivers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.webhooks import queues
from adjourn_control_plane.webhooks.delivery import LEASE, LOOK_SECONDS, Deliveries
from adjourn_control_plane.webhooks.queues import LAST_DELAY, REFUSALS
from adjourn_control_plane.webhooks.sink import Answer
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import change, created, there

A, B = JobName("jobs/a"), JobName("jobs/b")
SECRET = b"no one may read this"
DOWN, REFUSED, TAKEN = Answer(problem="no answer"), Answer(refused=True, problem="status 422"), Answer(taken=True)
Meanwhile = Callable[[], Awaitable[None]]


class ScriptedSink:
    """Answers what it is told to, then takes everything but what is `hated`."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.tries: list[str] = []
        self.taken: list[str] = []
        self.hated: Callable[[str], bool] = lambda _: False
        """Whether it fails with an event, by its id."""
        self.meanwhile: Meanwhile | None = None
        """Happens once while a request is under way."""

    async def post(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        if self.meanwhile:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        answer = self.answers.pop(0) if self.answers else DOWN if self.hated(headers["webhook-id"]) else TAKEN
        self.tries.append(headers["webhook-id"])
        if answer.taken:
            self.taken.append(headers["webhook-id"])
        return answer


class World:
    """A store with two jobs, and replicas that deliver; time passes in their waits alone."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.store = MemoryStore(changes_kept=10, now_ns=lambda: int(self.now.timestamp() * 1e9))
        self.uids: dict[str, JobName] = {}

    def deliveries(self, sink: ScriptedSink) -> Deliveries:
        notifier = Notifier(self.store)
        return Deliveries(self.store, notifier, sink, SECRET, now=lambda: self.now)

    async def deliver(self, deliveries: Deliveries, until: Callable[[], bool] | None = None) -> list[float]:
        """Has everything delivered, or until then; returns for how long was waited in between."""
        waits: list[float] = []
        while True:
            deliveries.wait = LOOK_SECONDS
            await deliveries.deliver()
            if until() if until else deliveries.wait == LOOK_SECONDS:
                return waits
            waits.append(deliveries.wait)
            self.now += timedelta(seconds=deliveries.wait)

    async def tell(self, job: JobName, *sequences: int) -> None:
        for sequence in sequences:
            event = JobEvent(sequence=sequence, type=JobEvent.UPDATED)
            await self.store.commit(change(await there(self.store, job), events=[event]))

    def named(self, ids: list[str]) -> list[tuple[str, int]]:
        pairs = (identity.split("_") for identity in ids)
        return [(self.uids[uid], int(sequence)) for uid, sequence in pairs]


@pytest.fixture
async def world() -> World:
    """Has begun to deliver."""
    made = World()
    for name in (A, B):
        made.uids[(await created(made.store, name)).record.job.uid] = name
    await made.tell(A, 1)
    sink = ScriptedSink()
    first = made.deliveries(sink)
    await first.deliver()
    assert sink.tries == [], "what happened before there was a sink is not sent"
    await made.store.release_delivery(first.holder)
    return made


async def test_events_of_all_jobs_are_sent_once_and_those_of_each_in_order(world: World) -> None:
    sink = ScriptedSink()
    deliveries = world.deliveries(sink)
    await world.tell(A, 2, 3)
    await world.tell(B, 1)
    await world.tell(A, 4)
    await deliveries.deliver()
    await deliveries.deliver()
    assert sorted(world.named(sink.taken)) == [(A, 2), (A, 3), (A, 4), (B, 1)]
    assert [each for each in world.named(sink.taken) if each[0] == A] == [(A, 2), (A, 3), (A, 4)]
    assert (sink.tries, deliveries.wait) == (sink.taken, LOOK_SECONDS)


async def test_a_sink_that_is_away_for_minutes_gets_everything_once_it_is_back(world: World) -> None:
    sink = ScriptedSink(*[DOWN] * 40)
    await world.tell(A, 2)
    await world.tell(B, 1, 2)
    begun = world.now
    with capture_logs() as logs:
        waits = await world.deliver(world.deliveries(sink), lambda: len(sink.taken) == 3)
    assert world.now - begun > timedelta(minutes=3)
    assert sorted(world.named(sink.taken)) == [(A, 2), (B, 1), (B, 2)]
    assert set(world.named(sink.tries[:40])) == {(A, 2), (B, 1)}, "the same ids on each try"
    assert max(waits) <= LOOK_SECONDS < LAST_DELAY < LEASE.total_seconds()
    assert waits[0] < 1
    assert [line["event"] for line in logs] == ["webhook_waits"] * 2 + ["webhook_works"] * 2
    assert SECRET.decode() not in str(logs)


async def test_a_job_whose_event_is_not_taken_holds_up_no_other(world: World) -> None:
    sink = ScriptedSink()
    sink.hated = lambda identity: world.named([identity]) == [(A, 3)] and len(sink.tries) < 20
    deliveries = world.deliveries(sink)
    await world.tell(A, 2, 3, 4)
    await world.tell(B, 1, 2, 3)
    await deliveries.deliver()
    assert sorted(world.named(sink.taken)) == [(A, 2), (B, 1), (B, 2), (B, 3)]
    other = world.deliveries(again := ScriptedSink())
    await world.store.release_delivery(deliveries.holder)
    await other.deliver()
    assert {(A, 3), (A, 4)} <= set(world.named(again.taken)), "it goes on where the first event is that was not taken"
    assert len(again.taken) <= 5, "what was delivered before that place is not repeated"


async def test_it_is_due_again_later_and_what_its_job_did_since_comes_behind(world: World) -> None:
    sink = ScriptedSink()
    sink.hated = lambda identity: world.named([identity]) == [(A, 2)] and len(sink.tries) < 5
    deliveries = world.deliveries(sink)
    await world.tell(A, 2, 3)
    await world.deliver(deliveries, lambda: len(sink.taken) == 2)
    assert world.named(sink.taken) == [(A, 2), (A, 3)]
    assert len(sink.tries) > 4
    assert deliveries._queues
    assert deliveries._queues.delivered == await world.store.latest_event_token()


async def test_where_several_jobs_fail_the_sink_is_away_and_asked_little(world: World) -> None:
    jobs = [JobName(f"jobs/{number}") for number in range(8)]
    for job in jobs:
        world.uids[(await created(world.store, job)).record.job.uid] = job
        await world.tell(job, 1)
    sink = ScriptedSink()
    sink.hated = lambda _: True
    begun, deliveries = world.now, world.deliveries(sink)
    await world.deliver(deliveries, lambda: world.now - begun > timedelta(minutes=10))
    assert len(sink.tries) < 150, "one in four seconds at most, where each job alone would be asked for in fifteen"
    sink.hated = lambda _: False
    await world.deliver(deliveries, lambda: len(sink.taken) == len(jobs))


async def test_an_event_that_fails_while_many_others_are_taken_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "PASSED_BY", 5)
    sink = ScriptedSink()
    sink.hated = lambda identity: world.named([identity]) == [(A, 2)]
    deliveries = world.deliveries(sink)
    await world.tell(A, 2, 3)
    await world.tell(B, *range(1, 7))
    with capture_logs() as logs:
        await world.deliver(deliveries, lambda: (A, 3) in world.named(sink.taken))
    assert (A, 2) not in world.named(sink.taken)
    assert [line["event"] for line in logs] == ["webhook_waits", "webhook_refused"]


async def test_an_event_that_the_sink_will_never_have_is_left_out_and_logged(world: World) -> None:
    sink = ScriptedSink(*[REFUSED] * REFUSALS)
    await world.tell(A, 2, 3)
    with capture_logs() as logs:
        await world.deliver(world.deliveries(sink))
    assert len(sink.tries) == REFUSALS + 1
    assert world.named(sink.taken) == [(A, 3)]
    (line,) = [line for line in logs if line["event"] == "webhook_refused"]
    assert (line["job"], line["problem"]) == (A, "status 422")


async def test_what_is_kept_no_more_is_lost_and_said_so(world: World) -> None:
    sink = ScriptedSink()
    await world.tell(A, *range(2, 20))
    with capture_logs() as logs:
        await world.deliveries(sink).deliver()
    assert world.named(sink.taken) == [(A, sequence) for sequence in range(10, 20)]
    assert [line["event"] for line in logs] == ["webhook_events_lost"]


async def test_one_replica_delivers_and_another_goes_on_when_it_is_gone(world: World) -> None:
    sinks = [ScriptedSink(), ScriptedSink()]
    one, other = map(world.deliveries, sinks)
    await world.tell(A, 2)
    await one.deliver()
    await world.tell(A, 3)
    await other.deliver()
    assert sinks[1].tries == []
    world.now += LEASE + timedelta(seconds=1)
    await other.deliver()
    await one.deliver()
    assert (world.named(sinks[0].taken), world.named(sinks[1].taken)) == ([(A, 2)], [(A, 3)])


async def test_a_replica_that_stood_still_sends_no_more_than_what_was_under_way(world: World) -> None:
    sinks = [ScriptedSink(), ScriptedSink()]
    one, other = map(world.deliveries, sinks)
    await world.tell(A, 2, 3)

    async def stands_still() -> None:
        world.now += LEASE + timedelta(seconds=1)
        await other.deliver()

    sinks[0].meanwhile = stands_still
    await one.deliver()
    assert world.named(sinks[1].taken) == [(A, 2), (A, 3)]
    assert world.named(sinks[0].taken) == [(A, 2)], "a repeat, under the same id"
    await world.tell(A, 4)
    await one.deliver()
    await other.deliver()
    assert world.named(sinks[0].taken + sinks[1].taken).count((A, 4)) == 1


async def test_a_replica_whose_lease_ended_while_the_sink_was_away_tries_no_more(world: World) -> None:
    sinks = [ScriptedSink(DOWN), ScriptedSink()]
    one, other = map(world.deliveries, sinks)
    await world.tell(A, 2)

    async def stands_still() -> None:
        world.now += LEASE + timedelta(seconds=1)
        await other.store.hold_delivery(other.holder, LEASE)

    sinks[0].meanwhile = stands_still
    await one.deliver()
    assert (len(sinks[0].tries), sinks[0].taken) == (1, [])
    await other.deliver()
    assert world.named(sinks[1].taken) == [(A, 2)]


async def test_it_delivers_as_things_happen_waits_out_an_outage_and_lets_another_go_on_at_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Awaitable[None]]
) -> None:
    monkeypatch.setattr("adjourn_control_plane.webhooks.delivery.LOOK_SECONDS", 0.01)
    sink, notifier = ScriptedSink(), Notifier(world.store)
    ringing = asyncio.create_task(notifier.run())
    running = asyncio.create_task(Deliveries(world.store, notifier, sink, SECRET).run())

    async def delivered() -> list[tuple[str, int]]:
        """Returns what was taken once it is known up to the end that it was."""
        newest = await world.store.latest_event_token()
        await eventually(lambda: world.store._delivered == newest)
        return world.named(sink.taken)

    await world.tell(A, 2)
    assert await delivered() == [(A, 2)]
    with capture_logs() as logs:
        world.store.available = False
        await eventually(lambda: "controller_waits" in [line["event"] for line in logs])
        world.store.available = True
    await world.tell(A, 3)
    assert await delivered() == [(A, 2), (A, 3)]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert await world.store.hold_delivery("another", LEASE) == await world.store.latest_event_token()
    await world.store.aclose()
    await ringing
