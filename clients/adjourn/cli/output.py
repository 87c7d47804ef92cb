"""Prints text and tables for people, and JSON for programs, one object on a line."""

import sys
from collections.abc import Iterable

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console, RenderableType

PIPED_WIDTH = 160
"""Columns where the output is no terminal: wide enough to cut nothing off."""


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False, markup=False, emoji=False)


def show(renderable: RenderableType) -> None:
    console().print(renderable)


def say(text: str) -> None:
    """Prints a line as it is, however long."""
    typer.echo(text)


def emit(message: Message) -> None:
    """Prints a message as JSON on one line; unset figures are left out, zeros are not."""
    typer.echo(MessageToJson(message, indent=None, always_print_fields_with_no_presence=True, ensure_ascii=False))


def emit_all(messages: Iterable[Message]) -> None:
    for message in messages:
        emit(message)
