"""Brings files that a run keeps with its checkpoints to this machine, verified as they arrive."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from adjourn import outputs
from adjourn.client import Client
from adjourn.export.download import chunks, damaged, manifest_of
from adjourn.export.errors import ExportRefused
from adjourn.outputs import OutputFile, OutputsInvalid
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest


class OutputFiles:
    """The files that a checkpoint has of its run."""

    def __init__(self, client: Client, checkpoint: Checkpoint) -> None:
        """Reads which there are; raises CheckpointDamagedError, what the client raises."""
        self._client = client
        self._checkpoint = checkpoint
        files = {file.name: file for file in manifest_of(client, checkpoint).files}
        self._data: Manifest.File | None = files.get(outputs.DATA)
        self.files: Sequence[OutputFile] = ()
        if index := files.get(outputs.INDEX):
            size = sum(span.size_bytes for span in index.spans)
            text = b"".join(data for _, data in chunks(client, checkpoint, index, 0, size))
            try:
                self.files = outputs.decode(text)
            except OutputsInvalid as error:
                raise damaged(checkpoint, str(error)) from error

    def below(self, path: str) -> list[tuple[OutputFile, str]]:
        """Returns the files that a path means, each with its own path below it: empty if it is that of one file."""
        path = path.strip("/")
        if path in ("", "."):
            return [(file, file.path) for file in self.files]
        return [
            (file, file.path.removeprefix(path).lstrip("/"))
            for file in self.files
            if file.path == path or file.path.startswith(f"{path}/")
        ]

    def write(self, file: OutputFile, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Writes a file, whole or not at all; `on_bytes` hears how many bytes more have arrived.

        Raises ExportRefused, CheckpointDamagedError, what the client raises.
        """
        fresh = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("xb") as output:
                for offset, data in self._chunks(file):
                    begin, end = max(file.offset - offset, 0), file.offset + file.size - offset
                    on_bytes(output.write(data[begin:end]))
                output.flush()
                os.fsync(output.fileno())
            fresh.replace(path)
        except OSError as error:
            raise ExportRefused(f"cannot write {path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                fresh.unlink()

    def _chunks(self, file: OutputFile) -> Iterator[tuple[int, bytes]]:
        if self._data is None:
            raise damaged(self._checkpoint, f"it has no {outputs.DATA}")
        return chunks(self._client, self._checkpoint, self._data, file.offset, file.offset + file.size)
