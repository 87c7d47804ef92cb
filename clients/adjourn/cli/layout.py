"""Tables that fit the width there is: what matters least is left out, texts are shortened, numbers never are. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from adjourn.cli import formatting

ABSENT: Final = "-"
GAP: Final = 2
"""Columns of the terminal between two of a table."""
ELLIPSIS: Final = "…"
SPARE: Final = 6
"""Rank of columns that are shown only where there is more than enough room."""


@dataclass(frozen=True)
class Column:
    """A column of a table, with its cells."""

    title: str
    cells: Sequence[Text]
    right: bool = False
    rank: int = 0
    """What is left out first has the highest; 0 is always shown."""
    least: int = 0
    """Its cells may be shortened to so much where there is no room; 0: not at all."""
    wish: int = 0
    """It is not shortened below this for the sake of columns of rank SPARE and above."""
    middle: bool = False
    """What is left out of a cell is its middle: names differ at their ends."""

    @property
    def width(self) -> int:
        return max([cell_len(self.title), *(cell.cell_len for cell in self.cells)])

    @property
    def empty(self) -> bool:
        return all(cell.plain in ("", ABSENT) for cell in self.cells)


@dataclass(frozen=True)
class Fitted:
    """A table that chooses its columns when it is told how much room there is."""

    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield table(fitted(self.columns, options.max_width))


def column(
    title: str, cells: Iterable[str | Text], *, rank: int = 0, least: int = 0, wish: int = 0, middle: bool = False
) -> Column:
    """Returns a column; `>` before its title aligns it to the right."""
    texts = [cell if isinstance(cell, Text) else Text(formatting.printable(cell)) for cell in cells]
    return Column(title.removeprefix(">"), texts, title.startswith(">"), rank, least, max(least, wish), middle)


def fitted(columns: Sequence[Column], width: int) -> list[Column]:
    """Returns the columns for which there is room, their texts shortened if they have to be.

    A column that may be left out and says nothing is left out anyway.
    """
    kept = [each for each in columns if not (each.rank and each.empty)]
    for rank in sorted({each.rank for each in kept if each.rank}, reverse=True):
        need = [min(each.width, (each.wish if rank >= SPARE else each.least) or each.width) for each in kept]
        if taken(need) > width:
            kept = [each for each in kept if each.rank != rank]
    widths = [each.width for each in kept]
    while taken(widths) > width:
        room = {place: widths[place] for place, each in enumerate(kept) if each.least and widths[place] > each.least}
        if not room:
            break
        widths[max(room, key=room.__getitem__)] -= 1
    return [each if each.width <= wide else shortened(each, wide) for each, wide in zip(kept, widths, strict=True)]


def taken(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * max(len(widths) - 1, 0)


def shortened(column: Column, width: int) -> Column:
    return replace(column, cells=[cut(cell, width, middle=column.middle) for cell in column.cells])


def cut(cell: Text, width: int, *, middle: bool) -> Text:
    """Returns a cell with no more than so many columns of the terminal, an ellipsis where something is left out."""
    if cell.cell_len <= width:
        return cell
    plain, end = cell.plain, (width - 1) // 2 if middle else 0
    tail = plain[len(plain) - end :] if end else ""
    return Text(set_cell_size(plain, width - 1 - cell_len(tail)) + ELLIPSIS + tail, style=cell.style)


def table(columns: Sequence[Column]) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for each in columns:
        made.add_column(each.title, justify="right" if each.right else "left", no_wrap=True, overflow="crop")
    for cells in zip(*(each.cells for each in columns), strict=True):
        made.add_row(*cells)
    return made
