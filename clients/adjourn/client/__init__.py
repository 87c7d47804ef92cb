"""The Python client: jobs, checkpoints and workers, as protobuf messages; every failure an `adjourn.errors` class."""

from adjourn.client.asynchronous import AsyncClient
from adjourn.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
