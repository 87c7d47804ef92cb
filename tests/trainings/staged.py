"""Trainings in stages: folds, curricula, layers that thaw; objects are made where a stage begins."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Subset, TensorDataset

from adjourn import training


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(6, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(self.body(inputs))
        return output


def data(count: int = 18, scale: float = 1.0) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 4, generator=generator) * scale
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def train(run: training.Run, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> float:
    model.train()
    total = 0.0
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(inputs), targets + 0.01 * torch.randn(()))
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
        total += loss.item()
    return total


@torch.no_grad()
def evaluate(model: nn.Module, loader: Any) -> float:
    model.eval()
    return sum(functional.mse_loss(model(inputs), targets).item() for inputs, targets in loader)


def folds(run: training.Run) -> None:
    """Three folds of two epochs; a model, an optimizer, loaders and a scheduler of its own for each."""
    scores: list[float] = []
    losses: list[float] = []
    run.track(scores=scores, losses=losses)
    samples = data()
    for fold in range(3):
        held_out = set(range(fold, len(samples), 3))
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler)
        loader = run.loader(Subset(samples, sorted(set(range(len(samples))) - held_out)), batch_size=4, shuffle=True)
        held_out_loader = run.loader(Subset(samples, sorted(held_out)), batch_size=4, shuffle=True)
        for epoch in run.epochs(2):
            losses.append(train(run, model, optimizer, loader))
            scheduler.step()
            run.log(epoch=epoch)
        scores.append(evaluate(model, held_out_loader) + 0.1 * float(torch.rand(())))
        run.log(score=scores[-1])


def curriculum(run: training.Run) -> None:
    """One model that grows, on harder and harder data, with a new optimizer for each stage."""
    model = Net()
    history: list[float] = []
    run.track(model=model, history=history)
    for stage, scale in enumerate((0.5, 1.0, 2.0)):
        if stage == 1:
            model.body.append(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05 / scale, momentum=0.9)
        run.track(optimizer=optimizer)
        loader = run.loader(data(8, scale), batch_size=4, shuffle=True)
        for _ in run.epochs(2):
            total = train(run, model, optimizer, loader)
            history.append(total)


def endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def kept_iterators(run: training.Run) -> None:
    """Iterators that outlive epochs: one goes through all stages, and between them too; each stage has another."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    always = endless(run.loader(data(20), batch_size=4, shuffle=True))
    for _ in range(3):
        loader = run.loader(data(), batch_size=4, shuffle=True)
        batches = endless(loader)
        for _ in run.epochs(2):
            train(run, model, optimizer, [next(batches), next(always), next(batches)])
        train(run, model, optimizer, [next(always)])


def thawing(run: training.Run) -> None:
    """A head first, then the body too, with another optimizer; the steps decide where the second stage ends."""
    model = Net()
    model.body.requires_grad_(requires_grad=False)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=6, shuffle=True)
    for _ in run.epochs(2):
        train(run, model, optimizer, loader)
    model.body.requires_grad_(requires_grad=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02 if run.epoch == 2 else 9, eps=1e-3 * run.steps)
    run.track(optimizer=optimizer)
    for _ in run.epochs():
        train(run, model, optimizer, loader)


def stops_early(run: training.Run) -> None:
    """Folds that are left by `break`, each after another number of epochs."""
    scores: list[float] = []
    run.track(scores=scores)
    loader = run.loader(data(), batch_size=6, shuffle=True)
    for fold in range(3):
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        stopping = training.EarlyStopping(patience=1, min_delta=0.0)
        run.track(model=model, optimizer=optimizer, stopping=stopping)
        for epoch in run.epochs(3):
            train(run, model, optimizer, loader)
            if stopping.update(abs(epoch - (2, 4, 7)[fold])):
                break
        extra = run.loader(data(4), batch_size=2, shuffle=True)
        scores.append(evaluate(model, extra) + epoch if not run.catching_up else 0.0)
        run.log(score=scores[-1], completed=run.epoch)


def one_by_one(run: training.Run) -> None:
    """A stage for each epoch, nothing new between them."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=6, shuffle=True)
    while run.epoch < run.total_epochs:
        for _ in run.epochs(1):
            train(run, model, optimizer, loader)


def iterators_of_stages(run: training.Run) -> None:
    """Each stage has its own iterator over the same loader, and does not use it up."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=4, shuffle=True)
    for _ in range(3):
        batches = iter(loader)
        for _ in run.epochs(2):
            train(run, model, optimizer, [next(batches), next(batches)])


# What is not restored by running the code between stages again.


def two_stages(run: training.Run, between: Callable[[Net], object]) -> None:
    for _ in range(2):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        run.track(model=model, optimizer=optimizer)
        loader = run.loader(data(), batch_size=6, shuffle=True)
        for _ in run.epochs(2):
            train(run, model, optimizer, loader)
        between(model)


def scores_untracked(run: training.Run) -> None:
    scores: list[float] = []

    def between(model: Net) -> None:
        scores.append(model.head.weight.sum().item())

    two_stages(run, between)
    run.log(best=max(scores))


def ensemble_untracked(run: training.Run) -> None:
    ensemble: list[Net] = []
    two_stages(run, ensemble.append)
    run.log(mean=sum(model.head.weight.sum().item() for model in ensemble))


def split_drawn_between(run: training.Run) -> None:
    for _ in range(2):
        order = torch.randperm(18)
        model = Net()
        run.track(model=model, optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.02)))
        for _ in run.epochs(2):
            samples = TensorDataset(*data()[order[:12]])
            train(run, model, optimizer, run.loader(samples, batch_size=6))


def data_drawn_between(run: training.Run) -> None:
    for _ in range(2):
        model = Net()
        run.track(model=model, optimizer=(optimizer := torch.optim.SGD(model.parameters(), lr=0.02)))
        loader = run.loader(TensorDataset(*data()[torch.randperm(18)]), batch_size=6)
        for _ in run.epochs(2):
            train(run, model, optimizer, loader)


def stages_left_out(run: training.Run) -> None:
    """Has fewer stages in a resumed run than before."""
    two_stages(run, lambda _model: None) if not run.args.get("short") else run.track(model=Net())
    for _ in run.epochs(1) if run.args.get("short") else ():
        run.step()


def untracked_in_a_later_stage(run: training.Run) -> None:
    for stage in range(2):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        run.track(model=model, **({"optimizer": optimizer} if stage == 0 else {}))
        loader = run.loader(data(), batch_size=6, shuffle=True)
        for _ in run.epochs(2):
            train(run, model, optimizer, loader)


def cannot_be_restored_in_a_later_stage(run: training.Run) -> None:
    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()

        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            return None

    for kind in (Net, Forgets):
        model = kind()
        run.track(model=model)
        for _ in run.epochs(2):
            run.step()


def catches_the_pause(run: training.Run) -> None:
    for _ in range(2):
        run.track(model=Net())
        try:
            for _ in run.epochs(2):
                run.step()
        except BaseException:  # noqa: BLE001
            pass


def begins_another_loop(run: training.Run) -> None:
    first = iter(run.epochs(3))
    next(first)
    for _ in run.epochs(1):
        run.step()
    next(first)


# What is made within an epoch.


def thaws_within(run: training.Run) -> None:
    """The optimizer is rebuilt in epoch 3; `build`: a resumed run builds it before the loop, as it has to."""
    model = Net()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05)
    if run.epoch >= 3 and run.args.get("build", True):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=6, shuffle=True)
    for epoch in run.epochs():
        if epoch == 3:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
            run.replace(optimizer=optimizer)
        train(run, model, optimizer, loader)


def adds_within(run: training.Run) -> None:
    """A scheduler and its history are made in epoch 2; `again`: in a resumed run, they are in later epochs too."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run.track(model=model, optimizer=optimizer)
    loader = run.loader(data(), batch_size=6, shuffle=True)
    history: list[float] = []
    scheduler = None
    for epoch in run.epochs():
        if scheduler is None and (epoch == 2 or (epoch > 2 and run.args.get("again", True))):
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            if run.args.get("draws"):
                torch.rand(())
            run.track(scheduler=scheduler, history=history)
        total = train(run, model, optimizer, loader)
        if scheduler is not None:
            history.append(total)
            scheduler.step()


def replaces_what_is_not_there(run: training.Run) -> None:
    """Replaces what nobody tracks, in its first epoch; or what is tracked, `before` it."""
    model = Net()
    run.track(model=model)
    if run.args["before"]:
        run.replace(model=Net())
    for _ in run.epochs():
        run.replace(optimizer=torch.optim.SGD(model.parameters(), lr=0.05))
