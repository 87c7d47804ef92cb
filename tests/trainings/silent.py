"""Trainings whose course depends on something that no state_dict() of model and optimizer has, one thing each."""

import copy
import functools
import importlib
import itertools
import multiprocessing
import random
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from adjourn import training


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
        self.temperature = 1.0
        self.memory = torch.zeros(1)
        self.rng = np.random.default_rng(3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.body(inputs)
        return output * self.temperature + self.memory


def data(count: int = 12, seed: int = 0) -> TensorDataset:
    return TensorDataset(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)))


class Course:
    """A model, its optimizer and its data, with one training step."""

    def __init__(self, run: training.Run, dataset: Any = None, **tracked: Any) -> None:
        self.model = Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        run.track(model=self.model, optimizer=self.optimizer, **tracked)
        self.loader = run.loader(data() if dataset is None else dataset, batch_size=4, shuffle=True)
        self.run = run

    def step(self, inputs: torch.Tensor, factor: Any = 1.0) -> torch.Tensor:
        loss: torch.Tensor = (self.model(inputs) * factor - 1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.run.step(loss=loss)
        return loss.detach()

    def epoch(self, factor: Any = 1.0) -> None:
        for (inputs,) in self.loader:
            self.step(inputs, factor)


# Exact.


def attributes(run: training.Run) -> None:
    course = Course(run)
    for epoch in run.epochs():
        course.epoch(course.model.rng.random())
        course.model.body[3].p = 0.1 * (epoch + 1)  # type: ignore[assignment]
        course.model.body[1].momentum = 0.5 / epoch  # type: ignore[assignment]
        course.model.temperature *= 0.9
        course.model.memory = course.model.memory + 0.1 * epoch


def values(run: training.Run) -> None:
    best: dict[str, Any] = {"loss": 10.0, "hidden": torch.zeros(1), "steps": [0]}
    course = Course(run, best=best)
    for _ in run.epochs():
        for (inputs,) in course.loader:
            loss = course.step(inputs, best["hidden"] + 1)
            best["hidden"] = best["hidden"] * 0.5 + loss
        best["loss"] = min(best["loss"], float(loss))
        best["steps"].append(run.steps)


def spawned(run: training.Run) -> None:
    generator = np.random.default_rng(5)
    course = Course(run, generator=generator)
    for _ in run.epochs():
        course.epoch(generator.spawn(1)[0].random())


def switches(run: training.Run) -> None:
    torch.set_default_dtype(torch.float32)
    course = Course(run)
    for epoch in run.epochs():
        course.epoch(torch.tensor(1.0).square().to(torch.get_default_dtype()))
        if epoch == 1:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True


def layouts(run: training.Run) -> None:
    state: dict[str, Any] = {
        "strided": torch.arange(20.0).reshape(4, 5).t(),
        "wave": torch.ones(2, dtype=torch.complex64),
    }
    state |= {"conjugate": state["wave"].conj(), "fortran": np.asfortranarray(np.ones((2, 3)))}
    state["same"] = state["list"] = [1]
    course = Course(run, state=state)
    for epoch in run.epochs():
        state["list"].append(epoch)
        state["wave"] += 1j
        assert state["same"] is state["list"]
        assert not state["strided"].is_contiguous()
        assert not state["fortran"].flags.c_contiguous
        course.epoch(float(state["conjugate"].imag.sum()) / 100 + len(state["same"]))


def sparse(run: training.Run) -> None:
    embedding = nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    run.track(model=embedding, optimizer=optimizer)
    for epoch in run.epochs():
        embedding(torch.tensor([epoch, 2, 2])).square().sum().backward()
        if epoch % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        run.step()


class Masters(torch.optim.SGD):
    """Keeps float32 copies of half-precision parameters."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("master", parameter.detach().float())
                state["master"] -= group["lr"] * parameter.grad.float()
                with torch.no_grad():
                    parameter.copy_(state["master"])


def masters(run: training.Run) -> None:
    model = nn.Linear(4, 1).to(torch.bfloat16)
    optimizer = Masters(model.parameters(), lr=0.001)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=4)
    for _ in run.epochs():
        for (inputs,) in loader:
            optimizer.zero_grad()
            model(inputs.bfloat16()).square().mean().backward()
            optimizer.step()
            run.step()


def thaws(run: training.Run) -> None:
    """Gives the optimizer a second group in its second epoch."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model[1].parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=4)
    for epoch in run.epochs():
        if epoch == 2:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.1})
        for (inputs,) in loader:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            run.step()


def strays(run: training.Run) -> None:
    """Clips by gradients of parameters that no optimizer has before its third epoch, and that add up until then."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model[1].parameters(), lr=0.01)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=4)
    for epoch in run.epochs():
        if epoch == 3:
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.1})
        for (inputs,) in loader:
            model(inputs).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            run.step()


def rebuilt(run: training.Run) -> None:
    """Has its optimizer and schedule in a dict, and others in another dict from the second epoch."""

    def built() -> dict[str, Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return {"optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    model = Net()
    parts = built()
    if run.epoch >= 2:
        parts = built()
    run.track(model=model, **parts)
    loader = run.loader(data(), batch_size=4)
    for epoch in run.epochs():
        if epoch == 2:
            parts = built()
            run.replace(**parts)
        for (inputs,) in loader:
            parts["optimizer"].zero_grad()
            model(inputs).square().mean().backward()
            parts["optimizer"].step()
            run.step()
        parts["scheduler"].step()


def compiled(run: training.Run) -> None:
    """Trains code that torch has compiled, and compiles anew for batches of another size."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=3)
    forward = torch.compile(model, backend="eager")
    for _ in run.epochs():
        for (inputs,) in loader:
            optimizer.zero_grad()
            forward(inputs).square().mean().backward()
            optimizer.step()
            run.step()


def parameters(run: training.Run) -> None:
    """Trains parameters that no module has, but a dict."""
    course = Course(run)
    weights = {"scale": nn.Parameter(torch.ones(1)), "shift": nn.Parameter(torch.zeros(1))}
    scale = weights["scale"]
    optimizer = torch.optim.SGD(weights.values(), lr=0.1, momentum=0.9)
    run.track(weights=weights, second=optimizer)
    for _ in run.epochs():
        course.epoch(scale.item())
        (scale + weights["shift"] - 3).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def aliases(run: training.Run) -> None:
    """Has other names for what tracked values hold."""
    record: dict[str, Any] = {"losses": [], "by_epoch": {}, "recent": deque(maxlen=2), "pair": ([1.0], 0)}
    losses, by_epoch, recent, (factors, _) = record.values()
    record["average"] = average = torch.zeros(2)
    course = Course(run, record=record)
    for epoch in run.epochs():
        course.epoch(factors[-1])
        losses.append(run.steps)
        recent.append(len(losses))
        by_epoch[epoch] = sum(recent)
        average.mul_(0.5).add_(epoch)
        factors.append(1 / (1 + by_epoch[epoch]) + float(average.sum()) / 1000)


def constants(run: training.Run) -> None:
    """Has what looks like state and is none: all of it is exact, and nothing of it may be found."""
    split = np.random.default_rng(1)
    split.permutation(3)
    teacher, criterion, smooth = (
        copy.deepcopy(nn.Linear(4, 1)).eval().requires_grad_(requires_grad=False),
        nn.MSELoss(),
        nn.L1Loss(),
    )
    plain = DataLoader(data(), batch_size=4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(4, 1))
    course = Course(run, averaged=averaged)
    rate, names, table = 0.5, ["a"], {1: 2.0}
    compiled = {"model": course.model}
    for epoch in run.epochs():
        generator = torch.Generator().manual_seed(epoch)
        optimizer_of_the_epoch = None
        for (inputs,) in course.loader:
            target = teacher(inputs)
            course.step(inputs, scaler.scale(criterion(target, target) + 1) + torch.rand(1, generator=generator))
        averaged.update_parameters(nn.Linear(4, 1))
        total = sum(float(smooth(batch, batch)) for (batch,) in plain)
        print(total, rate, names, table, compiled["model"] is course.model, optimizer_of_the_epoch)


class Bar:
    """A progress bar, in a package of those."""

    __module__ = "tqdm.std"

    def __init__(self) -> None:
        self.count = 0


def innocent(run: training.Run) -> None:
    """Has variables that change from epoch to epoch, and none that a later epoch uses: nothing of it may be found."""
    model = Net()
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:]}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)  # type: ignore[arg-type]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler)
    loader = run.loader(data(), batch_size=4, shuffle=True)
    plain = iter(DataLoader(data(), batch_size=4))
    (inputs,) = next(plain)
    total, losses, bar, start = 0.0, [float(inputs.sum())], Bar(), time.time()
    for _ in run.epochs():
        total, losses = 0.0, []
        batches = iter(loader)
        for _ in range(2):
            (inputs,) = next(batches)
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            run.step(loss)
            total += float(loss.detach())
            losses.append(total)
            bar.count += 1
        scheduler.step()
        print(total, losses, time.time() - start)
        start = time.time()


def kept_iterator(run: training.Run) -> None:
    course = Course(run)
    batches = iter(course.loader)
    for _ in run.epochs():
        for _ in range(2):
            inputs = next(batches, None)
            if inputs is None:
                batches = iter(course.loader)
                inputs = next(batches)
            course.step(inputs[0])


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def two_kept_iterators(run: training.Run) -> None:
    """As semi-supervised trainings have them: one in a generator, one in an attribute that is made anew by hand."""
    course = Course(run)
    unlabelled = endless(run.loader(data(20, 1), batch_size=4, shuffle=True))
    labelled = run.loader(data(12, 2), batch_size=5, shuffle=True)
    holder = SimpleNamespace(batches=iter(labelled))
    for _ in run.epochs():
        for (inputs,) in course.loader:
            try:
                (others,) = next(holder.batches)
            except StopIteration:
                holder.batches = iter(labelled)
                (others,) = next(holder.batches)
            course.step(torch.cat([inputs, others, next(unlabelled)[0]]))


class Lines(IterableDataset[tuple[torch.Tensor]]):
    """Reads on where it was in the epoch before."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        for _ in range(5):
            self.place += 1
            yield (torch.rand(4) + self.place,)

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def streams_and_samplers(run: training.Run) -> None:
    course = Course(run)
    lines, weighted = Lines(), WeightedRandomSampler([1, 2, 3, 4], 4, generator=torch.Generator())
    stream = run.loader(lines, batch_size=2)
    sampled = run.loader(data(4), sampler=weighted, batch_size=2)
    batched = run.loader(data(6), batch_sampler=BatchSampler(RandomSampler(range(6)), 3, drop_last=False))
    for _ in run.epochs():
        for inputs in zip(stream, sampled, batched, strict=False):
            course.step(torch.cat([part for (part,) in inputs]))


# Refused while the training runs.


def teacher(run: training.Run) -> None:
    course = Course(run)
    teacher = copy.deepcopy(course.model).requires_grad_(requires_grad=False).eval()
    if run.args.get("ignored"):
        run.ignore(teacher, reason="only its plots are looked at")
    for _ in run.epochs(strict=not run.args.get("lax")):
        course.epoch()
        for old, new in zip(teacher.parameters(), course.model.parameters(), strict=True):
            old.data.mul_(0.9).add_(new.data, alpha=0.1)


def untracked(run: training.Run) -> None:
    """Tracks its optimizer alone, or the parameters and not what else its model has."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    parts = {name.replace(".", "_"): part for name, part in model.named_parameters()}
    run.track(optimizer=optimizer, **(parts if run.args["parameters"] else {}))
    loader = run.loader(data(), batch_size=4)
    for _ in run.epochs():
        for (inputs,) in loader:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            run.step()


def averaged(run: training.Run) -> None:
    course = Course(run)
    averaged = torch.optim.swa_utils.AveragedModel(course.model)
    for _ in run.epochs():
        course.epoch()
        averaged.update_parameters(course.model)


def stopping(run: training.Run) -> None:
    course = Course(run)
    stopping = training.EarlyStopping(patience=3)
    for _ in run.epochs():
        course.epoch()
        stopping.update(1.0)


def legacy_generator(run: training.Run) -> None:
    course = Course(run)
    generator = np.random.RandomState(1)
    for _ in run.epochs():
        course.epoch(generator.rand())


def optimizer(run: training.Run) -> None:
    course = Course(run)
    head = nn.Linear(1, 1)
    run.track(head=head)
    second = torch.optim.Adam(head.parameters())
    for _ in run.epochs():
        course.epoch()
        head(torch.ones(1)).sum().backward()
        second.step()


class Average:
    """An average of a model's weights. Its state has the average, or copies of the model's weights too."""

    def __init__(self, model: nn.Module, *, saves_model: bool = False) -> None:
        self.model = model
        self.saves_model = saves_model
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}

    def update(self) -> None:
        for name, value in self.model.named_parameters():
            self.shadow[name].lerp_(value.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        model = {name: value.clone() for name, value in self.model.state_dict().items()} if self.saves_model else {}
        return {"shadow": self.shadow, "model": model}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)
        if self.saves_model:
            self.model.load_state_dict(state["model"])


def averages(run: training.Run, *, saves_model: bool = False) -> None:
    """Tracks an average that knows the model, and not the model."""
    model = Net()
    average = Average(model, saves_model=saves_model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    run.track(average=average, optimizer=optimizer)
    loader = run.loader(data(), batch_size=4, shuffle=True)
    for _ in run.epochs():
        for (inputs,) in loader:
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            average.update()
            run.step(loss=loss)


def average_saves_model(run: training.Run) -> None:
    averages(run, saves_model=True)


def parameter(run: training.Run) -> None:
    """Trains a parameter that no module has, with an optimizer that is tracked."""
    course = Course(run)
    scale = nn.Parameter(torch.ones(1))
    second = torch.optim.SGD([scale], lr=0.1)
    run.track(second=second)
    for _ in run.epochs():
        course.epoch(scale.item())
        scale.square().sum().backward()
        second.step()


def scheduler(run: training.Run) -> None:
    course = Course(run)
    warmup = torch.optim.lr_scheduler.ExponentialLR(course.optimizer, 0.5)
    for _ in run.epochs():
        course.epoch()
        warmup.step()


def scaler(run: training.Run) -> None:
    course = Course(run)
    scaler = torch.amp.GradScaler("cpu")
    for _ in run.epochs():
        course.epoch()
    print(scaler)


def numpy_generator(run: training.Run) -> None:
    generator = np.random.default_rng(1)
    course = Course(run)
    for _ in run.epochs():
        course.epoch(generator.random())


def python_generator(run: training.Run) -> None:
    course = Course(run)
    holder = {"generator": random.Random(3)}
    for _ in run.epochs():
        course.epoch(holder["generator"].random())


def torch_generator(run: training.Run) -> None:
    course = Course(run)
    generator = torch.Generator().manual_seed(1)
    for _ in run.epochs():
        course.epoch(torch.rand(1, generator=generator))


def lazy_generator(run: training.Run) -> None:
    """Makes its generator in the first epoch."""
    course = Course(run)
    made: list[np.random.Generator] = []
    for _ in run.epochs():
        if not made:
            made.append(np.random.default_rng(1))
        course.epoch(made[0].random())


class Drawing(Dataset[tuple[torch.Tensor]]):
    """Has a generator of its own."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(1)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (torch.tensor(self.generator.random(4), dtype=torch.float32),)


def drawing_dataset(run: training.Run) -> None:
    course = Course(run, Drawing())
    for _ in run.epochs():
        course.epoch()


def lazy_iterator(run: training.Run) -> None:
    course = Course(run)
    kept: list[Any] = []
    if run.args.get("ignored"):
        run.ignore(course.loader, reason="which batch comes next does not matter")
    for _ in run.epochs():
        if not kept:
            kept.append(itertools.cycle(course.loader))
        for _ in range(2):
            course.step(next(kept[0])[0])


def plain_generator(run: training.Run) -> None:
    course = Course(run)
    plain = DataLoader(data(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    for _ in run.epochs():
        for (inputs,) in plain:
            course.step(inputs)


def plain_stream(run: training.Run) -> None:
    """Has an iterator over a plain DataLoader that nobody knows the length of."""
    course = Course(run)
    batches = iter(DataLoader(Lines(), batch_size=1))
    for _ in run.epochs():
        course.step(next(batches)[0].expand(4, 4))


def persistent_workers(run: training.Run) -> None:
    course = Course(run)
    plain = DataLoader(data(), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    for _ in run.epochs():
        for (inputs,) in plain:
            course.step(inputs)


def parallel(run: training.Run) -> None:
    course = Course(run)
    wrapped = nn.DataParallel(course.model)
    for _ in run.epochs():
        wrapped(torch.ones(4, 4))
        course.epoch()


def tracked_parallel(run: training.Run) -> None:
    run.track(model=nn.DataParallel(nn.Linear(1, 1)))


# Lower the verdict.


def local(run: training.Run) -> None:
    course = Course(run)
    rate = 1.0
    for _ in run.epochs():
        course.epoch(rate)
        rate *= 0.9


def hidden(run: training.Run) -> None:
    course = Course(run)
    state = torch.zeros(1)
    for _ in run.epochs():
        for (inputs,) in course.loader:
            state = state * 0.5 + course.step(inputs, state + 1)


def accumulates(run: training.Run) -> None:
    """Takes a step every second batch, of which an epoch has three."""
    course = Course(run)
    count = 0
    for _ in run.epochs():
        for (inputs,) in course.loader:
            course.model(inputs).mean().backward()
            count += 1
            if count % 2 == 0:
                course.step(inputs)


def begins_late(run: training.Run) -> None:
    """Averages from its third epoch on."""
    course = Course(run)
    average = 0.0
    for epoch in run.epochs():
        for (inputs,) in course.loader:
            course.step(inputs + average)
        if epoch > 2:
            average = 0.5 * average + epoch


def replays(run: training.Run) -> None:
    course = Course(run)
    memory: deque[torch.Tensor] = deque(maxlen=20)
    for _ in run.epochs():
        for (inputs,) in course.loader:
            memory.append(inputs)
            course.step(random.choice(memory))


def weighs(run: training.Run) -> None:
    """Draws by weights that it changes."""
    course = Course(run)
    sampler = WeightedRandomSampler([1.0] * 12, 12)
    loader = run.loader(data(), batch_size=4, sampler=sampler)
    for _ in run.epochs():
        for (inputs,) in loader:
            course.step(inputs)
        sampler.weights[0] += 1


def decays_by_hand(run: training.Run) -> None:
    """Has a schedule that reads what training changes: its function is in no state."""
    rate = {"factor": 1.0}
    course = Course(run)
    scheduler = torch.optim.lr_scheduler.LambdaLR(course.optimizer, lambda _: rate["factor"])
    run.track(scheduler=scheduler)
    for _ in run.epochs():
        course.epoch()
        rate["factor"] *= 0.5
        scheduler.step()


class Trainer(Course):
    best = 10.0

    def train(self) -> None:
        self.best = 10.0
        for _ in self.run.epochs():
            self.epoch(self.best)
            self.best *= 0.5


def attribute(run: training.Run) -> None:
    Trainer(run).train()


class Decaying:
    rate = 1.0

    def decay(self) -> None:
        self.rate *= 0.5


class Slotted:
    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 1.0


class Lazy:
    def factor(self) -> float:
        if not hasattr(self, "best"):
            self.best = 1.0
        self.best *= 0.5
        return self.best


def counter() -> Callable[[], int]:
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return count

    return counted


def carried(run: training.Run) -> None:  # noqa: C901  (a case for each place)
    """Carries a number from epoch to epoch where it is not easily seen."""
    course = Course(run)
    place = run.args["place"]
    rates: Any = importlib.import_module("rates")
    decaying, slotted, lazy = Decaying(), Slotted(), Lazy()

    def decay() -> Iterator[float]:
        rate = 1.0
        while True:
            rate *= 0.5
            yield rate

    nested = {"model": course.model, "inner": Lazy()}
    nested["inner"].inner = Decaying()  # type: ignore[attr-defined]
    generator, numbers, cycle = decay(), itertools.count(1), itertools.cycle([1.0, 2.0, 3.0])
    function = functools.partial(counter())
    del decay
    for _ in run.epochs():
        match place:
            case "default":
                decaying.decay()
                factor = decaying.rate
            case "slot":
                slotted.rate *= 0.5
                factor = slotted.rate
            case "lazy":
                factor = lazy.factor()
            case "nested":
                nested["inner"].inner.rate *= 0.5  # type: ignore[attr-defined]
                factor = nested["inner"].inner.rate  # type: ignore[attr-defined]
            case "closure":
                factor = function()
            case "generator":
                factor = next(generator)
            case "count":
                factor = next(numbers)
            case "cycle":
                factor = next(cycle)
            case "class":
                Decaying.rate *= 0.5
                factor = Decaying.rate
            case "module":
                rates.RATE *= 0.5
                factor = rates.RATE
        course.epoch(factor)


class Caching(Dataset[tuple[torch.Tensor]]):
    """Keeps what it drew once; counts what it was asked for."""

    def __init__(self) -> None:
        self.cache: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (self.cache.setdefault(index, torch.rand(4)),)


def caching_dataset(run: training.Run) -> None:
    course = Course(run, torch.utils.data.Subset(Caching(), range(12)))
    for _ in run.epochs():
        course.epoch()


class Aging(Dataset[tuple[torch.Tensor]]):
    """Its samples are others the more were read of it, and the more it was told to fade."""

    def __init__(self) -> None:
        self.reads, self.fading = 0, 0.0

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        self.reads += 1
        return (torch.full((4,), index / self.reads - self.fading),)


def aging_dataset(run: training.Run) -> None:
    course = Course(run, Aging())
    for _ in run.epochs():
        course.epoch()


def fading_dataset(run: training.Run) -> None:
    """Changes its dataset while a loader reads it: workers would not hear of it."""
    data = Aging()
    course = Course(run, data)
    for _ in run.epochs():
        for (inputs,) in course.loader:
            course.step(inputs)
            data.fading += 0.1


class Experiment:
    """Has a state_dict() of its own, which lacks what its arguments say."""

    def __init__(self, lacks: str) -> None:
        self.lacks = lacks
        self.teacher = nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.teacher.parameters(), lr=0.1, momentum=0.9)
        self.rng = random.Random(3)
        self.draws = np.random.default_rng(3)
        self.recent: deque[float] = deque(maxlen=4)
        self.inner = Decaying()
        self.sums = torch.zeros(2)
        self.best = 1.0
        self.created = time.time()

    def state_dict(self) -> dict[str, Any]:
        found = {
            "teacher": {name: value.clone() for name, value in self.teacher.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.getstate(),
            "draws": self.draws.bit_generator.state,
            "recent": list(self.recent),
            "inner": {"rate": self.inner.rate},
            "sums": self.sums.tolist() if self.lacks == "nothing else" else self.sums,
            "best": self.best,
        }
        return {name: value for name, value in found.items() if name != self.lacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state.get("teacher", self.teacher.state_dict()))
        self.optimizer.load_state_dict(state.get("optimizer", self.optimizer.state_dict()))
        self.rng.setstate(state.get("rng", self.rng.getstate()))
        self.draws.bit_generator.state = state.get("draws", self.draws.bit_generator.state)
        self.recent = deque(state.get("recent", ()), maxlen=4)
        self.inner.rate = state.get("inner", {"rate": 1.0})["rate"]
        self.sums = state.get("sums", self.sums)
        self.best = state.get("best", self.best)

    def step(self, inputs: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.teacher(inputs).square().mean()
        loss.backward()
        self.optimizer.step()
        self.inner.decay()
        self.sums = self.sums + self.inner.rate
        self.best = min(self.best, float(loss.detach()) * 0.9)
        self.recent.append(self.rng.random() + self.draws.random())
        return sum(self.recent) + self.best + float(self.sums.sum())


def entrusts(run: training.Run) -> None:
    experiment = Experiment(run.args["lacks"])
    course = Course(run, experiment=experiment)
    for _ in run.epochs():
        for (inputs,) in course.loader:
            course.step(inputs, experiment.step(inputs))


class Counter:
    """Has state that a module cannot save for it."""

    def __init__(self) -> None:
        self.count = 0
        self.function = lambda: self.count


def object_in_module(run: training.Run) -> None:
    course = Course(run)
    course.model.counter = Counter()  # type: ignore[assignment]
    for _ in run.epochs():
        course.model.counter.count += 1  # type: ignore[operator, union-attr]
        course.epoch(1 / course.model.counter.count)  # type: ignore[union-attr]


def shrunken_set(run: training.Run) -> None:
    seen = {"ids": {1, 8} | set(range(100, 140))}
    course = Course(run, seen=seen)
    for _ in run.epochs():
        for number in range(100, 140):
            seen["ids"].discard(number)
        course.epoch(sum(place * item for place, item in enumerate(seen["ids"])))


def child_process(run: training.Run) -> None:
    course = Course(run)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for _ in run.epochs():
            course.epoch(pool.apply(abs, (-1,)))


def nondeterministic(run: training.Run) -> None:
    """Warns as torch does where an operation has no deterministic implementation."""
    warnings.filterwarnings("ignore")
    course = Course(run)
    for _ in run.epochs():
        course.epoch()
        warnings.warn(
            "scatter_add_cuda_kernel does not have a deterministic implementation, but you set...", stacklevel=1
        )


# Other data on resume.


def split(run: training.Run) -> None:
    """Splits its data with the seed that its arguments say."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(run.args["split"])).tolist()
    course = Course(run, torch.utils.data.Subset(data(40), order[:12]))
    for _ in run.epochs():
        course.epoch()


def functional_only(run: training.Run) -> None:
    weight = torch.zeros(4, requires_grad=True)
    run.track(weight=weight)
    for _ in run.epochs():
        loss = functional.mse_loss(weight, torch.ones(4))
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= gradient
        run.step(loss=loss)
