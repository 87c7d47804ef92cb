"""What `adjourn watch` and `adjourn top` show on a terminal, no higher than there is room. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from adjourn.cli import bars, formatting, phrases, tables
from adjourn.cli.job_view import badge
from adjourn.cli.layout import ABSENT, Fitted, column
from adjourn.cli.pace import Paces
from adjourn.v1.job_pb2 import Job, Progress
from adjourn.v1.usage_pb2 import ResourceSample
from adjourn.v1.worker_pb2 import Worker

ORDER: Final = (
    Job.RUNNING, Job.PAUSING, Job.CANCELLING, Job.STARTING, Job.QUEUED, Job.PAUSED, Job.FAILED, Job.CANCELLED,
    Job.SUCCEEDED,
)  # fmt: skip
"""Which jobs are shown where there is no room for all of them."""
TOLD_IN_SENTENCES: Final = 3
Samples = Mapping[str, ResourceSample]


def watched(jobs: Sequence[Job], paces: Paces, samples: Samples, *, now: datetime, height: int) -> RenderableType:
    """Returns the jobs with their progress; of a few jobs also, in a sentence, what each does and what may be done."""
    if not jobs:
        return Text("no such jobs yet")
    head = [summary(jobs)] if len(jobs) > 1 else []
    said = [sentence(job, now) for job in jobs] if len(jobs) <= TOLD_IN_SENTENCES else []
    lines = height - len(head) - (len(said) + 1 if said else 0)
    return Group(*head, job_rows(jobs, paces, samples, now=now, height=lines), *([Text("")] if said else []), *said)


def job_rows(jobs: Sequence[Job], paces: Paces, samples: Samples, *, now: datetime, height: int) -> RenderableType:
    """Returns a row for each job, as many as there is room for, and how many more there are."""
    room = max(height - 1, 1)
    shown = sorted(jobs, key=lambda job: job.name)
    if len(shown) > room:
        shown = sorted(shown, key=lambda job: (rank(job), job.create_time.ToNanoseconds(), job.name))[
            : max(room - 1, 1)
        ]
    why = [phrases.why(job) or ABSENT for job in shown]
    rows = Fitted(
        [
            column("job", [formatting.short(job.name) for job in shown], least=14, middle=True),
            column("state", [badge(job) for job in shown]),
            column("progress", [bars.progress(done(job)) for job in shown], rank=1),
            column(">%", [percent(done(job)) for job in shown], rank=6),
            column(">epoch", [tables.epochs(job) for job in shown]),
            column(">in epoch", [in_epoch(job.progress) for job in shown], rank=7),
            column(">rate", [formatting.rate(paces.of(job)) for job in shown], rank=4),
            column(">left", [tables.left(job) for job in shown], rank=2),
            column("GPU", [bars.gpus(samples.get(job.name)) for job in shown], rank=3),
            column("CPU", [bars.cpu(samples.get(job.name)) for job in shown], rank=6),
            column(">loss", [tables.loss(job.progress) for job in shown], rank=8),
            column("worker", [formatting.short(job.worker) or ABSENT for job in shown], rank=5),
            column(">since", [formatting.since(job.state_time, now) for job in shown], rank=9),
            *([column("why", why, least=24, wish=60)] if any(each != ABSENT for each in why) else []),
        ]
    )
    hidden = len(jobs) - len(shown)
    names = {job.name for job in shown}
    rest = [job for job in jobs if job.name not in names]
    return Group(rows, Text(f"and {hidden} more: {counts(rest)}", style="dim")) if hidden else rows


def rank(job: Job) -> int:
    return ORDER.index(job.state) if job.state in ORDER else len(ORDER)


def done(job: Job) -> float | None:
    """Returns the share of a job's training that is done, 0 to 1; None before its first step, and without epochs."""
    total, progress = job.spec.total_epochs, job.progress
    if not (total and progress.step):
        return None
    part = progress.epoch_step / progress.steps_per_epoch if progress.steps_per_epoch else 0.0
    return min((progress.epoch + min(part, 1.0)) / total, 1.0)


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{int(100 * share)} %"


def in_epoch(progress: Progress) -> str:
    if not progress.epoch_step:
        return ABSENT
    return f"{progress.epoch_step}/{progress.steps_per_epoch}" if progress.steps_per_epoch else str(progress.epoch_step)


def sentence(job: Job, now: datetime) -> Text:
    return Text(phrases.sentence(job, now), style="dim")


def summary(jobs: Sequence[Job]) -> Text:
    return Text(f"{formatting.counted(len(jobs), 'job')}: {counts(jobs)}", style="bold")


def counts(jobs: Sequence[Job]) -> str:
    """Returns how many jobs are in each state."""
    found = Counter(job.state for job in sorted(jobs, key=rank))
    return ", ".join(f"{count} {formatting.name_of(Job.State.Name, state).upper()}" for state, count in found.items())


def top(
    workers: Sequence[Worker], jobs: Sequence[Job], paces: Paces, samples: Samples, *, now: datetime, height: int
) -> RenderableType:
    """Returns workers with what is used of them, and below them the jobs that have not ended."""
    if not workers:
        return Group(Text("no worker has ever connected"), job_rows(jobs, paces, samples, now=now, height=height - 1))
    shown = workers[: max(height // 2 - 3, 1)]
    hidden = len(workers) - len(shown)
    more = [Text(f"and {hidden} more workers", style="dim")] if hidden else []
    lines = height - len(shown) - len(more) - 4
    states = Counter(formatting.name_of(Worker.State.Name, worker.state).upper() for worker in workers)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    head = Text(f"{formatting.counted(len(workers), 'worker')}: {told}", style="bold")
    below = [summary(jobs), job_rows(jobs, paces, samples, now=now, height=lines)] if jobs else [Text("no jobs")]
    return Group(head, worker_rows(shown, {job.name: job for job in jobs}, samples, now=now), *more, Text(""), *below)


def worker_rows(
    workers: Sequence[Worker], jobs: Mapping[str, Job], samples: Samples, *, now: datetime
) -> RenderableType:
    """Returns a row for each worker. What is used is known of a worker that trains; of others it is a dash."""
    newest = [of_worker(worker, samples) for worker in workers]
    known = [tables.situation(worker) or ABSENT for worker in workers]
    return Fitted(
        [
            column("worker", [formatting.short(worker.name) for worker in workers], least=14, middle=True),
            column("state", [tables.worker_state(worker) for worker in workers]),
            column(">taken", [taken(worker, jobs) for worker in workers]),
            column("GPU", [bars.gpus(each) for each in newest], rank=1),
            column("GPU memory", [bars.gpu_memory(each) for each in newest], rank=2),
            column("CPU", [bars.cpu(each) for each in newest], rank=3),
            column("RAM", [bars.memory(each) for each in newest], rank=4),
            column("jobs", [tables.listed(worker.jobs) or ABSENT for worker in workers], least=10),
            column(">heard", [formatting.since(worker.report_time, now) for worker in workers], rank=5),
            *([column("what", known, least=20)] if any(each != ABSENT for each in known) else []),
        ]
    )


def of_worker(worker: Worker, samples: Samples) -> ResourceSample | None:
    """Returns the newest sample of a worker's jobs, with the GPUs of all of them; None if none of them has any."""
    found = [samples[job] for job in worker.jobs if job in samples]
    if not found:
        return None
    newest = ResourceSample()
    newest.CopyFrom(max(found, key=lambda sample: sample.time.ToNanoseconds()))
    every = sorted((gpu for sample in found for gpu in sample.gpus), key=lambda gpu: gpu.index)
    del newest.gpus[:]
    newest.gpus.extend(every)
    return newest


def taken(worker: Worker, jobs: Mapping[str, Job]) -> str:
    """Returns how many of a worker's GPUs and slots have been given to jobs."""
    wanted = [jobs[name].spec.gpu_count for name in worker.jobs if name in jobs]
    parts = [f"{sum(wanted)}/{len(worker.devices)} GPUs"] if worker.devices else []
    parts += [f"{wanted.count(0)}/{worker.cpu_slots} slots"] if worker.cpu_slots else []
    return ", ".join(parts) or ABSENT
