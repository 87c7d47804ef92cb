"""Snapshots that stay on a worker after their attempt, until the job returns or somebody needs their room.

They lie in a directory beside those of the attempts. Agents put them there and take them out. Whoever needs room, an
agent or a training process, removes what was put there longest ago.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

KEPT: Final = "kept"
"""The directory's name. No attempt has it: theirs end in a nonce."""


def oldest_first(place: Path) -> list[Path]:
    """Returns what is kept in a directory; empty if nobody can look there. Others may remove it meanwhile."""
    found = []
    with suppress(OSError):
        for path in place.iterdir():
            with suppress(OSError):
                found.append((path.lstat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def make_room(place: Path, needed: int) -> None:
    """Removes what is kept, the oldest first, until `needed` bytes are free; nothing, if all of it were not enough."""
    found = oldest_first(place)
    if not found or free(place) + sum(map(taken, found)) < needed:
        return
    for path in found:
        if free(place) >= needed:
            return
        shutil.rmtree(path, ignore_errors=True)


def free(place: Path) -> int:
    """Returns the bytes that are free on the file system of a directory; 0 if it is not there."""
    try:
        status = os.statvfs(place)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def taken(directory: Path) -> int:
    """Returns the bytes that the files of a snapshot take."""
    with suppress(OSError):
        return sum(512 * entry.stat(follow_symlinks=False).st_blocks for entry in os.scandir(directory))
    return 0
