"""What happened, in order: a file of JSON lines, counts for the table, and what was found wrong."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Timeline:
    """Writes down what happens. A context manager: it closes its file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.faults: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        """Attempts that ended otherwise than by a request, by reason."""
        self.counts: Counter[str] = Counter()
        """Everything else."""
        self.findings: list[str] = []
        self._begun = time.monotonic()
        self._out = file.open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._begun

    def write(self, what: str, **details: Any) -> None:
        line = {"s": round(self.seconds, 3), "clock": time.strftime("%H:%M:%S", time.gmtime()), "what": what}
        print(json.dumps({**line, **details}, default=str), file=self._out, flush=True)

    def find(self, what: str, **details: Any) -> None:
        """Writes down that a promise was broken."""
        told = " ".join(f"{name}={value}" for name, value in details.items())
        self.findings.append(f"at {self.seconds:.1f} s: {what} {told}".rstrip())
        self.write("FINDING", finding=what, **details)
        self.say(f"FINDING {self.findings[-1]}")

    def say(self, text: str) -> None:
        print(f"[{self.seconds:6.1f} s] {text}", file=sys.stderr, flush=True)
