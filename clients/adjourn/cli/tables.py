"""Lists as tables: jobs, epochs, checkpoints, workers. Pure functions to rich tables."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adjourn.cli import formatting, phrases
from adjourn.cli.curves import step_values
from adjourn.cli.job_view import badge
from adjourn.cli.layout import ABSENT, Column, Fitted, column, table, taken
from adjourn.cli.sorting import has_time_left
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Pause, Progress
from adjourn.v1.job_service_pb2 import HoldOutcome, JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics, StepMetrics
from adjourn.v1.worker_pb2 import Device, Worker


def job_table(jobs: Iterable[Job], now: datetime | None = None) -> RenderableType:
    """Returns one row for each job, as much of it as there is room for. Why a job waits or failed is always there."""
    jobs, now = list(jobs), now or datetime.now(UTC)
    why = [phrases.why(job) or ABSENT for job in jobs]
    return Fitted(
        [
            column("job", [formatting.short(job.name) for job in jobs], least=16, middle=True),
            column("state", [badge(job) for job in jobs]),
            column(">since", [formatting.since(job.state_time, now) for job in jobs], rank=3),
            column(">epoch", [epochs(job) for job in jobs]),
            column(">left", [left(job) for job in jobs], rank=1),
            column(">loss", [loss(job.progress) for job in jobs], rank=4),
            column("best", [best(job.progress) for job in jobs], rank=6),
            column(">trained", [trained(job.progress) for job in jobs], rank=7),
            column("worker", [formatting.short(job.worker) or ABSENT for job in jobs], rank=2),
            column(">age", [formatting.since(job.create_time, now) for job in jobs], rank=5),
            column("owner", [job.creator or ABSENT for job in jobs], rank=8),
            column("model", [job.spec.model_name or ABSENT for job in jobs], rank=9),
            column("labels", [formatting.pairs(job.labels) or ABSENT for job in jobs], rank=10),
            *([column("why", why, least=24, wish=60)] if any(each != ABSENT for each in why) else []),
        ]
    )


def paused_table(jobs: Iterable[Job], now: datetime | None = None) -> RenderableType:
    """Returns one row for each paused job: since when, by whom and why, where it stands, what it used."""
    jobs, now = list(jobs), now or datetime.now(UTC)
    return Fitted(
        [
            column("job", [formatting.short(job.name) for job in jobs], least=16, middle=True),
            column("state", [badge(job) for job in jobs]),
            column(">for", [formatting.since(paused_since(job), now) for job in jobs]),
            column("since", [formatting.moment(paused_since(job)) for job in jobs], rank=4),
            column(">epoch", [epochs(job) for job in jobs]),
            column(">left", [left(job) for job in jobs], rank=2),
            column("metrics", [metrics(job.progress) for job in jobs], rank=3, least=12),
            column("best", [best(job.progress) for job in jobs], rank=6),
            column("used", [used(job.pause) for job in jobs], rank=5),
            column("left worker", [formatting.short(job.pause.from_worker) or ABSENT for job in jobs], rank=7),
            column(">GPU time saved", [saved(job) for job in jobs], rank=1),
            column("why", [phrases.why(job) or ABSENT for job in jobs], least=24),
        ]
    )


def paused_since(job: Job) -> Timestamp:
    """Returns since when a job rests, or since when it is to rest."""
    return job.pause.pause_time if job.pause.HasField("pause_time") else job.pause.request_time


def metrics(progress: Progress) -> str:
    """Returns the newest value of each metric, losses first."""
    names = sorted(progress.metrics, key=lambda name: ("loss" not in name, name))
    return ", ".join(f"{name} {formatting.figure(progress.metrics[name])}" for name in names) or ABSENT


def used(pause: Pause) -> str:
    """Returns what the job used before it paused, as far as that is known."""
    sample = pause.usage
    parts = [f"{len(sample.gpus)} GPUs"] if sample.gpus else []
    parts += [f"{sample.cpu_percent / 100:.1f} cores"] if sample.HasField("cpu_percent") else []
    parts += [formatting.size(sample.memory_bytes)] if sample.HasField("memory_bytes") else []
    return ", ".join(parts) or ABSENT


def saved(job: Job) -> str:
    """Returns the GPU time that others could have used since the job let go of its GPUs."""
    return formatting.brief(job.pause.saved_gpu_seconds) if job.pause.saved_gpu_seconds else ABSENT


def epochs(job: Job) -> str:
    return f"{job.progress.epoch}/{job.spec.total_epochs}" if job.spec.total_epochs else ABSENT


def left(job: Job) -> str:
    return formatting.brief(job.progress.remaining_duration.ToTimedelta()) if has_time_left(job) else ABSENT


def loss(progress: Progress) -> str:
    return formatting.figure(progress.loss) if progress.HasField("loss") else ABSENT


def best(progress: Progress) -> str:
    return f"{progress.best.metric} {formatting.figure(progress.best.value)}" if progress.HasField("best") else ABSENT


def trained(progress: Progress) -> str:
    known = progress.HasField("active_duration")
    return formatting.brief(progress.active_duration.ToTimedelta()) if known else ABSENT


def event_table(events: Iterable[JobEvent]) -> RenderableType:
    events = list(events)
    return Fitted(
        [
            column(">#", [str(event.sequence) for event in events]),
            column("time", [formatting.moment(event.time) for event in events], rank=2),
            column("event", [formatting.name_of(JobEvent.Type.Name, event.type) for event in events]),
            column("state", [formatting.name_of(Job.State.Name, event.state).upper() for event in events]),
            column(">attempt", [str(event.attempt or ABSENT) for event in events], rank=3),
            column("by", [event.actor or ABSENT for event in events], rank=1, least=12),
            column("what", [phrases.event_details(event) or ABSENT for event in events], least=24),
        ]
    )


def epoch_tables(epochs: Sequence[EpochMetrics], width: int) -> RenderableType:
    """Returns a row for each epoch and a column for each metric, below one another as many as do not fit beside.

    A star marks each epoch that was the best so far.
    """
    first = [
        column(">epoch", [str(epoch.epoch) for epoch in epochs]),
        column("", [Text("*" if epoch.best else "", style="green") for epoch in epochs]),
        column(">step", [str(epoch.step) for epoch in epochs]),
    ]
    more = [
        column(">time", [formatting.brief(epoch.active_duration.ToTimedelta()) for epoch in epochs]),
        *figures([epoch.values for epoch in epochs]),
        column(">attempt", [str(epoch.attempt) for epoch in epochs]),
    ]
    return below_one_another(first, more, width)


def step_tables(steps: Sequence[StepMetrics], width: int) -> RenderableType:
    """Returns a row for each step that is known, laid out as those of epochs."""
    first = [
        column(">step", [str(step.step) for step in steps]),
        column(">epoch", [str(step.epoch) for step in steps]),
    ]
    more = [
        column("time", [formatting.clock(step.time) for step in steps]),
        *figures([step_values(step) for step in steps]),
        column(">attempt", [str(step.attempt) for step in steps]),
    ]
    return below_one_another(first, more, width)


def figures(measured: Sequence[Mapping[str, float]]) -> list[Column]:
    """Returns a column for each metric."""
    names = sorted({name for values in measured for name in values}, key=lambda name: ("loss" not in name, name))
    return [
        column(
            f">{formatting.printable(name)}",
            (formatting.figure(values[name]) if name in values else ABSENT for values in measured),
        )
        for name in names
    ]


def below_one_another(first: Sequence[Column], more: Iterable[Column], width: int) -> RenderableType:
    """Returns tables that begin with the same columns; in each as many of the others as there is room for."""
    rows = [[*first]]
    for each in more:
        if len(rows[-1]) > len(first) and taken([known.width for known in (*rows[-1], each)]) > width:
            rows.append([*first])
        rows[-1].append(each)
    return Group(*[part for row in rows for part in (Text(""), table(row))][1:])


def checkpoint_list(checkpoints: Sequence[Checkpoint]) -> RenderableType:
    """Returns the table, and below it the environment that the newest one needs."""
    table = checkpoint_table(checkpoints)
    if not checkpoints[0].environment:
        return table
    return Group(
        table, plain(f"the newest goes on where this is equal: {formatting.pairs(checkpoints[0].environment)}")
    )


def checkpoint_table(checkpoints: Iterable[Checkpoint]) -> RenderableType:
    checkpoints = list(checkpoints)
    return Fitted(
        [
            column("checkpoint", [formatting.short(each.name) for each in checkpoints]),
            column(">epoch", [str(each.epoch) for each in checkpoints]),
            column(">step", [str(each.step) for each in checkpoints]),
            column(">size", [formatting.size(each.size_bytes) for each in checkpoints], rank=1),
            column(">uploaded", [formatting.size(each.uploaded_bytes) for each in checkpoints], rank=4),
            column("registered", [formatting.moment(each.create_time) for each in checkpoints], rank=2),
            column("kept as", [kept(each) for each in checkpoints]),
            column("state digest", [each.state_digest[:12] or ABSENT for each in checkpoints], rank=3),
        ]
    )


def kept(checkpoint: Checkpoint) -> str | Text:
    return Text("damaged", "red") if checkpoint.damage else kept_as(checkpoint) or ABSENT


def kept_as(checkpoint: Checkpoint) -> str:
    """Returns why a checkpoint is kept; empty if nothing keeps it."""
    return ", ".join(formatting.name_of(Checkpoint.Retention.Name, each) for each in checkpoint.retained_for)


def checkpoint_details(checkpoint: Checkpoint) -> Table:
    """Returns all of one checkpoint, a row for each thing that is known of it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "checkpoint": checkpoint.name,
        "epoch, step": f"{checkpoint.epoch}, {checkpoint.step}",
        "attempt": str(checkpoint.attempt),
        "registered": formatting.moment(checkpoint.create_time),
        "manifest": checkpoint.uri,
        "manifest BLAKE3": checkpoint.manifest_digest,
        "size, uploaded": f"{formatting.size(checkpoint.size_bytes)}, {formatting.size(checkpoint.uploaded_bytes)}",
        "parts": str(checkpoint.part_count or "-"),
        "state digest": checkpoint.state_digest,
        "kept as": kept_as(checkpoint) or "-",
        "damage": checkpoint.damage or "none is known",
        "metrics": ", ".join(f"{name}={formatting.figure(checkpoint.metrics[name])}" for name in checkpoint.metrics),
        "environment": formatting.pairs(checkpoint.environment),
        **{f"SHA-256 of {name}": digest for name, digest in sorted(checkpoint.component_digests.items())},
    }
    for title, value in rows.items():
        table.add_row(plain(title), plain(value or "-"))
    return table


def worker_table(workers: Iterable[Worker], now: datetime | None = None) -> RenderableType:
    """Returns one row for each worker; orders and conditions are always there."""
    workers, now = list(workers), now or datetime.now(UTC)
    known = [situation(worker) or ABSENT for worker in workers]
    return Fitted(
        [
            column("worker", [formatting.short(worker.name) for worker in workers], least=16, middle=True),
            column("state", [worker_state(worker) for worker in workers]),
            column("GPUs", [devices(worker.devices) or "none" for worker in workers], least=30),
            column(">CPU slots", [str(worker.cpu_slots) for worker in workers], rank=1),
            column("jobs", [listed(worker.jobs) or ABSENT for worker in workers], least=16),
            column(">heard", [formatting.since(worker.report_time, now) for worker in workers], rank=2),
            column("labels", [formatting.pairs(worker.labels) or ABSENT for worker in workers], rank=3),
            column("version", [worker.agent_version or ABSENT for worker in workers], rank=4),
            *([column("what", known, least=24)] if any(each != ABSENT for each in known) else []),
        ]
    )


def worker_state(worker: Worker) -> Text:
    state = formatting.name_of(Worker.State.Name, worker.state).upper()
    return Text(state, style="green" if worker.state == Worker.ACTIVE else "yellow")


def listed(names: Iterable[str]) -> str:
    return ", ".join(formatting.short(name) for name in names)


def situation(worker: Worker) -> str:
    """Returns what is to be known of a worker beside its state."""
    drained = [f"drained by {worker.drain.actor}" + (f": {worker.drain.reason}" if worker.drain.reason else "")]
    parts = drained if worker.HasField("drain") else []
    parts += ["its agent wants no new work"] if worker.draining else []
    return "; ".join([*parts, *(each.message or each.reason for each in worker.conditions)])


def outcome_table(outcomes: Iterable[HoldOutcome], done: str, *, dry_run: bool) -> RenderableType:
    """Returns what became, or would become, of each job of a call on many. `done`: what was asked for."""
    outcomes = list(outcomes)
    return Fitted(
        [
            column("job", [formatting.short(each.job) for each in outcomes], least=16, middle=True),
            column("would be" if dry_run else "outcome", [outcome(each, done) for each in outcomes]),
            column("state", [state(each) for each in outcomes]),
            column("why", [each.message or each.reason or ABSENT for each in outcomes], least=24),
        ]
    )


def outcome(each: HoldOutcome, done: str) -> Text:
    left = "unknown" if each.unknown else "left"
    return Text(done if each.changed else left if each.reason else f"was {done}", "yellow" if each.reason else "")


def state(each: HoldOutcome) -> str:
    return formatting.name_of(Job.State.Name, each.state).upper() if each.state else ABSENT


def devices(given: Sequence[Device]) -> str:
    """Returns `8 x NVIDIA H100 (80.0 GiB)`, each model once, and which GPUs are quarantined."""
    models = Counter(f"{each.model} ({formatting.size(each.memory_bytes)})" for each in given)
    parts = [f"{count} x {model}" if count > 1 else model for model, count in models.items()]
    kept = [str(each.index) for each in given if each.quarantined]
    return ", ".join(parts) + (f"; quarantined: GPU {', '.join(kept)}" if kept else "")


def plain(text: str) -> Text:
    return Text(formatting.printable(text))
