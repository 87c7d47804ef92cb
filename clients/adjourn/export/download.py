"""Brings a checkpoint to this machine through the control plane, verified to the last byte.

A client has no key to object storage. The control plane verifies what it sends; what arrives is verified again: the
manifest against the registered checkpoint, each chunk against the manifest, and in the end each component's digest.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from blake3 import blake3

from adjourn import manifests, outputs, snapshots
from adjourn.client import Client
from adjourn.errors import CheckpointDamagedError
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest

LOOKS: Final = 3
"""Times that a chunk may arrive with other content: a network may flip a bit."""


def download(client: Client, checkpoint: Checkpoint, into: Path, on_bytes: Callable[[int], None]) -> None:
    """Writes the state in a snapshot into a directory. `on_bytes` hears how many have arrived, each time more do.

    Raises CheckpointDamagedError, what the client raises, OSError.
    """
    manifest = manifest_of(client, checkpoint)
    done = 0
    for file in manifest.files:
        if file.name not in outputs.FILES:
            fetch(client, checkpoint, file, into / file.name, partial(tell, on_bytes, done))
        done += manifests.file_size(file)
        on_bytes(done)
    try:
        found = snapshots.component_digests(into)
    except snapshots.SnapshotInvalid as error:
        raise damaged(checkpoint, str(error)) from error
    if different := sorted(name for name, digest in checkpoint.component_digests.items() if found.get(name) != digest):
        raise damaged(checkpoint, f"other digests than were registered: {', '.join(different)}")


def manifest_of(client: Client, checkpoint: Checkpoint) -> Manifest:
    """Returns the manifest of a checkpoint; raises CheckpointDamagedError, what the client raises."""
    try:
        return manifests.verified(b"".join(client.read_checkpoint(checkpoint.name)), checkpoint)
    except manifests.ManifestInvalid as error:
        raise damaged(checkpoint, f"its manifest {error}") from error


def tell(on_bytes: Callable[[int], None], before: int, size: int) -> None:
    on_bytes(before + size)


def fetch(
    client: Client, checkpoint: Checkpoint, file: Manifest.File, path: Path, on_bytes: Callable[[int], None]
) -> None:
    """Writes one file, chunk by chunk; one that arrives with other content is asked for again."""
    size = manifests.file_size(file)
    with path.open("wb") as output:
        if size:
            os.posix_fallocate(output.fileno(), 0, size)  # a full disk is known before anything is fetched
        for offset, data in chunks(client, checkpoint, file, 0, size):
            output.write(data)
            on_bytes(offset + len(data))


def chunks(
    client: Client, checkpoint: Checkpoint, file: Manifest.File, begin: int, end: int
) -> Iterator[tuple[int, bytes]]:
    """Yields offset and content of each chunk of a file that has bytes of a stretch of it, verified.

    One that arrives with other content is asked for again. Raises CheckpointDamagedError, what the client raises.
    """
    left, offset, looks = deque(manifests.chunks(file)), 0, 0
    while left and offset + left[0][0] <= begin:
        offset += left.popleft()[0]
    while left and offset < end:
        arriving = Arriving(client, checkpoint, file.name, offset)
        try:
            while left and offset < end and blake3(data := arriving.take(left[0][0])).digest() == left[0][1]:
                yield offset, data
                offset += left.popleft()[0]
                looks = 0
        finally:
            arriving.close()
        looks += 1
        if left and offset < end and looks == LOOKS:
            raise damaged(checkpoint, f"{file.name} arrives with another content at byte {offset}")


class Arriving:
    """The bytes of a file on their way, taken in pieces of any size."""

    def __init__(self, client: Client, checkpoint: Checkpoint, file: str, offset: int) -> None:
        self._chunks = client.read_checkpoint(checkpoint.name, file=file, offset=offset)
        self._held = bytearray()

    def take(self, size: int) -> bytes:
        """Returns the next bytes; fewer if the file ends before."""
        while len(self._held) < size and (chunk := next(self._chunks, None)) is not None:
            self._held += chunk
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def close(self) -> None:
        self._chunks.close()


def damaged(checkpoint: Checkpoint, why: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(f"{checkpoint.name}: {why}", checkpoint=checkpoint.name)
