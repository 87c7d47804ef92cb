"""`adjourn pause`, `resume`, `cancel`, `update`, `delete`.

Pausing and resuming can be taken back, so they are not asked about twice. Cancelling and deleting are, on a terminal.
"""

import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adjourn.cli import arguments, formatting, output, phrases
from adjourn.cli.connection import connect
from adjourn.cli.watch import ENDED
from adjourn.errors import DeadlineError, JobFinishedError
from adjourn.v1.job_pb2 import Hold, Job, Pause, PauseMode

if TYPE_CHECKING:
    from adjourn.client import Client

VERDICT_SECONDS: Final = 3.0

JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job, `x` or `jobs/x`.", show_default=False)]
Mode = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="After the running epoch, the running step, or latest: now, giving up what no checkpoint has.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal nothing is asked anyway.")]


def pause(
    ctx: typer.Context,
    job: JobName,
    mode: Mode = "epoch",
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is paused.")] = False,
) -> None:
    """Pause a job at the next boundary: its worker is free, its state is kept, `adjourn resume` takes it up.

    Asks nothing, for a resume takes it back. A pause under way becomes earlier with another --mode, never later. With
    --mode latest nothing takes back what is given up; the answer says how much that is.
    """
    boundary = arguments.pause_mode(mode)
    with connect(ctx) as client:
        found = client.pause_job(job, mode=boundary, reason=reason)
        output.say(sentence(found))
        if not wait or found.state == Job.PAUSED:
            return
        found = client.wait_job(found.name, until=pause_settled)
        output.say(sentence(found) if found.state != Job.PAUSED else f"{sentence(found)}\n{phases(found.pause)}")
        if found.state not in (Job.PAUSED, Job.SUCCEEDED):  # it may finish first; nothing is left to pause then
            raise typer.Exit(1)


def resume(
    ctx: typer.Context,
    job: JobName,
    *,
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Accept an environment in which the last bits may differ.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it trains again.")] = False,
) -> None:
    """Resume a paused job, on any worker, exactly where it was; or one that failed or was cancelled.

    Asks nothing, for a pause takes it back.
    """
    with connect(ctx) as client:
        found = client.resume_job(job, allow_inexact=allow_inexact)
        output.say(f"{formatting.short(found.name)} {resumption(client, found)}")
        if not wait or found.state == Job.RUNNING:
            return
        asked = found
        found = client.wait_job(asked.name, until=lambda now: trains_again(now, asked.attempt))
        output.say(sentence(found))
        if found.state not in (Job.RUNNING, Job.SUCCEEDED):
            raise typer.Exit(1)
        if asked.HasField("pause") and not asked.pause.HasField("resume_time"):
            output.say(restored(client, found))


def cancel(
    ctx: typer.Context,
    job: JobName,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    *,
    save: Annotated[
        bool, typer.Option("--save", help="Save a last checkpoint at the next boundary, then stop.")
    ] = False,
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="With --save: at the end of the running epoch or of the running step.")
    ] = "epoch",
    yes: Yes = False,
) -> None:
    """Stop a job for good, now. Its newest checkpoint stays, so `adjourn resume` could still take it up from there.

    With --save it trains on to its next boundary, and loses nothing. A second cancel, without --save, stops it now.
    """
    boundary = arguments.pause_mode(mode)
    if not save and boundary != PauseMode.EPOCH:
        arguments.wrong("--mode", "is for --save, and without it nothing is saved")
    with connect(ctx) as client:
        found = client.get_job(job)
        kept = "what it did since its newest checkpoint" if found.latest_checkpoint else "all it did"
        cost = "It saves a last checkpoint first." if save else f"It loses {kept}."
        confirm(f"Stop {formatting.short(found.name)} for good? {cost}", yes=yes or found.state in ENDED)
        under_way = found.state == Job.CANCELLING  # how, an earlier call has said: saving is not added later
        where = boundary if save else PauseMode.PAUSE_MODE_UNSPECIFIED
        found = client.cancel_job(found.name, save_checkpoint=save, mode=where, reason=reason)
        saving = save and found.state == Job.CANCELLING and not under_way
        when = "after its running step" if boundary == PauseMode.STEP else "at its next boundary"
        output.say(sentence(found) + (f", {when} and with a last checkpoint" if saving else ""))


def update(
    ctx: typer.Context,
    job: JobName,
    *,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Set this label; others stay. Repeat it.")
    ] = None,
    remove_label: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Remove it. Repeat it.")] = None,
    max_restarts: Annotated[int | None, typer.Option(help="Restarts after failures.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs in all; more than now, of a job that no worker has.")
    ] = None,
) -> None:
    """Change labels, restarts, or epochs of a job. More epochs need a job that no worker has: pause it first."""
    changed, removed = arguments.pairs("--label", label or ()), remove_label or ()
    if not (changed or removed) and max_restarts is None and epochs is None:
        arguments.wrong("JOB", "nothing to change; give --label, --remove-label, --max-restarts or --epochs")
    arguments.refuse_out_of_range("--max-restarts", max_restarts)
    arguments.refuse_out_of_range("--epochs", epochs)
    with connect(ctx) as client:
        labels, etag = None, ""
        if changed or removed:
            found = client.get_job(job)
            kept = {key: value for key, value in found.labels.items() if key not in removed}
            labels, etag = {**kept, **changed}, found.etag  # the etag keeps labels that others set meanwhile
        found = client.update_job(job, labels=labels, max_restarts=max_restarts, total_epochs=epochs, etag=etag)
        output.say(f"{formatting.short(found.name)} is updated: {phrases.settings(found)}")


def delete(ctx: typer.Context, job: JobName, *, yes: Yes = False) -> None:
    """Delete a job that has ended, with its checkpoints and metrics. This cannot be taken back."""
    with connect(ctx) as client:
        found = client.get_job(job)
        confirm(f"Delete {formatting.short(found.name)} with all its checkpoints and metrics, for ever?", yes=yes)
        client.delete_job(found.name)
        output.say(f"{formatting.short(found.name)} is deleted")


def confirm(question: str, *, yes: bool) -> None:
    """Asks for a confirmation on a terminal; scripts are not asked."""
    if not yes and interactive():
        typer.confirm(question, abort=True)


def interactive() -> bool:
    return sys.stdin.isatty()


def sentence(job: Job) -> str:
    return f"{formatting.short(job.name)} {phrases.situation(job, datetime.now(UTC))}"


def phases(pause: Pause) -> str:
    """Says how long the pause took, phase by phase."""
    spans = (
        ("boundary reached", pause.request_time, pause.boundary_time),
        ("snapshot taken", pause.boundary_time, pause.snapshot_time),
        ("worker free", pause.snapshot_time, pause.release_time),
        ("checkpoint durable", pause.release_time, pause.pause_time),
    )
    return ", ".join(
        f"{what} after {formatting.duration(end.ToDatetime() - start.ToDatetime())}"
        for what, start, end in spans
        if start.ByteSize() and end.ByteSize()
    )


def pause_settled(job: Job) -> bool:
    """Returns whether a pause is over: the job is PAUSED, has ended, or somebody took the pause back."""
    return job.state in (Job.PAUSED, *ENDED) or not any(hold.kind == Hold.USER for hold in job.holds)


def trains_again(job: Job, attempt: int) -> bool:
    """Returns whether a resume is over: a step was taken, or the job rests or has ended."""
    if job.state == Job.RUNNING:
        return job.attempt > attempt or job.pause.HasField("resume_time")
    return job.state in (Job.PAUSED, *ENDED)


def restored(client: "Client", job: Job) -> str:
    """Returns the verdict on the restored state; it may arrive a moment after the first step."""
    with suppress(DeadlineError, JobFinishedError):
        job = client.wait_job(job.name, until=lambda now: bool(now.pause.verdict), timeout=VERDICT_SECONDS)
    if not job.pause.verdict:
        return "restored state: not compared"
    reasons = "".join(f"\n  {formatting.printable(reason)}" for reason in job.pause.verdict_reasons)
    return f"restored state: {formatting.name_of(Pause.Verdict.Name, job.pause.verdict).upper()}{reasons}"


def resumption(client: "Client", job: Job) -> str:
    """Says at which checkpoint a job goes on."""
    if job.state == Job.PAUSED:
        return f"is still {phrases.release(job)}"
    if job.state == Job.PAUSING:
        return "had left its worker already; it goes on as soon as its checkpoint is durable"
    if job.state in (Job.RUNNING, Job.STARTING):
        return "had not left its worker yet; it goes on there"
    if not job.latest_checkpoint:
        return "starts from the beginning: it has no checkpoint yet"
    checkpoint = client.get_checkpoint(job.latest_checkpoint)
    place = f"within epoch {checkpoint.epoch + 1}" if checkpoint.epoch_step else f"from epoch {checkpoint.epoch}"
    return f"resumes {place}, step {checkpoint.step}, as soon as a worker is free"
