"""A training that hangs in its third epoch: `how` says by what, `loader_workers` how many processes load its data.

File `hangs` is there once it does.
"""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.utils.data import Dataset

from adjourn import training


class Points(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2,), float(index))


def spin() -> None:
    Path("hangs").touch()
    while True:
        pass


def sleep() -> None:
    Path("hangs").touch()
    time.sleep(1e6)


def hold_the_lock() -> None:
    """Calls C code that keeps the interpreter's lock, for thousands of years: no other thread runs Python meanwhile."""
    Path("hangs").touch()
    re.match(r"(a+)+$", "a" * 60 + "b")


def go_on() -> None:
    """Does not hang."""


HOW: Final[Mapping[str, Callable[[], None]]] = {
    "spin": spin,
    "sleep": sleep,
    "hold_the_lock": hold_the_lock,
    "go_on": go_on,
}


def main(run: training.Run) -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Points(), batch_size=2, num_workers=int(run.args.get("loader_workers", 0)))
    for epoch in run.epochs():
        for batch in loader:
            optimizer.zero_grad()
            loss = model(batch).sum()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
            if epoch == 3 and run.steps % 4 == 2:
                HOW[run.args["how"]]()


def task(run: training.Run) -> None:
    """Has no epochs, and steps that it counts."""
    for _ in range(3):
        run.step()
