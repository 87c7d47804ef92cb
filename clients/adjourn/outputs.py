"""Files that a run keeps with its checkpoints, as a snapshot has them: an index, and the contents one after another.

`output.json` lists the files by path, sorted; `output.data` has their bytes in that order. A snapshot without such
files has neither. No torch.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Final

INDEX: Final = "output.json"
DATA: Final = "output.data"
FILES: Final = (INDEX, DATA)
FORMAT: Final = 1
LIMIT_BYTES: Final = 1 << 30
"""Bytes of all files of a run, unless a worker is told otherwise."""
FILES_LIMIT: Final = 10_000


class OutputsInvalid(ValueError):
    """An index that cannot be that of a run's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """A file of a run."""

    path: str
    """Below the run's output directory, with `/`."""
    size: int
    offset: int
    """Of its first byte in `output.data`."""


def encode(files: Sequence[OutputFile]) -> bytes:
    """Returns the index of files that are sorted and follow one another."""
    listed = [{"path": file.path, "size": file.size} for file in files]
    return json.dumps({"format": FORMAT, "files": listed}, separators=(",", ":")).encode()


def decode(data: bytes) -> list[OutputFile]:
    """Returns the files of an index; raises OutputsInvalid, for a path that leads elsewhere too."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise OutputsInvalid(f"{INDEX}: format {document['format']!r}; this version reads {FORMAT}")
        found, offset = [], 0
        for each in document["files"]:
            file = OutputFile(path=str(each["path"]), size=int(each["size"]), offset=offset)
            if file.size < 0 or not is_inside(file.path):
                raise OutputsInvalid(f"{INDEX}: {file.path[:200]!r} of {file.size} bytes is no file of a run")
            found.append(file)
            offset += file.size
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise error if isinstance(error, OutputsInvalid) else OutputsInvalid(f"{INDEX}: {error!r}") from error
    parts = sorted(PurePosixPath(file.path).parts for file in found)
    if any(second[: len(first)] == first for first, second in pairwise(parts)):
        raise OutputsInvalid(f"{INDEX}: a path is there twice, or is that of a file and of a directory")
    return found


def is_inside(path: str) -> bool:
    """Tells whether a path is one below a directory, whatever lies there."""
    parts = path.split("/")
    return "\0" not in path and not {"", ".", ".."} & set(parts)


def total_size(files: Iterable[OutputFile]) -> int:
    return sum(file.size for file in files)


def unpack(snapshot: Path, into: Path) -> None:
    """Makes the directory `into` with the files of a snapshot, replacing what is there; without any there is none.

    Raises OutputsInvalid, OSError.
    """
    shutil.rmtree(into, ignore_errors=True)
    if (snapshot / INDEX).exists():
        into.mkdir(mode=0o700)
        put(snapshot, into)


def put(snapshot: Path, into: Path, unchanged: Collection[str] = ()) -> None:
    """Gives files below `into` the content that they have in a snapshot, but for those that have it; adds none else.

    A file keeps its inode, and no byte of it goes that is to be there: somebody may have it open, or mapped.
    """
    if not (snapshot / INDEX).exists():
        return
    with (snapshot / DATA).open("rb") as data:
        for file in decode((snapshot / INDEX).read_bytes()):
            if file.path in unchanged:
                continue
            path = into / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if copy(data.fileno(), output, file.offset, file.size) != file.size:
                    raise OutputsInvalid(f"{DATA}: ends within {file.path}")
                os.ftruncate(output, file.size)
            finally:
                os.close(output)


def pack(directory: Path, files: Sequence[OutputFile], into: Path) -> int:
    """Writes files of a run into a snapshot's directory, in place of those that are there; returns their bytes.

    What has been removed meanwhile is left out. Of a file that grows meanwhile the snapshot has the size that is given;
    of one that is cut short, what is left. Raises OSError.
    """
    for name in FILES:
        (into / name).unlink(missing_ok=True)
    if not files:
        return 0
    packed: list[OutputFile] = []
    offset = 0
    with (into / DATA).open("wb") as data:
        for file in files:
            with suppress(FileNotFoundError), (directory / file.path).open("rb") as source:
                size = copy(source.fileno(), data.fileno(), 0, file.size)
                packed.append(OutputFile(path=file.path, size=size, offset=offset))
                offset += size
    index = encode(packed)
    (into / INDEX).write_bytes(index)
    return offset + len(index)


def copy(source: int, target: int, offset: int, size: int) -> int:
    """Copies bytes from an offset on to where a descriptor stands; returns how many, fewer at the end of the source."""
    done = 0
    while done < size:
        try:
            sent = os.sendfile(target, source, offset + done, size - done)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system without it
                raise
            sent = os.write(target, os.pread(source, min(size - done, 1 << 20), offset + done))
        if not sent:
            break
        done += sent
    return done
