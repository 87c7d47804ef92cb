"""Messages on a byte stream: a 4-byte big-endian length, then the message.

Shared by the agent, the launcher and the training process; for sockets and for append-only files alike. A frame cut
short (the writer died) is not yet there: `decode` leaves it for the next read.
"""

from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

LIMIT = 16 << 20
"""Largest message, in bytes; a longer one is taken for garbage."""


class FrameTooLong(ValueError):
    """A frame announces more bytes than any message has."""


def encode(message: Message) -> bytes:
    """Returns one frame."""
    body = message.SerializeToString()
    if len(body) > LIMIT:
        raise FrameTooLong(f"a message of {len(body)} bytes; at most {LIMIT} are sent")
    return len(body).to_bytes(4, "big") + body


def decode(kind: type[M], data: bytes, offset: int = 0) -> Iterator[tuple[M, int]]:
    """Yields each complete message in `data` from `offset`, with the offset after it; raises FrameTooLong."""
    while len(data) >= offset + 4:
        length = int.from_bytes(data[offset : offset + 4], "big")
        if length > LIMIT:
            raise FrameTooLong(f"a frame of {length} bytes at offset {offset}; at most {LIMIT} are sent")
        end = offset + 4 + length
        if len(data) < end:
            return
        yield kind.FromString(data[offset + 4 : end]), end
        offset = end
