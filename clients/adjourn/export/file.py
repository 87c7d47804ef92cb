"""Writes an exported file whole or not at all: beside its place, in a directory that goes in any case, then renamed."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from adjourn.client import Client
from adjourn.export import plain, tensor_file, torch_file
from adjourn.export.download import download
from adjourn.export.errors import ExportRefused
from adjourn.training.errors import SnapshotUnreadable
from adjourn.v1.checkpoint_pb2 import Checkpoint

SAFETENSORS: Final = "safetensors"
TORCH: Final = "torch"
FORMATS: Final = (SAFETENSORS, TORCH)
ROOM: Final = 1 << 20
"""Bytes for headers, beside twice the state: as it arrives, and as it is written."""


def export(
    client: Client,
    checkpoint: Checkpoint,
    output: Path,
    *,
    form: str,
    component: str = "",
    on_bytes: Callable[[int], None] = lambda _: None,
) -> int:
    """Writes a checkpoint to `output`, in one of FORMATS; returns how many values the format has no place for.

    `component`: only the state of that tracked object, without its name before it. Raises ExportRefused,
    CheckpointDamagedError, what the client raises.
    """
    parent = output.resolve().parent
    try:
        needed, free = 2 * checkpoint.size_bytes + ROOM, shutil.disk_usage(parent).free
        if free < needed:
            raise ExportRefused(f"no room: it takes {needed / 1e6:,.0f} MB for a while, {parent} has {free / 1e6:,.0f}")
        with TemporaryDirectory(prefix=f".{output.name}.", dir=parent) as directory:
            snapshot, fresh = Path(directory, "snapshot"), Path(directory, output.name)
            snapshot.mkdir()
            download(client, checkpoint, snapshot, on_bytes)
            left_out = write(plain.read(snapshot, checkpoint), fresh, form=form, component=component)
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            fresh.replace(output)
    except SnapshotUnreadable as error:
        raise ExportRefused(f"{checkpoint.name} is of another version of Adjourn: {error}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ExportRefused(f"{'no room' if full else 'cannot write'}: {output}: {error.strerror}") from error
    return left_out


def write(state: dict[str, object], path: Path, *, form: str, component: str) -> int:
    """Returns how many values were left out."""
    extra = state[plain.EXTRA]
    assert isinstance(extra, dict)
    tracked = [name for name in state if name != plain.EXTRA]
    if component and component not in tracked:
        raise ExportRefused(f"nothing was tracked as {component!r}; there are {', '.join(tracked)}")
    if form == TORCH:
        torch_file.write(state[component] if component else state, path)
        return 0
    about = {key: extra[key] for key in ("job", "checkpoint", "epoch", "step", "state_digest")}
    return tensor_file.write(state[component] if component else {name: state[name] for name in tracked}, about, path)
