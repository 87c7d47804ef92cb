"""A training of a second with everything that makes a resume hard: dropout, batch norm, momentum, a schedule, random
draws in the dataset and around it, early stopping."""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from adjourn import training
from adjourn.desired_state import DesiredState
from adjourn.shared_files import Control
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.tensor([random.random(), np.random.random(), torch.rand(()).item()])
        return torch.full((6,), index / 22) + 0.1 * draws.repeat(2), torch.tensor(index % 3)


def ask_for_pause() -> None:
    """Does what the agent does, at a moment that a test can choose."""
    attempt = Path.cwd().parent
    with closing(Control(attempt / "control")) as control:
        control.write(DesiredState(generation=1, target=Assignment.PAUSE, mode=PauseMode.EPOCH))


def main(run: training.Run) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.total_epochs)
    stopping = training.EarlyStopping(patience=100)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, stopping=stopping)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, drop_last=True, num_workers=run.args["workers"])
    for epoch in run.epochs():
        model.train()
        if epoch == run.args.get("pause_in"):
            ask_for_pause()
        for inputs, targets in loader:
            optimizer.zero_grad()
            jitter = 1 + 0.01 * (random.random() + float(np.random.random()))
            loss = functional.cross_entropy(model(inputs) * jitter, targets)
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
        scheduler.step()
        model.eval()
        with torch.no_grad():
            val_loss = functional.cross_entropy(model(torch.ones(3, 6)), torch.arange(3)).item()
        run.log(val_loss=val_loss)
        if stopping.update(val_loss):
            break
