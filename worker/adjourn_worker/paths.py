"""Where a worker keeps things: lasting ones below its data directory, sockets and snapshots in places of their own.

Sockets need a short path (the kernel takes 107 bytes), snapshots fast memory. Both places are named by a hash of the
data directory, belong to us alone (mode 0700, owner checked), and hold nothing that is missed after a reboot.
"""

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from adjourn.v1.agent_service_pb2 import FencingToken

SOCKET_PATH_BYTES: Final = 107
LONGEST_SOCKET_NAME: Final = "/doorbell"
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
TEMPORARY: Final = Path("/tmp")  # noqa: S108 - TMPDIR is often too long for a socket
UID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
OWNER_FILE: Final = "data-directory"
"""Names, within a place elsewhere, the data directory that it belongs to."""


class UnsafePath(Exception):
    """A directory that should be ours alone belongs to another, or is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPaths:
    """Where a worker keeps things."""

    data: Path
    """All that lasts, and all that finds the rest."""
    runtime: Path
    """Sockets."""
    snapshots: Path
    """Snapshots, one directory an attempt."""

    @classmethod
    def prepare(cls, data: Path, environment: Mapping[str, str], shared_memory: Path = SHARED_MEMORY) -> Self:
        """Makes what is not there, and finds what an earlier process chose; raises UnsafePlace, OSError."""
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = data.resolve()
        digest = fingerprint(data)
        runtime = remembered(data / "runtime", digest) or runtime_directory(environment, digest)
        snapshots = remembered(data / "snapshots", digest) or snapshot_area(data, shared_memory, digest)
        paths = cls(data=data, runtime=own(runtime), snapshots=own(snapshots))
        for place in (runtime, snapshots):
            (place / OWNER_FILE).write_bytes(os.fsencode(data))
        for path in (paths.attempts, paths.bundles, paths.logs, paths.scratch):
            path.mkdir(mode=0o700, exist_ok=True)
        remember(data / "runtime", runtime)
        remember(data / "snapshots", snapshots)
        return paths

    @property
    def journal(self) -> Path:
        return self.data / "journal.sqlite"

    @property
    def agent_lock(self) -> Path:
        return self.data / "agent.lock"

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
        return self.runtime / "doorbell"

    @property
    def attempts(self) -> Path:
        return self.data / "attempts"

    @property
    def bundles(self) -> Path:
        return self.data / "bundles"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    @property
    def scratch(self) -> Path:
        """What is not yet whole, on the same file system as where it will go."""
        return self.data / "scratch"

    def attempt(self, job: str, token: FencingToken) -> Path:
        """Returns the directory of an attempt of `jobs/{job}`; raises ValueError for what is no name."""
        return self.attempts / attempt_name(job, token)

    def log(self, job: str, token: FencingToken) -> Path:
        """Returns where the log of an attempt is kept after its directory is gone."""
        return self.logs / f"{attempt_name(job, token)}.log"

    def snapshot_directory(self, attempt: Path) -> Path:
        """Returns where the snapshots of an attempt's directory go."""
        return self.snapshots / attempt.name

    def bundle(self, digest: str) -> Path:
        """Returns where the code with this SHA-256 is unpacked."""
        return self.bundles / digest

    def attempt_directories(self) -> list[Path]:
        return sorted(path for path in self.attempts.iterdir() if path.is_dir())

    def retire(self, attempt: Path, log: Path) -> None:
        """Removes an attempt's directory and snapshots; what it printed is kept as `log`."""
        if (attempt / "log").exists():
            (attempt / "log").replace(log)
        remove(attempt)
        remove(self.snapshot_directory(attempt))

    def collect_garbage(self, keep: Collection[Path]) -> None:
        """Removes what no one will ask for: things half made, attempts and snapshots of attempts not in `keep`.

        Also the places of workers whose data directory is gone. For the agent only, before it begins anything.
        """
        names = {path.name for path in keep}
        for path in (*self.scratch.iterdir(), *self.attempts.iterdir(), *self.snapshots.iterdir()):
            if path.name not in names and path.name != OWNER_FILE:
                remove(path)
        for place in (*orphaned(self.snapshots.parent), *orphaned(self.runtime.parent)):
            remove(place)

    def remove_volatile(self) -> None:
        """Removes sockets and snapshots: the worker is not coming back."""
        remove(self.runtime)
        remove(self.snapshots)


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


def runtime_directory(environment: Mapping[str, str], digest: str) -> Path:
    preferred = environment.get("XDG_RUNTIME_DIR", "")
    if preferred and Path(preferred).is_dir() and os.access(preferred, os.W_OK):
        path = Path(preferred) / "adjourn" / digest
        if len(os.fsencode(path)) + len(LONGEST_SOCKET_NAME) <= SOCKET_PATH_BYTES:
            own(path.parent)
            return path
    return own(TEMPORARY / f"adjourn-{os.getuid()}") / digest


def snapshot_area(data: Path, shared_memory: Path, digest: str) -> Path:
    if shared_memory.is_dir() and os.access(shared_memory, os.W_OK):
        return shared_memory / f"adjourn-{os.getuid()}-{digest}"
    return data / f"snapshots-{digest}"


def remembered(link: Path, digest: str) -> Path | None:
    """Returns the place that an earlier process chose: a living launcher must be found though the variables differ.

    Not one that a copied data directory has from its original.
    """
    if link.is_symlink() and link.is_dir() and link.readlink().name.endswith(digest):
        return link.readlink()
    return None


def remember(link: Path, place: Path) -> None:
    if link.is_symlink() and link.readlink() == place:
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.symlink_to(place)
    fresh.replace(link)


def own(path: Path) -> Path:
    """Makes a directory that is ours alone, or checks that it is; raises UnsafePlace."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()  # a link that someone else left is not followed
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UnsafePath(f"{path} is not a directory of ours")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def fingerprint(data: Path) -> str:
    return hashlib.sha256(os.fsencode(data)).hexdigest()[:12]


def orphaned(parent: Path) -> list[Path]:
    """Returns our places whose data directory no longer exists."""
    found = []
    for owner in parent.glob(f"*/{OWNER_FILE}"):
        if owner.parent.lstat().st_uid == os.getuid():
            data = Path(os.fsdecode(owner.read_bytes()))
            if owner.parent.name.endswith(fingerprint(data)) and not data.is_dir():
                found.append(owner.parent)
    return found


def remove(path: Path) -> None:
    """Removes a file or a whole directory; what is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
