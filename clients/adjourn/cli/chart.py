"""Draws curves with the characters of a terminal: eight dots in each, by Braille. Pure."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from adjourn.cli import formatting
from adjourn.cli.curves import Marks, Panel, Point

DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a character, by row and column."""
BLANK: Final = 0x2800
COLOURS: Final = ("cyan", "magenta", "yellow", "green", "blue", "red")
ROWS: Final = 10
WIDEST: Final = 120
LABEL: Final = 12
PAUSE: Final = "┊"
RESTART: Final = "╎"


def drawn(panels: Sequence[Panel], marks: Marks, width: int) -> RenderableType:
    """Returns a chart for each panel, one below another, and what the marks mean."""
    parts: list[RenderableType] = []
    for panel in panels:
        parts += [*chart(panel, marks, width), Text("")]
    return Group(*parts, *legend(marks))


def legend(marks: Marks) -> list[Text]:
    parts = []
    if marks.pauses:
        parts.append(f"{PAUSE} paused after {marks.axis} {listed(marks.pauses)}")
    if marks.restarts:
        parts.append(f"{RESTART} began anew after {marks.axis} {listed(marks.restarts)}")
    if marks.best is not None:
        parts.append(f"best: epoch {marks.best:.0f}")
    return [Text("; ".join(parts), style="dim")] if parts else []


def listed(places: Sequence[float]) -> str:
    return ", ".join(f"{round(place, 2):.12g}" for place in places)


def chart(panel: Panel, marks: Marks, width: int) -> list[Text]:
    """Returns the lines of one panel: names, curves with the scale beside them, epochs or steps below."""
    every = [point for curve in panel.curves for point in curve.points]
    names = Text("  ").join(
        Text(formatting.printable(curve.name), style=COLOURS[number % len(COLOURS)])
        for number, curve in enumerate(panel.curves)
    )
    if len({value for _, value in every}) < 2:  # a flat line says less
        always = f"is {formatting.figure(every[0][1])} in every {marks.axis}" if every else "has no finite value"
        return [Text(" " * (LABEL + 2)) + names + Text(f"  {always}", style="dim")]
    canvas = Canvas(max(width - LABEL - 2, 10), ROWS, every)
    for place, sign in (*((at, PAUSE) for at in marks.pauses), *((at, RESTART) for at in marks.restarts)):
        canvas.mark(place, sign)
    for number, curve in enumerate(panel.curves):
        canvas.line(curve.points, COLOURS[number % len(COLOURS)])
    scale = {0: canvas.top, ROWS - 1: canvas.bottom}
    labels = [formatting.figure(scale[row]) if row in scale else "" for row in range(ROWS)]
    rows = [Text(f"{label:>{LABEL}} │") + line for label, line in zip(labels, canvas.lines(), strict=True)]
    first, last = f"{canvas.left:.0f}", f"{canvas.right:.0f}"
    axis = f"{first}{marks.axis:^{max(canvas.columns - len(first) - len(last), 0)}}{last}"
    return [
        Text(" " * (LABEL + 2)) + names,
        *rows,
        Text(f"{'':>{LABEL}} ╰{'─' * (canvas.columns - 1)}"),
        Text(" " * (LABEL + 2) + axis),
    ]


class Canvas:
    """Characters of two by four dots, over the range of points that have two values at least."""

    def __init__(self, columns: int, rows: int, every: Sequence[Point]) -> None:
        self.columns, self._rows = columns, rows
        self.left, self.right = min(x for x, _ in every), max(x for x, _ in every)
        self.bottom, self.top = min(y for _, y in every), max(y for _, y in every)
        self._bits: dict[tuple[int, int], int] = {}
        self._styles: dict[tuple[int, int], str] = {}
        self._signs: dict[int, str] = {}

    def across(self, x: float) -> float:
        """Returns the column of dots of an epoch."""
        span = self.right - self.left
        return (x - self.left) / span * (2 * self.columns - 1) if span else float(self.columns)

    def down(self, y: float) -> float:
        """Returns the row of dots of a value."""
        return (self.top - y) / (self.top - self.bottom) * (4 * self._rows - 1)

    def mark(self, x: float, sign: str) -> None:
        """Draws an upright line, where no curve is; none beyond the epochs that are shown."""
        if self.left <= x <= self.right:
            self._signs[round(self.across(x)) // 2] = sign

    def line(self, points: Sequence[Point], style: str) -> None:
        """Joins the points."""
        places = [(self.across(x), self.down(y)) for x, y in points]
        for (x0, y0), (x1, y1) in zip(places, places[1:] or places, strict=False):
            steps = max(round(max(abs(x1 - x0), abs(y1 - y0))), 1)
            for step in range(steps + 1):
                self._dot(round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps), style)

    def _dot(self, x: int, y: int, style: str) -> None:
        cell = (y // 4, x // 2)
        self._bits[cell] = self._bits.get(cell, 0) | DOTS[y % 4][x % 2]
        self._styles[cell] = style

    def lines(self) -> list[Text]:
        return [Text("").join(self._cell(row, column) for column in range(self.columns)) for row in range(self._rows)]

    def _cell(self, row: int, column: int) -> Text:
        if bits := self._bits.get((row, column)):
            return Text(chr(BLANK + bits), style=self._styles[row, column])
        return Text(self._signs.get(column, " "), style="dim")
