"""A worker: its agent and the machines of its attempts are real, what is around them is modelled.

A Host is a machine with its disk: what lies there, and the training processes, outlive the agent. An AgentModel is one
life of an agent's process: the real Agent, without tasks of its own. What its tasks do happens when the test says so.
An outcome is journaled before its effects are carried out, and between any two of these the agent may die.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from adjourn import reasons
from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import Assignment, FencingToken, Report, SynchronizeRequest, SynchronizeResponse
from adjourn.v1.worker_pb2 import Worker
from adjourn_worker import messages
from adjourn_worker.agent import ASK_SHARE, Agent
from adjourn_worker.attempt.unsent import Unsent
from adjourn_worker.contact import DEFAULT_LEASE, SLEEP_SHARE, Contact
from adjourn_worker.journal import LastContact
from adjourn_worker.launcher import process_tree
from adjourn_worker.storage.parts import PartStore
from adjourn_worker.sync import NameTaken
from tests.harness.attempt_model import RunnerModel
from tests.harness.checked_store import Key, key
from tests.harness.damaged_objects import DamagedObjects
from tests.harness.fake_clock import FakeClock
from tests.harness.training_model import TrainingModel

if TYPE_CHECKING:
    from tests.harness.replica_model import StreamModel

T = TypeVar("T")
Run = Callable[[Awaitable[Any]], Any]
PATIENCE: Final = 3
"""Leases of silence after which an agent is out of contact; a setting."""


class AgentDied(Exception):
    """The agent was killed here."""


class InlineParts(PartStore):
    """Hashes in the caller's thread: what follows must not depend on the machine's pace."""

    async def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return work(*args, **kwargs)


class JournalModel:
    """What an agent has on its disk. It may die at each thing that it writes."""

    def __init__(self, burn: Callable[[], None]) -> None:
        self.burn = burn
        self.attempts: dict[Key, bytes] = {}
        self.waiting: list[Report] = []
        """Reports that are not acknowledged."""
        self.sent: list[Report] = []
        """All reports there ever were."""
        self.acknowledged: list[Report] = []
        self.contact: LastContact | None = None
        self.sequences: Iterator[int] = itertools.count(1)

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        return call(*arguments)

    def held(self) -> list[HeldAssignment]:
        return [HeldAssignment.FromString(data) for data in self.attempts.values()]

    def record(self, held: HeldAssignment, reports: Sequence[Report]) -> list[Report]:
        self.burn()
        numbered = []
        for report in reports:
            copy = Report()
            copy.CopyFrom(report)
            copy.sequence = next(self.sequences)
            numbered.append(copy)
        self.attempts[key(held.assignment)] = held.SerializeToString()
        self.waiting += numbered
        self.sent += numbered
        return numbered

    def reports(self) -> list[Report]:
        return list(self.waiting)

    def acknowledge(self, sequence: int) -> None:
        self.burn()
        self.acknowledged += [report for report in self.waiting if report.sequence <= sequence]
        self.waiting = [report for report in self.waiting if report.sequence > sequence]

    def forget(self, job: str, token: FencingToken) -> None:
        self.burn()
        self.attempts.pop((job, token.job_uid, token.attempt, token.nonce), None)

    def note_contact(self, contact: LastContact) -> None:
        self.contact = contact

    def last_contact(self) -> LastContact | None:
        return self.contact


@dataclass
class Host:
    """A machine."""

    worker: Worker
    """As its agent describes it."""
    clock: FakeClock
    objects: DamagedObjects
    run: Run
    """Runs a coroutine that waits for nothing but itself."""
    life: int = 0
    """Of the disk: grows when the machine is replaced."""
    trainings: dict[str, TrainingModel] = field(default_factory=dict)
    """The attempts' directories: all training processes of this machine, ended ones until they are cleaned up."""
    agent: "AgentModel | None" = None
    opened: int = 0
    """Streams that its agents have opened."""
    agents: int = 0
    """Lives of agents so far."""
    supervised: bool = False
    """An agent that has ended by itself is started again."""
    cut_up: bool = False
    """Nothing from here arrives at the control plane."""
    cut_down: bool = False
    """Nothing from the control plane arrives here."""
    fuse: int | None = None
    """So many things the agent still does before it dies."""
    given_up: "list[StreamModel]" = field(default_factory=list)
    """Streams that its agents have given up; what was sent on them may still arrive."""
    led_astray: Any = None
    """Stream that a rule opened to a replica that stands still, where the agent by itself goes to one that runs."""
    well_since: float | None = None
    """Since when nothing has kept it from speaking, in seconds; None: something does."""
    fenced: set[str] = field(default_factory=set)
    """Attempts that have found that somebody else acts under their token."""
    untold: set[str] = field(default_factory=set)
    """Trainings that an agent found when it woke from a sleep of more than its lease, and was told nothing of since."""
    woke_at: float = 0.0
    told_at: float | None = None
    """When the control plane spoke first after that."""

    def __post_init__(self) -> None:
        self.journal = JournalModel(self.burn)

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def now(self) -> datetime:
        return self.clock.now.astimezone(UTC)

    @property
    def reachable(self) -> bool:
        return self.agent is not None and not self.agent.stopped and not self.cut_up and not self.cut_down

    def alive(self) -> list[TrainingModel]:
        return [training for training in self.trainings.values() if training.alive]

    def start_agent(self) -> "AgentModel":
        assert self.agent is None
        self.agents += 1
        self.supervised = True
        self.agent = AgentModel(self, f"session-{self.worker.instance}-{self.agents}")
        self.agent.does(self.agent.begin())
        return self.agent

    def burn(self) -> None:
        """Lets the agent die here, if it is to."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise AgentDied

    def time_passes(self, seconds: float) -> None:
        for training in self.alive():
            training.waits(seconds)

    def trains(self, training: TrainingModel) -> None:
        """Lets a training process go on; looks whether it may."""
        epoch = training.progress.epoch
        went_on = training.step(self.clock.now.timestamp())
        agent = self.agent
        if not went_on or agent is None or agent.stopped:
            return
        assert training.process.directory not in self.untold, "held still until it is told what is meant"
        silence = self.clock.monotonic - agent.heard_at
        passed_a_boundary = training.progress.epoch > epoch and not training.final
        assert not passed_a_boundary or silence <= (PATIENCE + 1) * DEFAULT_LEASE, "out of contact it pauses"

    def sleeps(self) -> None:
        """The agent gets SIGSTOP."""
        assert self.agent is not None
        if not self.agent.stopped:
            self.agent.stopped, self.agent.stopped_at = True, self.clock.monotonic

    def wakes(self) -> None:
        """The agent gets SIGCONT."""
        agent, now = self.agent, self.clock.monotonic
        assert agent is not None
        agent.stopped, agent.heard_at = False, now
        contact = agent.contact
        if now - agent.stopped_at >= SLEEP_SHARE * contact.lease and now - contact.heard > contact.lease:
            self.untold = {training.process.directory for training in self.alive()}
            self.woke_at, self.told_at = now, None

    def is_told(self, response: SynchronizeResponse, opened_at: float) -> None:
        """Notes what a response says of training that waits for it. `opened_at`: of the stream that it came over."""
        if opened_at < self.woke_at:
            return
        now = self.clock.monotonic
        self.told_at = now if self.told_at is None else self.told_at
        self.untold -= {directory(each.job, each.token) for each in response.assignments}
        if now - self.told_at > DEFAULT_LEASE:  # who is not named waits a lease more
            self.untold.clear()

    def mend(self) -> None:
        """Takes back what keeps it from speaking."""
        self.cut_up = self.cut_down = False
        self.fuse = None
        if self.agent is None:
            self.start_agent()

    def kill_agent(self) -> None:
        self.fuse = None
        self.supervised = False
        if self.agent is not None:
            self.agent.give_up_stream()
            self.agent = None

    def agent_ends(self) -> None:
        """The agent ends by itself; its supervisor starts the next one."""
        self.kill_agent()
        self.supervised = True

    def reboot(self) -> None:
        """Power fails: processes and memory are gone, the disk is not."""
        self.kill_agent()
        for training in self.trainings.values():
            training.end(-9, seen=False)
            training.slots.clear()
            training.contents.clear()
        if self.journal.contact is not None:
            known = self.journal.contact
            self.journal.contact = LastContact(boot_id="an earlier one", heard=known.heard, lease=known.lease)

    def launcher_dies(self) -> None:
        """All that it had forked is ended by the next one, which did not see how."""
        for training in self.trainings.values():
            training.end(-9, seen=False)

    def wipe(self, *, same_gpus: bool = False) -> None:
        """The machine is replaced: its processes, its journal and its agent are gone, its name stays.

        `same_gpus`: only its disk is new, as that of a pod which starts again on its node.
        """
        self.reboot()
        self.life += 1
        for device in self.worker.devices:
            device.uuid = device.uuid if same_gpus else f"{device.uuid.partition('/')[0]}/{self.life}"
        self.worker.instance = f"{self.worker.instance.rpartition('-')[0]}-{self.life}"
        before, self.journal, self.trainings = self.journal, JournalModel(self.burn), {}
        self.journal.sent, self.journal.acknowledged = before.sent, before.acknowledged
        self.untold.clear()


class Line:
    """The stream of an agent, as the agent sees it."""

    def __init__(self, agent: "AgentModel") -> None:
        self.agent = agent
        self.lease = DEFAULT_LEASE
        self.changed = asyncio.Event()

    def reopen(self) -> None:
        self.agent.give_up_stream()


class AgentModel(Agent):
    """One life of an agent."""

    def __init__(self, host: Host, session: str) -> None:
        self.host = host
        self.session_id = session
        self.worker = host.worker
        self.journal = cast("Any", host.journal)
        self.stream = cast("Any", Line(self))
        self.paths = cast("Any", SimpleNamespace(attempt=directory, log=lambda *_: "log", data="data"))
        self.logs = cast("Any", SimpleNamespace(follow=lambda _: None))
        self.tasks = {}
        self.contact = Contact(host.clock.monotonic, patience=PATIENCE)
        self.steady = asyncio.Event()
        self.steady_since = 0.0
        self.out_of_contact = self.taking_on = False
        self.draining = False
        self.drains_since = 0.0
        self.runners: dict[Key, RunnerModel] = {}  # type: ignore[assignment]  # all of them are models
        self.reports, self.unsent = [], {}
        self.parts = InlineParts(host.objects, again_seconds=0)
        self.stopped = False
        """By SIGSTOP: it does nothing, and does not know that time passes."""
        self.stopped_at = 0.0
        self.heard_at = host.clock.monotonic
        """When it heard the control plane, began, or woke last."""
        self.refused = False
        """Another agent speaks for this worker: it must not come back."""
        self.link: StreamModel | None = None
        self.inbox: deque[tuple[SynchronizeResponse, float]] = deque()
        """Responses that have arrived, and when the stream was opened that brought them."""
        self.acted_upon = 0
        """Sequence of the newest response of its stream that it has heard."""
        self.silence = 0
        """Turns without a response."""
        self.failures = 0
        """Tries to connect, since it was connected."""
        self.waits = 0
        """Turns until it tries again to connect."""

    def does(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something, unless the agent dies of it."""
        try:
            self.host.run(work)
        except AgentDied:
            self.host.kill_agent()
        except NameTaken:
            self.host.agent_ends()

    async def begin(self) -> None:
        """Does what `run` does before it works."""
        await self.recall_contact()
        self.reports = self.journal.reports()
        found = self.journal.held()
        known = {held.directory for held in found}
        for place, training in list(self.host.trainings.items()):
            if place not in known:
                training.end(-9, killed=True)
                del self.host.trainings[place]
        for held in found:
            await self.take_up(self.runner(held))

    def runner(self, held: HeldAssignment) -> RunnerModel:
        return RunnerModel(held, self)

    async def take_on(self, assignment: Assignment) -> None:
        await super().take_on(assignment)
        fresh = self.runners.get(key(assignment))
        if fresh is not None:
            await fresh.take_up()

    def start(self, runner: Any) -> None:
        name = key(runner.held.assignment)
        self.runners[name], self.unsent[name] = runner, Unsent(runner.status.job, runner.status.token)
        self.tasks[name] = SimpleNamespace(done=lambda: runner.over)  # type: ignore[assignment]

    async def take_up(self, runner: RunnerModel) -> None:
        self.start(runner)
        await runner.take_up()

    def build_request(self) -> SynchronizeRequest:
        return SynchronizeRequest(
            worker=self.host.worker,
            session_id=self.session_id,
            draining=self.draining,
            assignments=messages.fitting_statuses(runner.held.status for runner in self.runners.values()),
            reports=messages.next_reports(self.reports),
        )

    async def hear(self, response: SynchronizeResponse, opened_at: float) -> None:
        self.host.is_told(response, opened_at)
        self.heard_at = self.host.clock.monotonic
        link = self.link
        await self.on_response(response)
        if self.link is link:
            self.acted_upon = response.sequence
        last = self.journal.last_contact()
        if last is None or self.contact.heard - last.heard > self.contact.lease:
            self.journal.note_contact(
                LastContact(boot_id=process_tree.boot_id(), heard=self.contact.heard, lease=self.contact.lease)
            )

    async def hear_name_taken(self, message: str) -> None:
        self.on_name_taken(message)

    async def looks(self) -> None:
        """Finds out what silence and sleep ask for."""
        self.look()
        asked = self.host.clock.monotonic - self.drains_since <= ASK_SHARE * self.contact.lease
        if self.draining and not (asked and self.link is not None):
            self.pause_by_itself(reasons.WORKER_STOPPED, "it drains", held_still=False)
        if self.out_of_contact:
            self.host.untold.clear()
        await self.hands_on()

    async def hands_on(self) -> None:
        """Has the attempts handle what waits for them."""
        for runner in list(self.runners.values()):
            await runner.go_on()

    def wants_to_drain(self, *, wanted: bool) -> None:
        self.draining = wanted
        self.drains_since = self.host.clock.monotonic

    def give_up_stream(self) -> None:
        self.inbox.clear()
        if self.link is not None:
            self.link.broken_by_agent()

    def try_failed(self) -> None:
        """A try to connect has failed: the next ones are made less and less often, three a lease at least."""
        self.failures += 1
        self.waits = 1 if self.failures >= BACKED_OFF else 0


BACKED_OFF: Final = 4
"""Failures after which a try, and the wait for the next one, take two turns."""


def directory(job: str, token: FencingToken) -> str:
    return f"{job}-{token.job_uid}-{token.attempt}-{token.nonce}"
