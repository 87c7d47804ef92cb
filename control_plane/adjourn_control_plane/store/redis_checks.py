"""PURE. What a store's settings make it lose or forget."""

from collections.abc import Mapping

SETTINGS = ("appendonly", "appendfsync", "maxmemory-policy")
"""Of a Redis or Valkey server."""


def shortcomings(settings: Mapping[str, str]) -> list[str]:
    """Returns what a server with these settings would not keep, a sentence each; empty if it keeps all."""
    found = []
    if settings.get("appendonly") != "yes":
        found.append("The store has appendonly off: a restart of it loses jobs.")
    elif settings.get("appendfsync") != "always":
        found.append(f"The store has appendfsync {settings.get('appendfsync')}: a power failure loses changes.")
    if settings.get("maxmemory-policy") != "noeviction":
        found.append(f"The store has maxmemory-policy {settings.get('maxmemory-policy')}: it may evict jobs.")
    return found
