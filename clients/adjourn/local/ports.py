"""Finds free TCP ports of this machine."""

import contextlib
import random
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

HOST: Final = "127.0.0.1"
RANGE: Final = range(20_000, 32_000)
"""Below the ephemeral ports: an outgoing connection could take one of those before the server does."""
_left: list[int] = []
"""Ports that are looked at next."""


def is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        # As servers do: a port with connections in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def claim(port: int) -> socket.socket | None:
    """Has other stacks of this machine keep away from a port until the socket is closed; None: another one has it.

    A server listens at a port only seconds after it was found free.
    """
    claimed = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            claimed.bind(f"\0adjourn-port-{port}")  # of no file: it ends with the process, and is of the same network
        except OSError:
            claimed.close()
            return None
    return claimed


def free_ports(count: int, usable: Callable[[int], bool] | None = None) -> Sequence[int]:
    """Returns `count` different ports on which nothing listens; raises OSError if there are not as many.

    The same ones are returned again only after all others: what was found free may not be listened at yet. `usable`
    tells which are free, and may keep them.
    """
    found: list[int] = []
    for _ in RANGE:
        if not _left:
            _left.extend(random.sample(RANGE, len(RANGE)))
        port = _left.pop()
        if port not in found and (usable or is_free)(port):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"fewer than {count} free ports in {RANGE.start}-{RANGE.stop}")
