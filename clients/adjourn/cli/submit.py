"""`adjourn submit`: packs a user's code, uploads it and queues a job."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from typer.core import TyperCommand

from adjourn import bundles
from adjourn.cli import arguments, fields, formatting, job_file, job_view, output, phrases
from adjourn.cli.connection import connect
from adjourn.cli.exit_status import Status
from adjourn.cli.job_file import JobFile
from adjourn.cli.output import Format, Output
from adjourn.cli.patience import Patience, Timeout
from adjourn.cli.selection import ENDED
from adjourn.cli.watch import follow, tell_failure
from adjourn.errors import BundleMissingError, InvalidRequestError
from adjourn.v1.job_pb2 import Job, JobSpec

if TYPE_CHECKING:
    from adjourn.client import Client
    from adjourn.scripts.files import ScriptFiles

DRILL: Final = "--drill"
DRILL_STEPS: Final = "20"
"""Of a drill for which no number is given."""


class Submit(TyperCommand):
    """The command, with an option whose number may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(arguments.with_value(args, DRILL, DRILL_STEPS, is_number)))


def is_number(word: str) -> bool:
    return word.lstrip("-").isdecimal()


def submit(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="script.py:function, package.module:function on the workers, or a file job.yaml."
        ),
    ],
    *,
    epochs: Annotated[
        int | None,
        typer.Option(help="Epochs in all; 0 for a task without any, which cannot pause. Needed without a file."),
    ] = None,
    job_id: Annotated[str, typer.Option("--job-id", "--name", help="a-z, 0-9 and '-'; left out: chosen.")] = "",
    arg: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="JSON if it can be, else text. Repeat it.")
    ] = None,
    args: Annotated[str, typer.Option(metavar="JSON", help="All arguments as one JSON object.")] = "",
    include: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="A further file or folder, beside what the script imports. Repeat it."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Environment variable of the run. Shown to all: no secrets. Repeat it."
        ),
    ] = None,
    requirements: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A requirements.txt; a worker installs it, or ends the run.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs on one worker; 0, or left out, takes a CPU slot.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random stream; left out: chosen and kept.")] = None,
    checkpoint_epochs: Annotated[
        int | None, typer.Option(help="Epochs between checkpoints; 0: only when pausing; 1 if left out.")
    ] = None,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps between checkpoints, beside those of epochs; none if left out.")
    ] = None,
    checkpoint_interval: Annotated[
        str, typer.Option(metavar="TIME", help="And one so long after the last (90s, 10m); none by time if left out.")
    ] = "",
    keep_last: Annotated[
        int | None,
        typer.Option(help="Newest checkpoints that are kept, beside best and pinned ones; 3 if left out."),
    ] = None,
    best: Annotated[
        str, typer.Option(metavar="METRIC", help="Keep the best by it; max:METRIC: the largest. val_loss, else loss.")
    ] = "",
    max_restarts: Annotated[int | None, typer.Option(help="Restarts after failures; 3 if left out.")] = None,
    hang_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Without a step for so long (90s, 10m) it hangs; left out: by its pace.")
    ] = "",
    hang_policy: Annotated[
        str, typer.Option(metavar="POLICY", help="If it hangs: restart it from its checkpoint (default), or report.")
    ] = "",
    drill: Annotated[
        int | None,
        typer.Option(
            DRILL, metavar="[STEPS]", help="Once, train so many steps (20) on from a checkpoint twice, and compare."
        ),
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="To find the job by. Repeat it.")] = None,
    worker_selector: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="What a worker must carry. Repeat it.")
    ] = None,
    model_name: Annotated[str, typer.Option(help="For people: the model.")] = "",
    dataset_uri: Annotated[str, typer.Option(help="For people: the data.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended; print each epoch.")] = False,
    live: Annotated[bool, typer.Option("--follow", "--watch", help="Like --wait; on a terminal a live view.")] = False,
    timeout: Timeout = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Pack the code, say what would be sent; do nothing.")] = (
        False
    ),
    template: Annotated[  # noqa: ARG001 - its callback does all
        bool,
        typer.Option(
            "--template",
            help="Print a file job.yaml with everything that may stand in one, and leave.",
            is_eager=True,
            callback=lambda value: print_template(asked=value),
        ),
    ] = False,
    form: Output = Format.TABLE,
) -> None:
    """Queue a training job: your own script, code that is installed on the workers, or what a file says.

    Options change what the file says. With --wait or --follow the exit status is 0 only if the job SUCCEEDED.
    """
    patience = Patience(timeout, waits=wait or live, why_not="is for --wait and --follow")
    arguments.refuse_out_of_range("--epochs", epochs)
    arguments.refuse_out_of_range("--gpus", gpus)
    arguments.refuse_out_of_range("--seed", seed, bits=64)
    arguments.refuse_out_of_range("--checkpoint-epochs", checkpoint_epochs)
    arguments.refuse_out_of_range("--checkpoint-steps", checkpoint_steps)
    arguments.refuse_out_of_range("--max-restarts", max_restarts)
    arguments.refuse_out_of_range(DRILL, drill)
    arguments.refuse_out_of_range("--keep-last", keep_last)
    changed = JobSpec(
        worker_selector=arguments.pairs("--worker-selector", worker_selector or ()),
        seed=seed,
        checkpoint_epochs=checkpoint_epochs,
        checkpoint_steps=checkpoint_steps,
        checkpoint_interval=arguments.duration("--checkpoint-interval", checkpoint_interval),
        max_restarts=max_restarts,
        drill_steps=drill,
        retention=arguments.retention(keep_last, best),
        hang_policy=arguments.hang_policy(hang_policy),
        hang_timeout=arguments.duration("--hang-timeout", hang_timeout),
        environment=arguments.pairs("--env", env or ()),
        requirements=arguments.requirements(requirements),
        model_name=model_name,
        dataset_uri=dataset_uri,
    )
    ParseDict(arguments.training_arguments(arg or (), args), changed.args)
    file = job_file.read(Path(target)) if job_file.is_file(target) else JobFile(spec=JobSpec(entry_point=target))
    if epochs is None and not file.has_epochs:
        arguments.wrong(
            "--epochs", "is missing: how many epochs in all, or 0 for a task without any, which cannot pause"
        )
    spec = combined(file.spec, changed, epochs=epochs, gpus=gpus)
    options = {f"job.spec.{field.name}" for field, value in changed.ListFields() if value != Struct()}
    given = {"job_id": job_id, "job.labels": label, "job.spec.total_epochs": epochs, "job.spec.gpu_count": gpus}
    options |= {field for field, value in given.items() if value not in ("", None)}
    script, spec.entry_point = arguments.entry_point(spec.entry_point, file.folder)
    labels = {**file.labels, **arguments.pairs("--label", label or ())}
    job_id, included = job_id or file.job_id, [*file.include, *(include or ())]
    taken = gathered(script, spec.entry_point, included)
    packed = bundles.packed(taken.files) if taken.files else b""
    code = f", with {phrases.files(taken.files, len(packed))}" if packed else ""
    if dry_run:
        job = Job(name=f"jobs/{job_id}" if job_id else "", spec=spec, labels=labels)
        output.write([job], form, lambda: job_view.draft(job, code))
        if taken.left_out and form == Format.TABLE:
            output.say(phrases.left_out(taken.left_out))
        return
    with connect(ctx) as client:
        try:
            job = queue(client, spec, packed, job_id, labels)
        except InvalidRequestError as error:
            raise (as_written(error, target, options) if job_file.is_file(target) else error) from None
        name = formatting.short(job.name)
        if form != Format.TABLE:
            end = patience.wait(client, job, lambda now: now.state in ENDED, tell=False) if wait or live else job
            output.emit(end, form)
            if end.state != Job.SUCCEEDED and (wait or live):
                raise typer.Exit(Status.ENDED_OTHERWISE)
            return
        output.say(f"{job.name} is queued: {spec.entry_point}, {phrases.length(spec)}{code}")
        if taken.left_out:
            output.say(phrases.left_out(taken.left_out))
        if not (wait or live):
            output.say(f"follow it with `adjourn watch {name}`")
            return
        ended = follow(client, [name], patience, live=live and sys.stdout.isatty()).get(job.name)
        tell_failure(ended)
        if ended is None or ended.state != Job.SUCCEEDED:  # or somebody deleted it
            raise typer.Exit(Status.ENDED_OTHERWISE)


def gathered(script: Path | None, entry_point: str, included: list[Path]) -> "ScriptFiles":
    """Returns what goes along."""
    from adjourn.scripts.files import ScriptFiles, gather  # what reads code and .gitignore: for this alone

    return gather(script, entry_point.partition(":")[2], included) if script or included else ScriptFiles()


def combined(spec: JobSpec, changed: JobSpec, *, epochs: int | None, gpus: int | None) -> JobSpec:
    """Returns what the file says with what options say in its place; arguments and selectors one by one."""
    found = JobSpec()
    found.CopyFrom(spec)
    found.MergeFrom(changed)
    found.total_epochs = spec.total_epochs if epochs is None else epochs  # merging takes no zeros over
    found.gpu_count = spec.gpu_count if gpus is None else gpus
    return found


def as_written(error: InvalidRequestError, target: str, options: Collection[str]) -> InvalidRequestError:
    """Returns the error with what a file says by its keys there. `options`: fields that options beside it say."""
    return InvalidRequestError(
        {
            field if field.startswith(tuple(options)) else f"{target}: {fields.key(field)}": why
            for field, why in error.violations.items()
        }
    )


def print_template(*, asked: bool) -> None:
    if asked:
        typer.echo(job_file.TEMPLATE.read_text(encoding="utf-8"), nl=False)
        raise typer.Exit


def queue(client: "Client", spec: JobSpec, packed: bytes, job_id: str, labels: Mapping[str, str]) -> Job:
    """Uploads the code, if there is any, and creates the job."""
    if not packed:
        return client.create_job(spec, job_id=job_id, labels=labels)
    spec.bundle = client.upload_bundle(packed)
    try:
        return client.create_job(spec, job_id=job_id, labels=labels)
    except BundleMissingError:  # the same code was old, and being removed as it was uploaded
        spec.bundle = client.upload_bundle(packed)
        return client.create_job(spec, job_id=job_id, labels=labels)
