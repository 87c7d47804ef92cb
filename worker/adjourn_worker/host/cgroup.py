"""What a control group lets this process use: a container's limits are not the machine's. Version 1 and 2."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc/self/cgroup")
MOUNT: Final = Path("/sys/fs/cgroup")
UNLIMITED: Final = 1 << 60
"""Version 1 says "no limit" by a number near 2**63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The tightest memory limit that is in force."""

    limit: int
    """In bytes."""
    used: int
    """In bytes, without what the kernel gives back when asked (cached files)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The tightest CPU limit that is in force."""

    cores: float
    seconds: float
    """CPU time used so far."""


def memory(proc: Path = PROC, mount: Path = MOUNT) -> Memory | None:
    """Returns None if there is no limit, or none that can be read."""
    found = []
    for group in groups(proc, mount, "memory"):
        limit = number(group / "memory.max") or number(group / "memory.limit_in_bytes")
        used = number(group / "memory.current") or number(group / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < UNLIMITED:
            stat = table(group / "memory.stat")
            cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            found.append(Memory(limit=limit, used=max(0, used - cached)))
    return min(found, key=lambda item: item.limit, default=None)


def cpu(proc: Path = PROC, mount: Path = MOUNT) -> Cpu | None:
    """Returns None if there is no limit, or none that can be read."""
    found = []
    for group in groups(proc, mount, "cpu"):
        quota, period = number(group / "cpu.cfs_quota_us"), number(group / "cpu.cfs_period_us")
        seconds = (number(group / "cpuacct.usage") or 0) / 1e9
        if quota is None:
            words = text(group / "cpu.max").split()
            quota, period = (int(words[0]), int(words[1])) if len(words) == 2 and words[0] != "max" else (None, None)
            seconds = table(group / "cpu.stat").get("usage_usec", 0) / 1e6
        if quota and period and quota > 0:
            found.append(Cpu(cores=quota / period, seconds=seconds))
    return min(found, key=lambda item: item.cores, default=None)


def out_of_memory_kills(proc: Path = PROC, mount: Path = MOUNT) -> int | None:
    """Returns how many processes of our group the kernel's out-of-memory killer has ended; None if nobody counts."""
    for group in groups(proc, mount, "memory"):
        for file in ("memory.events.local", "memory.events", "memory.oom_control"):  # without groups below, if told
            if (count := table(group / file).get("oom_kill")) is not None:
                return count
    return None


def groups(proc: Path, mount: Path, controller: str) -> Iterator[Path]:
    """Yields the directories of our group and of those around it."""
    for line in text(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mount / controller if controllers else mount
        group = root / path.lstrip("/")
        while True:
            if group.is_dir():  # within a container the path may be that of the machine
                yield group
            if group == root:
                break
            group = group.parent


def number(path: Path) -> int | None:
    try:
        return int(text(path))
    except ValueError:
        return None


def table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
