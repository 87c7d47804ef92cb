"""Data on the disk of a worker, for all attempts: whole or not at all, by its content, as much as there is room for.

    {id}/{name}           the data, read-only; the id is a digest of content and name, so the path tells both
    {id}.json             written last: without it there is no such data
    partial/{key}/        data on its way: `content`, and `done` with a line for each file that is whole

What an attempt was given stays as long as the attempt's directory: its answers are there (`trainer.proto`), and they
say what is in use, to the next agent too. Of the rest, what was not used for longest makes room.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from adjourn.internal.v1.trainer_pb2 import DataAnswer, DataIdentity
from adjourn_worker.attempt.files import ANSWER, DATA
from adjourn_worker.host.kernel import sync_file_system
from adjourn_worker.paths import free_bytes, used_bytes

log: structlog.stdlib.BoundLogger = structlog.get_logger()

PARTIAL: Final = "partial"
CONTENT: Final = "content"
DONE: Final = "done"
BOOT: Final = "boot"
HALF_OF_THE_DISK: Final = -1
"""As limit."""
SOURCES_KEPT: Final = 16
"""Of one entry."""


class NoRoom(Exception):
    """There is no room for data, even without all that nothing uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Data that is here, whole."""

    id: str
    name: str
    digest: str
    size_bytes: int
    files: int
    standing: str
    """How its files stood when they were whole."""
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Where it came from: tag and version, by URI."""

    def identity(self, uri: str) -> DataIdentity:
        version = self.sources.get(uri, {}).get("version", "")
        return DataIdentity(digest=self.digest, size_bytes=self.size_bytes, files=self.files, version=version)


class DataCache:
    """The directory that data is kept in. All of it blocks."""

    def __init__(self, directory: Path, attempts: Path, *, limit: int = HALF_OF_THE_DISK, reserve: int = 0) -> None:
        """`attempts`: where their directories are; `limit` of bytes in all; `reserve`: bytes that stay free."""
        self.directory = directory
        self._attempts = attempts
        self._limit = limit
        self._reserve = reserve
        self._entries: dict[str, Entry] = {}
        self._held: dict[object, str] = {}
        """What is being fetched or handed out, by who does it: ids of entries, names of partial ones."""

    def open(self) -> None:
        """Reads what is there, and removes what was never whole."""
        (self.directory / PARTIAL).mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.directory.glob("*.json"):
            try:
                entry = Entry(**json.loads(path.read_bytes()))
            except (OSError, ValueError, TypeError) as error:
                log.warning("data_forgotten", path=str(path), error=str(error))
                path.unlink(missing_ok=True)
            else:
                self._entries[entry.id] = entry
        for path in self.directory.iterdir():
            if path.is_dir() and path.name != PARTIAL and path.name not in self._entries:
                remove(path)

    def path(self, entry: Entry) -> Path:
        return self.directory / entry.id / entry.name

    def release(self, holder: object) -> None:
        """Lets what somebody holds go when its room is needed; may be called in any thread."""
        self._held.pop(holder, None)

    def of_source(self, uri: str, tag: str) -> Entry | None:
        """Returns what is here of a source that tells that it is the same still."""
        return next((each for each in self._entries.values() if tag and has_come(each, uri, tag)), None)

    def of_digest(self, digest: str, name: str) -> Entry | None:
        entry = self._entries.get(entry_id(digest, name))
        return entry if entry and entry.digest == digest else None

    def use(self, entry: Entry, holder: object) -> bool:
        """Holds an entry, and notes its use; returns False, and forgets it, if its files are not as they were."""
        try:
            if standing(self.path(entry)) == entry.standing:
                os.utime(self._note(entry.id))
                self._held[holder] = entry.id
                return True
        except OSError as error:
            log.warning("data_unreadable", path=str(self.path(entry)), error=str(error))
        log.warning("data_was_changed", path=str(self.path(entry)))
        self._forget(entry.id)
        if entry.id not in self.in_use():
            remove(self.directory / entry.id)
        return False

    def add_source(self, entry: Entry, uri: str, tag: str, version: str) -> Entry:
        """Notes where an entry came from, too."""
        sources = {name: dict(source) for name, source in entry.sources.items() if name != uri}
        kept = list(sources.items())[1 - SOURCES_KEPT :]
        return self._write(Entry(**{**asdict(entry), "sources": {**dict(kept), uri: {"tag": tag, "version": version}}}))

    def partial(self, key: str, boot_id: str, holder: object) -> Path:
        """Holds and returns the directory of data on its way; what a machine that failed has left of it is removed."""
        self._held[holder] = key
        path = self.directory / PARTIAL / key
        boot = path / BOOT
        if not boot.exists() or boot.read_text() != boot_id:
            remove(path)
            (path / CONTENT).mkdir(mode=0o700, parents=True)
            boot.write_text(boot_id)
        os.utime(path)
        return path

    def publish(
        self, partial: Path, name: str, digest: str, sizes: Collection[int], holder: object, *, folder: bool
    ) -> Entry:
        """Makes data that is whole an entry, holds it, and removes what it was on its way; raises OSError."""
        identity = entry_id(digest, name)
        known = self._entries.get(identity)
        if known is not None and self.use(known, holder):
            remove(partial)
            return known
        while (self.directory / identity).exists():  # an attempt uses what has been changed
            identity = entry_id(identity, name)
        target = self.directory / identity / name
        target.parent.mkdir(mode=0o700)
        content = partial / CONTENT
        (content if folder else content / name).rename(target)
        protect(target)
        sync_file_system(target.parent)
        entry = Entry(
            id=identity,
            name=name,
            digest=digest,
            size_bytes=sum(sizes),
            files=len(sizes),
            standing=standing(target),
        )
        self._held[holder] = identity
        self._write(entry)
        remove(partial)
        return entry

    def make_room(self, needed: int = 0, free: int = 0) -> None:
        """Removes what was not used for longest, for so many bytes more, until `free` bytes are free then.

        Raises NoRoom.
        """
        free = needed + max(free, self._reserve)
        limit = shutil.disk_usage(self.directory).total // 2 if self._limit == HALF_OF_THE_DISK else self._limit
        for name in self._unused():
            if free_bytes(self.directory) >= free and self.size() + needed <= limit:
                break
            self._forget(name)
            remove(self.directory / name)
            log.info("data_removed", name=name)
        if needed and free_bytes(self.directory) < free:
            raise NoRoom(
                f"{needed:,} bytes are needed, {free_bytes(self.directory):,} are free on {self.directory}, of which"
                f" {self._reserve:,} are kept free, and the rest of it is in use"
            )

    def size(self) -> int:
        """Returns the bytes of all that is here."""
        return sum(entry.size_bytes for entry in self._entries.values()) + used_bytes(self.directory / PARTIAL)

    def in_use(self) -> set[str]:
        """Returns the ids of entries that an attempt was given, or is being given."""
        found = set(self._held.copy().values())
        for path in self._attempts.glob(f"*/{DATA}/*{ANSWER}"):
            with contextlib.suppress(OSError, DecodeError, ValueError):
                given = Path(DataAnswer.FromString(path.read_bytes()).path)
                found.add(given.relative_to(self.directory).parts[0])
        return found

    def _unused(self) -> list[str]:
        """Returns what may go, the longest unused first: entries by id, and what is on its way by its path."""
        used = self.in_use()
        partial = (self.directory / PARTIAL).iterdir()
        found = {path.name: path for path in partial if path.name not in used}
        ages = {f"{PARTIAL}/{name}": age(path) for name, path in found.items()}
        ages |= {name: age(self._note(name)) for name in self._entries if name not in used}
        return sorted(ages, key=lambda name: ages[name])

    def _note(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def _write(self, entry: Entry) -> Entry:
        fresh = self.directory / f".{entry.id}"
        with fresh.open("w") as file:
            json.dump(asdict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._note(entry.id))
        self._entries[entry.id] = entry
        return entry

    def _forget(self, name: str) -> None:
        self._note(name).unlink(missing_ok=True)
        self._entries.pop(name, None)


def has_come(entry: Entry, uri: str, tag: str) -> bool:
    return entry.sources.get(uri, {}).get("tag") == tag


def entry_id(digest: str, name: str) -> str:
    return hashlib.sha256(f"{digest} {name}".encode(errors="replace")).hexdigest()[:32]


def age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def standing(path: Path) -> str:
    """Returns what changes when somebody writes to data, adds to it or takes from it."""
    hasher = hashlib.sha256()
    for each in sorted(everything(path)):
        status = each.lstat()
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        written = status.st_mtime_ns if stat.S_ISREG(status.st_mode) else 0
        hasher.update(f"{each.relative_to(path)} {stat.S_IFMT(status.st_mode)} {size} {written}\n".encode())
    return hasher.hexdigest()


def everything(path: Path) -> Iterator[Path]:
    yield path
    for place, folders, names in os.walk(path):
        yield from (Path(place, name) for name in (*folders, *names))


def protect(path: Path) -> None:
    """Makes data read-only: many attempts have it."""
    for each in everything(path):
        each.chmod(0o555 if each.is_dir() else 0o444)


def remove(path: Path) -> None:
    """Removes a directory, also one that is read-only."""
    for each in everything(path):
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def read_done(partial: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of data on its way that is whole, by path."""
    found: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (partial / DONE).read_text(errors="surrogateescape").splitlines(keepends=True):
            if line.endswith("\n"):  # else the agent died while it wrote it
                found |= json.loads(line)
    return found
