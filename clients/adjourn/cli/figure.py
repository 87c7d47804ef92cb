"""Draws curves into a file with matplotlib, which is an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from adjourn.cli.curves import Marks, Panel

SUFFIXES: Final = (".png", ".svg")
COLUMNS: Final = 2
WIDTH: Final = 7.0
HEIGHT: Final = 3.2
"""Of a panel, in inches."""


def save(path: Path, title: str, panels: Sequence[Panel], marks: Marks) -> None:
    """Writes the figure; raises OSError."""
    from matplotlib.figure import Figure  # no pyplot: it would look for a screen

    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
    figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, ax in zip(panels, axes, strict=False):
        draw(ax, panel, marks)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    handles = {
        label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    named = [label for label in ("pause", "new attempt", "best epoch") if label in handles]
    if named:
        figure.legend([handles[label] for label in named], named, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def draw(ax: Any, panel: Panel, marks: Marks) -> None:
    for curve in panel.curves:
        xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
        ax.plot(xs, ys, marker="." if len(xs) < 50 else "", label=curve.name)
    best = [] if marks.best is None else [marks.best]
    own, _ = ax.get_legend_handles_labels()
    for places, style, label in (
        (marks.pauses, {"color": "tab:purple", "linestyle": "--"}, "pause"),
        (marks.restarts, {"color": "tab:red", "linestyle": ":"}, "new attempt"),
        (best, {"color": "tab:green", "linestyle": "-", "alpha": 0.4}, "best epoch"),
    ):
        for number, place in enumerate(places):
            ax.axvline(place, linewidth=1, label="_" * bool(number) + label, **style)
    ax.set_title(panel.title)
    ax.set_xlabel(marks.axis)
    ax.grid(visible=True, alpha=0.3)
    ax.legend(handles=own, frameon=False)
