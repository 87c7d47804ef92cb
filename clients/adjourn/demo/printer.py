"""Prints the demonstration as it runs."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adjourn.cli import formatting, job_view, phrases
from adjourn.demo.comparison import Comparison
from adjourn.local.managed_process import tail
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics


@dataclass(slots=True)
class Printer:
    """Prints each step with the seconds since the start."""

    console: Console
    _begun: float = field(default_factory=time.monotonic, init=False)

    def step(self, text: str) -> None:
        elapsed = f"{time.monotonic() - self._begun:6.1f} s"
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(Text(elapsed, "dim"), Text(text, overflow="fold"))
        self.console.print(line)

    def chapter(self, title: str) -> None:
        self.console.print(f"\n{title}", style="bold", soft_wrap=True)

    def epoch(self, job: Job, measured: EpochMetrics) -> None:
        values = "  ".join(f"{name} {formatting.figure(measured.values[name])}" for name in sorted(measured.values))
        best = "  best so far" if measured.best else ""
        self.step(f"  epoch {measured.epoch:2}/{job.spec.total_epochs}  {values}{best}")

    def situation(self, what: str, job: Job) -> None:
        state = Job.State.Name(job.state)
        self.step(f"{what}: {formatting.short(job.name)} is {state}, {phrases.situation(job, datetime.now(UTC))}")

    def view(self, job: Job) -> None:
        self.console.print(job_view.paused_run(job))
        self.console.print()

    def phases(self, pauses: Sequence[Pause]) -> None:
        self.chapter("What each pause took")
        self.console.print(job_view.phase_table(pauses))

    def comparison_table(self, comparison: Comparison) -> None:
        """Prints one row for each thing compared; all epochs with equal metrics share a row."""
        self.chapter("Compared with the uninterrupted run")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("", "uninterrupted", "paused", ""):
            table.add_column(column, overflow="fold")
        measured = [row for row in comparison.rows if row.name.startswith("metrics")]
        for row in comparison.rows:
            if row not in measured or not row.equal:
                colour, sign = ("green", "=") if row.equal else ("bold red", "differs")
                table.add_row(row.name, shortened(row.expected), shortened(row.found), Text(sign, style=colour))
        if equal := sum(row.equal for row in measured):
            table.add_row("metric history", f"{equal} epochs", f"{equal} epochs", Text("=", style="green"))
        self.console.print(table)

    def verdict(self, comparison: Comparison) -> None:
        self.console.print(str(comparison), style="bold green" if comparison.exact else "bold red")

    def failure(self, error: Exception, logs: Iterable[Path]) -> None:
        """Prints the error and the last lines of each log."""
        self.console.print(f"\n{error}", style="bold red", soft_wrap=True)
        for log in logs:
            self.console.print(f"\n{log}", style="bold", soft_wrap=True)
            for line in tail(log):
                self.console.print(f"  | {formatting.printable(line)}", soft_wrap=True)


def shortened(digest: str) -> str:
    return f"{digest[:16]}..." if len(digest) > 32 else digest
