"""Prints text and tables for people, and documents for programs."""

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated, Final

import typer
from google.protobuf.message import Message
from rich.console import Console, RenderableType

from adjourn.cli import arguments, documents

UNLIMITED: Final = 10_000
"""Columns where the output is no terminal: nothing is cut off or broken."""


class Format(StrEnum):
    """How a command prints what it found."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


Output = Annotated[
    Format,
    typer.Option(
        "--output",
        "-o",
        help="For people; for programs the protobuf JSON, one object a line, or the same as YAML; or names alone.",
    ),
]


def width() -> int:
    """Returns how many columns there are: of the terminal, else what COLUMNS says, else no limit."""
    return Console().width if sys.stdout.isatty() else columns() or UNLIMITED


def columns() -> int:
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() else 0


def console(*, wide: bool = False) -> Console:
    limit = UNLIMITED if wide else None if sys.stdout.isatty() else width()
    return Console(width=limit, highlight=False, markup=False, emoji=False)


def show(renderable: RenderableType, *, wide: bool = False) -> None:
    """Prints for people, `wide`: as wide as it is. What is no terminal gets no blanks at the ends of lines."""
    screen = console(wide=wide)
    if sys.stdout.isatty():
        screen.print(renderable)
        return
    with screen.capture() as captured:
        screen.print(renderable)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say(text: str) -> None:
    """Prints a line as it is, however long."""
    typer.echo(text)


def write(messages: Sequence[Message], form: Format, view: Callable[[], RenderableType], *, wide: bool = False) -> None:
    """Prints messages in the format that was asked for; `view` makes what people see."""
    if form == Format.TABLE:
        show(view(), wide=wide)
    for message in messages if form != Format.TABLE else ():
        emit(message, form)


def emit(message: Message, form: Format) -> None:
    """Prints a message for programs, as soon as there is one."""
    match form:
        case Format.JSON:
            typer.echo(documents.one_line(message))
        case Format.YAML:
            typer.echo(f"---\n{documents.yaml(message)}", nl=False)
        case Format.NAME:
            typer.echo(name(message))
        case Format.TABLE:
            raise ValueError("a table is for people")


def name(message: Message) -> str:
    """Returns the name of a resource, or of the job that a message is about; a usage error if it has none."""
    fields = [field for field in ("name", "job") if field in message.DESCRIPTOR.fields_by_name]
    if not fields:
        arguments.wrong("--output", f"name is for what has one; {message.DESCRIPTOR.name} has none")
    return str(getattr(message, fields[0]))
