"""Lists as tables: jobs, epochs, checkpoints, workers. Pure functions to rich tables."""

from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from adjourn.cli import formatting, phrases
from adjourn.cli.job_view import badge
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import HoldOutcome, JobEvent
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Device, Worker


def job_table(jobs: Iterable[Job]) -> Table:
    """Returns one row for each job; a column for reasons if any job has a condition or failed."""
    jobs = list(jobs)
    troubled = any(phrases.reasons(job) for job in jobs)
    reason = ["why"] if troubled else []
    table = headed("job", "state", ">epoch", ">loss", "best", ">trained", ">left", "worker", "model", *reason)
    for job in jobs:
        progress = job.progress
        best = f"{progress.best.metric} {formatting.figure(progress.best.value)}" if progress.HasField("best") else "-"
        ended = job.state in (Job.SUCCEEDED, Job.FAILED, Job.CANCELLED)
        table.add_row(
            formatting.short(job.name),
            badge(job),
            f"{progress.epoch}/{job.spec.total_epochs}" if job.spec.total_epochs else "-",
            formatting.figure(progress.loss) if progress.HasField("loss") else "-",
            plain(best),
            span(progress.active_duration) if progress.HasField("active_duration") else "-",
            span(progress.remaining_duration) if progress.HasField("remaining_duration") and not ended else "-",
            formatting.short(job.worker) or "-",
            plain(job.spec.model_name or "-"),
            *([plain(", ".join(phrases.reasons(job)) or "-")] if troubled else []),
        )
    return table


def event_table(events: Iterable[JobEvent]) -> Table:
    table = headed(">#", "time", "event", "state", ">attempt", "by", "what")
    for event in events:
        details = formatting.pairs(event.details)
        table.add_row(
            str(event.sequence),
            formatting.moment(event.time),
            formatting.name_of(JobEvent.Type.Name, event.type),
            formatting.name_of(Job.State.Name, event.state).upper(),
            str(event.attempt) if event.attempt else "-",
            plain(event.actor or "-"),
            plain("; ".join(part for part in (event.message, details) if part) or "-"),
        )
    return table


def span(duration: Duration) -> str:
    return formatting.duration(duration.ToTimedelta())


def epoch_table(epochs: Sequence[EpochMetrics]) -> Table:
    """Returns a row for each epoch and a column for each metric; a star marks each epoch that was the best so far."""
    names = sorted({name for epoch in epochs for name in epoch.values})
    table = headed(">epoch", "", ">step", ">time", *(f">{formatting.printable(name)}" for name in names), ">attempt")
    for epoch in epochs:
        values = (formatting.figure(epoch.values[name]) if name in epoch.values else "-" for name in names)
        star = Text("*" if epoch.best else "", style="green")
        took = formatting.duration(epoch.active_duration.ToTimedelta())
        table.add_row(str(epoch.epoch), star, str(epoch.step), took, *values, str(epoch.attempt))
    return table


def checkpoint_list(checkpoints: Sequence[Checkpoint]) -> RenderableType:
    """Returns the table, and below it the environment that the newest one needs."""
    table = checkpoint_table(checkpoints)
    if not checkpoints[0].environment:
        return table
    return Group(
        table, plain(f"the newest goes on where this is equal: {formatting.pairs(checkpoints[0].environment)}")
    )


def checkpoint_table(checkpoints: Iterable[Checkpoint]) -> Table:
    table = headed("checkpoint", ">epoch", ">step", ">size", ">uploaded", "registered", "kept as", "state digest")
    for checkpoint in checkpoints:
        kept = Text("damaged", "red") if checkpoint.damage else Text(kept_as(checkpoint) or "-")
        table.add_row(
            formatting.short(checkpoint.name),
            str(checkpoint.epoch),
            str(checkpoint.step),
            formatting.size(checkpoint.size_bytes),
            formatting.size(checkpoint.uploaded_bytes),
            formatting.moment(checkpoint.create_time),
            kept,
            checkpoint.state_digest[:12] or "-",
        )
    return table


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


def worker_table(workers: Iterable[Worker]) -> Table:
    """Returns one row for each worker; a column for orders and conditions if any has one."""
    workers = list(workers)
    known = ["what"] if any(map(situation, workers)) else []
    table = headed("worker", "state", "GPUs", ">CPU slots", "jobs", "labels", "last heard", "version", *known)
    for worker in workers:
        state = formatting.name_of(Worker.State.Name, worker.state).upper()
        table.add_row(
            formatting.short(worker.name),
            Text(state, style="green" if worker.state == Worker.ACTIVE else "yellow"),
            plain(", ".join(device(each) for each in worker.devices) or "none"),
            str(worker.cpu_slots),
            plain(", ".join(formatting.short(job) for job in worker.jobs) or "-"),
            plain(formatting.pairs(worker.labels) or "-"),
            formatting.moment(worker.report_time),
            plain(worker.agent_version or "-"),
            *([plain(situation(worker) or "-")] if known else []),
        )
    return table


def situation(worker: Worker) -> str:
    """Returns what is to be known of a worker beside its state."""
    drained = [f"drained by {worker.drain.actor}" + (f": {worker.drain.reason}" if worker.drain.reason else "")]
    parts = drained if worker.HasField("drain") else []
    parts += ["its agent wants no new work"] if worker.draining else []
    return "; ".join([*parts, *(each.message or each.reason for each in worker.conditions)])


def outcome_table(outcomes: Iterable[HoldOutcome], done: str, *, dry_run: bool) -> Table:
    """Returns what became, or would become, of each job of a call on many. `done`: what was asked for."""
    table = headed("job", "would be" if dry_run else "outcome", "state", "why")
    for outcome in outcomes:
        left = "unknown" if outcome.unknown else "left"
        words = done if outcome.changed else left if outcome.reason else f"was {done}"
        table.add_row(
            formatting.short(outcome.job),
            Text(words, style="yellow" if outcome.reason else ""),
            formatting.name_of(Job.State.Name, outcome.state).upper() if outcome.state else "-",
            plain(outcome.message or outcome.reason or "-"),
        )
    return table


def device(each: Device) -> str:
    words = f"{each.index}: {each.model} ({formatting.size(each.memory_bytes)})"
    return f"{words}, quarantined" if each.quarantined else words


def headed(*titles: str) -> Table:
    """Returns a table with these columns; `>` aligns one to the right. Numbers and the first two columns never wrap."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, title in enumerate(titles):
        right = title.startswith(">")
        table.add_column(title.removeprefix(">"), justify="right" if right else "left", no_wrap=right or place < 2)
    return table


def plain(text: str) -> Text:
    return Text(formatting.printable(text))
