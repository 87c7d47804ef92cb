"""A file system of a test's own, whose size the test sets: a disk that is really full."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

BESIDE_BYTES: Final = 1 << 20
"""Room for what is written while a disk is filled: no file system can be made smaller than what is in it."""


class SmallDisk:
    """A file system in memory, mounted by its first size. Only root can do that."""

    MOUNTABLE = os.geteuid() == 0

    def __init__(self, place: Path) -> None:
        self.place = place
        self._filler = place / "filler"
        place.mkdir(parents=True, exist_ok=True)

    def resize(self, *, megabytes: int) -> Path:
        """Mounts it, or gives it another size; returns where it is."""
        self._mount(f"{megabytes}m")
        self._filler.unlink(missing_ok=True)
        return self.place

    def fill(self) -> None:
        """Leaves no room in it."""
        found = os.statvfs(self.place)
        self._mount(str((found.f_blocks - found.f_bfree) * found.f_frsize + BESIDE_BYTES))
        with suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while True:
                filler.write(bytes(found.f_frsize))

    def _mount(self, size: str) -> None:
        remount = ["-o", "remount"] if self.place.is_mount() else []
        command = ["mount", "-t", "tmpfs", *remount, "-o", f"size={size}", "adjourn-test", str(self.place)]
        subprocess.run(command, check=True)

    def unmount(self) -> None:
        if self.place.is_mount():
            subprocess.run(["umount", "--lazy", str(self.place)], check=True)
