"""Sees to it that what tests start does not outlive them, however they end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GUARD = (
    "import asyncio, pathlib, sys; from adjourn.local import process_cleanup; sys.stdin.read();"
    "asyncio.run(process_cleanup.end(pathlib.Path(sys.argv[1])))"
)
"""Ends what carries the marker when its standard input closes."""


@contextmanager
def guarded(directory: Path) -> Iterator[None]:
    """Ends, afterwards or when we are killed, every process that has `directory` as its stack's."""
    argv = (sys.executable, "-c", GUARD, str(directory))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True) as guard:
        yield
        assert guard.stdin
        guard.stdin.close()
