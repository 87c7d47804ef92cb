"""Shows one job to people: pure functions from Job to rich renderables.

`paused_run` shows all that is known of a paused run; it serves for every other state as well.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adjourn.cli import formatting, phrases
from adjourn.cli.documents import document
from adjourn.cli.usage_table import usage_table
from adjourn.v1.job_pb2 import Condition, Job, JobSpec, Pause, PauseMode, Progress
from adjourn.v1.job_service_pb2 import JobEvent
from adjourn.v1.usage_pb2 import ResourceSample

COLOURS = {
    Job.QUEUED: "cyan", Job.STARTING: "cyan", Job.RUNNING: "green", Job.PAUSING: "yellow", Job.PAUSED: "magenta",
    Job.CANCELLING: "yellow", Job.CANCELLED: "bright_black", Job.SUCCEEDED: "bold green", Job.FAILED: "bold red",
}  # fmt: skip
VERDICTS = {
    Pause.EXACT: "green", Pause.EXACT_REPLAYED: "green", Pause.WITHIN_TOLERANCE: "yellow", Pause.UNPROVEN: "yellow",
}  # fmt: skip

Row = tuple[str, RenderableType]


def paused_run(
    job: Job, *, now: datetime | None = None, uses: ResourceSample | None = None, stopped: JobEvent | None = None
) -> RenderableType:
    """Returns state, conditions, progress, the pause with its phases and resources, and earlier pauses of a job.

    `uses` is what the job used last, of one that has a worker; `stopped` who asked that it be stopped for good.
    """
    now = now or datetime.now(UTC)
    colour = COLOURS.get(job.state, "white")
    banner = Text.assemble(badge(job), "  ", (formatting.short(job.name), "bold"), " ", phrases.situation(job, now))
    parts: list[RenderableType] = [Panel(banner, border_style=colour, box=box.ROUNDED, expand=False)]
    parts += section("Run", run_rows(job, stopped))
    if job.conditions:
        parts += section("Conditions", condition_rows(job))
    parts += section("Progress", progress_rows(job, now))
    if job.failure.reason:
        parts += section("Failure", failure_rows(job))
    if uses:
        parts += [heading(f"Resources, {formatting.since(uses.time, now)} ago"), usage_table(uses)]
    if job.HasField("pause"):
        parts += section("Pause", pause_rows(job, now))
        if job.pause.HasField("usage"):
            parts += [heading("Resources at the pause"), usage_table(job.pause.usage)]
        parts += [heading("Phases"), phase_table([job.pause], first=len(job.past_pauses) + 1)]
    if job.past_pauses:
        parts += [heading("Earlier pauses"), phase_table(job.past_pauses)]
        parts += [Text(f"  {number}: {asked(pause)}") for number, pause in enumerate(job.past_pauses, start=1)]
    return Group(*parts)


def badge(job: Job) -> Text:
    return Text(phrases.state(job), style=COLOURS.get(job.state, "white"))


def section(title: str, rows: Iterable[Row]) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", no_wrap=True, min_width=16)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(f"  {label}", value if not isinstance(value, str) else Text(formatting.printable(value)))
    return [heading(title), grid]


def heading(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def draft(job: Job, code: str) -> RenderableType:
    """Returns what would be queued, for a dry run; `code` is the end of a sentence on what goes along."""
    name, spec = formatting.short(job.name) or "a job of a chosen name", job.spec
    said = f"would queue {name}: {spec.entry_point}, {phrases.length(spec)}{code}; nothing was sent"
    return Group(Text(formatting.printable(said)), *section("Run", spec_rows(job)))


def run_rows(job: Job, stopped: JobEvent | None) -> Iterator[Row]:
    yield from spec_rows(job)
    yield "created", formatting.moment(job.create_time) + (f" by {job.creator}" if job.creator else "")
    if job.HasField("start_time"):
        yield "started", formatting.moment(job.start_time)
    if job.HasField("end_time"):
        yield "ended", formatting.moment(job.end_time)
    if stopped:
        reason = f": {stopped.message}" if stopped.message else ""
        yield "stopped by", f"{stopped.actor}, {formatting.moment(stopped.time)}{reason}"


def spec_rows(job: Job) -> Iterator[Row]:
    spec = job.spec
    rows = (
        ("job", job.name),
        ("uid", job.uid),
        ("entry point", spec.entry_point),
        ("model", spec.model_name),
        ("data", spec.dataset_uri),
        ("arguments", formatting.pairs(document(spec)["args"] if spec.HasField("args") else {})),
        ("requires", ", ".join(spec.requirements)),
        ("environment", formatting.pairs(spec.environment)),
        ("seed", str(spec.seed) if spec.HasField("seed") else ""),
        ("needs", needs(spec)),
        ("checkpoints", checkpoints(spec)),
        ("if it hangs", hangs(spec)),
        ("drill", f"{spec.drill_steps} steps, once, in a second process" if spec.drill_steps else ""),
        ("labels", formatting.pairs(job.labels)),
        ("worker", job.worker),
    )
    yield from ((label, value) for label, value in rows if value)


def needs(spec: JobSpec) -> str:
    """Returns what a worker must have to be given the job; empty if any will do."""
    parts = [f"{spec.gpu_count} GPU{'s' if spec.gpu_count > 1 else ''}"] if spec.gpu_count else []
    parts += [f"a worker with {formatting.pairs(spec.worker_selector)}"] if spec.worker_selector else []
    return ", ".join(parts)


def checkpoints(spec: JobSpec) -> str:
    """Returns what is not the default of when checkpoints are made beside those of pauses."""
    parts = []
    if spec.HasField("checkpoint_epochs"):
        parts.append(f"every {spec.checkpoint_epochs} epochs" if spec.checkpoint_epochs else "none at epochs")
    if spec.checkpoint_steps:
        parts.append(f"every {spec.checkpoint_steps} steps")
    if spec.HasField("checkpoint_interval"):
        parts.append(f"every {formatting.duration(spec.checkpoint_interval.ToTimedelta())}")
    return ", ".join(parts)


def hangs(spec: JobSpec) -> str:
    """Returns what is not the default of what becomes of training that hangs."""
    policy = "it is only reported" if spec.hang_policy == JobSpec.REPORT else ""
    after = f"after {formatting.duration(spec.hang_timeout.ToTimedelta())} without a step"
    return ", ".join(part for part in (policy, after if spec.HasField("hang_timeout") else "") if part)


def progress_rows(job: Job, now: datetime) -> Iterator[Row]:
    progress, total = job.progress, job.spec.total_epochs
    yield "epochs", epoch_bar(job) if total else "a task without epochs"
    yield "steps", steps(progress)
    if progress.HasField("loss"):
        yield "loss", formatting.figure(progress.loss)
    if progress.not_finite_steps:
        yield "not finite", f"the loss of {formatting.counted(progress.not_finite_steps, 'step')}"
    if progress.metrics:
        yield (
            "metrics",
            ", ".join(f"{key} {formatting.figure(progress.metrics[key])}" for key in sorted(progress.metrics)),
        )
    if progress.HasField("best"):
        best = progress.best
        since = f", {best.stale_epochs} epochs without improvement since" if best.stale_epochs else ""
        yield "best", f"{best.metric} {formatting.figure(best.value)} in epoch {best.epoch}{since}"
    if progress.HasField("active_duration"):
        yield "training time", formatting.duration(progress.active_duration.ToTimedelta()) + ", pauses left out"
    if job.HasField("start_time"):
        end = job.end_time.ToDatetime(tzinfo=UTC) if job.HasField("end_time") else now
        yield "wall clock", formatting.duration(end - job.start_time.ToDatetime(tzinfo=UTC)) + " since the start"
    if progress.HasField("remaining_duration"):
        yield "remaining", remaining(progress)
    if job.latest_checkpoint:
        yield "checkpoint", job.latest_checkpoint
    yield "attempts", f"{job.attempt}, of which {job.restart_count} after a failure"


def epoch_bar(job: Job) -> RenderableType:
    done, total = job.progress.epoch, job.spec.total_epochs
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        f"{done} of {total}", ProgressBar(total=total, completed=done, width=24), formatting.percent(100 * done / total)
    )
    return bar


def remaining(progress: Progress) -> str:
    about = f"about {formatting.duration(progress.remaining_duration.ToTimedelta())} of training"
    if not progress.HasField("most_remaining_duration"):
        return about
    least, most = progress.least_remaining_duration.ToTimedelta(), progress.most_remaining_duration.ToTimedelta()
    return f"{about}, likely {formatting.duration(least)} to {formatting.duration(most)}"


def steps(progress: Progress) -> str:
    if not progress.epoch_step:
        return str(progress.step)
    of = f" of {progress.steps_per_epoch}" if progress.HasField("steps_per_epoch") else ""
    return f"{progress.step}, {progress.epoch_step}{of} in the running epoch"


def condition_rows(job: Job) -> Iterator[Row]:
    for each in job.conditions:
        kind = formatting.name_of(Condition.Type.Name, each.type)
        yield kind, f"{each.reason} since {formatting.moment(each.time)}"
        if each.message:
            yield "", each.message


def failure_rows(job: Job) -> Iterator[Row]:
    yield "reason", job.failure.reason
    yield "message", job.failure.message
    yield "attempt", str(job.failure.attempt)
    if job.failure.HasField("time"):
        yield "at", formatting.moment(job.failure.time)


def asked(pause: Pause) -> str:
    """Says when a pause was asked for, by whom and why."""
    words = formatting.moment(pause.request_time) + (f" by {pause.actor}" if pause.actor else "")
    return formatting.printable(words + (f": {pause.reason}" if pause.reason else ""))


def pause_rows(job: Job, now: datetime) -> Iterator[Row]:
    pause = job.pause
    yield "asked for", formatting.moment(pause.request_time) + (f" by {pause.actor}" if pause.actor else "")
    yield "reason", pause.reason or "none given"
    yield (
        "cause, mode",
        f"{formatting.name_of(Pause.Cause.Name, pause.cause)}, {formatting.name_of(PauseMode.Name, pause.mode)}",
    )
    if pause.HasField("pause_time"):
        rested = f", for {formatting.since(pause.pause_time, now)} now" if job.state == Job.PAUSED else ""
        yield "paused", f"{formatting.moment(pause.pause_time)}{rested}, at epoch {pause.epoch}, step {pause.step}"
    if pause.checkpoint:
        yield from checkpoint_rows(pause)
    if pause.HasField("lost_duration"):
        steps = f"{pause.lost_steps} steps, " if pause.lost_steps else ""
        yield "work given up", steps + formatting.duration(pause.lost_duration.ToTimedelta())
    if pause.HasField("released_gpu_memory_bytes"):
        yield "GPU memory freed", formatting.size(pause.released_gpu_memory_bytes)
    if pause.saved_gpu_seconds:
        yield "GPU time saved", savings(pause)
    if pause.HasField("resume_time"):
        yield "resumed", formatting.moment(pause.resume_time)
    if pause.from_worker or pause.to_worker:
        yield "worker", journey(pause)
    if pause.verdict:
        meaning = phrases.VERDICTS.get(pause.verdict)
        yield "restored state", verdict(pause).append(f": {meaning}" if meaning else "")
        yield from (("", reason) for reason in pause.verdict_reasons)
    if pause.note:
        yield "note", pause.note


def savings(pause: Pause) -> str:
    cost = f", {pause.saved_cost.amount:.2f} {pause.saved_cost.currency}" if pause.HasField("saved_cost") else ""
    return formatting.duration(pause.saved_gpu_seconds) + cost


def checkpoint_rows(pause: Pause) -> Iterator[Row]:
    whole, uploaded = map(formatting.size, (pause.checkpoint_size_bytes, pause.checkpoint_uploaded_bytes))
    yield "rests on", pause.checkpoint
    if pause.checkpoint_size_bytes:
        yield "", f"{whole}, {uploaded} uploaded{', verified' if pause.checkpoint_verified else ''}"


def phase_table(pauses: Sequence[Pause], *, first: int = 1) -> Table:
    """Returns one row for each pause: how long each phase took, from the request to the first step afterwards.

    To the boundary, to take the snapshot, to free the worker, to make the checkpoint durable; at rest; from the
    request to resume to the first step. A phase that was not reached is a dash. `first` numbers the first row.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0)  # it is to fit 80 columns
    for title in ("#", "epoch", "boundary", "snapshot", "free", "durable", "rest", "restart"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("worker")
    table.add_column("verdict", min_width=len("verdict"))
    for number, pause in enumerate(pauses, start=first):
        table.add_row(
            str(number),
            str(pause.epoch) if pause.HasField("pause_time") else "-",
            between(pause.request_time, pause.boundary_time),
            between(pause.boundary_time, pause.snapshot_time),
            between(pause.snapshot_time, pause.release_time),
            between(pause.release_time, pause.pause_time),
            between(pause.pause_time, pause.resume_request_time),
            between(pause.resume_request_time, pause.resume_time),
            journey(pause),
            verdict(pause) if pause.verdict or not pause.note else Text(formatting.printable(pause.note)),
        )
    return table


def between(start: Timestamp, end: Timestamp) -> str:
    if not (start.ByteSize() and end.ByteSize()):  # phases not reached are unset
        return "-"
    return formatting.duration(end.ToDatetime() - start.ToDatetime())


def journey(pause: Pause) -> str:
    before, after = formatting.short(pause.from_worker), formatting.short(pause.to_worker)
    return f"{before or '-'} → {after}" if after else before or "-"


def verdict(pause: Pause) -> Text:
    if not pause.verdict:
        return Text("-")
    return Text(formatting.name_of(Pause.Verdict.Name, pause.verdict).upper(), style=VERDICTS.get(pause.verdict, ""))
