import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adjourn import training
from adjourn.snapshots import SnapshotInvalid, canonical
from adjourn.training.state.codec import DTYPES, Blob, Decoder, Encoder

CPU = torch.device("cpu")


def read(blob: Blob) -> torch.Tensor:
    return torch.tensor(list(b"".join(blob.chunks())), dtype=torch.uint8)


def there_and_back(value: Any) -> Any:
    encoder = Encoder()
    tree = encoder.encode(value, ("it",))
    return Decoder(lambda name: read(encoder.blobs[name]), CPU).decode(tree)


def same(one: Any, other: Any) -> bool:
    """Equality with types, orders and bits, not that of Python (1 == True, nan != nan)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return struct.pack("dd", one.real, one.imag) == struct.pack("dd", other.real, other.imag)
    if isinstance(one, torch.Tensor):
        flat = [value.contiguous().reshape(-1).view(torch.uint8) for value in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)
    if isinstance(one, np.ndarray | np.generic):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
keys = st.none() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text()) | st.just("$")
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(lambda items: deque(items, maxlen=7)),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=4).map(lambda items: defaultdict(list, items)),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(values)
def test_values_come_back(value: Any) -> None:
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("bits", ["7ff0000000000000", "fff8000000000001", "7ff8000000000abc", "8000000000000000"])
def test_floats_keep_their_bits(bits: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert struct.pack(">d", there_and_back(value)).hex() == bits


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex128, torch.float8_e4m3fnuz], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_tensors_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (torch.Size(shape).numel() * dtype.itemsize,))
    value = raw.to(torch.uint8).view(dtype).reshape(shape)
    assert same(there_and_back(value), value)


def test_tensors_keep_their_memory_layout() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert there_and_back(image).stride() == image.stride()
    sliced = torch.arange(20).reshape(4, 5)[::2, 1:]
    assert same(there_and_back(sliced), sliced)
    expanded = torch.ones(3, 1).expand(3, 4)
    assert same(there_and_back(expanded), expanded)


def test_layout_does_not_change_the_canonical_text() -> None:
    image = torch.randn(2, 3, 4, 5)
    one, other = Encoder(), Encoder()
    trees = one.encode(image, ("a",)), other.encode(image.to(memory_format=torch.channels_last), ("a",))
    assert trees[0] != trees[1]
    assert canonical(trees[0]) == canonical(trees[1])
    assert b"".join(one.blobs["a"].chunks()) == b"".join(other.blobs["a"].chunks())


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8"])
def test_arrays_come_back(dtype: str) -> None:
    for shape in ((), (0,), (3, 2)):
        value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        assert same(there_and_back(value), value)
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    assert same(there_and_back(fortran), fortran)
    scalar = np.ones(1, dtype)[0]
    assert same(there_and_back(scalar), scalar)


@pytest.mark.parametrize(
    "value",
    [Counter("abracadabra"), torch.bfloat16, torch.device("cuda", 1), torch.Size([2, 3]), bytearray(b"x"), 2**2000],
    ids=repr,
)
def test_other_types_come_back(value: Any) -> None:
    assert same(there_and_back(value), value)


def test_tensors_that_were_on_a_gpu_go_to_the_device_of_the_run() -> None:
    encoder = Encoder()
    tree = {**encoder.encode(torch.ones(2), ("it",)), "device": "cuda:3"}
    assert Decoder(lambda name: read(encoder.blobs[name]), torch.device("meta")).decode(tree).is_meta


def test_what_is_decoded_is_nobody_elses() -> None:
    shared = torch.zeros(3)
    first, second = there_and_back([shared, shared])
    first.add_(1)
    assert second.tolist() == [0, 0, 0]


def test_tied_tensors_are_stored_once() -> None:
    encoder = Encoder()
    encoder.encode({"a": (weight := torch.ones(4)), "b": weight, "c": weight[:2]}, ("model",))
    assert sorted(encoder.blobs) == ["model/a", "model/c"]


def test_names_are_unique() -> None:
    assert same(there_and_back({"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1)})["a/b"], torch.ones(1))


def test_module_versions_are_kept() -> None:
    state = nn.BatchNorm1d(3).state_dict()
    assert there_and_back(state)._metadata == state._metadata  # type: ignore[attr-defined]


class Number(IntEnum):
    ONE = 1


Point = namedtuple("Point", "x")  # noqa: PYI024
endless: list[Any] = []
endless.append(endless)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (lambda: None, "it"),
        ({"hooks": [object()]}, "it['hooks'][0]"),
        (OrderedDict(a={1: Number.ONE}), "it['a'][1]"),
        ((Point(1),), "it[0]"),
        (np.array(["text"]), "it"),
        (np.array([object()], object), "it"),
        (np.ones(2, ">f4"), "it"),
        (np.ones(2, np.longdouble), "it"),
        (np.float64("nan").astype(np.longdouble), "it"),
        (defaultdict(lambda: 3), "it"),
        ({torch.ones(1): 1}, "it"),
        (torch.ones(2).to_sparse(), "it"),
        (torch.ones(2, device="meta"), "it"),
        (1 << 9000, "it"),
        (endless, "it[0][0]"),
    ],
    ids=str,
)
def test_other_things_are_refused_with_their_path(value: Any, path: str) -> None:
    with pytest.raises(training.StateNotEncodable) as caught:
        Encoder().encode(value, ("it",))
    assert caught.value.path == path
    assert path in str(caught.value)


def modules() -> list[nn.Parameter]:
    return list(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize(
    "kind",
    [
        torch.optim.SGD,
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.LBFGS,
        torch.optim.NAdam,
    ],
)
def test_optimizers_can_be_stored(kind: Any) -> None:
    optimizer = kind(parameters := modules(), lr=0.1)

    def closure() -> torch.Tensor:
        loss = sum((parameter**2).sum() for parameter in parameters)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert same(there_and_back(optimizer.state_dict()), optimizer.state_dict())


def test_schedulers_can_be_stored() -> None:
    optimizer = torch.optim.SGD(modules(), lr=0.1, momentum=0.9)
    kinds = torch.optim.lr_scheduler
    for scheduler in (
        kinds.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        kinds.OneCycleLR(optimizer, 0.1, total_steps=10),
        kinds.ReduceLROnPlateau(optimizer),
        kinds.CyclicLR(optimizer, 0.1, 0.2),
        kinds.CosineAnnealingWarmRestarts(optimizer, 3),
        kinds.SequentialLR(optimizer, [kinds.ConstantLR(optimizer), kinds.ExponentialLR(optimizer, 0.9)], [2]),
    ):
        assert same(there_and_back(scheduler.state_dict()), scheduler.state_dict())


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "os.system"},
        {"$": "tensor", "name": "it", "dtype": "load", "shape": [1]},
        {"$": "tensor", "name": "it", "dtype": "float32", "shape": [7]},
        {"$": "tensor", "name": "nowhere", "dtype": "float32", "shape": [1]},
        {"$": "scalar", "dtype": "O", "value": "00"},
        {"$": "float", "value": "00"},
        {"$": "bytes", "value": "?"},
        {"$": "set", "items": [[1]]},
        {"$": "dict"},
        {"$": "defaultdict", "items": [], "factory": "eval"},
    ],
    ids=str,
)
def test_nonsense_is_not_decoded(tree: Any) -> None:
    blobs = {"it": torch.zeros(4, dtype=torch.uint8)}
    with pytest.raises(SnapshotInvalid):
        Decoder(blobs.__getitem__, CPU).decode(tree)
