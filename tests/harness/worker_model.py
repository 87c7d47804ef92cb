"""A worker: the machine of its attempts is real, what is around it is modelled.

A Host is a machine with its disk: what lies there, and the training processes, outlive the agent. An AgentModel is one
life of an agent's process. It does what `adjourn_worker.agent.Agent` and `attempt.runner.AttemptRunner` do, in their
order: an outcome is journaled before its effects are carried out, and between any two of these the agent may die.
"""

import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from adjourn import reasons, snapshots
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot, TrainingProcess
from adjourn.manifests import FORMAT, digest, part_key
from adjourn.objects import STORAGE_ERRORS
from adjourn.v1.agent_service_pb2 import Assignment, Report, SynchronizeRequest, SynchronizeResponse
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure
from adjourn.v1.manifest_pb2 import Manifest
from adjourn.v1.worker_pb2 import Worker
from adjourn_worker import messages
from adjourn_worker.attempt import events, machine
from adjourn_worker.attempt.transition import OVER, Outcome
from adjourn_worker.storage import persist
from adjourn_worker.storage.fetch import CheckpointCorrupt, read_manifest
from adjourn_worker.storage.parts import KeyTaken, PartStore
from tests.harness.checked_store import Key, key
from tests.harness.damaged_objects import DamagedObjects
from tests.harness.fake_clock import FakeClock
from tests.harness.training_model import TrainingModel, expected_state

T = TypeVar("T")
Run = Callable[[Awaitable[Any]], Any]
UNJOURNALED: Final = (events.Measured, events.Advanced, events.BoundaryFound)


class AgentDied(Exception):
    """The agent was killed here."""


class InlineParts(PartStore):
    """Hashes in the caller's thread: what follows must not depend on the machine's pace."""

    async def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return work(*args, **kwargs)


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
    held: dict[Key, bytes] = field(default_factory=dict)
    """The journal's assignments."""
    reports: list[Report] = field(default_factory=list)
    """The journal's reports that are not acknowledged."""
    sequences: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    trainings: dict[str, TrainingModel] = field(default_factory=dict)
    """The attempts' directories: all training processes of this machine, ended ones until they are cleaned up."""
    agent: "AgentModel | None" = None
    agents: int = 0
    """Lives of agents so far."""
    cut_up: bool = False
    """Nothing from here arrives at the control plane."""
    cut_down: bool = False
    """Nothing from the control plane arrives here."""
    fuse: int | None = None
    """So many things the agent still does before it dies."""
    sent: list[Report] = field(default_factory=list)
    """All reports there ever were."""
    acknowledged: list[Report] = field(default_factory=list)
    well_since: float | None = None
    """Since when nothing has kept it from speaking, in seconds; None: something does."""

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def reachable(self) -> bool:
        return self.agent is not None and not self.agent.stopped and not self.cut_up and not self.cut_down

    def alive(self) -> list[TrainingModel]:
        return [training for training in self.trainings.values() if training.alive]

    def start_agent(self) -> "AgentModel":
        assert self.agent is None
        self.agents += 1
        self.agent = AgentModel(self, f"session-{self.name}-{self.life}-{self.agents}")
        self.agent.does(self.agent.start)
        assert self.agent is not None
        return self.agent

    def burn(self) -> None:
        """Lets the agent die here, if it is to."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise AgentDied

    def kill_agent(self) -> None:
        self.fuse = None
        if self.agent is not None:
            if self.agent.stream is not None:
                self.agent.stream.broken_by_agent()
            self.agent = None

    def reboot(self) -> None:
        """Power fails: processes and memory are gone, the disk is not."""
        self.kill_agent()
        for training in self.trainings.values():
            training.end(-9, seen=False)
            training.slots.clear()
            training.contents.clear()

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
            device.uuid = device.uuid if same_gpus else f"GPU-{self.name[-1]}{device.index}-{self.life}"
        self.worker.instance = f"{self.name}-{self.life}"
        self.held, self.reports, self.trainings = {}, [], {}
        self.sequences = itertools.count(1)


@dataclass
class RunnerModel:
    """One assignment that an agent holds, and what it has under way for it."""

    held: HeldAssignment
    preparing: bool = False
    persisting: Snapshot | None = None
    confirming: bool = False

    @property
    def over(self) -> bool:
        return self.held.status.phase in OVER

    @property
    def alive(self) -> bool:
        return self.held.HasField("process") and not self.held.HasField("exit") and not self.over


class AgentModel:
    """One life of an agent."""

    def __init__(self, host: Host, session: str) -> None:
        self.host = host
        self.session = session
        self.runners: dict[Key, RunnerModel] = {}
        self.reports: list[Report] = []
        self.parts = InlineParts(host.objects, again_seconds=0)
        self.stopped = False
        """By SIGSTOP: it does nothing, and does not know that time passes."""
        self.draining = False
        """It wants no new work."""
        self.refused = False
        """Another agent speaks for this worker: it must not come back."""
        self.stream: Any = None
        self.inbox: deque[SynchronizeResponse] = deque()
        """Responses that have arrived."""
        self.acted_upon = 0
        """Sequence of the newest response of its stream that it has heard."""
        self.silence = 0
        """Turns without a response."""
        self.fetched: dict[str, bytes] = {}
        """What was restored, by the directory of the attempt."""

    def does(self, work: Callable[..., object], *arguments: Any) -> None:
        """Does something, unless the agent dies of it."""
        try:
            work(*arguments)
        except AgentDied:
            self.host.kill_agent()

    # What Agent does.

    def start(self) -> None:
        host = self.host
        self.reports = list(host.reports)
        found = [HeldAssignment.FromString(data) for data in host.held.values()]
        known = {held.directory for held in found}
        for directory, training in list(host.trainings.items()):
            if directory not in known:
                training.end(-9, killed=True)
                del host.trainings[directory]
        for held in found:
            self.take_up(RunnerModel(held))

    def says(self) -> SynchronizeRequest:
        return SynchronizeRequest(
            worker=self.host.worker,
            session_id=self.session,
            draining=self.draining,
            assignments=messages.fitting_statuses(runner.held.status for runner in self.runners.values()),
            reports=messages.next_reports(self.reports),
            acknowledged_response=self.acted_upon,
        )

    def hear(self, response: SynchronizeResponse) -> None:
        host = self.host
        if self.reports and self.reports[0].sequence <= response.acknowledged_report:
            host.burn()
            done = [report for report in self.reports if report.sequence <= response.acknowledged_report]
            host.acknowledged += done
            host.reports = [report for report in host.reports if report.sequence > response.acknowledged_report]
            self.reports = self.reports[len(done) :]
        desired = {key(assignment) for assignment in response.assignments}
        for assignment in response.assignments:
            runner = self.runners.get(key(assignment))
            if runner is None:
                self.take_on(assignment)
            elif assignment.generation > runner.held.status.observed_generation:
                self.feed(runner, events.AssignmentChanged(assignment=assignment))
        unheard = {key(report) for report in self.reports}
        for name, runner in list(self.runners.items()):
            if name not in desired and runner.over and name not in unheard:
                host.burn()
                del self.runners[name]
                host.held.pop(name, None)
        self.acted_upon = response.sequence

    def take_on(self, assignment: Assignment) -> None:
        if not assignment.HasField("spec") and assignment.target != Assignment.STOP:
            return
        token = assignment.token
        directory = f"{assignment.job}-{token.job_uid}-{token.attempt}-{token.nonce}"
        runner = RunnerModel(HeldAssignment(assignment=assignment, directory=directory))
        self.commit(runner, machine.take_on(assignment, directory, "log", self.now))
        if self.draining:
            self.feed(runner, events.WorkerStopping())
        self.take_up(runner)

    def take_up(self, runner: RunnerModel) -> None:
        """Begins, or goes on with, an assignment that is journaled."""
        runner.held.status.ClearField("pause_epoch")
        self.runners[key(runner.held.assignment)] = runner
        training = self.host.trainings.get(runner.held.directory)
        if not runner.over and not runner.held.HasField("process") and training is not None:
            self.feed(runner, events.Launched(process=training.process))
        for effect in machine.recover(runner.held):
            self.carry_out(runner, effect)
        self.clean_up(runner)

    # What AttemptRunner does.

    @property
    def now(self) -> datetime:
        return self.host.clock.now.astimezone(UTC)

    def feed(self, runner: RunnerModel, event: events.Event) -> None:
        if runner.over:
            return
        outcome = machine.handle(runner.held, event, self.now)
        if isinstance(event, UNJOURNALED):
            runner.held = outcome.held
            return
        self.commit(runner, outcome)
        self.clean_up(runner)

    def commit(self, runner: RunnerModel, outcome: Outcome) -> None:
        host = self.host
        host.burn()
        numbered = []
        for report in outcome.reports:
            copy = Report()
            copy.CopyFrom(report)
            copy.sequence = next(host.sequences)
            numbered.append(copy)
        host.held[key(outcome.held.assignment)] = outcome.held.SerializeToString()
        host.reports += numbered
        host.sent += numbered
        runner.held = outcome.held
        self.reports += numbered
        if runner.over:
            runner.preparing, runner.persisting, runner.confirming = False, None, False
        for effect in outcome.effects:
            host.burn()
            self.carry_out(runner, effect)

    def clean_up(self, runner: RunnerModel) -> None:
        if runner.over:
            training = self.host.trainings.get(runner.held.directory)
            assert training is None or not training.alive, "an attempt that is over has no process"
            self.host.trainings.pop(runner.held.directory, None)

    def carry_out(self, runner: RunnerModel, effect: events.Effect) -> None:  # noqa: C901  # as many as there are effects
        training = self.host.trainings.get(runner.held.directory)
        match effect:
            case events.Prepare():
                runner.preparing = True
            case events.Launch(desired=desired):
                self.launch(runner, desired)
            case events.SetDesired(desired=desired):
                if training is not None:
                    training.desired = desired
                self.look_for_boundary(runner)
            case events.Kill():
                if training is not None:
                    training.end(-9, killed=True)
            case events.ConfirmRelease():
                runner.confirming = True
            case events.Persist(snapshot=snapshot):
                runner.persisting = snapshot
            case events.Drop(snapshot=snapshot):
                if training is not None:
                    training.free(snapshot)
            case _:
                raise AssertionError(effect)

    def launch(self, runner: RunnerModel, desired: Any) -> None:
        host, assignment = self.host, runner.held.assignment
        if runner.held.directory not in host.trainings:
            restore = assignment.restore
            process = TrainingProcess(directory=runner.held.directory, pid=1, nonce=assignment.token.nonce)
            state = expected_state(assignment.token.job_uid, 0)
            if restore.name:
                state = self.fetched[runner.held.directory]
                assert state == expected_state(assignment.token.job_uid, restore.step), "restored from what was damaged"
            training = TrainingModel(assignment, process, desired, state, restored=bool(restore.name))
            training.progress.epoch, training.progress.step = restore.epoch, restore.step
            training.decides_after = min(restore.epoch + 1, assignment.spec.total_epochs)
            host.trainings[runner.held.directory] = training
        host.burn()
        self.feed(runner, events.Launched(process=host.trainings[runner.held.directory].process))

    def look_for_boundary(self, runner: RunnerModel) -> None:
        """Finds out where training pauses, if it is to."""
        training = self.host.trainings.get(runner.held.directory)
        if training is None or runner.held.assignment.target != Assignment.PAUSE:
            return
        if training.decides_after not in (0, runner.held.status.pause_epoch):
            self.feed(runner, events.BoundaryFound(epoch=training.decides_after))

    def poll(self, runner: RunnerModel, most: int = 99) -> None:
        """Reads what the training process wrote, then its end."""
        training = self.host.trainings.get(runner.held.directory)
        if not runner.alive or training is None:
            return
        ended, gone = training.exit, training.gone_unseen
        if training.progress != runner.held.status.progress:
            self.feed(runner, events.Measured(progress=training.progress, usage=None))
        self.look_for_boundary(runner)
        offset = runner.held.events_offset
        for event in training.events[offset : offset + most]:
            offset += 1
            self.feed(runner, events.EventRead(event=event, offset=offset))
            if runner.over:
                return
        if offset == len(training.events) and (ended is not None or gone):
            self.feed(runner, events.Ended(exit=ended))

    def work(self, runner: RunnerModel) -> None:
        """Brings what is under way to its end, if storage lets it."""
        if runner.preparing:
            self.prepare(runner)
        if runner.persisting is not None:
            self.persist(runner)
        if runner.confirming:
            runner.confirming = False
            self.feed(runner, events.GpusReleased(time=self.now, memory_bytes=None))

    def prepare(self, runner: RunnerModel) -> None:
        restore = runner.held.assignment.restore
        try:
            if restore.name:
                self.fetched[runner.held.directory] = self.host.run(self.fetch(restore))
        except STORAGE_ERRORS:
            return  # it tries again
        except CheckpointCorrupt as error:
            runner.preparing = False
            failure = Failure(reason=reasons.CHECKPOINT_CORRUPT, message=str(error))
            self.feed(runner, events.CannotGoOn(failure=failure))
            return
        runner.preparing = False
        self.feed(runner, events.Prepared())

    async def fetch(self, restore: Checkpoint) -> bytes:
        """Returns the state of a checkpoint, every part verified."""
        manifest = await read_manifest(self.parts, restore)
        found = b""
        for file in manifest.files:
            for part in file.parts:
                name = part_key(manifest.job_uid, part.digest)
                try:
                    data = await self.parts.download(name, part.digest, part.size_bytes)
                except (LookupError, ValueError) as error:
                    raise CheckpointCorrupt(restore.name, name, "is missing or damaged") from error
                if data is None:
                    raise CheckpointCorrupt(restore.name, name, "is damaged")
                if file.name == "state":
                    found = data
        return found

    def persist(self, runner: RunnerModel) -> None:
        held, snapshot = runner.held, runner.persisting
        assert snapshot is not None
        training = self.host.trainings.get(held.directory)
        state = training.contents.get(snapshot.sequence) if training is not None else None
        if state is None:
            runner.persisting = None
            failure = Failure(reason=reasons.SNAPSHOT_FAILED, message="the snapshot is gone")
            self.feed(runner, events.PersistFailed(failure=failure, lost=True))
            return
        try:
            made = self.host.run(self.make_durable(held, snapshot, state))
        except STORAGE_ERRORS:
            return  # it tries again
        except KeyTaken as error:
            runner.persisting = None
            failure = Failure(reason=reasons.SNAPSHOT_FAILED, message=str(error))
            self.feed(runner, events.PersistFailed(failure=failure, lost=True))
            return
        self.host.burn()
        runner.persisting = None
        self.feed(runner, events.Persisted(checkpoint=made))

    async def make_durable(self, held: HeldAssignment, snapshot: Snapshot, state: bytes) -> Checkpoint:
        """Uploads two parts, one of which no step changes, and the manifest."""
        assignment = held.assignment
        uid = assignment.token.job_uid
        newest = held.persisted if held.HasField("persisted") else assignment.base
        base = None
        if newest.name:
            try:
                base = await read_manifest(self.parts, newest)
            except CheckpointCorrupt:
                base = None
        known = {part.digest for file in base.files for part in file.parts} if base else set[str]()
        files = []
        for name, data in (("frozen", f"frozen of {uid}".encode()), ("state", state)):
            part = Manifest.Part(digest=digest(data), size_bytes=len(data))
            place = part_key(uid, part.digest)
            anew = snapshot.last
            if part.digest not in known or not await self.parts.holds(place, part.digest, len(data), anew=anew):
                await self.parts.upload(place, part.digest, data)
            self.host.burn()
            files.append(Manifest.File(name=name, parts=[part]))
        manifest = Manifest(
            format=FORMAT,
            job=assignment.job,
            job_uid=uid,
            attempt=assignment.token.attempt,
            nonce=assignment.token.nonce,
            sequence=snapshot.sequence,
            spec=assignment.spec,
            progress=snapshot.progress,
            files=files,
            component_digests={"state": digest(state)},
            state_digest=snapshots.state_digest({"state": digest(state)}),
        )
        made = await persist.conclude(self.parts, manifest, 0)
        wrong = set(self.host.objects.damaged(manifest))
        if not snapshot.last:  # a disk that loses bits is found by the last one
            wrong -= self.host.objects.silent
        assert not wrong, "a checkpoint rests on bytes that nobody has verified"
        return made
