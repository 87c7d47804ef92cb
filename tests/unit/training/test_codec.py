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


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last),
        torch.arange(20).reshape(4, 5)[::2, 1:],
        torch.arange(20).reshape(4, 5).t(),
        torch.ones(3, 1).expand(3, 4),
        torch.ones(()).expand(3, 4),
        torch.arange(6).reshape(2, 3)[:, 0],
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        torch.randn(2, 3, dtype=torch.complex64).t().conj(),
    ],
    ids=lambda value: str(value.stride()),
)
def test_tensors_come_back_as_they_lie_in_memory(value: torch.Tensor) -> None:
    back = there_and_back(value)
    assert torch.equal(back, value)
    assert (back.stride(), back.is_conj(), back.is_neg()) == (value.stride(), value.is_conj(), value.is_neg())


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(20).reshape(4, 5)[::2, 1:],
        np.arange(20)[::-1],
        np.arange(20).reshape(4, 5)[:, ::-2],
        np.broadcast_to(np.arange(3.0), (4, 3)),
    ],
    ids=lambda value: str(value.strides),
)
def test_arrays_come_back_as_they_lie_in_memory(value: Any) -> None:
    back = there_and_back(value)
    assert same(back, value)
    assert back.strides == value.strides


def test_digests_see_the_layout() -> None:
    image = torch.randn(2, 3, 4, 5)
    one, other = Encoder(), Encoder()
    trees = one.encode(image, ("a",)), other.encode(image.to(memory_format=torch.channels_last), ("a",))
    assert canonical(trees[0]) != canonical(trees[1])
    assert b"".join(one.blobs["a"].chunks()) == b"".join(other.blobs["a"].chunks())


def test_digests_see_what_is_shared() -> None:
    weight = torch.ones(3)
    texts = {
        canonical(Encoder().encode(state, ("a",)))[0]
        for state in (
            {"a": weight, "b": weight, "c": torch.ones(3)},
            {"a": weight, "b": torch.ones(3), "c": weight},
            {"a": weight, "b": torch.ones(3), "c": torch.ones(3)},
            {"a": weight, "b": weight[:], "c": weight},
        )
    }
    assert len(texts) == 4


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
    encoder = Encoder()
    tree = encoder.encode([torch.zeros(3), [1]], ("it",))
    decoder = Decoder(lambda name: read(encoder.blobs[name]), CPU)
    first, second = decoder.decode(tree), decoder.decode(tree)
    first[0].add_(1)
    first[1].append(2)
    assert same(second, [torch.zeros(3), [1]])


def test_conjugates_are_not_their_originals() -> None:
    value = torch.randn(3, dtype=torch.complex64)
    whole, conjugate, imaginary = there_and_back([value, value.conj(), value.conj().imag])
    assert torch.equal(whole, value)
    assert torch.equal(conjugate, value.conj())
    assert torch.equal(imaginary, value.conj().imag)
    imaginary.zero_()
    assert torch.equal(whole.imag, torch.zeros(3))


def test_what_is_shared_within_a_component_comes_back_shared() -> None:
    weight, items, table = torch.arange(6.0), [1], {"a": bytearray(b"x")}
    array = np.arange(3)
    value: dict[str, Any] = {"w": weight, "again": weight, "part": weight[2:4], "turned": weight.view(2, 3).t()}
    value |= {"items": items, "deep": (items, {5: table}), "table": table, "array": array, "same": array}
    back = there_and_back(value)
    back["w"][2] = 7
    assert back["again"] is back["w"]
    assert back["part"].tolist() == [7, 3]
    assert back["turned"].tolist() == [[0, 3], [1, 4], [7, 5]]
    assert back["deep"][0] is back["items"]
    assert back["deep"][1][5] is back["table"]
    assert back["same"] is back["array"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"part": (weight := torch.ones(4))[:2], "all": weight}, "it['all']"),
        ([weight[:3], weight[1:]], "it[1]"),
        ([(array := np.ones(4)), array[1:]], "it[1]"),
        ([array, torch.from_numpy(array)], "it[1]"),
        ([torch.ones(5).unfold(0, 3, 1)], "it[0]"),
    ],
    ids=range(5),
)
def test_other_sharing_is_refused_with_advice(value: Any, path: str) -> None:
    with pytest.raises(training.StateNotEncodable, match="keep a ") as caught:
        Encoder().encode(value, ("it",))
    assert caught.value.path == path


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC)")
def test_sparse_tensors_come_back() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1, 3])).sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None
    for value in (gradient, gradient.coalesce(), torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr()):
        back = there_and_back(value)
        assert back.layout == value.layout
        assert torch.equal(back.to_dense(), value.to_dense())
        if value.layout is torch.sparse_coo:
            assert back.is_coalesced() == value.is_coalesced()
            assert same(back._values(), value._values())


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC)")
def test_other_layouts_are_refused() -> None:
    with pytest.raises(training.StateNotEncodable, match="to_dense"):
        Encoder().encode(torch.eye(3).to_sparse_csc(), ("it",))


def test_sets_keep_their_order_or_say_that_they_cannot() -> None:
    assert list(there_and_back({8, 0, 16})) == list({8, 0, 16})
    grown = {1, 8} | set(range(100, 140))
    for value in range(100, 140):
        grown.discard(value)
    encoder = Encoder()
    assert list(grown) == [1, 8]
    encoder.encode({"seen": grown}, ("other",))
    assert encoder.remarks[-1].startswith("other['seen']: the order of this set")


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
        (torch.ones(2, device="meta"), "it"),
        (1 << 9000, "it"),
        (endless, "it[0]"),
    ],
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
        {"$": "same", "place": "[0]"},
        {"$": "tensor", "name": "it", "dtype": "float32", "shape": [1], "of": "nothing", "offset": 0},
        {"$": "sparse", "layout": "coo", "shape": [1], "parts": [[1], [2]], "coalesced": True},
        {"$": "defaultdict", "items": [], "factory": "eval"},
    ],
    ids=str,
)
def test_nonsense_is_not_decoded(tree: Any) -> None:
    blobs = {"it": torch.zeros(4, dtype=torch.uint8)}
    with pytest.raises(SnapshotInvalid):
        Decoder(blobs.__getitem__, CPU).decode(tree)
