import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adjourn import training
from adjourn.training.state.components import component
from adjourn.training.state.gradients import OptimizerState


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("unused", None, persistent=False)


def test_modules_are_found_as_they_were() -> None:
    one, two = Net(), Net()
    one.get_buffer("seen").fill_(5)
    one.body.eval()
    one.head.requires_grad_(requires_grad=False)
    one.body[1](torch.randn(4, 3))
    component("two", two).load(component("one", one).state())
    assert two.get_buffer("seen").item() == 5
    assert [part.training for part in two.modules()] == [part.training for part in one.modules()]
    assert [p.requires_grad for p in two.parameters()] == [p.requires_grad for p in one.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_other_buffers_are_refused() -> None:
    state = component("net", Net()).state()
    state["buffers"]["more"] = torch.ones(1)
    with pytest.raises(training.StateMismatch, match="more"):
        component("net", Net()).load(state)


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: random.Random(1), lambda generator: generator.random()),
        (lambda: np.random.default_rng(1), lambda generator: generator.random()),
        (torch.Generator, lambda generator: torch.rand(1, generator=generator).item()),
    ],
)
def test_generators_of_the_users_own(make: Any, draw: Any) -> None:
    one, two = make(), make()
    draw(one)
    component("two", two).load(component("one", one).state())
    assert draw(one) == draw(two)


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match=r"rate: a float has no state_dict\(\)"):
        component("rate", 0.1)


def test_optimizers_load_last_and_schedulers_before_them() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    ranks = [component("it", subject).rank for subject in (net, training.EarlyStopping(1), scheduler, optimizer)]
    assert ranks == [0, 0, 1, 2]


def backward(net: nn.Module) -> None:
    net(torch.ones(2, 2)).sum().backward()


def test_gradients_are_kept_only_if_the_next_step_will_use_them() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracked = OptimizerState(optimizer)

    def waiting() -> bool:
        return tracked.state()["gradients"] is not None

    assert not waiting()
    backward(net)
    assert waiting()
    optimizer.step()
    assert not waiting()  # used, and left behind until the next zero_grad()
    backward(net)
    assert waiting()
    optimizer.step()
    optimizer.zero_grad()
    assert not waiting()
    backward(net)  # into a new tensor, where the old one was
    assert waiting()


def test_gradients_are_given_back() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    backward(one)
    one.bias.grad = None
    state = OptimizerState(torch.optim.SGD(one.parameters(), lr=0.1)).state()
    optimizer = torch.optim.SGD(two.parameters(), lr=0.1)
    OptimizerState(optimizer).load(state)
    assert one.weight.grad is not None
    assert two.weight.grad is not None
    assert torch.equal(two.weight.grad, one.weight.grad)
    assert two.bias.grad is None
