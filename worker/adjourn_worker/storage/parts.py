"""How a checkpoint is laid out in the object store.

    checkpoints/{job}/parts/{blake3}                                a piece of a file, by its content
    checkpoints/{job}/manifests/{attempt}-{nonce8}-{sequence}.json  which pieces make up a snapshot

No key is ever used for other content, so an agent that should have stopped can overwrite nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from blake3 import blake3

from adjourn_worker.paths import job_id

T = TypeVar("T")

PART_BYTES: Final = 8 << 20
IN_FLIGHT: Final = 4
"""Parts in memory at a time."""
MANIFEST_LIMIT: Final = 64 << 20
"""Longest manifest that is read, in bytes; a part takes about 100 in it."""


def digest(data: bytes) -> str:
    return blake3(data).hexdigest()


def part_key(job: str, part: str) -> str:
    return f"checkpoints/{job_id(job)}/parts/{part}"


def manifest_key(job: str, checkpoint: str) -> str:
    return f"checkpoints/{job_id(job)}/manifests/{checkpoint}.json"


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Does the work for every item, a few at a time; the first error ends it all and is raised."""
    waiting = iter(items)

    async def take_turns() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(take_turns())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
