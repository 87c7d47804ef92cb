"""Shell completion: `adjourn completion bash`, and the names of jobs and workers that the control plane knows."""

import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer import completion as scripts

from adjourn.channel import DEFAULT_ADDRESS
from adjourn.cli.connection import client
from adjourn.errors import AdjournError

if TYPE_CHECKING:
    from adjourn.client import Client

VARIABLE: Final = "_ADJOURN_COMPLETE"
PATIENCE_SECONDS: Final = 1.0
"""Who presses TAB does not wait for a control plane that is away."""
MOST_NAMES: Final = 500


class Shell(StrEnum):
    """The shells that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell to print it for.")]) -> None:
    """Print what makes a shell complete commands, options, and names of jobs and workers.

    Load it where your shell starts: `eval "$(adjourn completion bash)"` in ~/.bashrc or, with zsh, in ~/.zshrc behind
    compinit; `adjourn completion fish | source` in ~/.config/fish/config.fish.
    """
    script = scripts.get_completion_script(  # type: ignore[attr-defined]
        prog_name="adjourn", complete_var=VARIABLE, shell=shell.value
    )
    typer.echo(script)


def prepare() -> None:
    """Has typer answer where a shell asks for completions."""
    if VARIABLE in os.environ:
        scripts.completion_init()  # type: ignore[attr-defined]


def jobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns the names of jobs that begin so, newest first, as they are typed: with or without `jobs/`."""
    return matching("jobs/", incomplete, lambda: (job.name for job in connected(ctx).list_jobs()))


def workers(ctx: typer.Context, incomplete: str) -> list[str]:
    """Returns the names of workers that begin so."""
    return matching("workers/", incomplete, lambda: (worker.name for worker in connected(ctx).list_workers()))


def connected(ctx: typer.Context) -> "Client":
    return client(str(ctx.find_root().params.get("address") or DEFAULT_ADDRESS), timeout=PATIENCE_SECONDS)


def matching(collection: str, incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    """Returns the names that begin so; none if nobody answers, because a shell has no place for an error."""
    try:
        found = list(islice(names(), MOST_NAMES))
    except AdjournError:
        return []
    if not incomplete.startswith(collection):
        found = [name.removeprefix(collection) for name in found]
    return [name for name in found if name.startswith(incomplete)]
