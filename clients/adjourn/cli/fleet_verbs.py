"""`adjourn hold`, `release`, `drain`, `undrain`, `delete-worker`: what operators do to many jobs and to workers.

Only forgetting a worker cannot be taken back, so only that is asked about, on a terminal.
"""

from time import sleep
from typing import TYPE_CHECKING, Annotated, Final

import typer

from adjourn.cli import arguments, completion, formatting, output, tables
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Otherwise, Status
from adjourn.cli.output import Format, Output
from adjourn.cli.patience import Patience, Timeout
from adjourn.cli.selection import JobNames, Label, Yes, confirm
from adjourn.cli.verbs import Mode, Reason
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from adjourn.client import Client

LOOK_SECONDS: Final = 1.0
"""Rest between two looks at a worker that is waited for: nothing tells of its changes."""

All = Annotated[bool, typer.Option("--all", help="Every job.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")]
WorkerName = Annotated[
    str,
    typer.Argument(
        metavar="WORKER", help="The worker, `w` or `workers/w`.", show_default=False, autocompletion=completion.workers
    ),
]


def hold(
    ctx: typer.Context,
    jobs: JobNames = None,
    *,
    label: Label = None,
    all_jobs: All = False,
    mode: Mode = "epoch",
    reason: Reason = "",
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Hold many jobs: each pauses at its next boundary, and rests until `adjourn release`.

    A job that its user paused too goes on when both have let go of it. With --mode latest a job without a checkpoint is
    left as it is.
    """
    labels, boundary = selection(jobs, label, all_jobs=all_jobs), arguments.pause_mode(mode)
    with connect(ctx) as client:
        found = client.hold_jobs(
            jobs or (), labels=labels, all_jobs=all_jobs, mode=boundary, reason=reason, dry_run=dry_run
        )
    output.write(found, form, lambda: tables.outcome_table(found, "held", dry_run=dry_run) if found else "no such jobs")
    if any(outcome.reason for outcome in found):
        raise typer.Exit(Status.REFUSED)


def release(
    ctx: typer.Context,
    jobs: JobNames = None,
    *,
    label: Label = None,
    all_jobs: All = False,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Release jobs that `adjourn hold` holds: those that nothing else keeps go on."""
    labels = selection(jobs, label, all_jobs=all_jobs)
    with connect(ctx) as client:
        found = client.release_jobs(jobs or (), labels=labels, all_jobs=all_jobs, dry_run=dry_run)
    output.write(
        found,
        form,
        lambda: tables.outcome_table(found, "released", dry_run=dry_run) if found else "no such jobs are held",
    )
    if any(outcome.reason for outcome in found):
        raise typer.Exit(Status.REFUSED)


def selection(jobs: list[str] | None, label: list[str] | None, *, all_jobs: bool) -> dict[str, str]:
    """Returns the labels; a usage error unless it is said which jobs are meant."""
    if all_jobs == bool(jobs or label):
        arguments.wrong("JOB", "name jobs, give --label, or --all for every job")
    return arguments.pairs("--label", label or ())


def drain(
    ctx: typer.Context,
    worker: WorkerName,
    *,
    reason: Reason = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when no job is left on it.")] = False,
    timeout: Timeout = "",
) -> None:
    """Empty a worker: it takes no new job, and its jobs pause at their next boundary and go on elsewhere.

    A task without epochs runs to its end there. `adjourn undrain` takes it back.
    """
    patience = Patience(timeout, waits=wait)
    with connect(ctx) as client:
        found = client.drain_worker(worker, reason=reason)
        output.say(emptiness(found))
        if wait and found.jobs:
            output.say(emptiness(emptied(client, found, patience)))


def emptied(client: "Client", worker: Worker, patience: Patience) -> Worker:
    """Returns the worker once it holds no job, or is to be drained no more. Raises Otherwise at the end of patience."""
    while worker.jobs and worker.HasField("drain"):
        if patience.over:
            raise Otherwise(Status.TIMEOUT, f"{emptiness(worker)}; `adjourn workers` shows it")
        sleep(min(LOOK_SECONDS, patience.left or LOOK_SECONDS))
        worker = client.get_worker(worker.name)
    return worker


def emptiness(worker: Worker) -> str:
    name = formatting.short(worker.name)
    if not worker.HasField("drain"):
        return f"{name} is not to be drained any more"
    state = formatting.name_of(Worker.State.Name, worker.state).upper()
    if not worker.jobs:
        return f"{name} takes no new job, and has none left ({state})"
    left = ", ".join(formatting.short(job) for job in worker.jobs)
    return f"{name} takes no new job; these leave at their next boundary: {left} ({state})"


def undrain(ctx: typer.Context, worker: WorkerName) -> None:
    """Take an order to drain a worker back: jobs that have not left it yet train on there."""
    with connect(ctx) as client:
        found = client.undrain_worker(worker)
        state = formatting.name_of(Worker.State.Name, found.state).upper()
        own = "; its agent itself wants no new work" if found.draining else ""
        output.say(f"{formatting.short(found.name)} is {state}{own}")


def delete_worker(
    ctx: typer.Context,
    worker: WorkerName,
    *,
    instance: Annotated[
        str, typer.Option(help="An earlier machine of that name, by its id in the condition; the worker stays.")
    ] = "",
    yes: Yes = False,
) -> None:
    """Forget a worker that is lost and holds no job. One that comes back is a new worker.

    It is your word that nothing runs there any more: what it left out of reach counts as ended from then on.
    """
    name = f"the instance {instance} of {formatting.short(worker)}" if instance else formatting.short(worker)
    with connect(ctx) as client:
        confirm(lambda: f"Forget {name}, where nothing runs any more?", yes=yes)
        client.delete_worker(worker, instance=instance)
        output.say(f"{name} is forgotten")
