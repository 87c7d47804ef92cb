"""The data directory of a stack: its lock, and the settings that must be equal at the next start."""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from adjourn.local.ports import free_ports, is_free


class DirectoryInUseError(Exception):
    """Another stack runs on the data directory."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(f"{path} is in use by another stack (pid {pid}); stop that one, or choose another --data")


class DirectoryDamagedError(Exception):
    """A file of the data directory cannot be read any more."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(
            f"{file} is damaged ({why}); it has the passwords and ports of the stack. Put back a copy of it, or choose "
            "another --data"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """Settings chosen at the first start and kept for all later ones."""

    redis_password: str
    s3_access_key: str
    s3_secret_key: str
    threads: int
    """Threads of one training process. Another number gives other bits."""
    ports: Sequence[int]
    """Ports of the servers; chosen again if one is taken."""


class DataDirectory:
    """A data directory, locked while `held`."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the directory; raises DirectoryInUseError. The kernel drops the lock when our process ends."""
        for directory in (self.path, self.logs):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise DirectoryInUseError(self.path, lock.read().strip() or "unknown") from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
            lock.truncate(0)

    def settings(self, *, threads: int, ports: int, usable: Callable[[int], bool] = is_free) -> StackSettings:
        """Returns the settings of the first start, or makes them. Ports that are not `usable` any more are replaced."""
        file = self.path / "stack.json"
        if file.exists():
            known = read_settings(file)
            if len(known.ports) == ports and all(map(usable, known.ports)):
                return known
            settings = StackSettings(**{**asdict(known), "ports": free_ports(ports, usable)})
        else:
            settings = StackSettings(
                redis_password=secrets.token_urlsafe(24),
                s3_access_key=secrets.token_hex(10),
                s3_secret_key=secrets.token_urlsafe(30),
                threads=threads,
                ports=free_ports(ports, usable),
            )
        write_private(file, json.dumps(asdict(settings)))
        return settings


def read_settings(file: Path) -> StackSettings:
    """Returns the settings in a file; raises DirectoryDamagedError."""
    try:
        return StackSettings(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:  # no JSON, not UTF-8; no object, or one with other fields
        raise DirectoryDamagedError(file, str(error)) from None


def write_private(file: Path, text: str) -> None:
    """Replaces `file` in one step. It is never readable for other users."""
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
