"""Data that a run names by its URI: where it is on this machine, and whether it is what the run had before.

A training process has no credentials. It writes a request into the data directory of its attempt, and the agent, which
has them, writes an answer beside it once the data is there. Both are files, so either may die meanwhile, and the next
agent goes on. What lies on the worker's own disk (`file:///`) is looked at here.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from adjourn.data_identities import changed, in_words, shown
from adjourn.internal.v1.trainer_pb2 import DataAnswer, DataIdentity, DataRequest
from adjourn.training.errors import DATA_ERRORS, DataChanged, DataMissing, DataRefused, DataUnusable
from adjourn.training.events import log_line

FIRST_LOOK_SECONDS: Final = 0.005
LOOK_SECONDS: Final = 0.1
"""Between two looks for an answer: twice as long each time, from the first to this."""
READ_WHOLE_BYTES: Final = 64 << 20
"""Data on the worker's disk of at most so many bytes is read whole; of more, some of it tells it from other data."""
SAMPLED_FILES: Final = 256
SAMPLE_BYTES: Final = 64 << 10
"""Of the beginning, and of the end, of each of the files that are read in part."""

Saved = Mapping[str, Mapping[str, Any]]
"""By URI, what a snapshot keeps of the identity of data."""


class DataSources:
    """The data that a run has asked for."""

    def __init__(self, directory: str, notify: Callable[[], None], saved: Saved) -> None:
        """`directory`: of requests and answers; empty: nobody answers. `notify` has the agent look there."""
        self.known: dict[str, Mapping[str, Any]] = dict(saved)
        """What snapshots keep: of the data that the run goes on with, and of what it has asked for since."""
        self._directory = directory
        self._notify = notify
        self._paths: dict[str, Path] = {}
        self._pid = os.getpid()

    def path(self, uri: str, wait: Callable[[float], None]) -> Path:
        """Returns where the data of a URI is, whole; `wait` passes so many seconds.

        Raises DataUnusable: what cannot be had, or is not what the run had before; RuntimeError in another process, as
        nobody would hear there of what it asked for.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("run.data() was called in another process: call it first, and give that one the path")
        if uri not in self._paths:
            saved = self.known.get(uri)
            expected = None if saved is None else DataIdentity(**saved)
            if urlsplit(uri).scheme == "file":
                path, identity = on_this_machine(uri)
            else:
                path, identity = self._asked(uri, expected, wait)
            if expected is not None and expected.digest != identity.digest:
                raise DataChanged(changed(shown(uri), expected, identity))
            self.known[uri] = {
                "digest": identity.digest,
                "size_bytes": identity.size_bytes,
                "files": identity.files,
                "version": identity.version,
            }
            self._paths[uri] = path
            log_line(f"{shown(uri)} is {path}: {identity.files:,} files, {in_words(identity.size_bytes)}")
        return self._paths[uri]

    def _asked(
        self, uri: str, expected: DataIdentity | None, wait: Callable[[float], None]
    ) -> tuple[Path, DataIdentity]:
        if not self._directory:
            raise DataRefused(f"{shown(uri)}: the agent of this worker fetches no data")
        name = Path(self._directory, hashlib.sha256(uri.encode()).hexdigest()[:32])
        request, answer = name.with_suffix(".request"), name.with_suffix(".answer")
        if not answer.exists():
            fresh = name.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(DataRequest(uri=uri, expected=expected).SerializeToString())
            fresh.replace(request)
            self._notify()
        seconds = FIRST_LOOK_SECONDS
        while not answer.exists():
            wait(seconds)
            seconds = min(2 * seconds, LOOK_SECONDS)
        told = DataAnswer.FromString(answer.read_bytes())
        if told.HasField("failure"):
            request.unlink(missing_ok=True)  # code that asks again gets another answer
            answer.unlink(missing_ok=True)
            raise DATA_ERRORS.get(told.failure.reason, DataUnusable)(told.failure.message)
        return Path(told.path), told.identity


def on_this_machine(uri: str) -> tuple[Path, DataIdentity]:
    """Returns the path that a URI `file:///path` names, and what is there; raises DataMissing, DataRefused.

    Its identity is not that of the same data elsewhere: names, sizes and some of the content, and not all of it.
    """
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise DataRefused(f"{uri}: a path on the worker is file:///path")
    path = Path(unquote(parts.path))
    try:
        if not path.exists():
            raise DataMissing(f"{uri}: there is no {path} on this worker")
        found = {str(each.relative_to(path)): each for each in inside(path)} if path.is_dir() else {path.name: path}
        sizes = {name: each.stat().st_size for name, each in sorted(found.items())}
        total = sum(sizes.values())
        hasher = hashlib.sha256("".join(f"{size} {name}\n" for name, size in sizes.items()).encode(errors="replace"))
        if total <= READ_WHOLE_BYTES:
            for name in sizes:
                hasher.update(found[name].read_bytes())
        else:
            names = list(sizes)
            for name in names[:: -(-len(names) // SAMPLED_FILES)]:
                for piece in both_ends(found[name], sizes[name]):
                    hasher.update(piece)
    except OSError as error:
        raise DataRefused(f"{uri}: {path} cannot be read: {error.strerror}") from error
    return path, DataIdentity(digest=hasher.hexdigest(), size_bytes=total, files=len(sizes))


def inside(directory: Path) -> Iterator[Path]:
    for place, _, names in os.walk(directory, followlinks=True):
        yield from (Path(place, name) for name in names if Path(place, name).is_file())


def both_ends(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield file.read(SAMPLE_BYTES)
        file.seek(max(0, size - SAMPLE_BYTES))
        yield file.read(SAMPLE_BYTES)
