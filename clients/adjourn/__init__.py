"""Pauses and resumes training jobs, bit for bit.

Imports nothing by itself, so that training code never loads grpc: `adjourn.Client` and `adjourn.AsyncClient` are
resolved when first asked for (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adjourn.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name in __all__:
        from adjourn import client

        return getattr(client, name)
    raise AttributeError(f"module 'adjourn' has no attribute {name!r}")
