"""A small family of trainings: what each is made of is drawn by a test, and given as arguments."""

import copy
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, WeightedRandomSampler

from adjourn import training
from adjourn.desired_state import DesiredState
from adjourn.shared_files import Control
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode

SAMPLES = 26
FEATURES = 5
CLASSES = 3

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "group": lambda width: nn.GroupNorm(2, width),
    "none": lambda _: nn.Identity(),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.05),
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.7),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 200, cycle_momentum=False),
    "cyclic": lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, 3, cycle_momentum=False),
}


class Augmented(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples with noise of all three global generators."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1)) + 0.1 * torch.randn(FEATURES)
        return torch.arange(FEATURES) * index / SAMPLES + noise, torch.tensor(index % CLASSES)


def ask_for_pause(mode: str) -> None:
    """Does what the agent does, at a moment that a test can choose."""
    with closing(Control(Path.cwd().parent / "control")) as control:
        control.write(DesiredState(generation=1, target=Assignment.PAUSE, mode=PauseMode.Value(mode)))


def main(run: training.Run) -> None:
    args = run.args
    width = args["width"]
    layers: list[nn.Module] = [nn.Linear(FEATURES, width)]
    for _ in range(args["depth"]):
        layers += [NORMS[args["norm"]](width), nn.GELU(), nn.Dropout(args["dropout"]), nn.Linear(width, width)]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    optimizer = OPTIMIZERS[args["optimizer"]](model.parameters())
    scheduler = SCHEDULERS[args["scheduler"]](optimizer)
    average = copy.deepcopy(model)
    counts = {"batches": 0}
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, average=average, counts=counts)
    data = Augmented()
    sampler = WeightedRandomSampler([1.0 + index for index in range(SAMPLES)], SAMPLES) if args["weighted"] else None
    loader = run.loader(
        data, batch_size=args["batch_size"], shuffle=sampler is None, sampler=sampler, num_workers=args["workers"]
    )
    validation = run.loader(data, batch_size=SAMPLES)
    for _ in run.epochs():
        model.train()
        for inputs, targets in loader:
            counts["batches"] += 1
            loss = functional.cross_entropy(model(inputs), targets) * (1 + 0.01 * random.random())
            (loss / args["accumulate"]).backward()
            if counts["batches"] % args["accumulate"] == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                with torch.no_grad():
                    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                        mean.lerp_(value, 0.1)
                run.step(loss=loss)
                if run.steps == args.get("pause_after"):
                    ask_for_pause(args["mode"])
        model.eval()
        with torch.no_grad():
            losses = [functional.cross_entropy(average(inputs), targets) for inputs, targets in validation]
        run.log(val_loss=torch.stack(losses).mean())
