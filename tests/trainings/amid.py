"""Trainings that are cut amid their epochs."""

import os
import random
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from tiny import Noisy  # type: ignore[import-not-found]
from torch import nn
from torch.nn import functional
from torch.utils.data import IterableDataset

from adjourn import training
from adjourn.training import schedule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.warm = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.body(inputs)
        return output / (2 if self.warm else 1)


class Course:
    """A model, its optimizer and schedule, and one training step."""

    def __init__(self, run: training.Run) -> None:
        self.model = Net()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 40)
        run.track(model=self.model, optimizer=self.optimizer, scheduler=self.scheduler)
        self.run = run
        self.weights: torch.Tensor | None = None

    def backward(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        jitter = 1 + 0.01 * (random.random() + float(np.random.random()))
        loss: torch.Tensor = functional.cross_entropy(self.model(inputs) * jitter, targets, self.weights)
        loss.backward()
        return loss.detach()

    def step(self, batch: Any) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.backward(batch)
        self.optimizer.step()
        self.run.step(loss=loss)
        self.scheduler.step()
        return loss

    def value(self, batch: Any) -> float:
        self.model.eval()
        with torch.no_grad():
            value = functional.cross_entropy(self.model(batch[0]), batch[1]).item()
        self.model.train()
        return value


def workers(run: training.Run) -> int:
    count: int = run.args.get("workers", 0)
    return count


def plain(run: training.Run) -> None:
    """Changes much before the loop of each epoch that a resumed run executes again."""
    course = Course(run)
    stopping = training.EarlyStopping(patience=100)
    run.track(stopping=stopping)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, num_workers=workers(run))
    for epoch in run.epochs():
        course.model.warm = True
        stopping.update(random.random() + torch.rand(()).item())
        run.log(first=random.random(), epoch=epoch)
        for batch in loader:
            if run.steps % 8 > 3:
                course.model.warm = False
            loss = course.step(batch)
            run.log(newest=loss)
        run.log(last=random.random())
        print(f"epoch {epoch}: loss {loss}")


def keeping(run: training.Run) -> None:
    """Carries a hidden state from batch to batch, and a sum, the best and a count of a whole epoch."""
    course = Course(run)
    run.state.hidden = torch.zeros(8)
    run.state.best = float("inf")
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, num_workers=workers(run))
    for _ in run.epochs():
        run.state.total, run.state.seen = 0.0, []
        for inputs, targets in loader:
            loss = course.step((inputs + 0.1 * run.state.hidden[: inputs.shape[1]], targets))
            run.state.hidden = torch.tanh(run.state.hidden + loss)
            run.state.total += loss
            run.state.seen.append(run.steps)
        run.state.best = min(run.state.best, run.state.total)
        run.log(total=run.state.total, seen=sum(run.state.seen), best=run.state.best)


def thawing(run: training.Run) -> None:
    """Adds parameters to its optimizer where the second epoch begins, and again amid its batches."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model[4].parameters(), lr=0.05)
    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        if epoch == 2:
            optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
        for number, (inputs, targets) in enumerate(run.loader(Noisy(), batch_size=4, num_workers=workers(run))):
            if epoch == 2 and number == 2:
                optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.01})
            loss = functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)


def thawing_late(run: training.Run) -> None:
    """Does so with an optimizer that it makes, and tracks, within its first epoch, or the one that it goes on in."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    run.track(model=model)
    optimizer = None
    for epoch in run.epochs():
        if optimizer is None:
            optimizer = torch.optim.AdamW(model[4].parameters(), lr=0.05)
            run.track(optimizer=optimizer)
        if epoch == 2:
            optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
        for number, (inputs, targets) in enumerate(run.loader(Noisy(), batch_size=4, num_workers=workers(run))):
            if epoch == 2 and number == 2:
                optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.01})
            loss = functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)


def skipping(run: training.Run) -> None:
    """Asks for no batch, if `skip`."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4)
    for _ in run.epochs():
        for batch in () if run.args.get("skip") else loader:
            course.step(batch)


def keeping_what_cannot_be(run: training.Run) -> None:
    course = Course(run)
    run.state.by_name = {}
    for _ in run.epochs():
        for batch in run.loader(Noisy(), batch_size=4):
            course.step(batch)
            run.state.by_name["course"] = course


def giving_what_cannot_be(run: training.Run) -> None:
    course = Course(run)
    for _ in run.epochs():
        run.state.course = {"is": course}


def accumulating(run: training.Run) -> None:
    """Makes a step of every third batch, of which an epoch has seven; validates amid the epoch and after it."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=3, shuffle=True, drop_last=True, num_workers=workers(run))
    validation = run.loader(Noisy(), batch_size=11)
    count = torch.zeros((), dtype=torch.int64)
    run.track(count=count)
    for _ in run.epochs():
        for batch in loader:
            loss = course.backward(batch)
            count += 1
            if count % 3 == 0:
                course.optimizer.step()
                course.optimizer.zero_grad()
                run.step(loss=loss)
                run.log(amid=sum(course.value(each) for each in validation))
        course.scheduler.step()
        run.log(val_loss=sum(course.value(each) for each in validation))


def validating(run: training.Run) -> None:
    """Validates in batches of a loader of ours, which are asked for right behind the last step."""
    course = Course(run)
    loader, validation = run.loader(Noisy(), batch_size=4, shuffle=True), run.loader(Noisy(), batch_size=5)
    for _ in run.epochs():
        for batch in loader:
            course.step(batch)
        run.log(val_loss=sum(course.value(each) for each in validation))


def nested(run: training.Run) -> None:
    course = Course(run)
    tasks = run.loader(Noisy(), batch_size=8, shuffle=True, num_workers=workers(run))
    samples = run.loader(Noisy(), batch_size=5, shuffle=True)
    for _ in run.epochs():
        for inputs, targets in tasks:
            task = inputs.mean()
            for batch in samples:
                loss = course.step((batch[0] + task, batch[1]))
            run.log(loss=loss, targets=float(targets.sum()))


class Stream(IterableDataset[Any]):
    """Nobody knows how long it is; it has a state."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < 18:
            self.place += 1
            yield torch.rand(6) + self.place % 7, torch.tensor(self.place % 3)
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Lines(Stream):
    """Has no state, and is read again."""

    state_dict = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        for place in range(18):
            yield torch.rand(6) + place % 7, torch.tensor(place % 3)


class Vague(Stream):
    """Its state has the passes that it has made, and not the place in one."""

    def __iter__(self) -> Iterator[Any]:
        for place in range(18):
            yield torch.rand(6) + (place + self.place) % 7, torch.tensor(place % 3)
        self.place += 1


def streaming(run: training.Run) -> None:
    course = Course(run)
    dataset = {"lines": Lines, "stream": Stream, "vague": Vague}[run.args.get("dataset", "lines")]()
    loader = run.loader(dataset, batch_size=3, num_workers=workers(run))
    for epoch in run.epochs():
        for batch in loader:
            loss = course.step(batch)
        print(f"epoch {epoch}: loss {loss}")


def side_by_side(run: training.Run) -> None:
    course = Course(run)
    one = run.loader(Noisy(), batch_size=4, shuffle=True, drop_last=True, num_workers=workers(run))
    other = run.loader(Noisy(), batch_size=5, shuffle=True)
    for _ in run.epochs():
        for batch, (inputs, _) in zip(one, other, strict=False):
            course.step((batch[0] + inputs.mean(), batch[1]))


def twice(run: training.Run) -> None:
    """Has two loops an epoch, and reads after each what it assigns."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=6, shuffle=True, num_workers=workers(run))
    for _ in run.epochs():
        for phase in ("first", "second"):
            for batch in loader:
                loss = course.step(batch)
            run.log(**{phase: loss})


def streaming_within(run: training.Run) -> None:
    """Has a loop over a stream, and one over samples in it."""
    course = Course(run)
    tasks, samples = run.loader(Stream(), batch_size=6, num_workers=1), run.loader(Noisy(), batch_size=9)
    for _ in run.epochs():
        for inputs, _ in tasks:
            for batch in samples:
                course.step((batch[0] + inputs.mean(), batch[1]))


class Heads(nn.Module):
    """Each batch goes through one of two heads; the gradients of the other stay what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])
        self.uses = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.uses += 1
        output: torch.Tensor = self.heads[int(self.uses % 3 == 1)](self.body(inputs))
        return output


def leaving_out(run: training.Run) -> None:
    """Zeroes gradients as `zeroes` says; a step with zeros changes a parameter, one without a gradient does not."""
    model = Heads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, num_workers=workers(run))
    how = run.args.get("zeroes", "before")
    for _ in run.epochs():
        if how == "begins":
            functional.cross_entropy(model(torch.ones(1, 6)), torch.ones(1, dtype=torch.long)).backward()
        for inputs, targets in loader:
            if how == "before":
                optimizer.zero_grad(set_to_none=False)
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if how in ("behind", "begins"):
                optimizer.zero_grad(set_to_none=how != "behind")
            run.step()


def clipping(run: training.Run) -> None:
    """Trains the head alone, and clips by the gradients of all, which grow: nobody zeroes those of the body."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, num_workers=workers(run))
    for _ in run.epochs():
        for inputs, targets in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            run.step()


# What keeps it from being cut, and what is made in the very epoch.


def lacks_room(run: training.Run) -> None:
    """May write no file over 8 KiB until step `room`; a pause that could not be saved is tried again at once."""
    schedule.RETRY_SECONDS = 0  # type: ignore[misc]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, hard))
    course = Course(run)
    run.track(ballast=torch.zeros(1 << 12))
    loader = run.loader(Noisy(), batch_size=4, shuffle=True)
    for _ in run.epochs():
        for batch in loader:
            course.step(batch)
            if run.steps == run.args.get("room"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def outlives_its_launcher(run: training.Run) -> None:
    """Waits after its third step until its launcher is gone."""
    launcher = os.getppid()
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True)
    for _ in run.epochs():
        for batch in loader:
            course.step(batch)
            while run.steps == 3 and os.getppid() == launcher and run.args.get("waits"):
                time.sleep(0.01)


def in_a_thread(run: training.Run) -> None:
    """Has another thread ask for each batch."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True)
    for _ in run.epochs():
        with ThreadPoolExecutor(1) as thread:
            batches = iter(loader)
            while batch := thread.submit(next, batches, None).result():
                course.step(batch)


def replacing(run: training.Run) -> None:
    """Has another optimizer and scheduler, and a factor, in its second epoch; made at its head, or before step `at`."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True)
    for epoch in run.epochs():
        if epoch == 2 and not run.args.get("at"):
            change(course)
        for batch in loader:
            if run.steps == run.args.get("at"):
                change(course)
            course.step(batch)
            if course.weights is not None:
                course.weights.mul_(0.9)


def change(course: Course) -> None:
    course.optimizer = torch.optim.Adam(course.model.parameters(), lr=0.02)
    course.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(course.optimizer, 9)
    course.run.replace(optimizer=course.optimizer, scheduler=course.scheduler)
    course.weights = torch.rand(3)
    course.run.track(weights=course.weights)


# What begins anew with the epoch.


def forgetful(run: training.Run) -> None:  # noqa: C901  (a case for each place)
    """Carries something from batch to batch that no snapshot has, as its arguments say."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, drop_last=True)
    kind = run.args["kind"]
    self = Course.__new__(Course)
    for _ in run.epochs():
        total, losses, generator, self.sum = 0.0, [0.0], torch.Generator().manual_seed(1), 0.0  # type: ignore[attr-defined]
        draw = random.random()
        match kind:
            case "number":
                for batch in loader:
                    total += course.step(batch).item()
                run.log(total=total)
            case "list":
                for batch in loader:
                    losses.append(course.step(batch).item())  # noqa: PERF401
                run.log(total=sum(losses))
            case "attribute":
                for batch in loader:
                    self.sum += course.step(batch).item()  # type: ignore[attr-defined]
            case "generator":
                for inputs, targets in loader:
                    course.step((inputs + torch.rand(1, generator=generator), targets))
            case "draw":
                for inputs, targets in loader:
                    course.step((inputs + draw, targets))
            case "zip":
                for number, (inputs, targets) in zip(range(9), loader, strict=False):
                    course.step((inputs + number, targets))
            case "comprehension":
                run.log(total=sum([course.step(batch).item() for batch in loader]))
            case "expression":
                run.log(total=sum(course.step(batch).item() for batch in loader))


def careful(run: training.Run) -> None:
    """Has local variables that a resumed run has too, or that are assigned before they are read."""
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, drop_last=True)
    rates, best, begin = [0.5, 0.25], 0.0, time.time()
    for epoch in run.epochs():
        rate, begin, generator = rates[epoch - 1], time.time(), torch.Generator().manual_seed(epoch)
        shift = torch.rand(1, generator=generator)
        for inputs, targets in loader:
            noisy = inputs * rate + shift
            loss = course.step((noisy, targets))
            best = loss.item()
            parts = [best, epoch]
        print(loss, best, parts, time.time() - begin, generator)


def counting(run: training.Run) -> None:
    course = Course(run)
    loader = run.loader(Noisy(), batch_size=4, shuffle=True, drop_last=True, num_workers=workers(run))
    for _ in run.epochs():
        for number, (inputs, targets) in enumerate(loader, 1):
            course.step((inputs + number, targets))
