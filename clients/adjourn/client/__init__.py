"""The Python client. Takes and returns protobuf messages; every error is a class of `adjourn.errors`."""

from adjourn.client.asynchronous import AsyncClient
from adjourn.client.blocking import Client

__all__ = ["AsyncClient", "Client"]
