"""A small training with dropout, batch norm, momentum, a schedule and random draws, which takes its time.

Arguments: `pace`, seconds that each step sleeps, or each of the steps `paced`; `gate`, the directory of a
`tests.harness.jobs.Gate`, whose limit is the number of steps that may be made. None changes a bit.
"""

import os
import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from adjourn import training


class Points(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Points of a plane and the quarter each is in, moved a little each time they are asked for."""

    def __init__(self, count: int) -> None:
        self.points = torch.rand(count, 2, generator=torch.Generator().manual_seed(1)) - 0.5

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        point = self.points[index]
        return point + 0.05 * torch.randn(2), 2 * (point[0] > 0).long() + (point[1] > 0).long()


def wait(gate: Path, step: int) -> None:
    """Says that this process is in `step`, and returns when that step may be made."""
    said = gate / f"{os.getpid()}.said"
    said.write_text(f"{os.getpid()} {Path.cwd()}")
    said.replace(gate / f"in-{step}")
    while int((gate / "limit").read_text()) < step:
        time.sleep(0.005)


def main(run: training.Run) -> None:
    pace = float(run.args.get("pace", 0))
    model = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.total_epochs)
    stopping = training.EarlyStopping(patience=100)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, stopping=stopping)
    train, validation = run.loader(Points(96), batch_size=16, shuffle=True), run.loader(Points(48), batch_size=48)
    for _ in run.epochs():
        model.train()
        for inputs, targets in train:
            if "gate" in run.args:
                wait(Path(run.args["gate"]), run.steps + 1)
            if run.steps + 1 in run.args.get("paced", [run.steps + 1]):
                time.sleep(pace)
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs) * (1 + 0.01 * random.random()), targets)
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
        scheduler.step()
        model.eval()
        with torch.no_grad():
            val_loss = sum(functional.cross_entropy(model(inputs), targets).item() for inputs, targets in validation)
        run.log(val_loss=val_loss)
        stopping.update(val_loss)
