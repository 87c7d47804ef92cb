"""Where a demonstration keeps its data: a directory that goes with it."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from adjourn.local import leftovers
from adjourn.local.directory import Directory, DirectoryInUseError

PREFIX: Final = "adjourn-demo-"
KEPT_PREFIX: Final = "adjourn-kept-demo-"


@asynccontextmanager
async def place(*, keep: bool) -> AsyncIterator[Path]:
    """Yields a fresh directory and removes it afterwards, unless it is to be kept."""
    await tidy()
    path = Path(tempfile.mkdtemp(prefix=KEPT_PREFIX if keep else PREFIX))
    try:
        yield path
    finally:
        if not keep:
            remove(path)


async def tidy() -> None:
    """Removes what demonstrations left that were ended by SIGKILL, processes first."""
    for path in earlier():
        try:
            with Directory(path).held():
                await leftovers.end(path)
                remove(path)
        except DirectoryInUseError:
            continue


def earlier() -> list[Path]:
    """Returns the directories of other demonstrations of ours; those that run hold theirs."""
    found = Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*/lock")
    return [lock.parent for lock in found if not lock.parent.is_symlink() and lock.stat().st_uid == os.getuid()]


def remove(path: Path) -> None:
    """Removes a data directory, and what its workers keep elsewhere: one that was killed could not."""
    for link in (*path.glob("workers/*/runtime"), *path.glob("workers/*/snapshots")):
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
