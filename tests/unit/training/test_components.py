import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from adjourn import training
from adjourn.training.state.codec import Decoder, Encoder
from adjourn.training.state.components import component
from adjourn.training.state.detector import digest
from adjourn.training.state.gradients import NEW, OLD, OptimizerState, mark_used, standing
from adjourn.training.state.numerics import numerics, restore_numerics
from adjourn.training.state.registry import State


def there_and_back(value: Any) -> Any:
    encoder = Encoder()
    tree = encoder.encode(value, ("it",))
    read = lambda name: torch.tensor(list(b"".join(encoder.blobs[name].chunks())), dtype=torch.uint8)  # noqa: E731
    return Decoder(read, torch.device("cpu")).decode(tree)


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


@pytest.mark.parametrize("value", [0.1, "text", None, (1, 2)])
def test_other_objects_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"rate: a \w+ has no state_dict\(\) .* keep it as run\.state\.rate"):
        component("rate", value)


def test_generators_spawn_the_same_children() -> None:
    one, two = np.random.default_rng(), np.random.default_rng(5)
    one.spawn(3)
    component("two", two).load(component("one", one).state())
    assert one.spawn(2)[1].random() == two.spawn(2)[1].random()


@dataclass
class Record:
    best: float = 0.0
    history: list[int] = field(default_factory=list)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"best": 1, "at": [1]}, {}),
        ([1, 2], [3]),
        (deque([1, 2], 3), deque(maxlen=3)),
        ({1, 2}, {5}),
        (defaultdict(list, a=[1]), defaultdict(list)),
        (np.arange(3), np.zeros(3, int)),
        (torch.arange(3), torch.zeros(3, dtype=torch.int64)),
        (Record(3, [4]), Record()),
        (SimpleNamespace(lr=1), SimpleNamespace(momentum=1)),
    ],
    ids=repr,
)
def test_values_are_restored_in_place(before: Any, after: Any) -> None:
    component("it", after).load(there_and_back(component("it", before).state()))
    assert str(after) == str(before)


def test_values_of_another_shape_are_refused() -> None:
    for before, after in ((deque([1], 2), deque([1], 3)), (np.ones(2), np.ones(3)), (torch.ones(2), torch.ones(3))):
        with pytest.raises(training.StateMismatch):
            component("it", after).load(component("it", before).state())


class Attributes(nn.Module):
    """Keeps in attributes what it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.temperature = 1.0
        self.names = ["a"]
        self.memory = torch.zeros(2)
        self.generator = np.random.default_rng(1)
        self.directory = str(object())
        self.function = lambda: 3
        self.settings = Record()
        self.register_buffer("later", None)
        self.register_buffer("grows", torch.zeros(1))
        self.register_buffer("ends", torch.zeros(1))


def test_attributes_of_modules_that_changed_are_restored() -> None:
    one, two = Attributes(), Attributes()
    tracked, other = component("one", one), component("two", two)
    assert tracked.state()["attributes"].keys() == {"memory"}  # the rest comes from the constructor
    directory = two.directory
    one.drop.p, one.temperature, one.training = 0.5, 0.25, False
    one.names.append("b")
    one.memory = torch.arange(3.0)
    one.generator.random()
    one.later, one.ends, one.grows = torch.ones(2), None, torch.ones(4)  # type: ignore[assignment]
    other.load(there_and_back(tracked.state()))
    assert (two.drop.p, two.temperature, two.names, two.directory) == (0.5, 0.25, ["a", "b"], directory)
    assert two.memory.tolist() == [0, 1, 2]
    assert two.generator.random() == one.generator.random()
    assert {name: value.tolist() for name, value in two.named_buffers()} == {"later": [1, 1], "grows": [1, 1, 1, 1]}
    assert tracked.remarks() == []
    one.settings.best = 2
    (remark,) = tracked.remarks()
    assert "one.settings is a " in remark
    assert "Record that changed in training" in remark


def test_a_parameter_of_no_module_is_restored_in_place() -> None:
    one, two = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
    one.requires_grad = False
    component("two", two).load(there_and_back(component("one", one).state()))
    assert (two.tolist(), two.requires_grad) == ([1, 1], False)


def test_types_and_strides_of_parameters_are_restored() -> None:
    one, two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    tracked = component("one", one)
    one.to(torch.float64)
    one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = two.weight
    component("two", two).load(there_and_back(tracked.state()))
    assert (two.weight.dtype, two.weight.stride()) == (torch.float64, one.weight.stride())
    assert two.weight is weight
    assert torch.equal(two.weight, one.weight)


def test_modules_that_train_in_parallel_are_refused() -> None:
    with pytest.raises(training.StateNotEncodable, match=r"net\.0: DataParallel is not supported yet"):
        component("net", nn.Sequential(nn.DataParallel(nn.Linear(1, 1))))


def test_optimizers_load_last_and_schedulers_before_them() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    ranks = [component("it", subject).rank for subject in (net, training.EarlyStopping(1), scheduler, optimizer)]
    assert ranks == [0, 0, 1, 2]


def test_what_a_value_holds_is_restored_in_place() -> None:
    """Code, or an optimizer, may have another name for it; what is one object in the snapshot is one again."""

    def made() -> dict[str, Any]:
        inner = [1, 2]
        return {"one": inner, "same": inner, "weight": nn.Parameter(torch.ones(2)), "pair": ({}, [3]), "grown": []}

    one, two = made(), made()
    one["one"].append(5)
    one["pair"][0]["new"] = {6}
    one["grown"].append([7])
    with torch.no_grad():
        one["weight"].mul_(4)
    before = dict(two)
    component("two", two).load(there_and_back(component("one", one).state()))
    assert {name: before[name] for name in ("one", "same", "grown")} == {
        "one": [1, 2, 5],
        "same": [1, 2, 5],
        "grown": [[7]],
    }
    assert two["one"] is two["same"] is before["one"]
    assert two["weight"] is before["weight"]
    assert two["weight"].tolist() == [4, 4]
    assert two["pair"][0] is before["pair"][0]
    assert two["pair"] == ({"new": {6}}, [3])


def test_a_tensor_that_a_value_holds_takes_what_was_saved_if_its_memory_is_its_own() -> None:
    """Code may have another name for it; what is a view of something else must not change that."""

    def made(net: nn.Linear) -> dict[str, Any]:
        nn.init.constant_(net.weight, 3)
        return {
            "own": torch.zeros(2),
            "listed": [torch.zeros(2, 3).t()],
            "of a module": net.state_dict(),
            "grown": torch.zeros(2),
            "other type": torch.zeros(2),
            "expanded": torch.zeros(1).expand(3),
            "whole": torch.zeros(3),
            "tied": torch.zeros(2),
            "array": np.zeros(2),
        }

    nets = nn.Linear(1, 2), nn.Linear(1, 2)
    one, two = map(made, nets)
    one["own"] += 1
    one["listed"][0] += 1
    one["of a module"] = {name: value + 1 for name, value in one["of a module"].items()}
    one["grown"], one["other type"], one["array"] = torch.ones(3), torch.ones(2).double(), np.ones(2)
    one["expanded"] = torch.ones(1).expand(3)
    one["tied"] = one["whole"][:2].add_(1)
    before = dict(two)
    component("two", two).load(there_and_back(component("one", one).state()))
    assert str(two) == str(one)
    assert Encoder().encode(two, ("it",)) == Encoder().encode(one, ("it",))
    assert (two["own"] is before["own"], before["own"].tolist()) == (True, [1, 1])
    assert two["listed"][0].stride() == (1, 3)
    assert nets[1].weight.tolist() == [[3], [3]]
    assert before["array"].tolist() == [0, 0]
    for name in ("whole", "tied", "grown", "other type", "expanded"):
        assert (two[name] is before[name], before[name].unique().tolist()) == (False, [0])


def test_what_is_the_same_in_a_new_run_and_not_in_the_snapshot_is_made_two() -> None:
    shared = [0]
    subject = {"a": shared, "b": shared}
    component("it", subject).load(there_and_back({"a": [1], "b": [2]}))
    assert subject == {"a": [1], "b": [2]}


def test_views_of_what_must_not_change_are_replaced() -> None:
    net = nn.Linear(2, 2)
    weight = net.weight.tolist()
    best = {"weights": net.state_dict()}
    component("best", best).load(there_and_back({"weights": nn.Linear(2, 2).state_dict()}))
    assert net.weight.tolist() == weight
    assert best["weights"]["weight"].tolist() != weight


def backward(net: nn.Module) -> None:
    net(torch.ones(2, 2)).sum().backward()


def test_gradients_are_kept_only_if_the_next_step_will_use_them() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracked = OptimizerState(optimizer)

    def waiting() -> bool:
        return bool((tracked.state()["gradients"] or {}).get("values"))

    assert not waiting()
    backward(net)
    assert waiting()
    optimizer.step()
    assert not waiting()  # used, and left behind until the next zero_grad()
    backward(net)
    assert waiting()
    optimizer.step()
    assert waiting()  # a loop that keeps them may add to them
    optimizer.zero_grad()
    assert not waiting()
    backward(net)  # into a new tensor, where the old one was
    assert waiting()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("course", ["", "b", "bs", "bsb", "bsbs", "bsbsb", "bsz", "bszb"])
def test_gradients_stand_as_they_stood(course: str, sparse: bool) -> None:
    """After backward passes, steps, and `zero_grad(set_to_none=False)`, in that order, no later step differs."""
    nets = [nn.Embedding(3, 2, sparse=sparse), nn.Embedding(3, 2, sparse=sparse)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    one, two = (OptimizerState(optimizer) for optimizer in optimizers)

    def go_on(net: nn.Module, optimizer: torch.optim.Optimizer, course: str) -> None:
        for each in course:
            match each:
                case "b":
                    net(torch.tensor([1])).sum().backward()
                case "s":
                    optimizer.step()
                case "z":
                    optimizer.zero_grad(set_to_none=sparse)  # torch fails to add to a sparse one that was zeroed

    go_on(nets[0], optimizers[0], course)
    nets[1](torch.tensor([2])).sum().backward()
    nets[1].load_state_dict(nets[0].state_dict())
    two.load(there_and_back(one.state()))
    for following in ("", "z", "b", "s", "z", "b", "s"):
        for net, optimizer in zip(nets, optimizers, strict=True):
            go_on(net, optimizer, following)
        assert digest(one.state()) == digest(two.state()) is not None


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


@pytest.mark.parametrize("used", [False, True])
def test_gradients_that_no_optimizer_has_are_given_back(used: bool) -> None:
    state, net, _ = tracked()
    backward(net[1])  # type: ignore[index]
    if used:
        for parameter in net[1].parameters():  # type: ignore[index]
            mark_used(parameter.grad)
    resumed, again, optimizer = tracked(Saved(state))
    resumed.compare(state.digests())
    for before, after in zip(net[1].parameters(), again[1].parameters(), strict=True):  # type: ignore[index]
        assert torch.equal(after.grad, before.grad)
        assert standing(after.grad) == (OLD if used else NEW)
    optimizer.add_param_group({"params": again[1].parameters()})  # type: ignore[index]
    assert "gradients" not in component("net", again, owned=resumed._owned).state()


def test_gradients_that_were_not_there_are_taken_away() -> None:
    state, _, _ = tracked()
    saved = Saved(state)
    resumed, again, _ = tracked(saved)
    backward(again[1])  # type: ignore[index]
    with pytest.raises(training.RestoreDiverged, match="net"):
        resumed.compare(state.digests(), lambda name: name == "net")
    resumed.put_back()
    resumed.compare(state.digests(), lambda name: name == "net")


def test_master_copies_are_not_cast() -> None:
    def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Linear(2, 2).to(torch.bfloat16)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for parameter in net.parameters():
            optimizer.state[parameter]["master"] = torch.randn(parameter.shape)
        return net, optimizer

    (_, one), (net, two) = trained(), trained()
    component("two", two).load(there_and_back(component("one", one).state()))
    for before, after in zip(one.state.values(), two.state.values(), strict=True):
        assert after["master"].dtype == torch.float32
        assert torch.equal(after["master"], before["master"])
    assert list(two.state) == list(net.parameters())


class Saved:
    """A snapshot as `State` reads it."""

    remarks: tuple[str, ...] = ()
    drilled: bool | None = None
    standing: ClassVar[dict[str, str]] = {}

    def __init__(self, state: State) -> None:
        trees, blobs = state.encode()
        self.components = trees
        read = lambda name: torch.tensor(list(b"".join(blobs[name].chunks())), dtype=torch.uint8)  # noqa: E731
        self._decoder = Decoder(read, torch.device("cpu"))

    def value(self, name: str, _: Any = ()) -> Any:
        return self._decoder.decode(self.components[name])

    def content(self, _: str) -> None:
        """Returns nothing: digests are compared."""


def tracked(saved: Any = None, *, together: bool = True) -> tuple[State, nn.Module, torch.optim.Optimizer]:
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    optimizer = torch.optim.Adam(net[0].parameters(), lr=0.1)
    state = State(dict, saved)
    if together:
        state.add({"optimizer": optimizer, "net": net})
    else:
        state.add({"optimizer": optimizer})
        state.add({"net": net})
    return state, net, optimizer


def test_groups_that_were_added_in_training_are_added_again() -> None:
    state, net, optimizer = tracked()
    optimizer.add_param_group({"params": net[1].parameters(), "lr": 0.5})  # type: ignore[index]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    resumed, again, restored = tracked(Saved(state))
    resumed.complete()
    resumed.compare(state.digests())
    assert [group["lr"] for group in restored.param_groups] == [0.1, 0.5]
    assert restored.param_groups[1]["params"] == list(again[1].parameters())  # type: ignore[index]


def test_groups_of_modules_that_are_not_known_are_refused() -> None:
    state, net, optimizer = tracked(together=False)
    optimizer.add_param_group({"params": net[1].parameters()})  # type: ignore[index]
    with pytest.raises(training.StateMismatch, match="track those modules"):
        tracked(Saved(state), together=False)


def test_switches_are_restored() -> None:
    before = numerics()
    try:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        changed = numerics()
        assert changed != before
        restore_numerics(before)
        assert numerics() == before
        restore_numerics(changed)
        assert torch.get_default_dtype() is torch.float64
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        restore_numerics(before)
