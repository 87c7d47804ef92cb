"""Trains a model of a size that is asked for, and writes how long its set-up took, when all was restored, and its pace.

Arguments: `blocks` and `width` of the model; `steps` of an epoch; `told`, the file to write. With `snapshots`, a
directory, an epoch has twice as many steps as are made while a snapshot below it is being made durable.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from adjourn import snapshots, training

CALLS, BATCHES = 500, 20
"""Of `run.step` to learn what one costs, and how many times that is done."""


def main(run: training.Run) -> None:
    began = time.monotonic()
    blocks, width, told = run.args["blocks"], run.args["width"], Path(run.args["told"])
    layers = [layer for _ in range(blocks) for layer in (nn.LayerNorm(width), nn.Linear(width, width))]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters())
    set_up = time.monotonic() - began
    run.track(model=model, optimizer=optimizer)

    def step() -> tuple[float, float]:
        """Returns its seconds, by the clock and of the thread's CPU."""
        wall, cpu = time.perf_counter(), time.thread_time()
        loss = model(torch.ones(1, width)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
        return time.perf_counter() - wall, time.thread_time() - cpu

    restored = None
    paces: list[list[tuple[float, float]]] = []
    pairs: list[tuple[list[tuple[float, float]], list[tuple[float, float]]]] = []
    for epoch in run.epochs():
        restored = restored or time.monotonic()
        if "snapshots" in run.args:
            beside = [step() for _ in iter(lambda: in_use(Path(run.args["snapshots"])), False)]
            pairs.append((beside, [step() for _ in beside]))
        paces.append([step() for _ in range(run.args["steps"])])
        run.log(val_loss=float(epoch))
        calls = [cost(run.step) for _ in range(BATCHES)]
        found = {"set_up": set_up, "restored": restored, "paces": paces, "pairs": pairs, "calls": calls}
        told.write_text(json.dumps(found))


def in_use(directory: Path) -> bool:
    return any(directory.rglob(snapshots.IN_USE))


def cost(call: Callable[[], object]) -> float:
    """Returns the CPU seconds of a call."""
    begin = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - begin) / CALLS
