"""Pauses and resumes training jobs, bit for bit.

Imports nothing by itself, so that training code never loads grpc: the clients, and the messages that a job is made of,
are resolved when first asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adjourn.client import AsyncClient, Client
    from adjourn.v1.job_pb2 import Job, JobSpec

__all__ = ["AsyncClient", "Client", "Job", "JobSpec"]
MODULES = {"AsyncClient": "client", "Client": "client", "Job": "v1.job_pb2", "JobSpec": "v1.job_pb2"}
"""Where each name is from."""
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name in MODULES:
        return getattr(import_module(f"adjourn.{MODULES[name]}"), name)
    raise AttributeError(f"module 'adjourn' has no attribute {name!r}")
