"""A training that takes small steps and counts them in a file of its process, in the directory `counts`."""

import os
import time
from pathlib import Path

import torch
from torch import nn

from adjourn import training


def main(run: training.Run) -> None:
    model = nn.Linear(2, 1)
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    counts = Path(run.args["counts"]) / str(os.getpid())
    fresh = counts.with_suffix(".fresh")
    for _ in run.epochs():
        for count in range(1, 1_000_000):
            run.step()
            fresh.write_text(str(count))
            fresh.replace(counts)  # whoever reads finds a number
            time.sleep(0.01)
