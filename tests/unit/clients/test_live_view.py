"""What `adjourn watch` and `adjourn top` show, rendered to text."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from adjourn.cli import bars, formatting, live_view
from adjourn.cli.pace import Paces
from adjourn.v1.job_pb2 import Condition, Job, JobSpec, Progress
from adjourn.v1.usage_pb2 import GpuSample, ResourceSample
from adjourn.v1.worker_pb2 import Device, Worker

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
WHY = Condition(type=Condition.UNPLACED, reason="NO_CAPACITY", message="every worker that could run it is busy")


def text(renderable: RenderableType, *, width: int = 160, colour: bool = False) -> str:
    out = StringIO()
    Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None).print(renderable)
    return out.getvalue()


def at(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(NOW + timedelta(seconds=seconds))
    return moment


def training(name: str = "x", **progress: Any) -> Job:
    whole = {"epoch": 4, "step": 430, "epoch_step": 30, "steps_per_epoch": 100, **progress}
    job = Job(name=f"jobs/{name}", state=Job.RUNNING, worker="workers/a", attempt=1, state_time=at(-90))
    job.spec.total_epochs = 20
    job.progress.CopyFrom(Progress(**whole))
    job.progress.remaining_duration.FromSeconds(192)
    return job


def queued(number: int) -> Job:
    name = f"jobs/sweep-learning-rate-{number:03}"
    return Job(name=name, state=Job.QUEUED, spec=JobSpec(total_epochs=12), conditions=[WHY], create_time=at(number))


def sample(**fields: Any) -> ResourceSample:
    return ResourceSample(
        worker_cpu_percent=95, worker_memory_bytes=3 << 30, worker_memory_limit_bytes=4 << 30, **fields
    )


def watched(jobs: list[Job], *, width: int = 160, height: int = 30, **samples: ResourceSample) -> str:
    known = {f"jobs/{name}": each for name, each in samples.items()}
    return text(live_view.watched(jobs, Paces(), known, now=NOW, height=height), width=width)


def test_a_job_is_watched_with_progress_rate_and_usage() -> None:
    job = training()
    job.progress.active_duration.FromSeconds(86)
    shown = watched([job], x=sample(gpus=[GpuSample(utilization_percent=75)]))
    for fact in ("RUNNING", "██░░░░░░", "21 %", "4/20", "30/100", "5.0/s", "3m12s", "75 %", "95 %", "1m30s"):
        assert fact in shown
    assert shown.splitlines()[-1] == "x trains on a, about 3 min 12 s of training left"


@pytest.mark.parametrize("width", [80, 100, 160])
def test_many_jobs_fit_the_terminal_and_those_that_train_are_on_it(width: int) -> None:
    jobs = [*map(queued, range(49)), training("slow")]
    lines = watched(jobs, width=width, height=24).splitlines()
    assert lines[0] == "50 jobs: 1 RUNNING, 49 QUEUED"
    assert lines[2].startswith("slow ")
    assert "██" in lines[2]
    assert lines[3].startswith("sweep-")
    assert "NO_CAPACITY: eve" in lines[3]
    assert lines[-1] == "and 29 more: 29 QUEUED"
    assert len(lines) == 24
    assert max(map(len, lines)) <= width


@given(st.integers(4, 60), st.integers(3, 40), st.integers(60, 200))
def test_a_view_of_many_jobs_is_never_larger_than_the_terminal(count: int, height: int, width: int) -> None:
    jobs = [queued(number) for number in range(count)]
    lines = watched(jobs, width=width, height=max(height, 8)).splitlines()
    assert len(lines) <= max(height, 8)
    assert max(map(len, lines)) <= width


def test_nothing_to_watch_is_said() -> None:
    assert watched([]) == "no such jobs yet\n"


def test_a_job_that_has_not_begun_and_one_without_epochs_have_no_bar() -> None:
    assert live_view.done(queued(1)) is None
    assert live_view.done(Job(progress=Progress(step=3))) is None
    assert live_view.done(training(epoch=20, epoch_step=0)) == 1
    assert live_view.done(training(steps_per_epoch=0)) == 0.2


@pytest.mark.parametrize(("percent", "code"), [(95, "31"), (90, "33"), (71, "33"), (70, "32")])
def test_bars_are_coloured_by_threshold(percent: float, code: str) -> None:
    assert f"\x1b[{code}m" in text(bars.used(percent), colour=True)
    assert f"\x1b[{code}m" in text(bars.together([percent, percent]), colour=True)


def test_bars_are_full_only_at_the_end() -> None:
    assert [bars.progress(share).plain for share in (0, 0.001, 0.5, 0.999, 1)] == [
        "░░░░░░░░", "█░░░░░░░", "████░░░░", "███████░", "████████",
    ]  # fmt: skip
    assert bars.progress(None).plain == bars.used(None).plain == "-"
    assert bars.used(250).plain == "██████ 250 %"


def test_several_gpus_are_columns_and_their_average() -> None:
    gpus = [GpuSample(utilization_percent=share) for share in (0, 50, 100)]
    assert bars.gpus(ResourceSample(gpus=gpus)).plain == "▁▅█  50 %"
    assert bars.gpus(ResourceSample(gpus=[GpuSample()])).plain == "-", "what NVML does not tell is absent"


def test_top_shows_workers_and_jobs() -> None:
    job = training()
    job.spec.gpu_count = 1
    worker = Worker(
        name="workers/a", state=Worker.ACTIVE, devices=[Device(), Device(index=1)], cpu_slots=4, jobs=["jobs/x"],
        report_time=at(-1),
    )  # fmt: skip
    gpu = GpuSample(utilization_percent=40, memory_used_bytes=1 << 30, memory_total_bytes=4 << 30)
    lost = Worker(name="workers/b", state=Worker.LOST, cpu_slots=1)
    shown = text(live_view.top([worker, lost], [job], Paces(), {"jobs/x": sample(gpus=[gpu])}, now=NOW, height=40))
    for fact in ("2 workers: 1 ACTIVE, 1 LOST", "1/2 GPUs, 0/4 slots", "0/1 slots", "40 %", "25 %", "95 %", "75 %"):
        assert fact in shown
    assert "1 job: 1 RUNNING" in shown
    assert "no worker has ever connected" in text(live_view.top([], [], Paces(), {}, now=NOW, height=40))


def test_top_fits_the_terminal_too() -> None:
    workers = [Worker(name=f"workers/machine-{number}", state=Worker.ACTIVE, cpu_slots=1) for number in range(40)]
    jobs = [queued(number) for number in range(50)]
    shown = text(live_view.top(workers, jobs, Paces(), {}, now=NOW, height=24), width=80).splitlines()
    assert len(shown) <= 24
    assert "and 31 more workers" in shown
    assert shown[-1].startswith("and ")


def test_gpus_of_all_jobs_of_a_worker_are_its_gpus() -> None:
    worker = Worker(jobs=["jobs/x", "jobs/y", "jobs/z"])
    samples = {
        "jobs/x": sample(time=at(0), gpus=[GpuSample(index=1)]),
        "jobs/y": ResourceSample(time=at(5), worker_cpu_percent=3, gpus=[GpuSample(index=0)]),
    }
    found = live_view.of_worker(worker, samples)
    assert found
    assert [gpu.index for gpu in found.gpus] == [0, 1]
    assert found.worker_cpu_percent == 3
    assert live_view.of_worker(Worker(jobs=["jobs/z"]), samples) is None


def test_a_rate_is_of_the_last_half_minute() -> None:
    paces, job = Paces(), training(step=0)
    paces.note(job)  # it has reported nothing yet
    job.progress.step = 1
    job.progress.active_duration.FromMilliseconds(27)
    assert paces.of(job) is None, "nobody knows what comes between two steps"
    job.progress.active_duration.FromSeconds(100)
    for seconds, step in ((0, 1000), (20, 1100), (45, 1350), (60, 1500), (61, 1510)):
        job.progress.step = step
        job.progress.report_time.CopyFrom(at(seconds))
        paces.note(job)
    assert paces.of(job) == 10
    job.progress.report_time.CopyFrom(at(92))
    job.progress.step = 1601
    paces.note(job)
    assert paces.of(job) == 16, "silence is not training: of all its training"
    job.attempt, job.progress.step = 2, 1401
    paces.note(job)
    assert paces.of(job) == 14, "an attempt has just begun: of all its training"
    job.state = Job.PAUSED
    assert paces.of(job) is None
    assert paces.of(training("y", step=0)) is None


@pytest.mark.parametrize(
    ("rate", "read"),
    [(None, "-"), (1234.5, "1234/s"), (12.34, "12.3/s"), (0.5, "30.0/min"), (0.001, "3.6/h"), (0, "0.0/h")],
)
def test_rates_read_well(rate: float | None, read: str) -> None:
    assert formatting.rate(rate) == read
