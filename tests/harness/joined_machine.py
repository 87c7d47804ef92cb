"""Control plane and workers together, on a clock that the test turns: whatever befalls them, in any order.

Real: two replicas with JobUpdater, AgentSession, Scheduler, LeaseMonitor and Collector; on each worker the machine of
every attempt, the reading, verifying and writing of checkpoints. Modelled: the store (in memory, it passes the contract
tests), object storage, agents around their attempts, training processes, streams, clocks, and everything that fails.

What is promised is looked at after every step. At the end all that is broken is mended, and everything has to come to
rest where the last command says, within SETTLING turns.
"""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from adjourn import errors, reasons
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.manifests import decode, manifest_key
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.job_pb2 import EPOCH, Condition, Hold, Job, JobSpec
from adjourn.v1.worker_pb2 import Device, Drain, Worker
from adjourn_control_plane.job import machine
from adjourn_control_plane.job.events import (
    CancelRequested,
    PauseRequested,
    ReleaseConfirmed,
    Requested,
    ResumeRequested,
)
from adjourn_control_plane.job.machine import ENDED, HELD
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import Change, Conflict, JobName, Session, Stored, Tombstone, WorkerName
from adjourn_worker.attempt.events import WorkerStopping
from tests.harness.checked_store import CheckedStore, key_of
from tests.harness.damaged_objects import DamagedObjects
from tests.harness.fake_clock import FakeClock, FakeLoop
from tests.harness.replica_model import SETTINGS, ReplicaModel, StreamModel
from tests.harness.training_model import TrainingModel
from tests.harness.worker_model import AgentModel, Host

T = TypeVar("T")
VERBS: Final[dict[str, Requested]] = {
    "pause": PauseRequested(actor="bob", mode=EPOCH, reason=""),
    "resume": ResumeRequested(actor="bob"),
    "hold": PauseRequested(actor="ops", mode=EPOCH, reason="", kind=Hold.OPERATOR),
    "release": ResumeRequested(actor="ops", kind=Hold.OPERATOR),
    "cancel": CancelRequested(actor="bob", reason=""),
    "save": CancelRequested(actor="bob", reason="", save_checkpoint=True),
}
"""What may be asked for. A new verb is a row here, and a case in `JoinedMachine.job_changed`."""
RESTS: Final = {
    "run": {Job.SUCCEEDED, Job.FAILED},
    "rest": {Job.PAUSED, Job.SUCCEEDED, Job.FAILED},
    "cancel": {Job.CANCELLED, Job.SUCCEEDED},
}
"""Where a job comes to rest, by what the commands came to."""
FAILURES: Final = [reasons.TRAINING_RAISED, reasons.STATE_MISMATCH]
WORKERS: Final = {"workers/a": (1, 0), "workers/b": (2, 1)}
"""CPU slots and GPUs of each."""
WORKER = st.sampled_from(list(WORKERS))
REPLICA = st.sampled_from([0, 1])
ANY = st.integers(0, 1000)
TURNS = st.integers(0, 4)
"""Turns in which all goes on, before something else happens."""
TURN_SECONDS: Final = 3.0
SILENT_TURNS: Final = 4
"""After so many turns without a response an agent gives its stream up."""
LEASE: Final = SETTINGS.lease_duration.total_seconds()
SETTLING: Final = 120
NAMES: Final = [JobName(f"jobs/j{index}") for index in range(3)]
MOST_JOBS: Final = 8


class JoinedMachine(RuleBasedStateMachine):
    requests: Bundle[tuple[JobName, str, Call, Job]] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.clean = contextlib.ExitStack()
        self.clean.enter_context(self.clock.everywhere())
        self.loop = FakeLoop(self.clock)
        self.store = CheckedStore(
            {name: slots for name, (slots, _) in WORKERS.items()}, lambda: int(self.clock.now.timestamp() * 1e9)
        )
        self.store.on_lost, self.store.on_change = self.worker_lost, self.job_changed
        self.objects = DamagedObjects()
        self.hosts = {name: self.host(name) for name in WORKERS}
        self.replicas = [self.replica(), self.replica()]
        self.killed: list[ReplicaModel] = []
        self.old_streams: list[StreamModel] = []
        """Given up by their agents; what was sent on them may still arrive."""
        self.calls: list[asyncio.Task[Any]] = []
        self.created = 0
        self.asked = 0
        self.wanted: dict[str, set[str]] = {}
        """What the commands came to for each job, by uid: holds, or `cancel`; nothing: it is to run."""
        self.verb = ""
        """That is being asked for."""
        self.listed: list[Tombstone] = []
        """What a slow replica has found to be purged, some time ago."""
        self.copy: dict[str, Any] | None = None
        """Of the store, from before."""
        self.whole = True
        """False once a rule lost something for good (a store set back): then less is promised."""
        for host in self.hosts.values():
            host.start_agent()

    def host(self, name: str) -> Host:
        slots, gpus = WORKERS[name]
        devices = [Device(uuid=f"GPU-{name[-1]}{index}", index=index, model="M") for index in range(gpus)]
        worker = Worker(name=name, cpu_slots=slots, devices=devices, instance=f"{name}-0")
        return Host(worker, self.clock, self.objects, self.run)

    def replica(self) -> ReplicaModel:
        return ReplicaModel(self.store, self.objects, self.loop)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def flow(self) -> None:
        """Lets everything go on that waits for nothing."""
        self.run(self.loop.run_out())
        for replica in (*self.replicas, *self.killed):
            replica.failures()

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            while tasks := asyncio.all_tasks(self.loop):
                for task in tasks:
                    task.cancel()
                self.clock.advance(1)
                self.run(self.loop.run_out())
            self.loop.close()
            self.clean.close()

    # callers

    @initialize(
        seed=ANY,
        specs=st.lists(st.tuples(st.integers(3, 9), st.integers(2, 6)), min_size=1, max_size=2),
        turns=st.integers(0, 6),
    )
    def begin(self, seed: int, specs: list[tuple[int, int]], turns: int) -> None:
        self.store.chance.seed(seed)
        for epochs, restarts in specs:
            self.create(epochs=epochs, restarts=restarts, gpus=0)
        self.work(turns)

    @precondition(lambda self: self.created < MOST_JOBS)
    @rule(epochs=st.sampled_from([0, 1, 3, 5, 7, 9]), restarts=st.integers(0, 3), gpus=st.sampled_from([0, 0, 1]))
    def create(self, epochs: int, restarts: int, gpus: int) -> None:
        """Creates a job; its name may have been that of another, which was deleted."""
        name = NAMES[self.created % len(NAMES)]
        spec = JobSpec(entry_point="m:f", total_epochs=epochs, max_restarts=restarts, gpu_count=gpus)
        uid = str(UUID(int=self.store.chance.getrandbits(128)))
        decision = machine.create(Job(name=name, spec=spec), uid=uid, actor="ann", now=self.clock.now)
        change = Change(job=name, expected=0, record=decision.record, events=decision.events)
        with contextlib.suppress(Conflict):
            self.run(self.store.commit(change))
            self.created += 1
            self.wanted[uid] = set()

    def ask(self, name: JobName, verb: str, call: Call, replica: int = 0) -> Job | None:
        self.store.resuming, self.verb = verb == "resume", verb
        task = self.replicas[replica].spawn(self.replicas[replica].updater.request(name, VERBS[verb], call))
        try:
            self.flow()
            if not task.done():  # the replica is stopped; the caller has gone
                task.cancel()
                self.flow()
                return None
            answer: Job = task.result()
        except (errors.NotFoundError, errors.PreconditionError, errors.StoreUnavailableError):
            return None
        finally:
            self.store.resuming, self.verb = False, ""
        return answer

    @rule(
        target=requests,
        turns=TURNS,
        index=ANY,
        verb=st.sampled_from([*VERBS, "pause", "pause", "resume", "resume"]),
        replica=REPLICA,
    )
    def request(self, turns: int, index: int, verb: str, replica: int) -> Any:
        self.work(turns)
        name = self.name(index)
        self.asked += 1
        request = pb.PauseJobRequest(name=name, reason=verb, request_id=f"r{self.asked}")
        call = Call.of(request, request_id=request.request_id)
        answer = self.ask(name, verb, call, replica)
        return (name, verb, call, answer) if answer is not None else multiple()

    @rule(target=requests, turns=TURNS, index=ANY, replica=REPLICA)
    def pause_and_resume(self, turns: int, index: int, replica: int) -> Any:
        """A change of mind: asked at one replica, taken back at the other."""
        self.request(turns, index, "pause", replica)
        return self.request(turns % 2, index, "resume", 1 - replica)

    def name(self, index: int) -> JobName:
        """Picks a name, of a job that a worker has rather than of another."""
        held = [JobName(each.record.job.name) for each in self.jobs() if each.record.job.worker] if self.reads() else []
        names = held * 3 + NAMES
        return names[index % len(names)]

    @rule(request=requests, replica=REPLICA)
    def repeat(self, request: tuple[JobName, str, Call, Job], replica: int) -> None:
        name, verb, call, first = request
        if not self.replicas[replica].serves or not self.whole:
            return
        before = self.run(self.store.get(name))
        assert self.ask(name, verb, call, replica) == first
        after = self.run(self.store.get(name))
        assert (before and before.record.revision) == (after and after.record.revision), "a repeat changes nothing"

    @rule(index=ANY, replica=REPLICA)
    def delete(self, index: int, replica: int) -> None:
        if self.replicas[replica].serves:
            with contextlib.suppress(errors.JobNotFinishedError, errors.NotFoundError):
                self.run(self.replicas[replica].updater.delete(NAMES[index % len(NAMES)], Call()))

    def use_a_name_again(self, index: int, turns: int) -> None:
        """A job is cancelled and deleted while no worker can be reached, and another takes its name."""
        self.work(turns)
        self.mend_replicas()
        for host in self.hosts.values():
            host.cut_up = host.cut_down = True
        self.lose_silent()
        self.ask(NAMES[index % len(NAMES)], "cancel", Call())
        self.delete(index, 0)
        self.created += (index - self.created) % len(NAMES)
        self.create(epochs=2, restarts=1, gpus=0)
        for host in self.hosts.values():
            host.cut_up = host.cut_down = False

    # replicas

    @rule(what=st.sampled_from(["place", "all", "list", "purge late"]), replica=REPLICA)
    def controllers(self, what: str, replica: int) -> None:
        """A round of a controller, out of turn."""
        match what:
            case "place":
                self.place(replica)
            case "all":
                self.all_place_and_purge()
            case "list":
                self.list_what_is_to_be_purged()
            case _:
                self.purge_late()

    @rule(
        what=st.sampled_from(
            ["stop"] * 3
            + ["continue"] * 3
            + ["clock"] * 2
            + ["restart", "cut from store", "lose an answer", "outage", "set back"]
        ),
        replica=REPLICA,
        turns=st.integers(1, 9),
    )
    def replica_fault(self, what: str, replica: int, turns: int) -> None:
        match what:
            case "stop":
                self.stop_replica(replica)
            case "continue":
                self.continue_replica(replica)
            case "restart":
                self.restart_replica(replica)
            case "cut from store":
                self.cut_replica_from_store(replica)
            case "lose an answer":
                self.replicas[replica].gate.answers_lost = True
            case "outage":
                self.outage(turns)
            case "clock":
                self.set_clock([-10, -1, 1, 10][turns % 4])
            case _:
                self.set_store_back(back=turns > 4)

    def place(self, replica: int) -> None:
        self.replicas[replica].begin("place", self.replicas[replica].scheduler.place())
        self.flow()

    def all_place_and_purge(self) -> None:
        for replica in self.replicas:
            replica.begin("place", replica.scheduler.place())
            replica.begin("purge", replica.collector.purge())
        self.flow()

    def list_what_is_to_be_purged(self) -> None:
        self.listed = self.run(self.store.tombstones())

    def purge_late(self) -> None:
        """A slow replica purges what it found to be purged long ago."""
        for tombstone in self.listed:
            if self.replicas[0].serves and not self.objects.away:
                self.run(self.replicas[0].collector.remove(tombstone))

    def stop_replica(self, replica: int) -> None:
        """It gets SIGSTOP, at whatever it does; what it had begun it may end much later."""
        self.replicas[replica].look()  # it is just about to
        for _ in range(self.store.chance.randrange(12)):
            self.run(asyncio.sleep(0))
        self.replicas[replica].gate.open.clear()

    def continue_replica(self, replica: int) -> None:
        self.replicas[replica].gate.open.set()
        self.flow()

    def restart_replica(self, replica: int) -> None:
        self.replicas[replica].kill()
        self.killed.append(self.replicas[replica])
        self.replicas[replica] = self.replica()
        self.flow()

    def cut_replica_from_store(self, replica: int) -> None:
        gate = self.replicas[replica].gate
        gate.reaches_store = not gate.reaches_store

    def outage(self, turns: int) -> None:
        """Control plane and store are away for a while; no worker is to blame."""
        self.store.available = False
        for number in range(len(self.replicas)):
            self.restart_replica(number)
        for _ in range(turns):
            self.turn()
        self.store.available = True

    def set_clock(self, minutes: int) -> None:
        """Somebody sets the clock of the control plane."""
        self.clock.set_wall(timedelta(minutes=minutes))

    # links and agents

    @rule(
        what=st.sampled_from(["cut up", "cut down", "cut", "mend", "lose", "partition", "use a name again"]),
        turns=TURNS,
        worker=WORKER,
        steps=st.integers(0, 8),
    )
    def link_fault(self, what: str, turns: int, worker: str, steps: int) -> None:
        match what:
            case "lose":
                self.lose(turns, worker)
            case "partition":
                self.partition(turns, worker, steps)
            case "use a name again":
                self.use_a_name_again(steps, turns)
            case _:
                self.work(turns)
                self.hosts[worker].cut_up = what in ("cut up", "cut")
                self.hosts[worker].cut_down = what in ("cut down", "cut")

    @rule(
        what=st.sampled_from(["connect", "connect unheard", "speak", "speak", "arrive", "arrive", "late", "answer"]),
        worker=WORKER,
        replica=REPLICA,
        index=ANY,
    )
    def message(self, what: str, worker: str, replica: int, index: int) -> None:
        """One message goes a part of its way, or a stream takes the place of another."""
        match what:
            case "connect" | "connect unheard":
                self.connect(worker, replica, heard=what == "connect")
            case "speak":
                self.speak(worker)
            case "arrive":
                self.arrive(worker, most=1 if index % 2 else 99)
            case "late":
                self.arrive_late(index, most=1 if index % 2 else 99)
            case _:
                self.answer(worker)

    @rule(
        what=st.sampled_from(
            ["dies"] * 6 + ["start", "kill", "reboot", "wipe", "new disk", "launcher", "stop", "go on", "term"]
        ),
        worker=WORKER,
        fuse=st.integers(0, 12),
    )
    def machine_fault(self, what: str, worker: str, fuse: int) -> None:
        match what:
            case "dies":
                self.agent_will_die(worker, fuse)
            case "start":
                self.start_agent(worker)
            case "stop" | "go on":
                self.stop_agent(worker, stopped=what == "stop")
            case "term":
                self.stop_worker(worker)
            case _:
                self.machine_fails(worker, what)

    def lose(self, turns: int, worker: str) -> None:
        """A worker is out of reach for a lease."""
        self.work(turns)
        self.hosts[worker].cut_up = True
        self.lose_silent()
        self.hosts[worker].cut_up = False

    def partition(self, turns: int, worker: str, steps: int) -> None:
        """A worker trains on out of reach for longer than a lease, and is back before anyone else is given its jobs."""
        self.work(turns)
        host = self.hosts[worker]
        self.mend_replicas()
        if not host.reachable:
            return
        held = self.run(self.store.allocation(WorkerName(worker))).jobs
        host.cut_up = host.cut_down = True
        for _ in range(SILENT_TURNS + 3):
            self.turn(place=False, only=self.hosts.keys() - {worker})
        for _ in range(steps):
            self.train_on(host, 1)
            self.agent_works(host)
        host.cut_up = host.cut_down = False
        for _ in range(3):
            self.turn(place=False, trains=False)
        for before in held:
            after = self.run(self.store.get(JobName(before.record.job.name)))
            agent = host.agent
            assert agent is not None
            known = agent.runners.get(key_of(before.record))
            if known is None or after is None or before.record.job.state == Job.CANCELLING:
                continue
            if after.record.job.failure.reason not in ("", reasons.WORKER_LOST):
                continue  # it failed by itself
            assert after.record.token == before.record.token
            assert after.record.job.restart_count <= before.record.job.restart_count, "it costs nothing"
            persisted = known.held.persisted.name
            assert after.record.checkpoint.name == persisted or not persisted, "nothing is thrown away"
            assert known.over or after.record.job.worker == worker, "it goes on where it is"

    def lose_silent(self) -> None:
        """Lets a lease pass without those that cannot be heard."""
        for _ in range(int(LEASE / TURN_SECONDS) + 2):
            self.turn(trains=False)

    def connect(self, worker: str, replica: int, *, heard: bool) -> None:
        """The agent opens another stream; that it has given the one before up is heard, or not."""
        agent = self.hosts[worker].agent
        if agent is not None and not agent.stopped:
            self.open(agent, replica, heard=heard)

    def open(self, agent: AgentModel, replica: int, *, heard: bool = True) -> None:
        if agent.stream is not None:
            old: StreamModel = agent.stream
            old.broken_by_agent()
            if heard:
                old.arrive()
            self.old_streams.append(old)
        stream = StreamModel(agent.host, agent, self.replicas[replica])
        stream.speak()

    def speak(self, worker: str) -> None:
        """A message is sent, and takes its time."""
        agent = self.hosts[worker].agent
        if agent is not None and agent.stream is not None and not agent.stopped:
            agent.stream.speak()

    def arrive(self, worker: str, most: int) -> None:
        """A message arrives: in order on its own stream."""
        agent = self.hosts[worker].agent
        if agent is not None and agent.stream is not None:
            agent.stream.arrive(most)
            self.flow()

    def arrive_late(self, index: int, most: int) -> None:
        """What was sent on a stream that was given up arrives after all."""
        if not self.old_streams:
            return
        self.old_streams[index % len(self.old_streams)].arrive(most)
        self.flow()

    def answer(self, worker: str) -> None:
        """The newest response arrives, and the agent does what it says."""
        agent = self.hosts[worker].agent
        if agent is not None and agent.stream is not None:
            agent.stream.deliver()
            self.hears(agent)

    @rule(turns=TURNS, worker=WORKER, wanted=st.booleans(), by_agent=st.booleans())
    def drain(self, turns: int, worker: str, wanted: bool, by_agent: bool) -> None:
        """An operator, or the agent itself, wants a worker to become empty; or no longer."""
        self.work(turns)
        agent = self.hosts[worker].agent
        if by_agent and agent is not None:
            agent.draining = wanted
        elif not by_agent and self.reads():
            self.run(self.store.order_drain(WorkerName(worker), Drain(actor="ops") if wanted else None))

    @rule(worker=WORKER, index=ANY)
    def repeat_report(self, worker: str, index: int) -> None:
        """A report comes again, long after it was sent, over a stream that nobody remembers."""
        sent = self.hosts[worker].sent
        if sent and self.replicas[0].serves and self.whole:
            report = sent[index % len(sent)]
            stored = self.run(self.store.get(JobName(report.job)))
            mine = stored is not None and report.token == stored.record.token
            if not mine or (stored and report.sequence <= stored.record.applied_report):
                instance = self.hosts[worker].worker.instance
                self.run(self.replicas[0].updater.report(report, worker, instance=instance))
                again = self.run(self.store.get(JobName(report.job)))
                assert (again and again.version) == (stored and stored.version)

    def agent_will_die(self, worker: str, fuse: int) -> None:
        """The agent dies at one of the next things it does."""
        if self.hosts[worker].agent is not None:
            self.hosts[worker].fuse = fuse

    def start_agent(self, worker: str) -> None:
        if self.hosts[worker].agent is None:
            self.hosts[worker].start_agent()

    def machine_fails(self, worker: str, how: str) -> None:
        host = self.hosts[worker]
        self.give_up_stream(host)
        if how == "kill":
            host.kill_agent()
        elif how == "reboot":
            host.reboot()
        elif how in ("wipe", "new disk"):
            host.wipe(same_gpus=how == "new disk")
        else:
            host.launcher_dies()

    def give_up_stream(self, host: Host) -> None:
        if host.agent is not None and host.agent.stream is not None:
            self.old_streams.append(host.agent.stream)

    def stop_agent(self, worker: str, *, stopped: bool) -> None:
        """The agent gets SIGSTOP or SIGCONT; training does not."""
        agent = self.hosts[worker].agent
        if agent is not None:
            agent.stopped = stopped

    def stop_worker(self, worker: str) -> None:
        """The worker ends all that it runs."""
        agent = self.hosts[worker].agent
        if agent is not None and not agent.stopped:
            for runner in list(agent.runners.values()):
                agent.does(agent.feed, runner, WorkerStopping())

    # training and storage

    def pick(self, worker: str, index: int) -> TrainingModel | None:
        live = self.hosts[worker].alive()
        return live[index % len(live)] if live else None

    @rule(worker=WORKER, index=ANY, steps=st.integers(1, 3))
    def train(self, worker: str, index: int, steps: int) -> None:
        if training := self.pick(worker, index):
            for _ in range(steps):
                training.step(self.clock.now.timestamp())

    @rule(turns=TURNS, worker=WORKER, index=ANY, how=st.sampled_from([*FAILURES, "crash", "crash unseen", "hang"]))
    def fail(self, turns: int, worker: str, index: int, how: str) -> None:
        self.work(turns)
        if training := self.pick(worker, index):
            if how == "hang":
                training.hung = not training.hung
            elif how in FAILURES:
                training.fail(how, self.clock.now.timestamp())
            else:
                training.end(-11, seen=how == "crash")

    @rule(worker=WORKER, index=ANY, most=st.sampled_from([1, 2, 99]), work=st.booleans())
    def agent_does(self, worker: str, index: int, most: int, work: bool) -> None:
        """The agent reads what training wrote, and brings to an end what it has under way."""
        agent = self.hosts[worker].agent
        if agent is None or agent.stopped or not agent.runners:
            return
        runner = list(agent.runners.values())[index % len(agent.runners)]
        agent.does(agent.poll, runner, most)
        if work and self.hosts[worker].agent is agent:
            agent.does(agent.work, runner)

    @rule(what=st.sampled_from(["away", "flip", "cut", "remove", "rot"]), index=ANY)
    def storage_fault(self, what: str, index: int) -> None:
        if what == "away":
            self.object_storage_comes_and_goes()
        else:
            self.damage(index, what)

    def object_storage_comes_and_goes(self) -> None:
        self.objects.away = not self.objects.away

    def damage(self, index: int, how: str) -> None:
        """The object store damages an object."""
        keys = sorted(each for each in self.objects.contents if each not in self.objects.broken)
        if keys:
            self.objects.damage(keys[index % len(keys)], how)

    def set_store_back(self, *, back: bool) -> None:
        """The store is copied, or set back to that copy. What it then contradicts is not promised any more."""
        if not back:
            self.copy = self.store.kept()
        elif self.copy is not None:
            self.store.restore(self.copy)
            self.whole = False
            self.flow()

    # what goes on by itself

    @rule(turns=TURNS)
    def work(self, turns: int) -> None:
        """Everything goes on for a while, as far as it is not broken."""
        for _ in range(turns):
            self.turn()

    def turn(self, *, place: bool = True, trains: bool = True, only: Any = None) -> None:
        """Lets TURN_SECONDS pass; everything that is not broken does what it does."""
        self.note_health()
        for replica in self.replicas:
            replica.pulse()
        self.flow()
        self.clock.advance(TURN_SECONDS)
        self.flow()
        for host in self.hosts.values():
            if only is None or host.name in only:
                if trains:
                    self.train_on(host, 1)
                self.agent_works(host)
                self.synchronize(host)
        for replica in self.replicas:
            replica.begin("expire", replica.monitor.expire())
            if place:
                replica.look()
        self.flow()
        for host in self.hosts.values():
            if host.agent is not None and host.agent.stream is not None:
                host.agent.stream.deliver()
                self.hears(host.agent)
        self.note_health()

    def train_on(self, host: Host, steps: int) -> None:
        for training in host.alive():
            for _ in range(steps):
                training.step(self.clock.now.timestamp())

    def agent_works(self, host: Host) -> None:
        agent = host.agent
        if agent is None or agent.stopped:
            return
        for runner in list(agent.runners.values()):
            for work in (agent.poll, agent.work):
                if host.agent is agent:
                    agent.does(work, runner)

    def synchronize(self, host: Host) -> None:
        """The agent speaks, and hears what there is to hear."""
        agent = host.agent
        if agent is None or agent.stopped:
            return
        if agent.refused:
            host.kill_agent()
            return
        agent.silence += 1
        if agent.stream is None or agent.silence >= SILENT_TURNS:
            running = [number for number, replica in enumerate(self.replicas) if not replica.stopped]
            if not running:
                return
            self.open(agent, running[host.agents % len(running)] if len(running) > 1 else running[0])
            host.agents += 1
        else:
            agent.stream.speak()
        agent.stream.arrive()
        self.flow()
        agent.stream.deliver()
        self.hears(agent)

    def hears(self, agent: AgentModel) -> None:
        """Of several responses that wait, only the newest is handled."""
        if agent.inbox and not agent.stopped and agent.host.agent is agent:
            newest = agent.inbox[-1]
            agent.inbox.clear()
            agent.does(agent.hear, newest)

    # what is watched

    def note_health(self) -> None:
        for host in self.hosts.values():
            if not host.reachable:
                host.well_since = None
            elif host.well_since is None:
                host.well_since = self.clock.monotonic

    def worker_lost(self, session: Session) -> None:
        """No lease ends because of an outage of ours: only workers that could not speak are taken for lost.

        A machine that was replaced speaks no more; its successor may not speak until that is noticed.
        """
        host = self.hosts[session.worker.name]
        well_since = host.well_since if session.worker.instance == host.worker.instance else None
        if well_since is not None and host.reachable:
            assert self.clock.monotonic - well_since < LEASE, "it was there all the time"

    def job_changed(self, before: JobRecord | None, after: JobRecord | None) -> None:
        if after is None:
            return
        if before is not None and self.whole:
            self.a_pause_is_taken_where_it_was_named(before, after)
        if self.verb and before is not None and after.revision != before.revision:
            wanted = self.wanted[after.job.uid]
            match self.verb:
                case "cancel" | "save":
                    self.wanted[after.job.uid] = {"cancel"}
                case "resume" if before.job.state in ENDED:
                    wanted.clear()
                case "resume" | "release":
                    wanted.discard("pause" if self.verb == "resume" else "hold")
                case _:
                    wanted.add(self.verb)

    def a_pause_is_taken_where_it_was_named(self, before: JobRecord, after: JobRecord) -> None:
        """Unless its attempt failed or was lost on the way, which the pause then says."""
        asked, taken = before.job.pause, after.job.pause
        leaves = before.job.state == Job.PAUSING != after.job.state
        same = before.token == after.token and asked.request_time == taken.request_time
        if leaves and same and taken.HasField("pause_time") and not taken.HasField("lost_duration"):
            assert asked.boundary_epoch in (0, taken.epoch), "it was named, and it was no other"
        if after.job.state != Job.PAUSING:
            assert not taken.boundary_epoch

    def jobs(self) -> list[Stored]:
        found: list[Stored] = self.run(self.store.page(states=[], labels={}, size=100, before=None))[0]
        return found

    @invariant()
    def what_a_record_says_is_so(self) -> None:
        self.flow()  # what is read one after the other is read at one moment
        if not self.reads():
            return
        for stored in self.jobs():
            record = stored.record
            if self.whole:
                self.run(self.store.keeps_its_promises(record))
                self.what_is_registered_is_there(record)
                self.nobody_runs_what_rests(record)

    def reads(self) -> bool:
        return self.store.available

    def what_is_registered_is_there(self, record: JobRecord) -> None:
        if record.checkpoint.name:
            place = manifest_key(record.job.uid, record.checkpoint.name.rpartition("/")[2])
            if place in self.objects.broken:
                return
            assert place in self.objects.contents, "nobody purges a living job"
            missing = self.objects.damaged(decode(self.objects.contents[place]))
            assert not set(missing) - self.objects.broken, "every part of it is whole"

    def nobody_runs_what_rests(self, record: JobRecord) -> None:
        """Of each process it is known that it runs, or that it may run."""
        job = record.job
        doubted = [entry.token for entry in record.unconfirmed_releases]
        assert (Condition.RELEASE_UNCONFIRMED in [each.type for each in job.conditions]) == bool(doubted)
        known = [record.token] if job.state in HELD and not record.released else []
        alive = [
            training.assignment.token
            for host in self.hosts.values()
            for training in host.alive()
            if training.assignment.token.job_uid == job.uid
        ]
        assert alive.count(record.token) <= 1, "one process at most is the job's own"
        for token in alive:
            assert token in (*known, *doubted), (
                f"{Job.State.Name(job.state)}, and a process of attempt {token.attempt} lives"
            )
        if job.state == Job.PAUSED and record.token in doubted:
            assert not job.pause.HasField("release_time"), "nobody knows that its GPUs are free"

    @invariant()
    def a_gpu_has_one_process(self) -> None:
        for host in self.hosts.values():
            used = [uuid for training in host.alive() for uuid in training.assignment.device_uuids]
            assert len(set(used)) == len(used) or not self.whole

    @invariant()
    def what_the_jobs_own_attempt_made_durable_is_registered(self) -> None:
        """Also if its worker was out of reach for longer than a lease, as long as no other attempt was handed out."""
        if not self.reads() or not self.whole:
            return
        for host in self.hosts.values():
            for report in host.acknowledged:
                stored = self.run(self.store.get(JobName(report.job)))
                if stored is None or stored.record.token != report.token or not report.HasField("checkpoint"):
                    continue
                if stored.record.job.worker or stored.record.HasField("lost_attempt"):
                    assert stored.record.checkpoint.epoch >= report.checkpoint.epoch

    # the end

    def mend_replicas(self) -> None:
        self.store.available = True
        for replica in self.replicas:
            replica.gate.open.set()
            replica.gate.reaches_store = True
            replica.gate.answers_lost = False
        self.flow()

    def settle(self) -> None:
        """Mends everything; all that was begun comes to rest."""
        self.mend_replicas()
        self.objects.away = False
        for host in self.hosts.values():
            host.cut_up = host.cut_down = False
            host.fuse = None
            if host.agent is None:
                host.start_agent()
            assert host.agent is not None
            host.agent.stopped = host.agent.draining = False
            self.run(self.store.order_drain(WorkerName(host.name), None))
            for training in host.alive():
                training.hung = training.stopped = False
        quiet = 0
        for _ in range(SETTLING):
            for host in self.hosts.values():
                if host.agent is None:
                    host.start_agent()
            self.turn()
            self.operators_say_what_is_gone()
            self.what_a_record_says_is_so()
            quiet = 0 if self.restless() else quiet + 1
            if quiet > 3:
                break
        assert not self.restless(), f"everything comes to rest: {self.restless()}"
        for stored in self.jobs():
            job = stored.record.job
            if self.whole:
                wanted = self.wanted[job.uid]
                rest = "cancel" if "cancel" in wanted else "rest" if wanted else "run"
                assert job.state in RESTS[rest], (wanted, job)
                assert not stored.record.unconfirmed_releases, "each worker is back, or was said to be gone"

    def operators_say_what_is_gone(self) -> None:
        """Of machines that were replaced: their successors cannot, and may have the same GPUs."""
        here = {host.worker.instance for host in self.hosts.values()}
        for stored in self.jobs():
            for entry in stored.record.unconfirmed_releases:
                if entry.instance not in here:
                    event = ReleaseConfirmed(actor="ops", token=entry.token)
                    self.run(self.replicas[0].updater.apply(JobName(stored.record.job.name), event))

    def restless(self) -> list[Any]:
        """Returns what is not at rest yet."""
        moving: list[Any] = [
            stored.record.job for stored in self.jobs() if stored.record.job.state not in ENDED | {Job.PAUSED}
        ]
        for host in self.hosts.values():
            moving += host.reports
            moving += host.alive()
        return moving
