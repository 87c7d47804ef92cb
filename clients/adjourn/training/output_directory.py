"""The directory whose files a run keeps with its checkpoints."""

import gc
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from adjourn import outputs
from adjourn.outputs import FILES_LIMIT, OutputFile
from adjourn.training.errors import OutputTooLarge

WRITERS: Final = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


class OutputDirectory:
    """What user code writes here is in each snapshot, and is here again when a run goes on from it."""

    def __init__(self, path: Path, limit: int = 0) -> None:
        """`limit`: most bytes of all its files; 0: outputs.LIMIT_BYTES."""
        self.path = path
        self._limit = limit or outputs.LIMIT_BYTES
        self._unpacked = self._standing()
        """How the files stood that the snapshot had, before user code could change them."""

    def made(self) -> Path:
        """Returns the directory, which is there from then on."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        return self.path

    def files(self) -> list[OutputFile]:
        """Returns the regular files as they are now; raises OutputTooLarge. What user code has buffered is written.

        Links are not followed, and are not kept.
        """
        if not self.path.is_dir():
            return []
        self._flush()
        sizes: dict[str, int] = {}
        for place, _, names in os.walk(self.path):
            for path in (Path(place, name) for name in names):
                with suppress(FileNotFoundError):
                    if path.is_file() and not path.is_symlink():
                        sizes[path.relative_to(self.path).as_posix()] = path.stat().st_size
        if sum(sizes.values()) > self._limit or len(sizes) > FILES_LIMIT:
            raise OutputTooLarge(sizes, self._limit)
        files, offset = [], 0
        for path_, size in sorted(sizes.items()):
            files.append(OutputFile(path=path_, size=size, offset=offset))
            offset += size
        return files

    def put_back(self, snapshot: Path) -> None:
        """Undoes what code that runs again has written to files that a snapshot has.

        Files that it has opened are written to at their end from then on, also those that it has emptied.
        """
        if not self.path.is_dir():
            return
        writers = self._flush()
        now = self._standing()
        outputs.put(snapshot, self.path, {path for path, how in self._unpacked.items() if now.get(path) == how})
        for writer in writers:
            with suppress(OSError, ValueError):
                writer.seek(0, io.SEEK_END)

    def _standing(self) -> dict[str, tuple[int, int, int]]:
        """Returns inode, size and time of each file, by path."""
        found = {}
        for place, _, names in os.walk(self.path):
            for path in (Path(place, name) for name in names):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found[path.relative_to(self.path).as_posix()] = status.st_ino, status.st_size, status.st_mtime_ns
        return found

    def _flush(self) -> list[io.IOBase]:
        """Writes what open files of the directory hold back, those that text is written to first; returns the files."""
        below = f"{self.path}{os.sep}"
        writers: list[io.IOBase] = [
            item
            for item in gc.get_objects()
            if issubclass(type(item), WRITERS)  # isinstance() asks the object too, whatever it is
            and not item.closed
            and str(getattr(item, "name", "")).startswith(below)
        ]
        writers.sort(key=lambda each: not isinstance(each, io.TextIOWrapper))
        for writer in writers:
            with suppress(OSError, ValueError):
                writer.flush()
        return writers
