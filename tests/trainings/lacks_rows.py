"""Reads a file as it is imported, which is not there this time."""

from pathlib import Path

from adjourn import training

ROWS = Path("rows.csv").read_text().splitlines()


def main(run: training.Run) -> None:
    for _ in run.epochs():
        run.step()
