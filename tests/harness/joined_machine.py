"""Control plane and workers together, on a clock that the test turns: whatever befalls them, in any order.

`joined_world` is what there is, and what may be done to it; `joined_promises` what must hold. Here are the rules: what
Hypothesis may do, and with what. At the end all that is broken is mended, and everything has to come to rest where the
last command says.
"""

from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from adjourn import reasons
from adjourn.v1 import job_service_pb2 as pb
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn_control_plane.job.updater import Call
from adjourn_control_plane.store.interface import JobName, WorkerName
from tests.harness.checked_store import key_of
from tests.harness.joined_promises import Promises
from tests.harness.joined_world import LEASE, MACHINES, NAMES, TURN_SECONDS, TWIN, VERBS
from tests.harness.worker_model import PATIENCE

FAILURES: Final = [reasons.TRAINING_RAISED, reasons.STATE_MISMATCH]
MACHINE = st.sampled_from([machine for machine in MACHINES if machine != TWIN] * 3 + [TWIN])
REPLICA = st.sampled_from([0, 1])
ANY = st.integers(0, 1000)
TURNS = st.integers(0, 4)
"""Turns in which all goes on, before something else happens."""
MOST_JOBS: Final = 8


class JoinedMachine(Promises, RuleBasedStateMachine):
    requests: Bundle[tuple[JobName, str, Call, Job]] = Bundle("requests")

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.close()

    @invariant()
    def promises_are_kept(self) -> None:
        self.look()

    # callers

    @initialize(
        seed=ANY,
        specs=st.lists(
            st.tuples(st.sampled_from([9, 3, 20, 40]), st.integers(2, 6), st.booleans()), min_size=1, max_size=2
        ),
        turns=st.integers(0, 6),
    )
    def begin(self, seed: int, specs: list[tuple[int, int, bool]], turns: int) -> None:
        self.store.chance.seed(seed)
        for epochs, restarts, amid in specs:
            self.create(epochs=epochs, restarts=restarts, gpus=0, hang="own pace", amid=amid)
        self.work(turns)

    @precondition(lambda self: self.created < MOST_JOBS)
    @rule(
        epochs=st.sampled_from([3, 0, 1, 9, 20, 40]),
        restarts=st.integers(0, 3),
        gpus=st.sampled_from([0, 0, 1]),
        hang=st.sampled_from(["own pace", "timeout", "report"]),
        amid=st.booleans(),
    )
    def create(self, epochs: int, restarts: int, gpus: int, hang: str, *, amid: bool = False) -> None:
        """`amid`: checkpoints are made amid its epochs too."""
        spec = JobSpec(entry_point="m:f", total_epochs=epochs, max_restarts=restarts, gpu_count=gpus)
        spec.checkpoint_steps = int(amid)
        if hang == "report":
            spec.hang_policy = JobSpec.REPORT
        if hang == "timeout":
            spec.hang_timeout.FromSeconds(50)
        self.create_job(spec)

    @rule(
        target=requests,
        turns=TURNS,
        index=ANY,
        verb=st.sampled_from([*VERBS, "pause", "pause now", "resume", "resume", "resume"]),
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
        self.delete_job(NAMES[index % len(NAMES)], replica)

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
            + ["restart", "vanish", "cut from store", "lose an answer", "set back"]
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
            case "restart" | "vanish":
                self.restart_replica(replica, silently=what == "vanish")
            case "cut from store":
                self.cut_replica_from_store(replica)
            case "lose an answer":
                self.replicas[replica].gate.answers_lost = True
            case "clock":
                self.set_clock([-10, -1, 1, 10][turns % 4])
            case _:
                self.set_store_back(back=turns > 4)

    @rule(
        turns=st.integers(0, 5),
        store_first=st.booleans(),
        hangs=st.sets(st.sampled_from(sorted(MACHINES)), max_size=len(MACHINES)),
    )
    def our_outage(self, turns: int, store_first: bool, hangs: set[str]) -> None:
        self.outage(turns, store_first=store_first, hangs=hangs)

    # links and agents

    @rule(
        what=st.sampled_from(["cut up", "cut down", "cut", "mend", "lose", "partition", "use a name again"]),
        turns=TURNS,
        machine=MACHINE,
        steps=st.integers(0, 8),
    )
    def link_fault(self, what: str, turns: int, machine: str, steps: int) -> None:
        match what:
            case "lose":
                self.lose(turns, machine)
            case "partition":
                self.partition(turns, machine, steps)
            case "use a name again":
                self.use_a_name_again(steps, turns)
            case _:
                self.work(turns)
                self.hosts[machine].cut_up = what in ("cut up", "cut")
                self.hosts[machine].cut_down = what in ("cut down", "cut")

    @rule(
        what=st.sampled_from(["connect", "connect unheard", "speak", "speak", "arrive", "arrive", "late", "answer"]),
        machine=MACHINE,
        replica=REPLICA,
        index=ANY,
    )
    def message(self, what: str, machine: str, replica: int, index: int) -> None:
        """One message goes a part of its way, or a stream takes the place of another."""
        match what:
            case "connect" | "connect unheard":
                self.connect(machine, replica, heard=what == "connect")
            case "speak":
                self.speak(machine)
            case "arrive":
                self.arrive(machine, most=1 if index % 2 else 99)
            case "late":
                self.arrive_late(index, most=1 if index % 2 else 99)
            case _:
                self.answer(machine)

    @rule(
        what=st.sampled_from(
            ["dies"] * 6
            + ["start", "kill", "reboot", "wipe", "new disk", "launcher", "stop", "go on", "hears and goes on", "term"]
        ),
        machine=MACHINE,
        fuse=st.integers(0, 12),
    )
    def machine_fault(self, what: str, machine: str, fuse: int) -> None:
        match what:
            case "dies":
                self.agent_will_die(machine, fuse)
            case "start":
                self.start_agent(machine)
            case "stop":
                self.stop_agent(machine)
            case "go on" | "hears and goes on":
                self.continue_agent(machine, hears_first=what != "go on")
            case "term":
                self.stop_worker(machine)
            case _:
                self.machine_fails(machine, what)

    def lose(self, turns: int, machine: str) -> None:
        """A worker is out of reach for a lease."""
        self.work(turns)
        self.hosts[machine].cut_up = True
        self.lose_silent()
        self.hosts[machine].cut_up = False

    @rule(
        what=st.sampled_from(["sleeps", "is alone"]),
        turns=TURNS,
        machine=MACHINE,
        longer=st.integers(0, 12),
        hears_first=st.booleans(),
    )
    def long_silence(self, what: str, turns: int, machine: str, longer: int, hears_first: bool) -> None:
        """An agent sleeps for longer than its lease, or is alone until it is out of contact and longer."""
        self.work(turns)
        host = self.hosts[machine]
        if what == "sleeps":
            self.stop_agent(machine)
            self.work(int(LEASE / TURN_SECONDS) + longer)
            self.continue_agent(machine, hears_first=hears_first)
        else:
            host.cut_up = host.cut_down = True
            self.work(int(PATIENCE * LEASE / TURN_SECONDS) + longer)
            host.cut_up = host.cut_down = False

    @rule(turns=TURNS, longer=st.integers(0, 6), steps=TURNS)
    def two_of_one_name(self, turns: int, longer: int, steps: int) -> None:
        """Two agents of one name are there at once; then one of them is out of reach for a lease, and is back."""
        self.work(turns)
        self.start_agent(TWIN)
        self.work(steps)
        names = [machine for machine, (name, _, _) in MACHINES.items() if name == MACHINES[TWIN][0]]
        host = self.hosts[names[longer % 2]]
        host.cut_up = host.cut_down = True
        self.work(int(LEASE / TURN_SECONDS) + longer)
        host.cut_up = host.cut_down = False

    def partition(self, turns: int, machine: str, steps: int) -> None:
        """A worker trains on out of reach for longer than a lease, and is back before anyone else is given its jobs."""
        self.work(turns)
        host = self.hosts[machine]
        self.mend_replicas()
        others = [each for each in self.hosts.values() if each.name == host.name and each is not host]
        if not host.reachable or any(each.agent is not None or each.supervised for each in others):
            return
        held = self.run(self.store.allocation(WorkerName(host.name))).jobs
        host.cut_up = host.cut_down = True
        for _ in range(int(LEASE / TURN_SECONDS) + 2):
            self.turn(place=False, only=self.hosts.keys() - {machine})
        for _ in range(steps):
            self.train_on(host, 1)
            self.agent_works(host)
        host.cut_up = host.cut_down = False
        for _ in range(5):
            self.turn(place=False, steps=0)
        agent = host.agent
        for before in held:
            after = self.run(self.store.get(JobName(before.record.job.name)))
            known = agent.runners.get(key_of(before.record)) if agent is not None else None
            if known is None or after is None or before.record.job.state == Job.CANCELLING:
                continue
            if after.record.job.failure.reason not in ("", reasons.WORKER_LOST):
                continue  # it failed by itself
            assert after.record.token == before.record.token
            assert after.record.job.restart_count <= before.record.job.restart_count, "it costs nothing"
            persisted = known.held.persisted.name
            assert after.record.checkpoint.name == persisted or not persisted, "nothing is thrown away"
            assert known.over or after.record.job.worker == host.name, "it goes on where it is"

    @rule(turns=TURNS, machine=MACHINE, wanted=st.booleans(), by_agent=st.booleans())
    def order_drain(self, turns: int, machine: str, wanted: bool, by_agent: bool) -> None:
        self.work(turns)
        self.drain(machine, wanted=wanted, by_agent=by_agent)

    @rule(machine=MACHINE, index=ANY)
    def repeat_report(self, machine: str, index: int) -> None:
        """A report comes again, long after it was sent, over a stream that nobody remembers."""
        sent = self.hosts[machine].journal.sent
        if sent and self.replicas[0].serves and self.whole:
            report = sent[index % len(sent)]
            stored = self.run(self.store.get(JobName(report.job)))
            mine = stored is not None and report.token == stored.record.token
            if not mine or (stored and report.sequence <= stored.record.applied_report):
                worker = self.hosts[machine].worker
                self.run(self.replicas[0].updater.report(report, worker.name, instance=worker.instance))
                again = self.run(self.store.get(JobName(report.job)))
                assert (again and again.version) == (stored and stored.version)

    # training and storage

    @rule(machine=MACHINE, index=ANY, steps=st.integers(1, 3))
    def train(self, machine: str, index: int, steps: int) -> None:
        if training := self.pick(machine, index):
            for _ in range(steps):
                self.hosts[machine].trains(training)

    @rule(turns=TURNS, machine=MACHINE, index=ANY, how=st.sampled_from([*FAILURES, "crash", "crash unseen", "hang"]))
    def fail(self, turns: int, machine: str, index: int, how: str) -> None:
        self.work(turns)
        if training := self.pick(machine, index):
            if how == "hang":
                training.hung = not training.hung
            elif how in FAILURES:
                training.fail(how, self.clock.now.timestamp())
            else:
                training.end(-11, seen=how == "crash")

    @rule(turns=st.integers(0, 24), machine=MACHINE, index=ANY, gets_on=st.booleans())
    def hang(self, turns: int, machine: str, index: int, gets_on: bool) -> None:
        """Training makes no step any more, and gets on by itself or not."""
        if training := self.pick(machine, index):
            training.hung = True
            self.work(turns)
            training.hung = not gets_on

    @rule(machine=MACHINE, index=ANY, most=st.sampled_from([1, 2, 99]), work=st.booleans())
    def agent_does(self, machine: str, index: int, most: int, work: bool) -> None:
        """The agent reads what training wrote, and brings to an end what it has under way."""
        agent = self.hosts[machine].agent
        if agent is None or agent.stopped or not agent.runners:
            return
        runner = list(agent.runners.values())[index % len(agent.runners)]
        agent.does(runner.poll(most))
        if work and self.hosts[machine].agent is agent:
            agent.does(runner.work())

    @rule(
        turns=TURNS,
        index=ANY,
        how=st.sampled_from(["flip", "cut", "remove", "rot"]),
        most=st.integers(1, 3),
        replica=REPLICA,
    )
    def damaged_rest(self, turns: int, index: int, how: str, most: int, replica: int) -> None:
        """What a job rests on is damaged before somebody lets it go on."""
        name = self.name(index)
        self.ask(name, "pause", Call(), replica)
        self.work(turns)
        if self.reads():
            self.damage_newest(name, how, most)
        self.ask(name, "resume", Call(), 1 - replica)

    @rule(
        what=st.sampled_from(["away", "flip", "cut", "remove", "rot", "put back", "foreign"]),
        index=ANY,
        machine=MACHINE,
    )
    def storage_fault(self, what: str, index: int, machine: str) -> None:
        match what:
            case "away":
                self.objects.away = not self.objects.away
            case "put back":
                self.put_back(index)
            case "foreign":
                self.write_as_another(machine, index)
            case _:
                self.damage(index, what)
