"""What `--help` says beside the commands' own words: a few words on each for the overview, and examples."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import typer


class Help(NamedTuple):
    """Of one command."""

    short: str
    examples: tuple[str, ...]


COMMANDS: Final[Mapping[str, Help]] = {
    "submit": Help(
        "Queue a training job.",
        (
            "adjourn submit train.py:main --epochs 20 --arg lr=0.001 --follow",
            "adjourn submit adjourn.examples.digits:main --epochs 12 --name digits --label team=vision",
            "adjourn submit job.yaml --epochs 5 --dry-run",
        ),
    ),
    "list": Help(
        "List jobs, newest first.",
        ("adjourn list --state running", "adjourn list --sort loss --limit 5", "adjourn list --label sweep=7 -o name"),
    ),
    "get": Help("Show all that is known of a job.", ("adjourn get JOB", "adjourn get JOB -o json | jq .progress")),
    "watch": Help("Watch jobs change, live.", ("adjourn watch", "adjourn watch JOB", "adjourn watch --label sweep=7")),
    "logs": Help("Print what a job has printed, or follow it.", ("adjourn logs JOB -f", "adjourn logs JOB --tail 20")),
    "top": Help("Show what workers and jobs use, live.", ("adjourn top", "adjourn top --once")),
    "paused": Help("List paused jobs, since when and why.", ("adjourn paused", "adjourn paused -o name")),
    "pause": Help(
        "Pause jobs; workers are free then.",
        (
            "adjourn pause JOB --wait",
            "adjourn pause JOB --mode step --reason lunch",
            "adjourn pause --label sweep=7 --yes",
        ),
    ),
    "resume": Help(
        "Resume paused jobs exactly where they were.",
        ("adjourn resume JOB --wait", "adjourn resume --label sweep=7 --yes"),
    ),
    "cancel": Help(
        "Stop jobs for good.",
        ("adjourn cancel JOB --save", 'adjourn cancel JOB --reason "wrong data" --yes'),
    ),
    "update": Help(
        "Change labels, restarts or epochs of a job.",
        ("adjourn update JOB --label team=b", "adjourn update JOB --epochs 40"),
    ),
    "delete": Help("Delete jobs that have ended.", ("adjourn delete JOB", "adjourn delete --label sweep=7 --yes")),
    "events": Help(
        "List what happened to a job, or follow it.",
        ("adjourn events JOB", "adjourn events -f", "adjourn events JOB -o json | jq -r .type"),
    ),
    "metrics": Help(
        "Show the metrics of epochs or steps.",
        ("adjourn metrics JOB --plot", "adjourn metrics JOB --plot curves.png", "adjourn metrics JOB --steps -o json"),
    ),
    "cp": Help("Copy a run's files here.", ("adjourn cp JOB:model.pt .", "adjourn cp JOB: results --checkpoint 12")),
    "workers": Help("List workers.", ("adjourn workers", "adjourn workers -o json")),
    "hold": Help(
        "Hold many jobs until they are released.",
        ("adjourn hold --label team=a --dry-run", 'adjourn hold --all --reason "power cut at 8"'),
    ),
    "release": Help("Release jobs that are held.", ("adjourn release --all",)),
    "drain": Help("Let a worker's jobs go on elsewhere.", ('adjourn drain WORKER --wait --reason "new disk"',)),
    "undrain": Help("Have a worker take jobs again.", ("adjourn undrain WORKER",)),
    "delete-worker": Help("Forget a worker that is gone.", ("adjourn delete-worker WORKER",)),
    "completion": Help(
        "Print what makes a shell complete.",
        ('eval "$(adjourn completion bash)"', "adjourn completion fish | source"),
    ),
    "control-plane": Help("Run a replica of the control plane.", ("adjourn control-plane --listen 0.0.0.0:7400",)),
    "worker": Help(
        "Run the agent of this machine.",
        ("adjourn worker --name gpu-1 --data /var/lib/adjourn --control-plane 10.0.0.5:7400",),
    ),
    "web": Help("Run a gateway: web page and HTTP.", ("adjourn web", "adjourn --address 10.0.0.5:7400 web")),
    "up": Help("Run all of Adjourn on this machine.", ("adjourn up", "adjourn up --data /mnt/adjourn --workers 4")),
    "demo": Help("Watch a training be paused and moved.", ("adjourn demo", "adjourn demo --keep")),
    "checkpoints": Help("List a job's checkpoints.", ("adjourn checkpoints JOB",)),
    "checkpoint show": Help("Show one checkpoint.", ("adjourn checkpoint show JOB --checkpoint 12",)),
    "checkpoint pin": Help("Keep a checkpoint.", ('adjourn checkpoint pin JOB --reason "the paper\'s"',)),
    "checkpoint unpin": Help("Take a pin back.", ("adjourn checkpoint unpin JOB --checkpoint 12",)),
    "checkpoint export": Help(
        "Write a file that PyTorch loads.",
        (
            "adjourn checkpoint export JOB --format torch -o model.pt",
            "adjourn checkpoint export JOB --format safetensors --component model -o model.safetensors",
        ),
    ),
}


def dress(app: typer.Typer, group: str = "") -> None:
    """Gives the commands of an app their few words and examples."""
    for command in app.registered_commands:
        found = COMMANDS.get(f"{group}{command.name}")
        if found:
            command.short_help = found.short
            command.epilog = "\n\n".join(part for part in (command.epilog, epilog(found)) if part)


def epilog(of: Help) -> str:
    """Returns the examples as a paragraph whose lines stay as they are."""
    return "\n".join(("\b", "Examples:", *(f"  {example}" for example in of.examples)))
