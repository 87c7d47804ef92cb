"""A control group of a test's own, whose memory it limits: the kernel's out-of-memory killer, for real."""

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

HIERARCHIES: Final = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
"""Of version 1 and 2, and the file that has the limit."""


@contextmanager
def memory_group(*pids: int, limit: int) -> Iterator[None]:
    """Has processes, and what they fork, take `limit` bytes more together; skips where no control group can be made."""
    made = _make(limit)
    if made is None:
        pytest.skip("no control group with a limit of memory can be made here")
    for pid in pids:
        (made / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        while members := (made / "cgroup.procs").read_text().split():  # they may fork meanwhile
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    (made.parent / "cgroup.procs").write_text(member)
        made.rmdir()


def _make(limit: int) -> Path | None:
    for root, file in HIERARCHIES.items():
        group = root / f"adjourn-test-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / file).exists():
                (group / file).write_text(str(limit))
                return group
            group.rmdir()
    return None
