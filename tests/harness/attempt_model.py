"""One assignment on a modelled worker: the real AttemptRunner, but for what it does to processes, files and storage.

Its background work goes on when the test says so: fetching, persisting, waiting for GPUs.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from adjourn import reasons, snapshots
from adjourn.desired_state import DesiredState
from adjourn.internal.v1.trainer_pb2 import HeldAssignment, Snapshot, TrainingProcess
from adjourn.manifests import FORMAT, digest, part_key, places
from adjourn.next_boundary import NextBoundary
from adjourn.objects import STORAGE_ERRORS
from adjourn.pulse import Pulse
from adjourn.v1.agent_service_pb2 import AssignmentStatus
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Failure
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.attempt import events, machine
from adjourn_worker.attempt.pace import Pace
from adjourn_worker.attempt.runner import LOOK_SECONDS, AttemptRunner
from adjourn_worker.storage import persist
from adjourn_worker.storage.fetch import CheckpointCorrupt, read_manifest
from adjourn_worker.storage.parts import KeyTaken
from tests.harness.training_model import TrainingModel, expected_state

if TYPE_CHECKING:
    from tests.harness.worker_model import AgentModel

RESTS: Final = (AssignmentStatus.PAUSED, AssignmentStatus.SUCCEEDED)
PACE: Final = Pace(factor=4.0, step_seconds=45.0, other_seconds=60.0, grace_seconds=6.0)


class RunnerModel(AttemptRunner):
    """One assignment that an agent holds, and what it has under way for it."""

    def __init__(self, held: HeldAssignment, agent: "AgentModel") -> None:
        stub: Any = agent.host.journal
        nobody: Any = None
        super().__init__(
            held,
            journal=stub,
            journal_lock=asyncio.Lock(),
            launcher=nobody,
            storage=nobody,
            data=nobody,
            gpus=nobody,
            steady=agent.steady,
            pace=PACE,
            on_change=agent.on_change,
        )
        self.host = agent.host
        self.parts = agent.parts
        self.preparing = False
        self.persisting: Snapshot | None = None
        self.confirming = False
        self.fetched = b""
        """State that was restored."""

    @property
    def place(self) -> str:
        return self.held.directory

    @property
    def training(self) -> TrainingModel | None:
        return self.host.trainings.get(self.place)

    async def take_up(self) -> None:
        """Begins, or goes on with, an assignment that is journaled: what `run` does before its first event."""
        training = self.training
        if not self.over and not self.held.HasField("process") and training is not None:
            await self.handle(events.Launched(process=training.process))
        if self.alive and training is not None and training.stopped and training.alive:
            self.hold_still()
        for effect in machine.recover(self.held):
            await self.carry_out(effect)
        self.clean_up()

    async def go_on(self) -> None:
        """Handles what waits in its inbox."""
        while not self.over and not self.inbox.empty():
            event = self.inbox.get_nowait()
            if event is not None:
                await self.handle(event)

    async def handle(self, event: events.Event) -> None:
        await super().handle(event)
        self.clean_up()

    async def cancel_background(self) -> None:
        self.preparing, self.persisting, self.confirming = False, None, False

    def clean_up(self) -> None:
        if self.over:
            training = self.training
            assert training is None or not training.alive, "an attempt that is over has no process"
            if self.status.phase in RESTS and training is not None and training.sequence:
                if self.held.given_up and self.held.final_event.WhichOneof("event") is None:
                    self.rests_on_its_newest(training)
                else:
                    assert self.held.persisted.step == training.progress.step, "it rests on where it ended"
                    self.host.objects.assert_whole(self.held.persisted)
            self.host.trainings.pop(self.place, None)

    def rests_on_its_newest(self, training: TrainingModel) -> None:
        """Looks at an attempt that was ended in mode LATEST: nothing that it had saved is given up."""
        saved = [event.snapshot for event in training.events if event.HasField("snapshot")]
        assert self.held.persisted.step == saved[-1].progress.step, "all that was saved is durable"
        self.host.objects.assert_whole(self.held.persisted)

    def hold_still(self) -> None:
        super().hold_still()
        if self.training is not None:
            self.training.stopped = True

    def let_go(self) -> None:
        waited = self.held_still
        super().let_go()
        if waited and not self.held_still and self.training is not None:
            self.training.stopped = False

    def pulse(self) -> Pulse | None:
        return self.training.pulse if self.training is not None else None

    def boundary(self) -> NextBoundary | None:
        decides_after = self.training.decides_after if self.training is not None else 0
        return NextBoundary(epoch=decides_after) if decides_after else None

    async def carry_out(self, effect: events.Effect) -> None:  # noqa: C901  # as many as there are effects
        self.host.burn()
        training = self.training
        match effect:
            case events.Prepare():
                self.preparing = True
            case events.Launch(desired=desired):
                await self.launch(desired)
            case events.SetDesired(desired=desired):
                if training is not None:
                    training.desired = desired
                    await self.look_for_boundary()
            case events.Kill():
                if training is not None:
                    training.end(-9, killed=True)
            case events.WriteStacks():
                assert training is not None
                assert training.idle + LOOK_SECONDS >= PACE.step_seconds, "training that gets on does not hang"
            case events.ConfirmRelease():
                self.confirming = True
            case events.Persist(snapshot=snapshot):
                self.persisting = snapshot
            case events.Drop(snapshot=snapshot):
                if training is not None:
                    training.free(snapshot)
            case _:
                raise AssertionError(effect)

    async def launch(self, desired: DesiredState) -> None:
        host, assignment = self.host, self.held.assignment
        assert host.told_at is not None or not host.woke_at, "after a sleep nothing is launched before it is told"
        if self.training is None:
            restore = assignment.restore
            process = TrainingProcess(directory=self.place, nonce=assignment.token.nonce)
            state = expected_state(assignment.token.job_uid, 0)
            if restore.name:
                state = self.fetched
                assert state == expected_state(assignment.token.job_uid, restore.step), "restored from what was damaged"
            training = TrainingModel(assignment, process, desired, state, restored=bool(restore.name))
            training.progress.epoch, training.progress.step = restore.epoch, restore.step
            training.progress.epoch_step = restore.epoch_step
            training.decides_after = min(restore.epoch + 1, assignment.spec.total_epochs)
            host.trainings[self.place] = training
        host.burn()
        assert self.training is not None
        await self.handle(events.Launched(process=self.training.process))
        if self.alive and not self.steady.is_set():
            self.hold_still()

    async def poll(self, most: int = 99) -> None:
        """Reads what the training process wrote, then its end; looks whether it gets on."""
        training = self.training
        if not self.alive or training is None:
            return
        ended, gone = training.exit, training.gone_unseen
        if training.progress != self.status.progress:
            await self.handle(events.Measured(progress=training.progress, usage=None))
        await self.look_for_boundary()
        offset = self.held.events_offset
        for event in training.events[offset : offset + most]:
            offset += 1
            await self.handle(events.EventRead(event=event, offset=offset))
            if self.over:
                return
        if offset == len(training.events) and (ended is not None or gone):
            await self.handle(events.Ended(exit=ended))
        elif ended is None and not gone:
            await self.look_for_hang()

    async def work(self) -> None:
        """Brings what is under way to its end, if storage lets it."""
        if self.preparing and self.steady.is_set():
            await self.prepare_now()
        if self.persisting is not None:
            await self.persist_now(self.persisting)
        if self.confirming:
            self.confirming = False
            await self.handle(events.GpusReleased(time=self.host.now, memory_bytes=None))

    async def prepare_now(self) -> None:
        restore = self.held.assignment.restore
        try:
            if restore.name:
                self.fetched = await self.fetch(restore)
        except STORAGE_ERRORS:
            return  # it tries again
        except CheckpointCorrupt as error:
            self.preparing = False
            failure = Failure(reason=reasons.CHECKPOINT_CORRUPT, message=str(error))
            await self.handle(events.CannotGoOn(failure=failure))
            return
        self.preparing = False
        await self.handle(events.Prepared())

    async def fetch(self, restore: Checkpoint) -> bytes:
        """Returns the state of a checkpoint, every part verified."""
        manifest = await read_manifest(self.parts, restore)
        found = b""
        for part in manifest.parts:
            name = part_key(manifest.job_uid, part.digest)
            try:
                data = await self.parts.download(name, part.digest, part.size_bytes)
            except (LookupError, ValueError) as error:
                raise CheckpointCorrupt(restore.name, name, "is missing or damaged") from error
            if data is None:
                raise CheckpointCorrupt(restore.name, name, "is damaged")
            if [place.file for place in places(manifest)[part.digest]] == ["state"]:
                found = data
        return found

    async def persist_now(self, snapshot: Snapshot) -> None:
        training = self.training
        state = training.contents.get(snapshot.sequence) if training is not None else None
        failed = ""
        if state is None:
            failed, message = reasons.SNAPSHOT_FAILED, "the snapshot is gone"
        else:
            try:
                made = await self.make_durable(snapshot, state)
            except STORAGE_ERRORS:
                return  # it tries again
            except KeyTaken as error:
                failed, message = reasons.FENCED, str(error)
                self.host.fenced.add(self.place)
        self.host.burn()
        self.persisting = None
        if failed:
            failure = Failure(reason=failed, message=message)
            await self.handle(events.PersistFailed(failure=failure, lost=True))
        else:
            assert self.place not in self.host.fenced, "who is not alone under his token registers nothing more"
            await self.handle(events.Persisted(checkpoint=made))

    async def make_durable(self, snapshot: Snapshot, state: bytes) -> Checkpoint:
        """Uploads two parts, one of which no step changes, and the manifest."""
        held, assignment = self.held, self.held.assignment
        uid = assignment.token.job_uid
        newest = held.persisted if held.HasField("persisted") else assignment.base
        base = None
        if newest.name:
            try:
                base = await read_manifest(self.parts, newest)
            except CheckpointCorrupt:
                base = None
        known = {part.digest for part in base.parts} if base else set[str]()
        files: list[Manifest.File] = []
        parts: list[Manifest.Part] = []
        for name, data in (("frozen", f"frozen of {uid}".encode()), ("state", state)):
            part = Manifest.Part(digest=digest(data), size_bytes=len(data))
            place = part_key(uid, part.digest)
            anew = snapshot.last
            if part.digest not in known or not await self.parts.holds(place, part.digest, len(data), anew=anew):
                await self.parts.upload(place, part.digest, data)
            self.host.burn()
            span = Manifest.Span(part=len(parts), size_bytes=len(data))
            chunk = bytes.fromhex(part.digest)
            files.append(Manifest.File(name=name, spans=[span], chunk_sizes=[len(data)], chunk_digests=chunk))
            parts.append(part)
        manifest = Manifest(
            format=FORMAT,
            job=assignment.job,
            job_uid=uid,
            attempt=assignment.token.attempt,
            nonce=assignment.token.nonce,
            sequence=snapshot.sequence,
            spec=assignment.spec,
            progress=snapshot.progress,
            parts=parts,
            files=files,
            component_digests={"state": digest(state)},
            state_digest=snapshots.state_digest({"state": digest(state)}),
        )
        made = await persist.conclude(self.parts, manifest, {})
        wrong = set(self.host.objects.damaged(manifest))
        if not snapshot.last:  # a disk that loses bits is found by the last one
            wrong -= self.host.objects.silent
        assert not wrong, "a checkpoint rests on bytes that nobody has verified"
        return made
