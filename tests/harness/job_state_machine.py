"""What callers, workers and the network may do to a control plane, in any order; and what it promises meanwhile.

The control plane's own updater, controllers and agent sessions run on the store in memory. Workers are modelled: they
hold attempts, train, journal reports and say all of it again until it is acknowledged; they fall silent, lose their
stream, come back with a new one or with nothing at all, and their old messages arrive late.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from adjourn import errors, reasons
from adjourn.objects import S3Settings
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.job_pb2 import EPOCH, Failure, Hold, Job, JobSpec
from adjourn.v1.worker_pb2 import Drain
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.fleet.lease_monitor import LeaseMonitor
from adjourn_control_plane.fleet.scheduler import Scheduler
from adjourn_control_plane.fleet.session import AgentSession
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.events import CancelRequested, PauseRequested, Requested, ResumeRequested
from adjourn_control_plane.job.machine import ENDED
from adjourn_control_plane.job.updater import Call, JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.interface import Change, Conflict, JobName, JobUid, WorkerName
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.memory_objects import MemoryObjects
from tests.harness.worker_model import SLOTS, Attempt, CheckedStore, Status, WorkerModel, key_of, manifest

T = TypeVar("T")
SETTINGS = Settings(
    redis_url="redis://none", s3=S3Settings(endpoint="http://none", bucket="b", access_key="k", secret_key="s")
)
VERBS: dict[str, Requested] = {
    "pause": PauseRequested(actor="bob", mode=EPOCH, reason=""),
    "resume": ResumeRequested(actor="bob"),
    "hold": PauseRequested(actor="ops", mode=EPOCH, reason="", kind=Hold.OPERATOR),
    "release": ResumeRequested(actor="ops", kind=Hold.OPERATOR),
    "cancel": CancelRequested(actor="bob", reason=""),
    "save": CancelRequested(actor="bob", reason="", save_checkpoint=True),
}
FAILURES = [reasons.TRAINING_RAISED, reasons.PROCESS_KILLED, reasons.STATE_MISMATCH, reasons.WORKER_STOPPED]
WORKER = st.sampled_from(list(SLOTS))
ANY = st.integers(0, 1000)
TURNS = st.integers(0, 2)
"""Rounds in which all goes well, before something else happens."""
FAIR_ROUNDS = 80
NAMES = [JobName(f"jobs/j{index}") for index in range(3)]
MOST_JOBS = 8


class ControlPlane(RuleBasedStateMachine):
    requests: Bundle[tuple[JobName, str, Call, Job]] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = CheckedStore()
        self.updater = JobUpdater(self.store)
        self.notifier = Notifier(self.store)
        self.schedulers = [Scheduler(self.store, self.updater, self.notifier, SETTINGS) for _ in range(2)]
        self.monitors = [LeaseMonitor(self.store, self.updater, SETTINGS) for _ in range(2)]
        self.objects = MemoryObjects()
        self.collectors = [Collector(self.store, self.objects, SETTINGS) for _ in range(2)]
        self.listed: list[JobUid] = []
        """What a slow replica has found to be purged, some time ago."""
        self.models = {name: WorkerModel(name, self.objects) for name in SLOTS}
        self.created = 0
        self.asked = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        try:
            self.run(self.fair_finish())
        finally:
            self.runner.close()

    # callers

    @initialize(seed=ANY, specs=st.lists(st.tuples(st.integers(2, 6), st.integers(2, 6)), min_size=1, max_size=2))
    def begin(self, seed: int, specs: list[tuple[int, int]]) -> None:
        self.store.chance.seed(seed)
        for epochs, restarts in specs:
            self.create(epochs=epochs, restarts=restarts)

    @precondition(lambda self: self.created < MOST_JOBS)
    @rule(epochs=st.integers(0, 4), restarts=st.integers(0, 3))
    def create(self, epochs: int, restarts: int) -> None:
        """Creates a job; its name may have been that of another, which was deleted."""
        name = NAMES[self.created % len(NAMES)]
        spec = JobSpec(entry_point="m:f", total_epochs=epochs, max_restarts=restarts)
        decision = machine.create(Job(name=name, spec=spec), uid=str(uuid4()), actor="ann", now=datetime.now(UTC))
        change = Change(job=name, expected=0, record=decision.record, events=decision.events)
        with contextlib.suppress(Conflict):
            self.run(self.store.commit(change))
            self.created += 1

    def ask(self, name: JobName, verb: str, call: Call) -> Job | None:
        self.store.resuming = verb == "resume"
        try:
            return self.run(self.updater.request(name, VERBS[verb], call))
        except (errors.NotFoundError, errors.PreconditionError):
            return None
        finally:
            self.store.resuming = False

    @rule(
        target=requests,
        turns=TURNS,
        index=ANY,
        verb=st.sampled_from([*VERBS, "pause", "pause", "resume", "resume"]),
    )
    def request(self, turns: int, index: int, verb: str) -> Any:
        self.work(turns)
        name = NAMES[index % len(NAMES)]
        self.asked += 1
        request = pb.PauseJobRequest(name=name, reason=verb, request_id=f"r{self.asked}")
        call = Call.of(request, request_id=request.request_id)
        answer = self.ask(name, verb, call)
        return (name, verb, call, answer) if answer is not None else multiple()

    @rule(request=requests)
    def repeat(self, request: tuple[JobName, str, Call, Job]) -> None:
        name, verb, call, first = request
        token = self.run(self.store.latest_token())
        assert self.ask(name, verb, call) == first
        assert self.run(self.store.latest_token()) == token, "a repeat changes nothing"

    @rule(index=ANY)
    def delete(self, index: int) -> None:
        with contextlib.suppress(errors.JobNotFinishedError, errors.NotFoundError):
            self.run(self.updater.delete(NAMES[index % len(NAMES)], Call()))

    @precondition(lambda self: self.created < MOST_JOBS)
    @rule(index=ANY, turns=TURNS)
    def use_a_name_again(self, index: int, turns: int) -> None:
        """A job is cancelled and deleted while no worker can be reached, and another takes its name."""
        self.work(turns)
        for each in self.models.values():
            self.run(self.cut_off(each))
        self.ask(NAMES[index % len(NAMES)], "cancel", Call())
        self.delete(index)
        self.created += (index - self.created) % len(NAMES)
        self.create(epochs=2, restarts=1)
        for each in self.models.values():
            self.run(self.attach(each))

    # controllers

    @rule()
    def place(self) -> None:
        self.run(at_once(*(scheduler.place() for scheduler in self.schedulers)))

    @rule()
    def purge(self) -> None:
        self.run(at_once(*(collector.purge() for collector in self.collectors)))

    @rule()
    def list_what_is_to_be_purged(self) -> None:
        self.listed = self.run(self.store.tombstones())

    @rule()
    def purge_late(self) -> None:
        """A slow replica purges what it found to be purged long ago."""
        for uid in self.listed:
            self.run(self.collectors[0].remove(uid))

    @rule(turns=TURNS, worker=WORKER)
    def mark_lost(self, turns: int, worker: str) -> None:
        """The lease runs out, and every replica notices."""
        self.work(turns)
        self.run(self.expire(WorkerName(worker)))

    @rule(turns=TURNS, worker=WORKER, steps=st.integers(0, 4))
    def partition(self, turns: int, worker: str, steps: int) -> None:
        """A worker trains on out of reach for longer than a lease, and is back before anyone else is given its jobs."""
        self.work(turns)
        model = self.models[worker]
        held = self.run(self.store.allocation(WorkerName(worker))).jobs
        self.run(self.cut_off(model))
        for attempt in list(model.attempts.values()):
            for _ in range(steps):
                if not attempt.over:
                    model.advance(attempt)
        self.run(self.attach(model))
        for before in held:
            known = model.attempts.get(key_of(before.record))
            after = self.run(self.store.get(JobName(before.record.job.name)))
            if known is None or after is None or before.record.job.state == Job.CANCELLING:
                continue
            assert after.record.token == before.record.token
            assert after.record.job.restart_count <= before.record.job.restart_count, "it costs nothing"
            assert after.record.checkpoint.name == known.persisted or not known.persisted, "nothing is thrown away"
            assert known.over or after.record.job.worker == worker, "it goes on where it is"

    async def cut_off(self, model: WorkerModel) -> None:
        """Nothing comes from a worker for a lease, and what was on its way is gone."""
        worker = WorkerName(model.name)
        model.stream = None
        model.travelling.clear()
        session = await self.store.session(worker)
        if session and await self.store.mark_lost(worker, session.heartbeat):
            await self.monitors[0].take_back(worker)

    async def expire(self, worker: WorkerName) -> None:
        session = await self.store.session(worker)
        if session and await self.store.mark_lost(worker, session.heartbeat):
            await at_once(
                *(monitor.take_back(worker) for monitor in self.monitors),
                *(scheduler.place() for scheduler in self.schedulers),
            )

    # streams

    @rule(worker=WORKER, restarted=st.booleans())
    def connect(self, worker: str, restarted: bool) -> None:  # hypothesis passes by name
        self.models[worker].sessions += restarted
        self.run(self.attach(self.models[worker]))

    async def attach(self, model: WorkerModel) -> AgentSession:
        first = model.says()
        model.stream = AgentSession(first, self.store, self.updater, self.notifier, SETTINGS)
        await self.store.attach(model.stream.described(first), first.session_id, model.stream.id)
        await model.stream.handle(first)
        await self.store.heartbeat(model.stream.described(first), model.stream.id)
        return model.stream

    @rule(worker=WORKER)
    def disconnect(self, worker: str) -> None:
        model = self.models[worker]
        if model.stream:
            self.run(self.store.detach(WorkerName(worker), model.stream.id))
            model.stream = None

    @rule(worker=WORKER)
    def speak(self, worker: str) -> None:
        """A message is sent, and takes its time."""
        model = self.models[worker]
        if model.stream:
            model.travelling.append((model.stream, model.says()))

    @rule(worker=WORKER, newest=st.booleans())
    def arrive(self, worker: str, newest: bool) -> None:
        """A message arrives: in order on its own stream, in any order across streams."""
        model = self.models[worker]
        if model.travelling:
            self.run(self.handle(model, model.travelling[-1 if newest else 0][0], one=True))

    async def handle(self, model: WorkerModel, stream: AgentSession, *, one: bool = False) -> None:
        """Lets what was sent on a stream arrive."""
        mine = [message for message in model.travelling if message[0] is stream][: 1 if one else None]
        for message in mine:
            model.travelling.remove(message)
            if await self.store.heartbeat(stream.described(message[1]), stream.id):
                await stream.handle(message[1])

    @rule(worker=WORKER)
    def answer(self, worker: str) -> None:
        model = self.models[worker]
        if model.stream:
            self.run(model.listen(model.stream))

    @rule(worker=WORKER, index=ANY)
    def repeat_report(self, worker: str, index: int) -> None:
        """A report comes again, long after it was sent, over a stream that nobody remembers."""
        sent = self.models[worker].sent
        if sent:
            report = sent[index % len(sent)]
            stored = self.run(self.store.get(JobName(report.job)))
            mine = stored is not None and report.token == stored.record.token
            if not mine or (stored and report.sequence <= stored.record.applied_report):
                self.run(self.updater.report(report, worker))
                again = self.run(self.store.get(JobName(report.job)))
                assert (again and again.version) == (stored and stored.version)

    @rule(turns=TURNS, worker=WORKER, wanted=st.booleans(), by_agent=st.booleans())
    def drain(self, turns: int, worker: str, wanted: bool, by_agent: bool) -> None:  # hypothesis passes by name
        """An operator, or the agent itself, wants a worker to become empty; or no longer."""
        self.work(turns)
        if by_agent:
            self.models[worker].draining = wanted
        else:
            self.run(self.store.order_drain(WorkerName(worker), Drain(actor="ops") if wanted else None))

    @rule(turns=TURNS)
    def work(self, turns: int) -> None:
        """All goes well for a while."""
        for _ in range(turns):
            self.run(self.round())

    async def turn(self, model: WorkerModel) -> None:
        stream = model.stream or await self.attach(model)
        for attempt in list(model.attempts.values()):
            model.advance(attempt)
        model.travelling.append((stream, model.says()))
        await self.handle(model, stream)
        await model.listen(stream)
        await self.schedulers[0].place()

    # training

    def pick(self, worker: str, index: int) -> Attempt | None:
        live = [attempt for attempt in self.models[worker].attempts.values() if not attempt.over]
        return live[index % len(live)] if live else None

    @rule(worker=WORKER, index=ANY)
    def advance(self, worker: str, index: int) -> None:
        if attempt := self.pick(worker, index):
            self.models[worker].advance(attempt)

    @rule(turns=TURNS, worker=WORKER, index=ANY, reason=st.sampled_from(FAILURES))
    def fail(self, turns: int, worker: str, index: int, reason: str) -> None:
        self.work(turns)
        if attempt := self.pick(worker, index):
            phase = Status.STOPPED if reason == reasons.WORKER_STOPPED else Status.FAILED
            self.models[worker].end(attempt, phase, Failure(reason=reason, message="no"))

    @rule(worker=WORKER)
    def wipe(self, worker: str) -> None:
        """The machine is replaced: its processes, its journal and its agent are gone, its name stays."""
        old = self.models[worker]
        self.models[worker] = WorkerModel(
            worker, self.objects, life=old.life + 1, travelling=old.travelling, sent=old.sent
        )

    # promises

    @invariant()
    def promises(self) -> None:
        for stored in self.run(self.store.page(states=[], labels={}, size=100, before=None))[0]:
            self.run(self.store.keeps_its_promises(stored.record))

    @invariant()
    def what_is_registered_is_there(self) -> None:
        for stored in self.run(self.store.page(states=[], labels={}, size=100, before=None))[0]:
            if stored.record.checkpoint.name:
                assert manifest(stored.record.checkpoint) in self.objects.contents, "nobody purges a living job"

    @invariant()
    def what_the_jobs_own_attempt_made_durable_is_registered(self) -> None:
        """Also if its worker was out of reach for longer than a lease, as long as no other attempt was handed out."""
        for worker in self.models.values():
            for report in worker.acknowledged:
                stored = self.run(self.store.get(JobName(report.job)))
                if stored is None or stored.record.token != report.token or not report.HasField("checkpoint"):
                    continue
                if stored.record.job.worker or stored.record.HasField("lost_attempt"):
                    assert stored.record.checkpoint.epoch >= report.checkpoint.epoch

    @invariant()
    def one_process_at_most_is_the_jobs_own(self) -> None:
        live = [
            (worker.name, attempt)
            for worker in self.models.values()
            for attempt in worker.attempts.values()
            if not attempt.over
        ]
        assert len({attempt.key for _, attempt in live}) == len(live)

    async def fair_finish(self) -> None:
        """From now on every message arrives and every worker works: every job comes to rest."""
        for model in self.models.values():
            model.draining = False
            await self.store.order_drain(WorkerName(model.name), None)
        for _ in range(FAIR_ROUNDS):
            await self.round()
            if not await self.restless():
                break
        await self.round()  # what ended last is heard of
        await self.round()
        assert not await self.restless(), "every job comes to rest"
        assert not any(worker.reports for worker in self.models.values()), "all that was reported is acknowledged"

    async def round(self) -> None:
        for worker in self.models.values():
            await self.turn(worker)

    async def restless(self) -> list[Job]:
        page, _ = await self.store.page(states=[], labels={}, size=100, before=None)
        jobs = [stored.record.job for stored in page]
        return [job for job in jobs if job.state not in ENDED | {Job.PAUSED}]


async def at_once(*works: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(*works)
