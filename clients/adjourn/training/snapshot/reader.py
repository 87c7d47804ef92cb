"""Reads a snapshot that a run goes on from."""

import mmap
import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from google.protobuf import json_format

from adjourn import snapshots
from adjourn.snapshots import Content, SnapshotInvalid, Tree
from adjourn.training.errors import SnapshotUnreadable
from adjourn.training.snapshot.pinned import Cuda, Gpus, Pinned
from adjourn.training.state.codec import Decoder, tensors_in
from adjourn.v1.job_pb2 import Progress

THREADS = 2
"""That copy a snapshot, or take digests of it, at a time."""
LARGE = 8 << 20
"""Bytes of a component for which one thread is not enough."""


class SnapshotReader:
    """Reads the components of a snapshot, each when it is wanted."""

    def __init__(self, directory: Path, device: torch.device, gpus: Gpus | None = None) -> None:
        """Reads and checks headers; raises SnapshotUnreadable. `gpus`: as they are called if `device` is one."""
        self._directory = directory
        self._contents: dict[str, Future[Content | None]] = {}
        try:
            self._state = snapshots.read_state(directory)
            self._entries = snapshots.read_layout(directory / snapshots.TENSORS)
            self.progress = json_format.ParseDict(dict(self._state.progress), Progress(), ignore_unknown_fields=True)
            self._device = device
            on_gpu = device.type != "cpu"
            with (directory / snapshots.TENSORS).open("r+b" if on_gpu else "rb") as file:
                # A GPU reads the file's own pages: pinned, a private mapping would be a copy. Nobody writes to either.
                access = mmap.ACCESS_WRITE if on_gpu else mmap.ACCESS_COPY
                self._map = mmap.mmap(file.fileno(), 0, access=access)
        except (SnapshotInvalid, json_format.ParseError, OSError) as error:
            raise SnapshotUnreadable(f"{directory}: {error}") from error
        self._decoder = Decoder(self._bytes, device)
        self._pinned = Pinned(gpus or Cuda()) if on_gpu else None
        """Held as long as something is read."""
        if self._pinned is not None:
            self._pinned.hold(torch.frombuffer(self._map, dtype=torch.uint8))

    @property
    def components(self) -> Mapping[str, Tree]:
        return self._state.components

    @property
    def environment(self) -> Mapping[str, str]:
        return self._state.environment

    @property
    def remarks(self) -> Sequence[str]:
        """What may not come back as it was, a sentence each."""
        return self._state.remarks

    @property
    def drilled(self) -> bool | None:
        """Whether a drill of the job came to the same bits; None: it is not known."""
        return self._state.drilled

    @property
    def standing(self) -> Mapping[str, str]:
        """How what is in no component stood, if the run was cut amid an epoch."""
        return self._state.standing

    @property
    def sources(self) -> Mapping[str, Mapping[str, Any]]:
        """Which data the run has had, by the URI that it asked for."""
        return self._state.sources

    def take_digests(self) -> None:
        """Begins to take the digests of all components, and with them what `content` returns, beside what goes on."""
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        for name in self.components:
            self._contents[name] = Future()
            waiting.put(name)
        for _ in range(THREADS):
            threading.Thread(target=self._take, args=(waiting,), daemon=True, name="adjourn-digests").start()

    def content(self, component: str) -> Content | None:
        """Returns what a component consists of, once that is known; None: nobody has asked for it, or it is damaged."""
        found = self._contents.get(component)
        return found.result() if found is not None else None

    def value(self, component: str, lent: Collection[str] = ()) -> Any:
        """Returns the state of a component, a copy; raises SnapshotUnreadable.

        `lent`: keys of the state for whose tensors the snapshot's memory will do, since they are only read, at once.
        """
        try:
            tree = self._state.components[component]
            return self._decoder.decode(tree, self._taken(tree, lent))
        except (SnapshotInvalid, KeyError) as error:
            raise SnapshotUnreadable(f"{component}: {error}") from error

    def _taken(self, tree: Tree, lent: Collection[str]) -> Mapping[str, torch.Tensor]:
        """Returns the bytes of a large component's tensors: the snapshot's where that will do, or copies.

        Copies are made on several threads. What goes to a GPU is copied there.
        """
        if self._device.type != "cpu" or not isinstance(tree, dict):
            return {}
        whole = {name for name, is_whole in tensors_in(tree) if is_whole}
        if sum(self._entries[name].end - self._entries[name].begin for name in whole) < LARGE:
            return {}
        copied = {name for key, part in tree.items() if key not in lent for name, _ in tensors_in(part)}
        names = sorted(whole & copied)
        with ThreadPoolExecutor(THREADS) as threads:
            copies = threads.map(lambda name: self._bytes(name).clone(), names)
            return {name: self._bytes(name) for name in whole - copied} | dict(zip(names, copies, strict=True))

    def _take(self, waiting: "queue.SimpleQueue[str]") -> None:
        with suppress(queue.Empty):
            while True:
                name = waiting.get_nowait()
                content = None
                try:
                    content = snapshots.of_stored(Content.of, self.components[name], self._directory, self._entries)
                except (SnapshotInvalid, MemoryError):  # who compares finds out without it
                    continue
                finally:
                    self._contents[name].set_result(content)

    def _bytes(self, name: str) -> torch.Tensor:
        entry = self._entries[name]
        if entry.begin == entry.end:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin)
