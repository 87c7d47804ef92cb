"""`adjourn pause`, `resume`, `cancel`, `update`, `delete`.

All of them are asked about on a terminal. Each but `update` takes several jobs, or those that carry a label.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adjourn.cli import arguments, formatting, output, phrases, selection
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Status
from adjourn.cli.output import Format, Output
from adjourn.cli.patience import Patience, Timeout
from adjourn.cli.selection import ENDED, JobName, JobNames, Label, Outcomes, Yes, confirm, together
from adjourn.errors import DeadlineError, JobFinishedError
from adjourn.v1.job_pb2 import Hold, Job, Pause, PauseMode

if TYPE_CHECKING:
    from adjourn.client import Client

VERDICT_SECONDS: Final = 3.0
BOUNDARIES: Final = {
    PauseMode.EPOCH: "after the running epoch",
    PauseMode.STEP: "after the running step",
    PauseMode.LATEST: "now, giving up what no checkpoint has",
}

Mode = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="After the running epoch, the running step, or latest: now, giving up what no checkpoint has.",
    ),
]
Reason = Annotated[str, typer.Option(help="Why, for the record.")]


def pause(
    ctx: typer.Context,
    jobs: JobNames = None,
    mode: Mode = "epoch",
    reason: Reason = "",
    *,
    label: Label = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is paused.")] = False,
    timeout: Timeout = "",
    yes: Yes = False,
    form: Output = Format.TABLE,
) -> None:
    """Pause jobs at the next boundary: workers are free, the state is kept, `adjourn resume` takes them up.

    By label: those that train or wait, and are not paused. A pause under way becomes earlier with another --mode, never
    later. With --mode latest nothing takes back what is given up; the answer says how much that is.
    """
    boundary, patience = arguments.pause_mode(mode), Patience(timeout, waits=wait)
    with connect(ctx) as client:
        names = selection.chosen(client, jobs, label, selection.can_pause)
        confirm(lambda: f"Pause {together(names)} {BOUNDARIES[boundary]}?", yes=yes)
        outcomes, waiting = Outcomes(), list[Job]()

        def ask(name: str) -> Status:
            found = client.pause_job(name, mode=boundary, reason=reason)
            waits = wait and found.state != Job.PAUSED
            waiting.extend([found] if waits else [])
            if form == Format.TABLE:
                output.say(phrases.sentence(found) + kept_reason(found, reason))
            elif not waits:
                output.emit(found, form)
            return Status.DONE

        def rest(found: Job) -> Status:
            last = patience.wait(client, found, pause_settled, tell=form == Format.TABLE)
            if form != Format.TABLE:
                output.emit(last, form)
            else:
                output.say(phrases.sentence(last) + (f"\n{phases(last.pause)}" if last.state == Job.PAUSED else ""))
            # It may finish first; nothing is left to pause then.
            return Status.DONE if last.state in (Job.PAUSED, Job.SUCCEEDED) else Status.ENDED_OTHERWISE

        outcomes.each(names, ask)
        outcomes.each(waiting, rest)
        outcomes.leave()


def resume(
    ctx: typer.Context,
    jobs: JobNames = None,
    *,
    label: Label = None,
    allow_inexact: Annotated[
        bool, typer.Option("--allow-inexact", help="Accept an environment in which the last bits may differ.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it trains again.")] = False,
    timeout: Timeout = "",
    yes: Yes = False,
    form: Output = Format.TABLE,
) -> None:
    """Resume paused jobs, on any worker, exactly where they were; or, by name, those that failed or were cancelled."""
    patience = Patience(timeout, waits=wait)
    with connect(ctx) as client:
        names = selection.chosen(client, jobs, label, selection.can_resume)
        confirm(lambda: f"Resume {together(names)}?", yes=yes)
        outcomes, waiting = Outcomes(), list[Job]()

        def ask(name: str) -> Status:
            found = client.resume_job(name, allow_inexact=allow_inexact)
            waits = wait and found.state != Job.RUNNING
            waiting.extend([found] if waits else [])
            if form == Format.TABLE:
                output.say(f"{formatting.short(found.name)} {resumption(client, found)}")
            elif not waits:
                output.emit(found, form)
            return Status.DONE

        def train(asked: Job) -> Status:
            last = patience.wait(client, asked, lambda now: trains_again(now, asked.attempt), tell=form == Format.TABLE)
            if form != Format.TABLE:
                output.emit(last, form)
            else:
                output.say(phrases.sentence(last))
            if last.state not in (Job.RUNNING, Job.SUCCEEDED):
                return Status.ENDED_OTHERWISE
            if form == Format.TABLE and asked.HasField("pause") and not asked.pause.HasField("resume_time"):
                output.say(restored(client, last))
            return Status.DONE

        outcomes.each(names, ask)
        outcomes.each(waiting, train)
        outcomes.leave()


def cancel(
    ctx: typer.Context,
    jobs: JobNames = None,
    reason: Reason = "",
    *,
    label: Label = None,
    save: Annotated[
        bool, typer.Option("--save", help="Save a last checkpoint at the next boundary, then stop.")
    ] = False,
    mode: Annotated[
        str, typer.Option(metavar="MODE", help="With --save: at the end of the running epoch or of the running step.")
    ] = "epoch",
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is stopped.")] = False,
    timeout: Timeout = "",
    yes: Yes = False,
    form: Output = Format.TABLE,
) -> None:
    """Stop jobs for good, now. The newest checkpoint stays, so `adjourn resume` could still take them up from there.

    By label: those that have not ended. With --save a job trains on to its next boundary, and loses nothing. A second
    cancel, without --save, stops it now.
    """
    boundary = arguments.pause_mode(mode)
    if not save and boundary != PauseMode.EPOCH:
        arguments.wrong("--mode", "is for --save, and without it nothing is saved")
    where = boundary if save else PauseMode.PAUSE_MODE_UNSPECIFIED
    patience = Patience(timeout, waits=wait)
    with connect(ctx) as client:
        outcomes, waiting = Outcomes(), list[Job]()
        found = outcomes.read(client, selection.chosen(client, jobs, label, selection.can_cancel))
        confirm(lambda: cancelling(found, save=save), yes=yes)

        def ask(before: Job) -> Status:
            job = client.cancel_job(before.name, save_checkpoint=save, mode=where, reason=reason)
            waits = wait and job.state not in ENDED
            waiting.extend([job] if waits else [])
            # How, an earlier call has said: saving is not added later.
            saving = save and job.state == Job.CANCELLING and before.state != Job.CANCELLING
            when = "after its running step" if boundary == PauseMode.STEP else "at its next boundary"
            if form == Format.TABLE:
                output.say(phrases.sentence(job) + (f", {when} and with a last checkpoint" if saving else ""))
            elif not waits:
                output.emit(job, form)
            return Status.DONE

        def stop(asked: Job) -> Status:
            last = patience.wait(client, asked, lambda now: now.state in ENDED, tell=form == Format.TABLE)
            if form == Format.TABLE:
                output.say(phrases.sentence(last))
            else:
                output.emit(last, form)
            # It may finish first; nothing is left to stop then.
            return Status.DONE if last.state in (Job.CANCELLED, Job.SUCCEEDED) else Status.ENDED_OTHERWISE

        outcomes.each(found, ask)
        outcomes.each(waiting, stop)
        outcomes.leave()


def cancelling(jobs: list[Job], *, save: bool) -> str:
    """Returns the question before jobs are stopped; empty if all of them have ended."""
    left = [job for job in jobs if job.state not in ENDED]
    if not left:
        return ""
    kept = "what was done since the newest checkpoint" if all(job.latest_checkpoint for job in left) else "all it did"
    if len(left) > 1:
        kept = "what no checkpoint has"
    cost = "A last checkpoint is saved first." if save else f"This loses {kept}."
    return f"Stop {together(job.name for job in left)} for good? {cost}"


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


def delete(ctx: typer.Context, jobs: JobNames = None, *, label: Label = None, yes: Yes = False) -> None:
    """Delete jobs that have ended, with their checkpoints and metrics. This cannot be taken back.

    By label: those that have ended.
    """
    with connect(ctx) as client:
        outcomes = Outcomes()
        found = outcomes.read(client, selection.chosen(client, jobs, label, selection.can_delete))
        names = together(job.name for job in found)
        confirm(lambda: f"Delete {names} with all checkpoints and metrics, for ever?" if found else "", yes=yes)

        def remove(job: Job) -> Status:
            client.delete_job(job.name)
            output.say(f"{formatting.short(job.name)} is deleted")
            return Status.DONE

        outcomes.each(found, remove)
        outcomes.leave()


def kept_reason(job: Job, given: str) -> str:
    """Returns that a reason is not taken over, as the end of a sentence: that of the first pause stays."""
    first = next((hold.reason for hold in job.holds if hold.kind == Hold.USER), given)
    return "" if not given or first == given else f"; it was paused before, and its reason stays: {first or 'none'}"


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
