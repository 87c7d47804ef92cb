"""Control plane and workers on a clock that the test turns, and all that can befall them.

Real: two replicas with JobUpdater, AgentSession, Scheduler, LeaseMonitor and Collector; on each worker the agent's
decisions, the machine of every attempt, the reading, verifying and writing of checkpoints. Modelled: the store (in
memory, it passes the contract tests), object storage, the agents' processes, training processes, streams, clocks.
"""

import asyncio
import contextlib
import json
from collections.abc import Collection
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from adjourn import errors
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.manifests import FORMAT, manifest_key
from adjourn.v1.job_pb2 import EPOCH, LATEST, STEP, Hold, Job, JobSpec
from adjourn.v1.worker_pb2 import Device, Drain, Worker
from adjourn_control_plane.job.events import CancelRequested, PauseRequested, Requested, ResumeRequested
from adjourn_control_plane.job.machine import ENDED, create
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import Change, Conflict, JobName, Stored, Tombstone, WorkerName
from adjourn_worker.attempt.events import WorkerStopping
from tests.harness.checked_store import CheckedStore
from tests.harness.damaged_objects import DamagedObjects
from tests.harness.fake_clock import FakeClock, FakeLoop, drawn_from
from tests.harness.replica_model import SETTINGS, ReplicaModel, StreamModel
from tests.harness.training_model import TrainingModel
from tests.harness.worker_model import AgentModel, Host

VERBS: Final[dict[str, Requested]] = {
    "pause": PauseRequested(actor="bob", mode=EPOCH, reason=""),
    "pause at step": PauseRequested(actor="bob", mode=STEP, reason=""),
    "pause now": PauseRequested(actor="bob", mode=LATEST, reason=""),
    "resume": ResumeRequested(actor="bob"),
    "hold": PauseRequested(actor="ops", mode=EPOCH, reason="", kind=Hold.OPERATOR),
    "hold now": PauseRequested(actor="ops", mode=LATEST, reason="", kind=Hold.OPERATOR),
    "release": ResumeRequested(actor="ops", kind=Hold.OPERATOR),
    "cancel": CancelRequested(actor="bob", reason=""),
    "save": CancelRequested(actor="bob", reason="", save_checkpoint=True),
    "save at step": CancelRequested(actor="bob", reason="", save_checkpoint=True, mode=STEP),
}
"""What may be asked for. A new verb is a row here, and a case in `World.asked_for`."""
TWIN: Final = "twin of workers/b"
MACHINES: Final = {"workers/a": ("workers/a", 1, 0), "workers/b": ("workers/b", 2, 1), TWIN: ("workers/b", 2, 1)}
"""Worker, CPU slots and GPUs of each. The twin has a copied configuration; its agent is not there at first."""
TURN_SECONDS: Final = 3.0
SILENT_TURNS: Final = 4
"""After so many turns without a response an agent gives its stream up."""
LEASE: Final = SETTINGS.lease_duration.total_seconds()
NAMES: Final = [JobName(f"jobs/j{index}") for index in range(3)]


class World:
    """All that there is, and what may be done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.clean = contextlib.ExitStack()
        self.clean.enter_context(self.clock.everywhere())
        self.loop = FakeLoop(self.clock)
        self.objects = DamagedObjects()
        self.store = CheckedStore(
            {name: slots for name, slots, _ in MACHINES.values()},
            lambda: int(self.clock.now.timestamp() * 1e9),
            self.objects,
        )
        self.clean.enter_context(drawn_from(self.store.chance))
        self.hosts = {machine: self.host(machine) for machine in MACHINES}
        self.replicas = [self.replica(), self.replica()]
        self.killed: list[ReplicaModel] = []
        self.created = 0
        self.asked = 0
        self.wanted: dict[str, set[str]] = {}
        """What the commands came to for each job, by uid: holds, or `cancel`; nothing: it is to run."""
        self.verb = ""
        """That is being asked for."""
        self.listed: list[Tombstone] = []
        """What a slow replica has found to be purged, some time ago."""
        self.copy: tuple[dict[str, Any], dict[str, set[str]]] | None = None
        """Of the store, and of what was wanted, from before."""
        self.whole = True
        """False once the store was set back: then less is promised."""
        for machine, host in self.hosts.items():
            if machine != TWIN:
                host.start_agent()

    def host(self, machine: str) -> Host:
        name, slots, gpus = MACHINES[machine]
        devices = [Device(uuid=f"GPU-{machine}-{index}", index=index, model="M") for index in range(gpus)]
        worker = Worker(name=name, cpu_slots=slots, devices=devices, instance=f"{machine}-0")
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

    def close(self) -> None:
        while tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.clock.advance(1)
            self.run(self.loop.run_out())
        self.loop.close()
        self.clean.close()

    # callers

    def create_job(self, spec: JobSpec) -> None:
        """Creates a job; its name may have been that of another, which was deleted."""
        name = NAMES[self.created % len(NAMES)]
        uid = str(UUID(int=self.store.chance.getrandbits(128)))
        decision = create(Job(name=name, spec=spec), uid=uid, actor="ann", now=self.clock.now)
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

    def asked_for(self, before: JobRecord | None, after: JobRecord | None) -> None:
        """Notes what a command came to."""
        if after is None:
            return
        if self.verb and before is not None and after.revision != before.revision:
            wanted = self.wanted[after.job.uid]
            match self.verb:
                case "cancel" | "save" | "save at step":
                    self.wanted[after.job.uid] = {"cancel"}
                case "resume" if before.job.state in ENDED:
                    wanted.clear()
                case "resume" | "release":
                    wanted.discard("pause" if self.verb == "resume" else "hold")
                case _:
                    wanted.add("hold" if self.verb.startswith("hold") else "pause")

    def delete_job(self, name: JobName, replica: int) -> None:
        if self.replicas[replica].serves:
            with contextlib.suppress(errors.JobNotFinishedError, errors.NotFoundError):
                self.run(self.replicas[replica].updater.delete(name, Call()))

    def use_a_name_again(self, index: int, turns: int) -> None:
        """A job is cancelled and deleted while no worker can be reached, and another takes its name."""
        self.work(turns)
        self.mend_replicas()
        for host in self.hosts.values():
            host.cut_up = host.cut_down = True
        self.lose_silent()
        self.ask(NAMES[index % len(NAMES)], "cancel", Call())
        self.delete_job(NAMES[index % len(NAMES)], 0)
        self.created += (index - self.created) % len(NAMES)
        self.create_job(JobSpec(entry_point="m:f", total_epochs=2, max_restarts=1))
        for host in self.hosts.values():
            host.cut_up = host.cut_down = False

    def jobs(self) -> list[Stored]:
        found: list[Stored] = self.run(self.store.page(states=[], labels={}, size=100, before=None))[0]
        return found

    def reads(self) -> bool:
        return self.store.available

    # replicas and store

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

    def restart_replica(self, replica: int, *, silently: bool = False) -> None:
        """It is killed, and another begins; `silently`: with its machine, so that no agent hears of it."""
        self.replicas[replica].kill(silently=silently)
        self.killed.append(self.replicas[replica])
        self.replicas[replica] = self.replica()
        self.flow()

    def cut_replica_from_store(self, replica: int) -> None:
        gate = self.replicas[replica].gate
        gate.reaches_store = not gate.reaches_store

    def outage(self, turns: int, *, store_first: bool = False, hangs: Collection[str] = ()) -> None:
        """Control plane and store are away for a while; no worker is to blame.

        The one or the other is back first. The agents of the machines in `hangs` have just begun a call that nobody
        answers, and have to give it up first.
        """
        self.store.available = False
        for replica in self.replicas:
            replica.kill()
        for back in (self.store_is_back, self.replicas_are_back)[:: 1 if store_first else -1]:
            for _ in range(turns):
                self.turn()
            back()
        for replica in self.replicas:
            replica.look()
        self.flow()
        for machine in sorted(hangs):
            agent = self.hosts[machine].agent
            if agent is not None and not agent.stopped and not agent.refused:
                self.open(agent, 0).hangs = True
        self.turn()

    def store_is_back(self) -> None:
        self.store.available = True

    def replicas_are_back(self) -> None:
        for number in range(len(self.replicas)):
            self.restart_replica(number)

    def set_clock(self, minutes: int) -> None:
        """Somebody sets the clock of the control plane."""
        self.clock.set_wall(timedelta(minutes=minutes))

    def set_store_back(self, *, back: bool) -> None:
        """The store is copied, or set back to that copy. What it then contradicts is not promised any more."""
        if not back:
            self.copy = self.store.kept(), {uid: set(wanted) for uid, wanted in self.wanted.items()}
        elif self.copy is not None:
            kept, wanted = self.copy
            self.store.restore(kept)
            self.wanted = {uid: set(each) for uid, each in wanted.items()}
            self.whole = False
            self.flow()

    def mend_replicas(self) -> None:
        self.store.available = True
        for replica in self.replicas:
            replica.gate.open.set()
            replica.gate.reaches_store = True
            replica.gate.answers_lost = False
        self.flow()

    # agents and their links

    def open(self, agent: AgentModel, replica: int, *, heard: bool = True) -> StreamModel:
        if agent.link is not None:
            old = agent.link
            old.broken_by_agent()
            if heard:
                old.arrive()
        stream = StreamModel(agent.host, agent, self.replicas[replica])
        stream.speak()
        return stream

    def connect(self, machine: str, replica: int, *, heard: bool) -> None:
        """The agent opens another stream; that it has given the one before up is heard, or not."""
        agent = self.hosts[machine].agent
        if agent is not None and not agent.stopped:
            stream = self.open(agent, replica, heard=heard)
            if stream.replica.stopped:
                self.hosts[machine].led_astray = stream

    def speak(self, machine: str) -> None:
        """A message is sent, and takes its time."""
        agent = self.hosts[machine].agent
        if agent is not None and agent.link is not None and not agent.stopped:
            agent.link.speak()

    def arrive(self, machine: str, most: int) -> None:
        """A message arrives: in order on its own stream."""
        agent = self.hosts[machine].agent
        if agent is not None and agent.link is not None:
            agent.link.arrive(most)
            self.flow()

    def arrive_late(self, index: int, most: int) -> None:
        """What was sent on a stream that was given up arrives after all."""
        given_up = [stream for host in self.hosts.values() for stream in host.given_up]
        if given_up:
            given_up[index % len(given_up)].arrive(most)
            self.flow()

    def answer(self, machine: str) -> None:
        """The newest response arrives, and the agent does what it says."""
        agent = self.hosts[machine].agent
        if agent is not None and agent.link is not None:
            agent.link.deliver()
            self.hears(agent)  # unless it has ended by what was delivered

    def drain(self, machine: str, *, wanted: bool, by_agent: bool) -> None:
        """An operator, or the agent itself, wants a worker to become empty; or no longer."""
        host = self.hosts[machine]
        if by_agent and host.agent is not None:
            host.agent.wants_to_drain(wanted=wanted)
        elif not by_agent and self.reads():
            self.run(self.store.order_drain(WorkerName(host.name), Drain(actor="ops") if wanted else None))

    def machine_fails(self, machine: str, how: str) -> None:
        host = self.hosts[machine]
        if how == "kill":
            host.kill_agent()
        elif how == "reboot":
            host.reboot()
        elif how in ("wipe", "new disk"):
            host.wipe(same_gpus=how == "new disk")
        else:
            host.launcher_dies()

    def start_agent(self, machine: str) -> None:
        if self.hosts[machine].agent is None:
            self.hosts[machine].start_agent()

    def agent_will_die(self, machine: str, fuse: int) -> None:
        """The agent dies at one of the next things it does."""
        if self.hosts[machine].agent is not None:
            self.hosts[machine].fuse = fuse

    def stop_agent(self, machine: str) -> None:
        """The agent gets SIGSTOP; training does not."""
        if self.hosts[machine].agent is not None:
            self.hosts[machine].sleeps()

    def continue_agent(self, machine: str, *, hears_first: bool = False) -> None:
        """The agent gets SIGCONT. `hears_first`: what had arrived is handled before it looks at its clock."""
        host = self.hosts[machine]
        if host.agent is not None and host.agent.stopped:
            host.wakes()
            if hears_first:
                self.hears(host.agent)
            if host.agent is not None:
                host.agent.does(host.agent.looks())

    def stop_worker(self, machine: str) -> None:
        """The worker ends all that it runs."""
        agent = self.hosts[machine].agent
        if agent is not None and not agent.stopped:
            for runner in list(agent.runners.values()):
                agent.does(runner.handle(WorkerStopping()))

    # training and storage

    def pick(self, machine: str, index: int) -> TrainingModel | None:
        live = self.hosts[machine].alive()
        return live[index % len(live)] if live else None

    def damage(self, index: int, how: str) -> None:
        """The object store damages an object."""
        keys = sorted(each for each in self.objects.contents if each not in self.objects.broken)
        if keys:
            self.objects.damage(keys[index % len(keys)], how)

    def put_back(self, index: int) -> None:
        """An operator puts an object back that was damaged."""
        keys = sorted(self.objects.broken)
        if keys:
            self.objects.put_back(keys[index % len(keys)])

    def damage_newest(self, name: JobName, how: str, most: int) -> None:
        """The object store damages the manifests of the newest checkpoints of a job."""
        for _, checkpoint in self.run(self.store.checkpoints(name, size=most)):
            place = manifest_key(checkpoint.job_uid, checkpoint.name.rpartition("/")[2])
            if place in self.objects.contents and place not in self.objects.broken:
                self.objects.damage(place, how)

    def write_as_another(self, machine: str, index: int) -> None:
        """Somebody who acts under the token of an attempt writes the manifest of its next snapshot."""
        training = self.pick(machine, index)
        if training is not None and not self.objects.away:
            token = training.assignment.token
            name = f"{token.attempt}-{token.nonce[:8]}-{training.sequence + 1}"
            theirs = json.dumps({"format": FORMAT, "job": "somebody else's"}).encode()
            self.run(self.objects.create(manifest_key(token.job_uid, name), theirs))

    # what goes on by itself

    def work(self, turns: int) -> None:
        """Everything goes on for a while, as far as it is not broken."""
        for _ in range(turns):
            self.turn()

    def turn(self, *, place: bool = True, steps: int = 1, only: Collection[str] = tuple(MACHINES)) -> None:
        """Lets TURN_SECONDS pass; everything that is not broken does what it does.

        `steps`: that training makes. `only`: the machines whose training goes on, and whose agents work. The agents of
        the others look at the clock.
        """
        self.note_health()
        for replica in self.replicas:
            replica.pulse()
        self.flow()
        self.clock.advance(TURN_SECONDS)
        self.flow()
        for machine, host in self.hosts.items():
            self.supervise(host)
            host.time_passes(TURN_SECONDS)
            if machine in only:
                self.train_on(host, steps)
                self.agent_works(host)
                self.synchronize(machine)
            else:
                self.looks(host)
        for replica in self.replicas:
            replica.begin("expire", replica.monitor.expire())
            if place:
                replica.look()
        self.flow()
        for machine in self.hosts:
            if machine in only:
                self.answer(machine)
        self.note_health()

    def lose_silent(self) -> None:
        """Lets a lease pass without those that cannot be heard."""
        for _ in range(int(LEASE / TURN_SECONDS) + 2):
            self.turn(steps=0)

    def supervise(self, host: Host) -> None:
        if host.agent is None and host.supervised:
            host.start_agent()

    def train_on(self, host: Host, steps: int) -> None:
        for training in host.alive():
            for _ in range(steps):
                host.trains(training)

    def looks(self, host: Host) -> None:
        agent = host.agent
        if agent is not None and not agent.stopped:
            agent.does(agent.looks())

    def agent_works(self, host: Host) -> None:
        self.looks(host)
        agent = host.agent
        if agent is None or agent.stopped:
            return
        for runner in list(agent.runners.values()):
            for work in (runner.poll, runner.work):
                if host.agent is agent:
                    agent.does(work())

    def synchronize(self, machine: str) -> None:
        """The agent speaks, and hears what there is to hear."""
        host = self.hosts[machine]
        agent = host.agent
        if agent is None or agent.stopped:
            return
        if agent.refused:
            host.agent_ends()
            return
        agent.silence += 1
        if agent.link is not None and agent.silence >= SILENT_TURNS:
            agent.give_up_stream()
            agent.try_failed()
            if agent.waits:
                return
        if agent.link is not None:
            agent.link.speak()
        elif not self.connects(agent):
            return
        self.arrive(machine, most=99)
        self.answer(machine)

    def connects(self, agent: AgentModel) -> bool:
        """Opens a stream; False if the agent does not try now, or nobody is there."""
        if agent.waits:
            agent.waits -= 1
            return False
        running = [number for number, replica in enumerate(self.replicas) if not replica.stopped]
        if not running:
            agent.try_failed()
            return False
        self.open(agent, running[agent.host.agents % len(running)])
        agent.host.agents += 1
        return True

    def hears(self, agent: AgentModel) -> None:
        """Of several responses that wait, only the newest is handled."""
        host = agent.host
        if agent.inbox and not agent.stopped and host.agent is agent:
            response, opened_at = agent.inbox[-1]
            agent.inbox.clear()
            agent.does(agent.hear(response, opened_at))
            if host.agent is agent and self.store.chance.randrange(4):  # else its runners come to it later
                agent.does(agent.hands_on())

    def note_health(self) -> None:
        for host in self.hosts.values():
            if host.led_astray is not None and (host.agent is None or host.agent.link is not host.led_astray):
                host.led_astray = None  # it has given that stream up
            if not host.reachable or host.led_astray is not None:
                host.well_since = None
            elif host.well_since is None:
                host.well_since = self.clock.monotonic
