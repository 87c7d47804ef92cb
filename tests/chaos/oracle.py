"""Looks on, and says where a promise is broken: what rests is saved and has no process, no epoch is lost or double."""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from adjourn import reasons
from adjourn.client import AsyncClient
from adjourn.errors import AdjournError, NotFoundError
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.objects import STORAGE_ERRORS, ObjectStore
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import EPOCH, Condition, Job, Pause
from adjourn.v1.job_service_pb2 import JobEvent
from tests.chaos.control_planes import AGAIN_SECONDS, ControlPlanes
from tests.chaos.processes import LiveTraining, live_trainings
from tests.chaos.timeline import Timeline
from tests.harness.checkpoint_objects import damage
from tests.harness.job_history import Told

POLL_SECONDS: Final = 0.3
LIMIT_BYTES: Final = 16 << 20
RESTS: Final = frozenset({Job.PAUSED, Job.CANCELLED, Job.SUCCEEDED, Job.FAILED})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to; equal outcomes are equal bits."""

    digests: Mapping[str, str]
    """Of every component of the last checkpoint."""
    metrics: Mapping[int, Mapping[str, float]]
    """Of every epoch."""


@dataclass(kw_only=True)
class Oracle:
    """Watches the jobs at every replica, and the processes."""

    planes: ControlPlanes
    objects: ObjectStore
    workers: Path
    """Below which the data directories of the workers are."""
    may_be_silent: Callable[[str], bool]
    """Tells whether a fault may be why a worker, `workers/{worker}`, is not heard."""
    timeline: Timeline
    spoiled: AbstractSet[str] = frozenset()
    """Names of checkpoints that a fault has damaged."""
    _seen: set[Any] = field(default_factory=set, init=False)
    _named: dict[tuple[str, int, int], int] = field(default_factory=dict, init=False)
    """Epoch at which a pause was said to be, by uid, attempt and time of the request."""
    _attempts: dict[str, int] = field(default_factory=dict, init=False)
    """Newest attempt that was seen, by uid."""
    _checks: set["asyncio.Task[None]"] = field(default_factory=set, init=False)

    async def watch(self, client: AsyncClient) -> None:
        """Follows the jobs at one replica until cancelled."""
        while True:
            try:
                async with aclosing(client.watch_jobs()) as changes:
                    async for change in changes:
                        if change.HasField("job"):
                            self.look(client.address, change.job)
            except AdjournError as error:
                self.timeline.write("watch broken", replica=client.address, error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)

    def look(self, replica: str, job: Job) -> None:
        """Looks at what a replica has just told of a job."""
        self.compare_epochs(job)
        told = (job.uid, job.state, job.attempt, job.state_time.ToNanoseconds(), job.pause.HasField("release_time"))
        if (replica, told) in self._seen:
            return
        self._seen.add((replica, told))
        first = told not in self._seen
        self._seen.add(told)
        self.timeline.write("told", replica=replica, **brief(job))
        if job.state in RESTS:
            self._no_process(replica, job)
        if first and job.attempt > self._attempts.get(job.uid, 0):
            self._attempts[job.uid] = job.attempt
            self.timeline.counts["attempts"] += 1
            if job.failure.attempt == job.attempt - 1 and job.attempt > 1:
                self.timeline.restarts[job.failure.reason] += 1
        if first and job.failure.reason == reasons.WORKER_LOST and (job.uid, job.failure.attempt) not in self._seen:
            self._seen.add((job.uid, job.failure.attempt))
            lost = next((word for word in job.failure.message.split() if word.startswith("workers/")), "")
            if lost and not self.may_be_silent(lost):
                self.timeline.find("a worker was taken for lost that no fault had silenced", lost=lost, **brief(job))
        if first and job.state in (Job.PAUSED, Job.CANCELLED):
            self.timeline.counts["pauses seen" if job.state == Job.PAUSED else "cancellations seen"] += 1
            check = asyncio.create_task(self._is_saved(job))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)

    def compare_epochs(self, job: Job) -> None:
        """Compares where a pause is with where it was said to be; its attempt may fail or be lost on the way.

        No fault here keeps training from saving at a boundary, which is what else a pause could wait for.
        """
        pause = job.pause
        key = (job.uid, job.attempt, pause.request_time.ToNanoseconds())
        if job.state == Job.PAUSING and pause.boundary_epoch:
            self._named[key] = pause.boundary_epoch
        elif pause.mode > EPOCH:
            self._named.pop(key, None)  # it became earlier than was said
        elif job.state == Job.PAUSED and key in self._named and not pause.HasField("lost_duration"):
            named = self._named.pop(key)
            self.timeline.counts["pauses at the epoch that was named"] += pause.epoch == named
            if pause.epoch != named:
                self.timeline.find("a pause was taken at another epoch than was named", named=named, **brief(job))

    def _no_process(self, replica: str, job: Job) -> None:
        if any(each.type == Condition.RELEASE_UNCONFIRMED for each in job.conditions):
            return
        if job.state == Job.PAUSED and job.pause.from_worker and not job.pause.HasField("release_time"):
            if job.pause.cause != Pause.WORKER_LOST:
                self.timeline.find("PAUSED on a worker without a release_time, and nobody is told why", **brief(job))
            return
        live = [each for each in self.live(job.uid) if each.number <= job.attempt]
        if live:
            self.timeline.find(
                f"{Job.State.Name(job.state)} was told while a training process lived, without RELEASE_UNCONFIRMED",
                replica=replica,
                processes=live,
                **brief(job),
            )

    def live(self, uid: str) -> list[LiveTraining]:
        """Returns the training processes of a job."""
        return [each for each in live_trainings(self.workers) if each.uid8 == uid[:8]]

    async def watch_processes(self) -> None:
        """Looks for attempts that two processes train, until cancelled."""
        doubtful: set[str] = set()
        while True:
            live = live_trainings(self.workers)
            counted = Counter(each.attempt for each in live)
            double = {attempt for attempt, count in counted.items() if count > 1}
            # Twice in a row: what is being forked is counted twice for a moment.
            for attempt in double & doubtful:
                if ("double", attempt) not in self._seen:
                    self._seen.add(("double", attempt))
                    found = [each for each in live if each.attempt == attempt]
                    self.timeline.find("one attempt has more than one process", processes=found)
            doubtful = double
            by_job: dict[str, set[str]] = defaultdict(set)
            for each in live:
                by_job[each.uid8].add(each.attempt)
            for attempts in by_job.values():
                if len(attempts) > 1 and ("overlap", frozenset(attempts)) not in self._seen:
                    self._seen.add(("overlap", frozenset(attempts)))
                    self.timeline.counts["attempts that outlived their successor's start"] += 1
                    self.timeline.write("overlap", attempts=sorted(attempts))
            await asyncio.sleep(POLL_SECONDS)

    async def settled(self) -> None:
        """Returns when every rest that was seen has been looked at."""
        while self._checks:
            await asyncio.gather(*self._checks)

    async def _is_saved(self, job: Job) -> None:
        """Reads what a job that is PAUSED or CANCELLED rests on."""
        paused = job.state == Job.PAUSED
        rests_on = (job.pause.checkpoint if paused else "") or job.latest_checkpoint
        try:
            if not rests_on:
                if paused and job.progress.epoch:
                    self.timeline.find("PAUSED after an epoch without a checkpoint", **brief(job))
                self.timeline.counts["rests before the first checkpoint"] += 1
                return
            checkpoint = await self.planes.ask(lambda client: client.get_checkpoint(rests_on))
            if checkpoint.job_uid != job.uid:
                return  # deleted meanwhile, and the name used again
            held = paused and job.pause.cause == Pause.HELD and bool(job.pause.checkpoint)
            if held and (checkpoint.epoch, checkpoint.step) != (job.pause.epoch, job.pause.step):
                self.timeline.find("the pause is of another epoch or step than its checkpoint", **brief(job))
            await self._is_whole(checkpoint, job)
        except NotFoundError:
            if await self._exists(job):
                self.timeline.find("a job rests on a checkpoint that is not registered", name=rests_on, **brief(job))
        except AdjournError as error:
            self.timeline.find("a checkpoint could not be asked for", error=repr(error), **brief(job))

    async def _is_whole(self, checkpoint: Checkpoint, job: Job) -> None:
        wrong = await damage(checkpoint, self._read)
        if not wrong:
            self.timeline.counts["rests whose checkpoint was read whole"] += 1
        elif checkpoint.name in self.spoiled:
            self.timeline.counts["rests on a checkpoint that was damaged"] += 1
        elif await self._exists(job):
            self.timeline.find("a job rests on a checkpoint that is not whole", wrong=wrong, **brief(job))

    async def _exists(self, job: Job) -> bool:
        with contextlib.suppress(NotFoundError):
            return (await self.planes.ask(lambda client: client.get_job(job.name))).uid == job.uid
        return False

    async def _read(self, key: str) -> bytes:
        while True:
            try:
                return await self.objects.get(key, limit=LIMIT_BYTES)
            except STORAGE_ERRORS:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _history(self, job: Job) -> list[JobEvent]:
        """Returns what happened to a job, once it tells what the job is now."""
        events: list[JobEvent] = []
        count = -1
        while count != len(events):  # a condition may end while it is read
            count = len(events)
            now = await self.planes.ask(lambda client: client.get_job(job.name))
            events = await self.planes.ask(lambda client: listed(client.list_job_events(job.name)))
        told, known = Told().after(events), Told.of(JobRecord(job=now))
        if told != known:
            self.timeline.find("the job's history tells something else", told=told, known=known, **brief(job))
        return events

    async def verify(self, job: Job, twin: Outcome) -> None:
        """Compares a job that has SUCCEEDED with its uninterrupted twin."""
        found_before = len(self.timeline.findings)
        epochs = await self.planes.ask(lambda client: listed(client.list_epoch_metrics(job.name)))
        numbers = [each.epoch for each in epochs]
        if numbers != list(range(1, job.spec.total_epochs + 1)):
            self.timeline.find("an epoch is missing or double", epochs=numbers, **brief(job))
        elif wrong := [each.epoch for each in epochs if dict(each.values) != dict(twin.metrics[each.epoch])]:
            self.timeline.find("epochs came to other values than those of the twin", epochs=wrong, **brief(job))
        checkpoints = await self.planes.ask(lambda client: listed(client.list_checkpoints(job.name)))
        made = [(each.attempt, each.epoch) for each in reversed(checkpoints)]
        events = await self._history(job)
        fell_back = any(each.type == JobEvent.FELL_BACK for each in events)
        if any(later[0] < earlier[0] or (later[1] < earlier[1] and not fell_back) for earlier, later in pairwise(made)):
            self.timeline.find(
                "a checkpoint of an older attempt was registered after a newer one's", made=made, **brief(job)
            )
        last = await self.planes.ask(lambda client: client.get_checkpoint(job.latest_checkpoint))
        if dict(last.component_digests) != dict(twin.digests):
            wrong_components = sorted(set(last.component_digests.items()) ^ set(twin.digests.items()))
            self.timeline.find("the digests differ from the twin's", components=wrong_components, **brief(job))
        if lacks := await damage(last, self._read):
            self.timeline.find("the last checkpoint is not whole", wrong=lacks, **brief(job))
        self.timeline.counts["times that a job fell back"] += [each.type for each in events].count(JobEvent.FELL_BACK)
        if [each.sequence for each in events] != list(range(1, len(events) + 1)):
            self.timeline.find("the job's events have gaps", sequences=[each.sequence for each in events], **brief(job))
        late = [
            each.details["checkpoint"]
            for each in events
            if each.type == JobEvent.CHECKPOINT_REGISTERED and attempt_of(each.details["checkpoint"]) != each.attempt
        ]
        if late:
            self.timeline.find("an attempt that was not current any more registered", late=late, **brief(job))
        if len(self.timeline.findings) == found_before:
            self.timeline.counts["jobs equal to their uninterrupted twins"] += 1
            self.timeline.write("verified", **brief(job))


def attempt_of(checkpoint: str) -> int:
    """Returns the attempt that made `jobs/{job}/checkpoints/{attempt}-{nonce8}-{sequence}`."""
    return int(checkpoint.rpartition("/")[2].partition("-")[0])


async def listed(items: Any) -> list[Any]:
    return [item async for item in items]


def brief(job: Job) -> dict[str, Any]:
    """Returns what a line of the timeline has of a job."""
    return {
        "job": job.name,
        "uid": job.uid[:8],
        "state": Job.State.Name(job.state),
        "attempt": job.attempt,
        "worker": job.worker,
        "epoch": job.progress.epoch,
        "checkpoint": job.latest_checkpoint.rpartition("/")[2],
        "cause": Pause.Cause.Name(job.pause.cause) if job.HasField("pause") else "",
        "released": job.pause.HasField("release_time"),
        "restarts": job.restart_count,
        "failure": f"{job.failure.attempt} {job.failure.reason}" if job.HasField("failure") else "",
        "conditions": [Condition.Type.Name(each.type) for each in job.conditions],
    }
