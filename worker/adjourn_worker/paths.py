"""Where a worker keeps things: lasting ones below its data directory, sockets and snapshots in places of their own.

Sockets need a short path (the kernel takes 107 bytes), snapshots fast memory. Both places are named by the worker id, a
random number in the data directory, so workers that share /tmp or /dev/shm never meet, whatever the paths of their
data directories are in their containers. They belong to us alone (mode 0700, owner checked).

A data directory that was copied has the id of its original. The agent's locks lie in the places as well as in the data
directory, so the second of two such workers is refused.

A worker removes only what is in its own places. That another's data directory cannot be seen from here does not mean
that it is gone. So what one that never comes back has left in shared memory is removed only if no agent holds the lock
in it and nothing in it was written for a week (Kept.snapshot_days), by the next agent of the same user that starts.
"""

import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from adjourn.kept_snapshots import KEPT
from adjourn.manifests import UID
from adjourn.v1.agent_service_pb2 import FencingToken

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
TEMPORARY: Final = Path("/tmp")  # noqa: S108 - TMPDIR is often too long for a socket
AGENT_LOCK: Final = "agent.lock"
ID: Final = "id"
"""File in the data directory."""
RESTORED: Final = "restored"
"""Directory, beside those of the attempts' snapshots, of snapshots that attempts restore."""


class UnsafePath(Exception):
    """A directory that should be ours alone belongs to another, or is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How much of what nobody has to have stays on the disk. What was written longest ago goes first."""

    logs: int = 1000
    """Logs of attempts that are over."""
    log_bytes: int = 1 << 30
    """Bytes of these logs."""
    bundle_bytes: int = 1 << 30
    """Bytes of packed code that may be wanted again."""
    venv_bytes: int = 10 << 30
    """Bytes of environments with what jobs require."""
    data_bytes: int = -1
    """Bytes of data that runs have asked for; -1: half of the disk."""
    snapshot_bytes: int = 1 << 50
    """Bytes of snapshots that may be restored here; `storage/kept.py` bounds them by the room that there is, too."""
    snapshot_days: int = 7
    """Age of what a worker that did not come back has left in shared memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPaths:
    """Where a worker keeps things."""

    data: Path
    """All that lasts."""
    runtime: Path
    """Sockets."""
    snapshots: Path
    """Snapshots, one directory an attempt; in memory if there is a place for it."""

    @classmethod
    def prepare(cls, data: Path, shared_memory: Path | None = None) -> Self:
        """Makes what is not there; raises UnsafePath, OSError.

        Without a directory in shared memory that can be written to, snapshots are kept on the disk.
        """
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = data.resolve()
        name = f"adjourn-{os.getuid()}"
        worker = worker_id(data / ID)
        in_memory = shared_memory is not None and shared_memory.is_dir() and os.access(shared_memory, os.W_OK)
        paths = cls(
            data=data,
            runtime=own(own(TEMPORARY / name) / worker),
            snapshots=own(shared_memory / f"{name}-{worker}" if shared_memory and in_memory else on_disk(data)),
        )
        for path in (
            paths.attempts,
            paths.bundles,
            paths.logs,
            paths.unstored_logs,
            paths.scratch,
            paths.disk_snapshots,
        ):
            path.mkdir(mode=0o700, exist_ok=True)
        return paths

    @property
    def instance(self) -> str:
        """The worker id: tells this data directory from every other."""
        return worker_id(self.data / ID)

    @property
    def journal(self) -> Path:
        return self.data / "journal.sqlite"

    @property
    def agent_locks(self) -> tuple[Path, ...]:
        """Locks that an agent holds, all of them. The first tells two agents of one data directory apart."""
        return tuple(dict.fromkeys(place / AGENT_LOCK for place in (self.data, self.runtime, self.snapshots)))

    @property
    def launcher_lock(self) -> Path:
        return self.data / "launcher.lock"

    @property
    def launcher_log(self) -> Path:
        return self.data / "launcher.log"

    @property
    def launcher_socket(self) -> Path:
        return self.runtime / "launcher"

    @property
    def notify_socket(self) -> Path:
        return self.runtime / "notify"

    @property
    def attempts(self) -> Path:
        return self.data / "attempts"

    @property
    def bundles(self) -> Path:
        """Packed code, by its SHA-256."""
        return self.data / "bundles"

    @property
    def venvs(self) -> Path:
        """Environments with what jobs require."""
        return self.data / "venvs"

    @property
    def cached_data(self) -> Path:
        """Data that runs have asked for by its URI."""
        return self.data / "cached-data"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def unstored_logs(self) -> Path:
        """Notes of attempts whose logs are not wholly stored."""
        return self.data / "unstored-logs"

    @property
    def scratch(self) -> Path:
        """What is not yet whole, on the same file system as where it will go."""
        return self.data / "scratch"

    @property
    def disk_snapshots(self) -> Path:
        """Where snapshots go that memory has no room for."""
        return on_disk(self.data)

    def attempt(self, job: str, token: FencingToken) -> Path:
        """Returns the directory of an attempt of `jobs/{job}`; raises ValueError for what is no name."""
        return self.attempts / attempt_name(job, token)

    def log(self, job: str, token: FencingToken) -> Path:
        """Returns where the log of an attempt is kept after its directory is gone."""
        return self.logs / f"{attempt_name(job, token)}.log"

    def snapshot_directory(self, attempt: Path) -> Path:
        """Returns where the snapshots of an attempt's directory go; in memory if there is a place for it."""
        return self.snapshots / attempt.name

    def disk_snapshot_directory(self, attempt: Path) -> Path:
        """Returns where they go if there is no room for them."""
        return self.disk_snapshots / attempt.name

    @property
    def snapshot_places(self) -> tuple[Path, ...]:
        """Where directories of attempts' snapshots are: in memory, and on the disk."""
        return tuple(dict.fromkeys((self.snapshots, self.disk_snapshots)))

    def restored(self, place: Path, attempt: Path) -> Path:
        """Returns where, in one of `snapshot_places`, the snapshot is that an attempt's directory restores."""
        return place / RESTORED / attempt.name

    def attempt_directories(self) -> list[Path]:
        return sorted(path for path in self.attempts.iterdir() if path.is_dir())

    def retire(self, attempt: Path, log: Path, kept: "Kept") -> None:
        """Removes an attempt's directory and snapshots; what it printed is kept as `log`, in place of older logs."""
        if (attempt / "log").exists():
            (attempt / "log").replace(log)
        restored = [self.restored(place, attempt) for place in self.snapshot_places]
        for path in (attempt, self.snapshot_directory(attempt), self.disk_snapshot_directory(attempt), *restored):
            remove(path)
        bound(self.logs.iterdir(), count=kept.logs, size=kept.log_bytes)

    def collect_garbage(self, keep: Collection[Path]) -> None:
        """Removes what no one will ask for: things half made, attempts and snapshots of attempts not in `keep`.

        For the agent only, which holds the locks, before it begins anything.
        """
        names = {path.name for path in keep} | {AGENT_LOCK, KEPT, RESTORED}
        restored = {place / RESTORED for place in self.snapshot_places}
        for place in {self.scratch, self.attempts, *self.snapshot_places, *restored}:
            for path in place.iterdir() if place.is_dir() else ():
                if path.name not in names:
                    remove(path)

    def collect_abandoned(self, days: int) -> list[Path]:
        """Removes what our user's other workers have left in shared memory, and returns it.

        Left is what no agent holds the lock of, and in which nothing was written for so many days.
        """
        found = []
        if self.snapshots != self.disk_snapshots:
            for place in self.snapshots.parent.glob(f"adjourn-{os.getuid()}-*"):
                if place != self.snapshots and is_abandoned(place, days):
                    remove(place)
                    found.append(place)
        return found

    def remove_volatile(self) -> None:
        """Removes sockets and snapshots: the worker is not coming back."""
        for path in {self.runtime, self.snapshots, self.disk_snapshots}:
            remove(path)


def is_abandoned(place: Path, days: int) -> bool:
    """Returns whether a worker's snapshots are old, and no agent is there that could want them."""
    if not re.fullmatch(r"adjourn-\d+-[0-9a-f]{16}", place.name) or place.is_symlink():
        return False
    with suppress(OSError):  # it belongs to somebody else, or goes away meanwhile
        written = max(path.lstat().st_mtime for path in (place, *place.rglob("*")))
        if place.lstat().st_uid != os.getuid() or time.time() - written < days * 86400:
            return False
        if not (place / AGENT_LOCK).exists():
            return True
        with (place / AGENT_LOCK).open("r+b") as lock:  # not taken with locks.take, which would write to it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def on_disk(data: Path) -> Path:
    return data / "disk-snapshots"


def worker_id(path: Path) -> str:
    """Returns the id in a file, which is made if it is not there; raises UnsafePath."""
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        fresh.write_text(f"{secrets.token_hex(8)}\n")
        with suppress(FileExistsError):
            path.hardlink_to(fresh)  # whole or not at all, and never in place of another's
        fresh.unlink()
    found = path.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{16}", found):
        raise UnsafePath(f"{path} does not hold the id of a worker; remove it if no agent and no training runs here")
    return found


def attempt_name(job: str, token: FencingToken) -> str:
    """Returns `{job}-{uid8}-{attempt}-{nonce8}`; raises ValueError for what is no name, uid or nonce."""
    name = re.fullmatch(r"jobs/([a-z0-9][a-z0-9-]{0,62})", job)
    if not name:
        raise ValueError(f"{job!r} is no name of a job")
    if not re.fullmatch(UID, token.job_uid):
        raise ValueError(f"{token.job_uid!r} is no uid of a job")
    if not re.fullmatch(r"[0-9a-f]{32}", token.nonce):
        raise ValueError("a nonce is 32 hex digits")
    return f"{name[1]}-{token.job_uid[:8]}-{token.attempt}-{token.nonce[:8]}"


def own(path: Path) -> Path:
    """Makes a directory that is ours alone, or checks that it is; raises UnsafePath."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()  # a link that someone else left is not followed
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UnsafePath(f"{path} is not a directory of ours")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def free_bytes(path: Path) -> int:
    """Returns the room for files in a directory."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def used_bytes(directory: Path) -> int:
    """Returns the room that a directory takes; 0 if there is none. Others may remove it meanwhile."""
    total = 0
    for path, directories, files in os.walk(directory):  # which passes over what has gone, as rglob does not
        for name in (*directories, *files):
            with suppress(FileNotFoundError):
                total += Path(path, name).lstat().st_blocks * 512
    return total


def bound(files: Iterable[Path], *, size: int, count: int = sys.maxsize) -> None:
    """Removes the files that were written longest ago, until at most so many, of so many bytes in all, are left.

    Attempts that begin or end at the same time may do the same to the same files.
    """
    found = []
    for path in files:
        with suppress(FileNotFoundError):
            status = path.lstat()
            found.append((status.st_mtime_ns, path, min(status.st_size, status.st_blocks * 512)))  # logs have holes
    total = 0
    for number, (_, path, taken) in enumerate(sorted(found, reverse=True), start=1):
        total += taken
        if number > count or total > size:
            remove(path)


def remove(path: Path) -> None:
    """Removes a file or a whole directory; what is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
