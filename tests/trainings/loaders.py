"""Measures what the loader and the steps of a run cost beside a plain DataLoader: tests/benchmarks/loader.py."""

import gc
import json
import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from adjourn import training

BATCH_SIZE = 32
BATCHES = 100
PAIRS = 40
"""Epochs of either kind, in turn; the calmest are compared."""
STEPS = {1.0: 1.02, 0.3: 1.05, 0.0: None}
"""Milliseconds that a step takes, and how much longer an epoch may be."""


class Rows(Dataset[tuple[torch.Tensor, int]]):
    """Samples that cost next to nothing, so that a loader's own time is seen."""

    def __init__(self, count: int, *, augmented: bool = False) -> None:
        self._rows = torch.randn(1024, 16)
        self._count = count
        self._augmented = augmented

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self._rows[index % 1024]
        return (row.flip(0) if self._augmented and random.random() < 0.5 else row), index


class Work:
    """A step that takes as long as was asked for, on a calm machine."""

    def __init__(self, milliseconds: float) -> None:
        self._left, self._right = torch.randn(96, 96), torch.randn(96, 96)
        self._times = 1
        seconds = min(self._measured() for _ in range(200))
        self._times = max(1, round(milliseconds / 1000 / seconds))
        self.milliseconds = 1000 * min(self._measured() for _ in range(20))

    def __call__(self) -> torch.Tensor:
        product = self._left
        for _ in range(self._times):
            product = torch.mm(self._left, self._right)
        return product[0, 0]

    def _measured(self) -> float:
        begin = time.thread_time()
        self()
        return time.thread_time() - begin


def epoch(batches: Iterable[Any], work: Work, step: Callable[[torch.Tensor], object]) -> float:
    """Returns the CPU time of this thread per batch, in microseconds, the start of the epoch not counted."""
    iterator = iter(batches)
    next(iterator)
    begin = time.thread_time()
    for count, _ in zip(range(1, BATCHES + 1), iterator, strict=False):  # noqa: B007
        step(work())
    return (time.thread_time() - begin) * 1e6 / count


def start(batches: Iterable[Any]) -> float:
    """Returns the CPU time to the first batch, in milliseconds."""
    begin = time.thread_time()
    next(iter(batches))
    return (time.thread_time() - begin) * 1e3


def in_turn(pairs: int, plain: Callable[[], float], ours: Callable[[], float]) -> dict[str, Any]:
    """Returns the calmest of each, and the quartiles of the ratios of those measured together."""
    measured = []
    for _ in range(pairs):
        gc.collect()
        measured.append((plain(), ours()))
    low, middle, high = quantiles([one / other for other, one in measured])
    calmest = min(other for other, _ in measured), min(one for _, one in measured)
    return {"plain": calmest[0], "ours": calmest[1], "ratio": calmest[1] / calmest[0], "quartiles": [low, middle, high]}


def main(run: training.Run) -> None:
    """Prints a line of JSON for each comparison."""
    few, large = BATCH_SIZE * (BATCHES + 1), Rows(run.args["samples"])
    pairs = [
        (name, DataLoader(rows, BATCH_SIZE, shuffle=True), run.loader(rows, batch_size=BATCH_SIZE, shuffle=True))
        for name, rows in {"": Rows(few), ", random augmentation": Rows(few, augmented=True), "large": large}.items()
    ]
    _, plain_large, large_loader = pairs.pop()
    losses: list[float] = []

    def plain_step(loss: torch.Tensor) -> None:
        losses.append(loss.item())

    def resumed(batch: int) -> float:
        large_loader.skip_to(batch)
        return start(large_loader)

    for _ in run.epochs():
        for milliseconds, limit in STEPS.items():
            work = Work(milliseconds)
            for name, plain, ours in pairs:
                epochs = partial(epoch, plain, work, plain_step), partial(epoch, ours, work, run.step)
                tell(f"steps of {work.milliseconds:.2f} ms{name}", "us a batch", limit, in_turn(PAIRS, *epochs))
        starts = partial(start, plain_large), partial(start, large_loader)
        tell(f"start of an epoch of {len(large):,} samples", "ms", 1, in_turn(5, *starts))
        last = len(large_loader) - 1
        resumes = partial(resumed, 10), partial(resumed, last)
        tell(f"resume at batch {last:,} beside batch 10 ('plain')", "ms", None, in_turn(5, *resumes))


def tell(what: str, unit: str, limit: float | None, found: dict[str, Any]) -> None:
    print(json.dumps({"what": what, "unit": unit, "limit": limit} | found))
