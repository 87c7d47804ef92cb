"""All that a paused run tells is what was measured beside it: by its training, by the test, by the machine, in S3.

One training on two GPUs, which stand in for real ones, is paused twice. It keeps a diary by its own clocks.
"""

import asyncio
import contextlib
import getpass
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from adjourn import bundles
from adjourn.cli.documents import document
from adjourn.client import AsyncClient
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Condition, Hold, Job, JobSpec, Pause, PauseMode
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, ResourceSample, StepMetrics
from adjourn_control_plane.fleet.reconcile import PROGRESS_INTERVAL
from tests.harness.cluster import Cluster
from tests.harness.nvml_library import NvmlLibrary

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCRIPT: Final = Path(__file__).parents[1] / "trainings" / "diary.py"
STEPS, STEP_SECONDS, VALIDATION_SECONDS = 8, 0.05, 0.1
EPOCHS, WORSE, FIRST_PAUSE, LATER = 18, 4, 5, 4
"""Epochs in all, the one that is no improvement, the one in which a pause is asked for, and how many later the next."""
ODD_STEP: Final = 2 * STEPS + 3
"""The step that tells a loss which is no number, in the third epoch."""
GPUS, PRICE = 2, 2.5
SYNC_SECONDS: Final = 0.5
SAMPLE_SECONDS: Final = 0.05
NOTICE_SECONDS: Final = 1.0
"""Until what happened is known elsewhere, on a busy machine."""
PROGRESS_SECONDS: Final = PROGRESS_INTERVAL.total_seconds()
LATE_STEPS: Final = NOTICE_SECONDS / STEP_SECONDS
MIB, GIB = 1 << 20, 1 << 30
IDLE_BYTES, BUSY_BYTES, LEFT_BYTES = MIB, (20 * GIB, 30 * GIB), 64 * MIB
JOB_BYTES: Final = (19 * GIB, 27 * GIB)

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The machine at one moment, as /proc tells it."""

    time: float
    busy: float
    """CPU seconds of all that ran so far."""
    used: int
    """Bytes of memory in use."""

    @classmethod
    def now(cls) -> "Reading":
        _, user, nice, system, _idle, _waiting, *more = Path("/proc/stat").read_text().split("\n")[0].split()
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(memory[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
        ticks = sum(map(int, (user, nice, system, *more[:3])))
        return cls(time=time.time(), busy=ticks / os.sysconf("SC_CLK_TCK"), used=total - available)


@dataclass(kw_only=True)
class Rest:
    """One pause: what is told of it, and what was measured beside."""

    asked: float
    answer: Job
    answered: float
    gone: float = 0.0
    """When the training process was seen to be gone."""
    freed: float = 0.0
    """When the memory of its GPUs was."""
    told: Job = field(default_factory=Job)
    told_between: tuple[float, float] = (0.0, 0.0)
    """When it was asked for that, and had it."""
    later: Job = field(default_factory=Job)
    """The same, some seconds later."""
    later_between: tuple[float, float] = (0.0, 0.0)
    listed: Sequence[Job] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    """What the command line shows."""
    before: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each of the job's objects in S3, before the pause was asked for..."""
    after: Mapping[str, int] = field(default_factory=dict)
    """... and at rest."""
    waited_for_gpus: bool = False


@dataclass(kw_only=True)
class Course:
    """A training from its first step to its end."""

    diary: Sequence[Entry]
    """Without that of the attempt that was given up."""
    starts: Sequence[Entry]
    """The last entry of each attempt before its first step."""
    readings: Sequence[Reading]
    rests: Sequence[Rest]
    given_up: Rest
    """The last pause, in mode LATEST, which goes back to where the one before was."""
    lost: Sequence[Entry]
    """What the attempt that it ended had noted."""
    finished: Job
    epochs: Sequence[EpochMetrics]
    steps: Sequence[StepMetrics]
    events: Sequence[JobEvent]
    samples: Sequence[ResourceSample]
    begun: float
    """When a watcher heard that training had begun."""
    releases: Mapping[int, float]
    """When it heard that GPUs were free, by the number of the pause, from 0..."""
    resumes: Mapping[int, float]
    """... and of the first step afterwards."""

    def until(self, told: Job) -> list[Entry]:
        """Returns what was noted before a pause."""
        end = seconds(told.pause.snapshot_time)
        return [entry for entry in self.diary if entry["time"] <= end]


def seconds(moment: Timestamp) -> float:
    return moment.ToNanoseconds() / 1e9


def length(duration: Duration) -> float:
    return duration.ToTimedelta().total_seconds()


def trained(entries: Sequence[Entry]) -> tuple[float, float]:
    """Returns the least and the most seconds of training that a diary shows, pauses left out."""
    attempts = [list(part) for _, part in groupby(entries, lambda entry: entry["pid"])]
    whole = [part[-1]["clock"] - part[0]["clock"] for part in attempts]
    beginning = [part[1]["clock"] - part[0]["clock"] for part in attempts]
    return sum(whole) - sum(beginning), sum(whole)


def of(entries: Sequence[Entry], what: str) -> list[Entry]:
    return [entry for entry in entries if entry["what"] == what]


def around(points: Sequence[tuple[float, float]], moment: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns the two points around a moment; the first or the last one twice if it is before or after all."""
    after = next((index for index, (when, _) in enumerate(points) if when >= moment), len(points))
    return points[max(after - 1, 0)], points[min(after, len(points) - 1)]


def at(points: Sequence[tuple[float, float]], moment: float) -> float:
    """Returns a value at a moment, of one that was noted at others: on the line between the two around it."""
    (earlier, low), (later, high) = around(points, moment)
    return low if later == earlier else low + (high - low) * (moment - earlier) / (later - earlier)


def used_until(points: Sequence[tuple[float, float]], moment: float) -> tuple[float, float]:
    """Returns the least and the most percent of a core used until a moment, since a sample before it.

    That one was taken an interval earlier, or two where the machine is busy. `points`: seconds of CPU time so far.
    """
    windows = [SYNC_SECONDS * (1 + quarter / 4) for quarter in range(5)]
    percents = [100 * (at(points, moment) - at(points, moment - seconds)) / seconds for seconds in windows]
    return min(percents), max(percents)


@dataclass(kw_only=True)
class Observer:
    """The stack, the job, and all that watches it."""

    cluster: Cluster
    client: AsyncClient
    objects: S3Objects
    gpus: NvmlLibrary
    diary: Path
    name: str = ""
    uid: str = ""
    looked_at: int = 0
    """Entries of the diary that are of attempts which are over."""
    begun: float = 0.0
    releases: dict[int, float] = field(default_factory=dict)
    resumes: dict[int, float] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)

    def entries(self) -> list[Entry]:
        return [json.loads(line) for line in self.diary.read_text().splitlines()] if self.diary.exists() else []

    async def noted(self, **wanted: Any) -> Entry:
        """Waits for an entry in the diary of the running attempt."""
        async with asyncio.timeout(60):
            while True:
                for entry in self.entries()[self.looked_at :]:
                    if wanted.items() <= entry.items():
                        return entry
                await asyncio.sleep(0.01)

    async def begin(self) -> None:
        bundle = await self.client.upload_bundle(bundles.pack(SCRIPT))
        spec = JobSpec(
            entry_point="diary:main",
            bundle=bundle,
            total_epochs=EPOCHS,
            gpu_count=GPUS,
            checkpoint_epochs=0,  # what is in S3 is of pauses alone
            model_name="a perceptron",
            dataset_uri="file:///points",
        )
        args = {
            "diary": str(self.diary),
            "step": STEP_SECONDS,
            "validation": VALIDATION_SECONDS,
            "worse_in": WORSE,
            "odd_step": ODD_STEP,
        }
        ParseDict(args, spec.args)
        job = await self.client.create_job(spec, job_id="diary", labels={"team": "blue"})
        self.name, self.uid = job.name, job.uid

    async def occupy(self, **wanted: Any) -> None:
        """Has the process of an entry on the GPUs."""
        pid = (await self.noted(**wanted))["pid"]
        for index in range(GPUS):
            gpu = self.gpus[index]
            gpu.used, gpu.busy, gpu.celsius, gpu.milliwatts = BUSY_BYTES[index], 40 + 30 * index, 61 + index, 412_000
            gpu.run({pid: JOB_BYTES[index]})

    async def leave(self, rest: Rest, *, late: bool) -> None:
        """Frees the GPUs once the process is gone; `late`: once somebody has been told that they are waited for."""
        pid = self.entries()[-1]["pid"]
        async with asyncio.timeout(60):
            while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
            rest.gone = time.time()
            self.looked_at = len(self.entries())
            while late and not rest.waited_for_gpus:
                conditions = (await self.client.get_job(self.name)).conditions
                rest.waited_for_gpus = any(each.type == Condition.GPUS_NOT_RELEASED for each in conditions)
        rest.freed = time.time()
        for index in range(GPUS):
            self.gpus[index].used = IDLE_BYTES + LEFT_BYTES
            self.gpus[index].run({})

    async def pause(self, *, mode: PauseMode.ValueType, reason: str, late: bool = False) -> Rest:
        before = await self.stored()
        asked = time.time()
        answer = await self.client.pause_job(self.name, mode=mode, reason=reason)
        rest = Rest(asked=asked, answer=answer, answered=time.time(), before=before)
        await self.leave(rest, late=late)
        await self.client.wait_job(self.name, until={Job.PAUSED}, timeout=60)
        return rest

    async def look(self, rest: Rest) -> None:
        """Asks for all that is told of a run at rest, twice."""
        rest.told_between, rest.told = await self.timed_job()
        rest.listed = [job async for job in self.client.list_jobs(states=[Job.PAUSED])]
        rest.after = await self.stored()
        rest.shown = {
            "paused": json.loads(await self.command("paused", "--output", "json")),
            "get": json.loads(await self.command("get", self.name, "--output", "json")),
            "text": await self.command("get", self.name),
            "table": await self.command("paused"),
        }
        rest.later_between, rest.later = await self.timed_job()

    async def timed_job(self) -> tuple[tuple[float, float], Job]:
        """Returns the job, and between which times it was so."""
        begin = time.time()
        job = await self.client.get_job(self.name)
        return (begin, time.time()), job

    async def stored(self) -> dict[str, int]:
        return dict(await self.objects.list(f"checkpoints/{self.uid}/"))

    async def command(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / "adjourn"),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "ADJOURN_ADDRESS": self.cluster.address, "COLUMNS": "160"},
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    async def watch(self) -> None:
        """Notes when it is heard that GPUs are free, and of the first step afterwards."""
        async with aclosing(self.client.watch_jobs()) as changes:
            async for change in changes:
                job = change.job
                if job.HasField("start_time"):
                    self.begun = self.begun or time.time()
                pauses = [*job.past_pauses, *([job.pause] if job.HasField("pause") else [])]
                for number, pause in enumerate(pauses):
                    if pause.HasField("release_time"):
                        self.releases.setdefault(number, time.time())
                    if pause.HasField("resume_time"):
                        self.resumes.setdefault(number, time.time())

    async def read_machine(self) -> None:
        while True:
            self.readings.append(Reading.now())
            await asyncio.sleep(SAMPLE_SECONDS)


@asynccontextmanager
async def beside(*work: Any) -> AsyncIterator[None]:
    """Has tasks run meanwhile."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The training, paused twice: after an epoch, while an operator holds it as well, and after a step."""
    directory = tmp_path_factory.mktemp("paused-run")
    gpus = NvmlLibrary(tmp_path_factory.mktemp("nvml")).has(GPUS)
    environment = {
        "ADJOURN_SYNC_INTERVAL": str(SYNC_SECONDS),
        "ADJOURN_GPU_HOUR_PRICE": f"{PRICE} EUR",
        **gpus.environment,
    }
    async with (
        Cluster(directory=directory, environment=environment) as cluster,
        AsyncClient(cluster.address) as client,
        S3Objects(cluster.s3) as objects,
    ):
        observer = Observer(cluster=cluster, client=client, objects=objects, gpus=gpus, diary=directory / "diary")
        await observer.begin()
        async with beside(observer.watch(), observer.read_machine()):
            await observer.occupy(what="epoch begins", epoch=1)
            await observer.noted(what="step", epoch=FIRST_PAUSE)
            first = await observer.pause(mode=PauseMode.EPOCH, reason="for maintenance", late=True)
            await client.hold_jobs([observer.name], reason="the room is warm")
            await observer.look(first)
            await client.release_jobs([observer.name])
            await client.resume_job(observer.name)
            await observer.occupy(what="epoch begins")
            await observer.noted(what="step", epoch=first.told.pause.epoch + LATER)
            second = await observer.pause(mode=PauseMode.STEP, reason="")
            await observer.look(second)
            await client.resume_job(observer.name)
            await observer.noted(what="step")
            await client.wait_job(observer.name, until=lambda job: job.pause.HasField("resume_time"), timeout=60)
            third = await observer.pause(mode=PauseMode.LATEST, reason="at once")
            third.told_between, third.told = await observer.timed_job()
            await client.resume_job(observer.name)
            finished = await client.wait_job(observer.name, until={Job.SUCCEEDED}, timeout=60)
        diary = observer.entries()
        attempts = [list(part) for _, part in groupby(diary, lambda entry: entry["pid"])]
        return Course(
            diary=[entry for entry in diary if entry not in attempts[2]],
            starts=[of(attempt, "epoch begins")[0] for attempt in attempts],
            given_up=third,
            lost=attempts[2],
            readings=observer.readings,
            rests=(first, second),
            finished=finished,
            epochs=[each async for each in client.list_epoch_metrics(observer.name)],
            steps=await client.list_step_metrics(observer.name),
            samples=await client.list_resource_samples(observer.name),
            events=[each async for each in client.list_job_events(observer.name)],
            begun=observer.begun,
            releases=observer.releases,
            resumes=observer.resumes,
        )


async def test_state_time_and_identity_are_those_of_the_training(course: Course) -> None:
    for rest in course.rests:
        job = rest.told
        assert (job.name, job.state, job.spec.model_name, job.spec.dataset_uri, dict(job.labels)) == (
            "jobs/diary",
            Job.PAUSED,
            "a perceptron",
            "file:///points",
            {"team": "blue"},
        )
        assert course.starts[0]["time"] <= seconds(job.start_time) <= course.begun
        assert job.state_time == job.pause.pause_time
        assert (job.worker, job.pause.from_worker) == ("", "workers/worker-1")


async def test_progress_is_what_the_training_wrote(course: Course) -> None:
    for rest in course.rests:
        progress, noted = rest.told.progress, course.until(rest.told)
        step, ended = of(noted, "step")[-1], of(noted, "epoch ends")
        assert (progress.epoch, progress.step) == (len(ended), step["step"])
        assert progress.epoch_step == step["step"] - STEPS * len(ended)
        assert progress.steps_per_epoch == STEPS
        assert progress.loss == pytest.approx(step["loss"])
        assert {name: progress.metrics[name] for name in ("val_loss", "accuracy")} == {
            name: ended[-1][name] for name in ("val_loss", "accuracy")
        }
        best = min(ended, key=lambda entry: entry["val_loss"])
        assert (progress.best.metric, progress.best.value) == ("val_loss", best["val_loss"])
        assert (progress.best.epoch, progress.best.stale_epochs) == (best["epoch"], len(ended) - best["epoch"])
        assert (rest.told.pause.epoch, rest.told.pause.step) == (progress.epoch, progress.step)
    assert course.rests[0].told.progress.epoch_step == 0
    assert course.rests[1].told.progress.epoch_step > 0


async def test_training_time_leaves_pauses_out_and_what_is_left_takes_as_long_as_was_told(course: Course) -> None:
    (whole, most), leaving = trained(course.diary), 0.0
    for rest in course.rests:
        progress, (until, at_most) = rest.told.progress, trained(course.until(rest.told))
        leaving += seconds(rest.told.pause.snapshot_time) - course.until(rest.told)[-1]["time"]
        assert until <= length(progress.active_duration) <= at_most + leaving
        assert length(progress.remaining_duration) == pytest.approx(whole - until, rel=0.25)
        assert progress.least_remaining_duration.ToTimedelta() <= progress.remaining_duration.ToTimedelta()
        assert progress.remaining_duration.ToTimedelta() <= progress.most_remaining_duration.ToTimedelta()
    assert whole <= length(course.finished.progress.active_duration) <= most + leaving + NOTICE_SECONDS


async def test_the_phases_of_a_pause_are_when_they_were_seen(course: Course) -> None:
    for number, rest in enumerate(course.rests):
        pause, last = rest.told.pause, course.until(rest.told)[-1]["time"]
        assert rest.asked <= seconds(pause.request_time) <= rest.answered
        assert last <= seconds(pause.boundary_time) <= last + NOTICE_SECONDS
        assert seconds(pause.boundary_time) <= seconds(pause.snapshot_time) <= rest.gone
        assert rest.freed <= seconds(pause.release_time) <= course.releases[number]
        assert seconds(pause.release_time) <= seconds(pause.pause_time) <= rest.told_between[0]
        assert pause.HasField("resume_time") is False
    assert course.rests[0].waited_for_gpus, "it was told that the memory of its GPUs is in use still"
    assert [each.type for each in course.rests[0].told.conditions] == []


async def test_predictions_and_their_errors_agree_with_what_happened(course: Course) -> None:
    first, second = (rest.told.pause for rest in course.rests)
    assert first.mode == PauseMode.EPOCH
    assert course.rests[0].answer.pause.boundary_epoch in (0, first.epoch)
    late = seconds(first.boundary_time) - seconds(first.predicted_boundary_time)
    assert length(first.boundary_error) == pytest.approx(late, abs=0.001)
    assert abs(late) < 0.25 * (STEPS * STEP_SECONDS + VALIDATION_SECONDS) + NOTICE_SECONDS
    assert first.HasField("predicted_release_time") is False, "nothing was there to judge by"
    late = seconds(second.release_time) - seconds(second.predicted_release_time)
    assert length(second.release_error) == pytest.approx(late, abs=0.001)


async def test_who_paused_it_and_why(course: Course) -> None:
    actor = f"{getpass.getuser()}@{socket.gethostname()}"
    first, second = (rest.told for rest in course.rests)
    assert (first.pause.cause, first.pause.actor, first.pause.reason) == (Pause.HELD, actor, "for maintenance")
    assert [(hold.kind, hold.actor, hold.reason) for hold in first.holds] == [
        (Hold.USER, actor, "for maintenance"),
        (Hold.OPERATOR, actor, "the room is warm"),
    ]
    assert [(hold.kind, hold.reason) for hold in second.holds] == [(Hold.USER, "")]
    assert second.pause.mode == PauseMode.STEP


async def test_gpus_are_used_as_the_driver_says(course: Course) -> None:
    for rest in course.rests:
        pause = rest.told.pause
        assert [
            (gpu.uuid, gpu.index, gpu.utilization_percent, gpu.temperature_celsius, gpu.power_watts)
            for gpu in pause.usage.gpus
        ] == [(f"GPU-{index}", index, 40 + 30 * index, 61 + index, 412) for index in range(GPUS)]
        assert [(gpu.memory_used_bytes, gpu.job_memory_bytes, gpu.memory_total_bytes) for gpu in pause.usage.gpus] == [
            (BUSY_BYTES[index], JOB_BYTES[index], 80 * GIB) for index in range(GPUS)
        ]
        assert pause.released_gpu_memory_bytes == sum(BUSY_BYTES) - GPUS * (IDLE_BYTES + LEFT_BYTES)


async def test_cpu_and_memory_are_what_the_machine_says(course: Course) -> None:
    for number, rest in enumerate(course.rests, start=1):
        usage = rest.told.pause.usage
        when, attempt = seconds(usage.time), course.until(rest.told)[-1]["pid"]
        own = [entry for entry in course.diary if entry["pid"] == attempt]
        assert usage.attempt == number
        assert own[0]["time"] < when <= seconds(rest.told.pause.boundary_time), "the last sample before the boundary"
        least, most = used_until([(entry["time"], entry["cpu"]) for entry in own], when)
        assert least - 25 <= usage.cpu_percent <= most + 25
        resident = at([(entry["time"], entry["resident"]) for entry in own], when)
        assert usage.memory_bytes == pytest.approx(resident, rel=0.05)
        used = [value for _, value in around([(reading.time, reading.used) for reading in course.readings], when)]
        assert 0.95 * min(used) <= usage.host_memory_bytes <= 1.05 * max(used)
        assert usage.worker_memory_bytes <= usage.worker_memory_limit_bytes <= usage.host_memory_total_bytes
        cores = os.cpu_count() or 1
        least, most = used_until([(reading.time, reading.busy / cores) for reading in course.readings], when)
        assert least - 25 <= usage.host_cpu_percent <= most + 25
        assert 0 < usage.worker_cpu_percent <= 100


async def test_what_is_given_up_is_not_shown(course: Course) -> None:
    """A pause in mode LATEST rests where the one before it did, and tells what that one told of the training."""
    before, now = course.rests[1].told, course.given_up.told
    for name in ("epoch", "step", "epoch_step", "loss", "metrics", "best", "active_duration"):
        assert getattr(now.progress, name) == getattr(before.progress, name), name
    assert (now.latest_checkpoint, now.pause.checkpoint) == (before.latest_checkpoint,) * 2
    noted = {entry["step"]: entry["time"] for entry in of(course.lost, "step")}
    told = before.progress.step + now.pause.lost_steps
    assert max(noted) - LATE_STEPS <= told <= max(noted) + 1, "it tells of a step before it notes it"
    begin, first = course.lost[0]["time"], course.starts[2]["time"]
    least, most = noted.get(told - 1, first) - first, noted.get(told + 1, course.given_up.gone) - begin
    assert least <= length(now.pause.lost_duration) <= most


async def test_the_series_have_every_epoch_and_what_was_used(course: Course) -> None:
    ended = of(course.diary, "epoch ends")
    assert [(each.epoch, each.step, each.values["val_loss"]) for each in course.epochs] == [
        (entry["epoch"], STEPS * entry["epoch"], entry["val_loss"]) for entry in ended
    ]
    for each, entry in zip(course.epochs, ended, strict=True):
        own = [step["loss"] for step in of(course.diary, "step") if step["epoch"] == entry["epoch"]]
        assert each.values["train_loss"] == pytest.approx(sum(own) / len(own), nan_ok=True)
        assert each.best == (entry["epoch"] != WORSE)
        assert seconds(each.time) == pytest.approx(entry["time"], abs=NOTICE_SECONDS)
    losses = {entry["step"]: entry["loss"] for entry in of(course.diary, "step")}
    assert course.steps[-1].step == max(losses)
    assert all(each.loss == pytest.approx(losses[each.step], nan_ok=True) for each in course.steps)
    sampled = {sample.attempt for sample in course.samples}
    assert sampled in ({1, 2, 3, 4}, {1, 2, 4}), "what was given up may have ended before it was looked at"
    assert all(sample.memory_bytes > MIB for sample in course.samples)


async def test_a_loss_that_is_no_number_is_told_once_soon_after_its_step(course: Course) -> None:
    assert course.finished.progress.not_finite_steps == 1
    (event,) = [event for event in course.events if event.type == JobEvent.LOSS_NOT_FINITE]
    assert event.details["metric"] == "loss"
    assert int(event.details["step"]) >= ODD_STEP
    (odd,) = [entry for entry in of(course.diary, "step") if entry["step"] == ODD_STEP]
    assert odd["time"] <= seconds(event.time) <= odd["time"] + PROGRESS_SECONDS + 2 * NOTICE_SECONDS


async def test_the_checkpoint_is_as_large_as_what_is_in_s3(course: Course) -> None:
    first, second = course.rests
    assert not first.before
    for rest in course.rests:
        pause = rest.told.pause
        added = {key: size for key, size in rest.after.items() if key not in rest.before}
        assert pause.checkpoint_uploaded_bytes == sum(added.values())
        assert (pause.checkpoint, pause.checkpoint_verified) == (rest.told.latest_checkpoint, True)
        assert any(key.endswith(f"/{pause.checkpoint.rpartition('/')[2]}.json") for key in added)
    parts = sum(size for key, size in first.after.items() if "/parts/" in key)
    assert first.told.pause.checkpoint_size_bytes == parts, "nothing of it was there before"
    assert second.told.pause.checkpoint_size_bytes == pytest.approx(parts, rel=0.01)


async def test_savings_are_the_time_at_rest_of_the_gpus(course: Course) -> None:
    """Each moment that counts is known to be between two: when it was, and when the test had heard of it."""
    pauses = course.finished.past_pauses
    for number, (rest, pause, begun) in enumerate(zip(course.rests, pauses, course.starts[1:3], strict=True)):
        grown = rest.later.pause.saved_gpu_seconds - rest.told.pause.saved_gpu_seconds
        assert within(grown, rest.told_between, rest.later_between)
        released, resumed = (rest.freed, course.releases[number]), (begun["time"], course.resumes[number])
        assert within(pause.saved_gpu_seconds, released, resumed)
        assert pause.saved_cost.amount == pytest.approx(PRICE * pause.saved_gpu_seconds / 3600)
        assert pause.saved_cost.currency == "EUR"


def within(gpu_seconds: float, begin: tuple[float, float], end: tuple[float, float]) -> bool:
    """Returns whether these are the GPUs' seconds from the one moment to the other, to one percent."""
    return 0.99 * GPUS * (end[0] - begin[1]) <= gpu_seconds <= 1.01 * GPUS * (end[1] - begin[0])


async def test_the_history_has_every_pause_with_its_resume(course: Course) -> None:
    first, second = course.rests
    assert len(first.told.past_pauses) == 0
    assert len(second.told.past_pauses) == 1
    assert course.finished.past_pauses[0] == second.told.past_pauses[0], "what is over does not change"
    for number, (rest, pause) in enumerate(zip(course.rests, course.finished.past_pauses, strict=True)):
        assert course.starts[number + 1]["time"] <= seconds(pause.resume_time) <= course.resumes[number]
        assert rest.later_between[1] <= seconds(pause.resume_request_time) <= seconds(pause.resume_time)
        assert (pause.to_worker, pause.verdict) == ("workers/worker-1", Pause.EXACT)
        told = rest.told.pause
        for name in ("request_time", "boundary_time", "release_time", "pause_time", "usage", "checkpoint"):
            assert getattr(pause, name) == getattr(told, name), name


async def test_every_way_to_ask_tells_the_same(course: Course) -> None:
    for rest in course.rests:
        (listed,) = rest.listed
        told = [settled(document(job)) for job in (rest.told, listed, rest.later)]
        shown = [settled(rest.shown[command]) for command in ("paused", "get")]
        assert all(each == told[0] for each in (*told, *shown))
        pause = rest.told.pause
        for text in (pause.checkpoint, pause.actor, pause.reason, "a perceptron", "file:///points", "70 %", "49.9 GiB"):
            assert text in rest.shown["text"]
        assert f"{rest.told.progress.epoch}/{EPOCHS}" in rest.shown["table"]


def settled(job: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a job's document without what grows as it rests."""
    grows = ("savedGpuSeconds", "savedCost")
    return {**job, "pause": {name: value for name, value in job["pause"].items() if name not in grows}}
