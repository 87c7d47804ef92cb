"""Trainings whose state a resumed run cannot take, each in a way of its own, and some where that is close."""

import threading
from typing import Any

import torch
from torch import nn

from adjourn import training


class Tracked:
    """An object with a state; what its subclasses do wrong, they do when it is loaded."""

    def __init__(self) -> None:
        self.values = torch.zeros(3)
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "nested": [{"count": self.count}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]
        self.count = state["nested"][0]["count"]


class IgnoresState(Tracked):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ForgetsACount(Tracked):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


class CastsState(Tracked):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({**state, "values": state["values"].to(torch.bfloat16)})


class RefusesState(Tracked):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("loading comes later")


class HasALock(Tracked):
    """Cannot be copied, and is as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


KINDS = {kind.__name__: kind for kind in (IgnoresState, ForgetsACount, CastsState, RefusesState, HasALock)}


def tracks(run: training.Run) -> None:
    tracked = KINDS[run.args["kind"]]()
    run.track(tracked=tracked)
    for epoch in run.epochs():
        run.step()
        tracked.values += 1 / 3
        tracked.count = epoch


class Masters(torch.optim.Optimizer):
    """Keeps weights in full precision beside the model's, which are of half the bits."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            master = self.state[parameter].setdefault("master", parameter.detach().float())
            master.sub_(parameter.grad.float(), alpha=0.1)
            parameter.copy_(master)


def masters(run: training.Run) -> None:
    model = nn.Linear(4, 1).to(torch.bfloat16)
    optimizer = Masters(model.parameters())
    run.track(model=model, optimizer=optimizer)
    for _ in run.epochs():
        model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        run.step()


def adds_parameters(run: training.Run) -> None:
    """Adds a group of parameters in epoch `in`."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        if epoch == run.args["in"]:
            optimizer.add_param_group({"params": list(model[1].parameters())})
        run.step()


class Sharing(nn.Module):
    """Has a buffer that is part of another, as some libraries keep many in one; and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Buffer(torch.zeros(6))
        self.part = nn.Buffer(self.whole[2:4])
        self.generator = torch.Generator()


def shares_memory(run: training.Run) -> None:
    model = Sharing()
    run.track(model=model)
    for epoch in run.epochs():
        model.whole.add_(epoch)
        model.part.add_(torch.rand(2, generator=model.generator))
        run.step()


def grows(run: training.Run) -> None:
    """Adds a layer in epoch `in`."""
    model = nn.Sequential(nn.Linear(2, 2))
    run.track(model=model)
    for epoch in run.epochs():
        if epoch == run.args["in"]:
            model.append(nn.Linear(2, 2))
        run.step()


def loads_into_the_original(run: training.Run) -> None:
    """Has a tracked object made of functions, which a copy shares with it."""
    weights = torch.zeros(3)

    class Closures:
        def __init__(self) -> None:
            self.state_dict = lambda: {"weights": weights}
            self.load_state_dict = lambda state: weights.copy_(state["weights"].round())

    run.track(closures=Closures())
    for _ in run.epochs():
        weights += 1 / 3
        run.step()


class Memory:
    """Remembers, and has no state_dict()."""

    def __init__(self) -> None:
        self.seen = 0


def remembers(run: training.Run) -> None:
    model = nn.Linear(1, 1)
    memory = Memory()
    vars(model)["memory"] = memory
    run.track(model=model)
    for _ in run.epochs():
        memory.seen += 1
        run.step()
