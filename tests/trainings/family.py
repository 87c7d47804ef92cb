"""A small family of trainings: what each is made of is drawn by a test, and given as arguments."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, WeightedRandomSampler

from adjourn import training
from adjourn.desired_state import DesiredState
from adjourn.shared_files import Control
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode

CHANGE = 1
"""Epochs after which something changes, if it does."""
SAMPLES = 24
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


Sample = tuple[torch.Tensor, torch.Tensor]


def sample(index: int) -> Sample:
    """Returns a sample with noise of all three global generators."""
    noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1)) + 0.1 * torch.randn(FEATURES)
    return torch.arange(FEATURES) * index / SAMPLES + noise, torch.tensor(index % CLASSES)


class Augmented(Dataset[Sample]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Sample:
        return sample(index)


class Stream(IterableDataset[Sample]):
    """A stream that begins anew with each pass, and does not tell its place."""

    def __iter__(self) -> Iterator[Sample]:
        return map(sample, range(SAMPLES))


class EndlessStream(IterableDataset[Sample]):
    """A stream that goes on with each pass, through a shuffle buffer, and tells its place."""

    def __init__(self) -> None:
        self.rng = random.Random(3)
        self.buffer: list[int] = []
        self.read = self.given = 0

    def __iter__(self) -> Iterator[Sample]:
        while self.given < SAMPLES:
            while len(self.buffer) < 5:
                self.buffer.append(self.read)
                self.read += 1
            self.given += 1
            yield sample(self.buffer.pop(self.rng.randrange(len(self.buffer))))
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": [*self.buffer], "read": self.read, "given": self.given, "rng": self.rng.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer, self.read, self.given = [*state["buffer"]], state["read"], state["given"]
        self.rng.setstate(state["rng"])


DATA: dict[str, Callable[[], tuple[Dataset[Sample], dict[str, Any]]]] = {
    "shuffled": lambda: (Augmented(), {"shuffle": True}),
    "weighted": lambda: (
        Augmented(),
        {"sampler": WeightedRandomSampler([1.0 + index for index in range(SAMPLES)], SAMPLES)},
    ),
    "stream": lambda: (Stream(), {}),
    "endless stream": lambda: (EndlessStream(), {}),
}
"""What is trained on: a dataset, and how its loader goes through it."""
CHANGES = ("nothing", "stage", "replaced", "thawed")
"""What becomes of the optimizer: a new one in a stage of its own, or within an epoch, or one with more parameters."""


def ask_for_pause(mode: str) -> None:
    """Does what the agent does, at a moment that a test can choose."""
    with closing(Control(Path.cwd().parent / "control")) as control:
        control.write(DesiredState(generation=1, target=Assignment.PAUSE, mode=PauseMode.Value(mode)))


class Course:
    """What is trained, and one epoch of it."""

    def __init__(self, run: training.Run) -> None:
        self.run, args = run, run.args
        width = args["width"]
        layers: list[nn.Module] = [nn.Linear(FEATURES, width)]
        for _ in range(args["depth"]):
            layers += [NORMS[args["norm"]](width), nn.GELU(), nn.Dropout(args["dropout"]), nn.Linear(width, width)]
        self.model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
        self.average = copy.deepcopy(self.model)
        self.counts = {"batches": 0}
        run.track(model=self.model, average=self.average, counts=self.counts)
        run.state.mean, run.state.hidden = 1.0, torch.zeros(FEATURES)
        data, passes = DATA[args["data"]]()
        self.loader = run.loader(data, batch_size=args["batch_size"], num_workers=args["workers"], **passes)
        self.validation = run.loader(Augmented(), batch_size=SAMPLES)

    def built(self, kind: str, layers: nn.Module) -> dict[str, Any]:
        """Builds an optimizer and, unless it is to get other parameters, its scheduler."""
        optimizer = OPTIMIZERS[kind](layers.parameters())
        if self.run.args["change"] == "thawed":
            return {"optimizer": optimizer}
        return {"optimizer": optimizer, "scheduler": SCHEDULERS[self.run.args["scheduler"]](optimizer)}

    def epoch(self, optimizer: torch.optim.Optimizer, scheduler: Any = None) -> None:
        run, accumulate = self.run, self.run.args["accumulate"]
        self.model.train()
        for inputs, targets in self.loader:
            self.counts["batches"] += 1
            outputs = self.model(inputs + run.state.hidden)
            loss = functional.cross_entropy(outputs, targets) * (1 + 0.01 * random.random()) / run.state.mean
            (loss / accumulate).backward()
            run.state.mean = 0.9 * run.state.mean + 0.1 * loss.item()
            run.state.hidden = torch.tanh(run.state.hidden + 0.1 * inputs.mean(0))
            if self.counts["batches"] % accumulate == 0:
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if scheduler:
                    scheduler.step()
                with torch.no_grad():
                    for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                        mean.lerp_(value, 0.1)
                run.step(loss=loss)
                if run.steps == run.args.get("pause_after"):
                    ask_for_pause(run.args["mode"])
        self.model.eval()
        with torch.no_grad():
            losses = [functional.cross_entropy(self.average(inputs), targets) for inputs, targets in self.validation]
        run.log(val_loss=torch.stack(losses).mean(), mean=run.state.mean)


def main(run: training.Run) -> None:
    course, change, kind = Course(run), run.args["change"], run.args["optimizer"]
    built = course.built(kind, course.model[-1] if change == "thawed" else course.model)
    if change == "replaced" and run.epoch > CHANGE:
        built = course.built("momentum", course.model)
    run.track(**built)
    for _ in run.epochs(CHANGE if change == "stage" else None):
        if change == "replaced" and run.epoch == CHANGE:
            built = course.built("momentum", course.model)
            run.replace(**built)
        if change == "thawed" and run.epoch == CHANGE:
            built["optimizer"].add_param_group({"params": course.model[:-1].parameters()})
        course.epoch(**built)
    if change == "stage":
        built = course.built("momentum", course.model)
        run.track(**built)
        for _ in run.epochs():
            course.epoch(**built)
