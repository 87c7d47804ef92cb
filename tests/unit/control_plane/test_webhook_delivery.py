"""Every event reaches the sink, in order and under one id, whatever the sink answers and whoever delivers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from adjourn.v1.job_service_pb2 import JobEvent
from adjourn_control_plane.store.interface import JobName
from adjourn_control_plane.store.notifier import Notifier
from adjourn_control_plane.webhooks.delivery import LAST_DELAY, LEASE, REFUSALS, Deliveries
from adjourn_control_plane.webhooks.sink import Answer
from tests.harness.memory_store import MemoryStore
from tests.harness.store_records import change, created, there

A, B = JobName("jobs/a"), JobName("jobs/b")
SECRET = b"no one may read this"
DOWN, REFUSED, TAKEN = Answer(problem="no answer"), Answer(refused=True, problem="status 422"), Answer(taken=True)
Meanwhile = Callable[[], Awaitable[None]]


class ScriptedSink:
    """Answers what it is told to, then takes everything."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.tries: list[str] = []
        self.taken: list[str] = []
        self.meanwhile: Meanwhile | None = None
        """Happens once while a request is under way."""

    async def post(self, data: bytes, headers: Mapping[str, str]) -> Answer:
        if self.meanwhile:
            happens, self.meanwhile = self.meanwhile, None
            await happens()
        answer = self.answers.pop(0) if self.answers else TAKEN
        self.tries.append(headers["webhook-id"])
        if answer.taken:
            self.taken.append(headers["webhook-id"])
        return answer


class World:
    """A store with two jobs, and replicas that deliver; time passes in their waits alone."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)
        self.store = MemoryStore(changes_kept=10, now_ns=lambda: int(self.now.timestamp() * 1e9))
        self.waits: list[float] = []
        self.uids: dict[str, JobName] = {}

    def deliveries(self, sink: ScriptedSink) -> Deliveries:
        notifier = Notifier(self.store)
        return Deliveries(self.store, notifier, sink, SECRET, now=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += timedelta(seconds=seconds)

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


async def test_events_of_all_jobs_are_sent_once_and_in_order(world: World) -> None:
    sink = ScriptedSink()
    deliveries = world.deliveries(sink)
    await world.tell(A, 2, 3)
    await world.tell(B, 1)
    await world.tell(A, 4)
    await deliveries.deliver()
    await deliveries.deliver()
    assert world.named(sink.taken) == [(A, 2), (A, 3), (B, 1), (A, 4)]
    assert (sink.tries, world.waits) == (sink.taken, [])


async def test_a_sink_that_is_away_for_five_minutes_gets_everything_once_it_is_back(world: World) -> None:
    sink = ScriptedSink(*[DOWN] * 40)
    await world.tell(A, 2)
    await world.tell(B, 1, 2)
    begun = world.now
    with capture_logs() as logs:
        await world.deliveries(sink).deliver()
    assert world.now - begun > timedelta(minutes=5)
    assert world.named(sink.taken) == [(A, 2), (B, 1), (B, 2)]
    assert set(sink.tries[:41]) == {sink.taken[0]}, "the same id on each try"
    assert max(world.waits) <= LAST_DELAY < LEASE.total_seconds()
    assert world.waits[0] < 1
    assert [line["event"] for line in logs] == ["webhook_waits", "webhook_works"]
    assert SECRET.decode() not in str(logs)


async def test_an_event_that_the_sink_will_never_have_is_left_out_and_logged(world: World) -> None:
    sink = ScriptedSink(*[REFUSED] * REFUSALS)
    await world.tell(A, 2, 3)
    with capture_logs() as logs:
        await world.deliveries(sink).deliver()
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
    await world.sleep(LEASE.total_seconds() + 1)
    await other.deliver()
    await one.deliver()
    assert (world.named(sinks[0].taken), world.named(sinks[1].taken)) == ([(A, 2)], [(A, 3)])


async def test_a_replica_that_stood_still_sends_no_more_than_what_was_under_way(world: World) -> None:
    sinks = [ScriptedSink(), ScriptedSink()]
    one, other = map(world.deliveries, sinks)
    await world.tell(A, 2, 3)

    async def stands_still() -> None:
        await world.sleep(LEASE.total_seconds() + 1)
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
        await world.sleep(LEASE.total_seconds() + 1)
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
    await world.tell(A, 2)
    await eventually(lambda: world.named(sink.taken) == [(A, 2)])
    with capture_logs() as logs:
        world.store.available = False
        await eventually(lambda: "controller_waits" in [line["event"] for line in logs])
        world.store.available = True
    await world.tell(A, 3)
    await eventually(lambda: world.named(sink.taken) == [(A, 2), (A, 3)])
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert await world.store.hold_delivery("another", LEASE) == await world.store.latest_event_token()
    await world.store.aclose()
    await ringing
