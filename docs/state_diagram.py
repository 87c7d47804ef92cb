"""Draws the job's states, from the job machine's own table, into the README; `--check` only compares."""

import re
import sys
from pathlib import Path

from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.job.machine import TRANSITIONS, State

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- states: written by `make docs` -->", "<!-- end of states -->"


def diagram() -> str:
    """Returns the table as a Mermaid state diagram: an arrow a change of state, with the events that make it."""
    arrows: dict[tuple[State, State], list[str]] = {}
    for (before, event), afterwards in TRANSITIONS.items():
        for after in afterwards:
            if after != before:
                arrows.setdefault((before, after), []).append(words(event.__name__))
    lines = [
        f"    {Job.State.Name(before)} --> {Job.State.Name(after)}: {', '.join(sorted(set(events)))}"
        for (before, after), events in sorted(arrows.items())
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> QUEUED: created", *lines, "```"])


def words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def main() -> int:
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    fresh = f"{before}{BEGIN}\n{diagram()}\n{END}{after}"
    if "--check" in sys.argv:
        return int(fresh != text)
    README.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
