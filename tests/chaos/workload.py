"""Jobs without end, callers that ask for this and that, and the twins that nobody interrupts."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

from google.protobuf.struct_pb2 import Struct
from google.rpc import code_pb2

from adjourn import bundles
from adjourn.client import AsyncClient
from adjourn.errors import AdjournError, NoCheckpointError, NotFoundError, PreconditionError, StaleEtagError
from adjourn.v1.job_pb2 import EPOCH, LATEST, STEP, Job, JobSpec
from tests.chaos import schedule
from tests.chaos.control_planes import UNANSWERED, ControlPlanes
from tests.chaos.oracle import Oracle, Outcome, brief
from tests.chaos.schedule import Command, Training, Verb
from tests.chaos.timeline import Timeline
from tests.harness.training_processes import TRAININGS, TrainingProcesses

SCRIPT: Final = TRAININGS / "paced.py"
MAX_RESTARTS: Final = 1000
"""Chaos is no reason to give up."""
LOOK_SECONDS: Final = 1.0
REST_SECONDS: Final = 12.0
"""How long a job may rest before it is resumed, that the work goes on."""
DEFECTS: Final = frozenset({code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.DATA_LOSS, code_pb2.INVALID_ARGUMENT})
"""Codes that no request of ours should be answered with."""
CHECKPOINT_STEPS: Final = 4
"""Of an epoch's six: the newest checkpoint is amid an epoch as often as at the end of one."""
MODES: Final = {
    Verb.PAUSE: EPOCH,
    Verb.PAUSE_AT_STEP: STEP,
    Verb.PAUSE_NOW: LATEST,
    Verb.CANCEL_SAVING: EPOCH,
    Verb.CANCEL_SAVING_AT_STEP: STEP,
}
REUSED_SHARE: Final = 0.6
"""Part of the jobs that take the name of the deleted one before them."""


class Twins:
    """What trainings come to if nothing happens to them: trained once each, by a process that no agent knows."""

    def __init__(self, processes: TrainingProcesses) -> None:
        self._processes = processes
        self._outcomes: dict[Training, Outcome] = {}
        self._one_at_a_time = asyncio.Lock()

    async def of(self, training: Training) -> Outcome:
        async with self._one_at_a_time:
            if training not in self._outcomes:
                self._outcomes[training] = await asyncio.to_thread(self._train, training)
            return self._outcomes[training]

    def _train(self, training: Training) -> Outcome:
        attempt = self._processes.run(
            f"{SCRIPT.stem}:main",
            epochs=training.epochs,
            args={"pace": 0},
            spec=JobSpec(seed=training.seed),
        )
        assert attempt.code == 0, attempt.log
        return Outcome(digests=attempt.digests, metrics=attempt.values)


@dataclass(kw_only=True)
class Slot:
    """One of the jobs that are there at a time."""

    number: int
    name: str = ""
    """`jobs/{job}`; empty: no job is there now."""
    training: Training = field(default_factory=lambda: Training(seed=0, epochs=0))


@dataclass(kw_only=True)
class Workload:
    """Keeps jobs coming, and asks for whatever the schedule says."""

    seed: int
    planes: ControlPlanes
    oracle: Oracle
    twins: Twins
    timeline: Timeline
    jobs: int
    pace: float
    epochs: tuple[int, int]
    slots: list[Slot] = field(init=False)
    _closing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.slots = [Slot(number=number) for number in range(self.jobs)]

    def close(self) -> None:
        """Has `keep` make no more jobs, and leave those that are there as they are."""
        self._closing = True

    async def keep(self, slot: Slot) -> None:
        """Has a job in the slot, one after another, each looked at when it is over; returns after `close`."""
        bundle = await self.planes.ask(lambda client: client.upload_bundle(bundles.pack(SCRIPT)))
        draw = random.Random(f"{self.seed} names of slot {slot.number}")
        job_id = f"chaos-{slot.number}"
        for serial, training in enumerate(schedule.trainings(self.seed, slot.number, epochs=self.epochs)):
            if self._closing:
                return
            if draw.random() > REUSED_SHARE:
                job_id = f"chaos-{slot.number}-{serial}"
            slot.training = training
            await self._create(slot, bundle, job_id)
            if not await self._follow(slot):
                return
            slot.name = ""

    async def _create(self, slot: Slot, bundle: str, job_id: str) -> None:
        spec = JobSpec(
            entry_point=f"{SCRIPT.stem}:main",
            bundle=bundle,
            total_epochs=slot.training.epochs,
            seed=slot.training.seed,
            max_restarts=MAX_RESTARTS,
            checkpoint_steps=CHECKPOINT_STEPS,
            args=Struct(),
        )
        spec.args.update({"pace": self.pace})
        request_id = str(uuid4())
        job = await self.planes.ask(lambda client: client.create_job(spec, job_id=job_id, request_id=request_id))
        self.timeline.counts["jobs created"] += 1
        slot.name = job.name

    async def _follow(self, slot: Slot) -> bool:
        """Returns when the slot's job is gone (True), or is to be left as it is (False)."""
        rests_since: float | None = None
        while not self._closing:
            try:
                job = await self.get(slot)
            except NotFoundError:
                return True  # a caller has deleted it
            if job.state in (Job.SUCCEEDED, Job.FAILED):
                await self.conclude(slot, job)
                return True
            if job.state not in (Job.PAUSED, Job.CANCELLED):
                rests_since = None
            elif rests_since is None:
                rests_since = time.monotonic()
            elif time.monotonic() > rests_since + REST_SECONDS:
                await self.go_on(slot)
                rests_since = None
            await asyncio.sleep(LOOK_SECONDS)
        return False

    async def get(self, slot: Slot) -> Job:
        return await self.planes.ask(lambda client: client.get_job(slot.name))

    async def conclude(self, slot: Slot, job: Job) -> None:
        """Looks at a job that has ended, and deletes it."""
        self.timeline.counts["jobs ended"] += 1
        if job.state == Job.SUCCEEDED:
            await self.oracle.verify(job, await self.twins.of(slot.training))
        else:
            self.timeline.find("a job failed", message=job.failure.message, **brief(job))
        await self.delete(slot)

    async def delete(self, slot: Slot) -> None:
        request_id = str(uuid4())
        with suppress(NotFoundError):
            await self.planes.ask(lambda client: client.delete_job(slot.name, request_id=request_id))

    async def go_on(self, slot: Slot) -> None:
        """Takes every hold from a job and resumes it; one that cannot be resumed is deleted."""
        try:
            await self.planes.ask(lambda client: client.release_jobs([slot.name]))
            await self.planes.ask(lambda client: client.resume_job(slot.name))
        except NoCheckpointError:
            await self.delete(slot)
        except (PreconditionError, NotFoundError):
            pass  # somebody else was faster

    async def call(self, caller: int, gap: tuple[float, float]) -> None:
        """Asks for whatever the schedule says, as one of several callers, until cancelled."""
        for command in schedule.commands(self.seed, caller, slots=self.jobs, gap=gap):
            await asyncio.sleep(command.after)
            if name := self.slots[command.slot].name:
                await self._command(command, name)

    async def _command(self, command: Command, name: str) -> None:
        request_id = str(uuid4())
        first = await self._answer(command, name, self.planes.clients[command.replica], request_id)
        if command.repeated:
            other = self.planes.clients[(command.replica + 1) % len(self.planes.clients)]
            second = await self._answer(command, name, other, request_id)
            if isinstance(first, Job) and isinstance(second, Job) and first != second:
                self.timeline.find("a repeated request had another answer", verb=command.verb, name=name)

    async def _answer(self, command: Command, name: str, client: AsyncClient, request_id: str) -> Job | None:
        try:
            answer = await self._ask(command, name, client, request_id)
        except AdjournError as error:
            outcome = "unanswered" if error.code in UNANSWERED else error.reason
            if error.code in DEFECTS:
                self.timeline.find("a request was answered with an error that none should be", error=repr(error))
            answer = None
        else:
            outcome = "done"
        self.timeline.commands[f"{command.verb}: {outcome}"] += 1
        self.timeline.write("asked", verb=command.verb, job=name, replica=client.address, outcome=outcome)
        return answer

    async def _ask(self, command: Command, name: str, client: AsyncClient, request_id: str) -> Job | None:
        match command.verb:
            case Verb.PAUSE | Verb.PAUSE_AT_STEP | Verb.PAUSE_NOW:
                asked = await client.pause_job(name, mode=MODES[command.verb], request_id=request_id)
                self.oracle.compare_epochs(asked)
                return asked
            case Verb.RESUME:
                return await client.resume_job(name, request_id=request_id)
            case Verb.CANCEL:
                return await client.cancel_job(name, request_id=request_id)
            case Verb.CANCEL_SAVING | Verb.CANCEL_SAVING_AT_STEP:
                mode = MODES[command.verb]
                return await client.cancel_job(name, save_checkpoint=True, mode=mode, request_id=request_id)
            case Verb.DELETE:
                job = await client.get_job(name)
                if job.state == Job.CANCELLED:  # one that has SUCCEEDED is looked at first
                    with suppress(StaleEtagError):
                        await client.delete_job(name, etag=job.etag, request_id=request_id)
            case _:
                await self._order(command, name, client)
        return None

    async def _order(self, command: Command, name: str, client: AsyncClient) -> None:
        """Asks for what operators ask for."""
        match command.verb:
            case Verb.HOLD:
                await client.hold_jobs([name])
            case Verb.RELEASE:
                await client.release_jobs([name])
            case Verb.DRAIN:
                await client.drain_worker(f"worker-{command.worker}")
            case Verb.UNDRAIN:
                await client.undrain_worker(f"worker-{command.worker}")
            case _:
                raise ValueError(command)

    async def open_up(self) -> None:
        """Takes back what keeps workers from taking jobs and jobs from running, but for callers' own pauses."""
        for number in range(1, schedule.WORKERS + 1):
            await self._undrain(f"worker-{number}")
        await self.planes.ask(lambda client: client.release_jobs(all_jobs=True))

    async def _undrain(self, worker: str) -> None:
        with suppress(NotFoundError):
            await self.planes.ask(lambda client: client.undrain_worker(worker))

    async def rest(self, seconds: float) -> None:
        """Has half of the jobs rest as asked, within `seconds`."""
        draw = random.Random(f"{self.seed} end")
        pausing = [slot for slot in self.slots if slot.name and draw.random() < 0.5]
        await asyncio.gather(*(self._rests(slot, seconds) for slot in pausing))

    async def finish(self, seconds: float) -> None:
        """Has every job come to its end within `seconds`, looks at it, and deletes it."""
        await asyncio.gather(*(self._succeeds(slot, seconds) for slot in self.slots if slot.name))

    async def _rests(self, slot: Slot, seconds: float) -> None:
        try:
            asked = await self.planes.ask(lambda client: client.pause_job(slot.name))
        except (PreconditionError, NotFoundError):
            return  # it has ended
        if asked.state == Job.CANCELLED:
            return
        job = await self._becomes(slot, {Job.PAUSED, Job.SUCCEEDED}, seconds)
        self.timeline.counts["last pauses that came to rest as asked"] += bool(job)

    async def _succeeds(self, slot: Slot, seconds: float) -> None:
        with suppress(NotFoundError):
            job = await self._becomes(slot, {Job.PAUSED, Job.CANCELLED, Job.SUCCEEDED, Job.FAILED}, seconds)
            if job and job.state in (Job.PAUSED, Job.CANCELLED):
                await self.go_on(slot)
                job = await self._becomes(slot, {Job.SUCCEEDED, Job.FAILED}, seconds)
            if job:
                await self.conclude(slot, job)

    async def _becomes(self, slot: Slot, states: "set[Job.State.ValueType]", seconds: float) -> Job | None:
        deadline = time.monotonic() + seconds
        while (job := await self.get(slot)).state not in states:
            if time.monotonic() > deadline:
                wanted = " or ".join(Job.State.Name(state) for state in sorted(states))
                self.timeline.find(f"not {wanted} {seconds:g} s after everything was healed", **brief(job))
                return None
            await asyncio.sleep(LOOK_SECONDS)
        return job
