"""The data directory of a demonstration, removed when it ends."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from adjourn.local import process_cleanup
from adjourn.local.data_directory import DataDirectory, DirectoryInUseError

PREFIX: Final = "adjourn-demo-"
KEPT_PREFIX: Final = "adjourn-kept-demo-"


@asynccontextmanager
async def temporary_directory(*, keep: bool) -> AsyncIterator[Path]:
    """Yields a new directory and removes it afterwards, unless `keep`."""
    await remove_earlier()
    path = Path(tempfile.mkdtemp(prefix=KEPT_PREFIX if keep else PREFIX))
    try:
        yield path
    finally:
        if not keep:
            remove(path)


async def remove_earlier() -> None:
    """Ends the processes of demonstrations that were killed, and removes their directories."""
    for path in earlier():
        try:
            with DataDirectory(path).held():
                await process_cleanup.end(path)
                remove(path)
        except DirectoryInUseError:
            continue


def earlier() -> list[Path]:
    """Returns the data directories of this user's other demonstrations; a running one holds its lock."""
    found = Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*/lock")
    return [lock.parent for lock in found if not lock.parent.is_symlink() and lock.stat().st_uid == os.getuid()]


def remove(path: Path) -> None:
    """Removes a data directory and the directories that its workers keep elsewhere, which a killed worker leaves."""
    for link in (*path.glob("workers/*/runtime"), *path.glob("workers/*/snapshots")):
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
