"""Turns a state (what `state_dict()` returns) into a tree of tagged JSON and raw tensors, and back, exactly.

No pickle: a value of a type that is not listed here is refused with its path, so that a snapshot never holds, and a
restore never runs, code. Types are matched exactly; a subclass may carry what its base does not.
"""

import base64
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adjourn.snapshots import SnapshotInvalid, Tree, dumps
from adjourn.training.errors import StateNotEncodable

DEPTH_LIMIT = 100
INTEGER_LIMIT = 1 << 8192
"""Python refuses to write much longer integers as text."""

DTYPES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
"""Types as a safetensors file names them; a tensor of another type is stored there as its bytes."""

ARRAY_DTYPES: Mapping[str, str] = {
    "|b1": "BOOL",
    **{f"|{kind}1": f"{kind.upper()}8" for kind in "iu"},
    **{f"<{kind}{size}": f"{kind.upper()}{8 * size}" for kind in "iuf" for size in (2, 4, 8)},
    "<c8": "C64",
}
"""The same by NumPy's names. Others are refused: objects are pickles, long doubles have bytes that mean nothing."""

FACTORIES: Mapping[str, Callable[[], Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict, set)
}
"""What a defaultdict may make."""

Path = tuple[Hashable, ...]
"""The component's name, then the keys and indices that lead to a value."""


def dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise SnapshotInvalid(f"unknown type of tensor {name!r}")
    return dtype


def unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """How a value without parts is written: `{"$": name, "value": text}`."""

    name: str
    write: Callable[[Any], str]
    read: Callable[[str], Any]


ATOMS: Mapping[type, Atom] = {
    # Only infinities and NaNs come here: JSON lacks them, and a NaN keeps its payload only as bits.
    float: Atom(
        name="float",
        write=lambda value: struct.pack(">d", value).hex(),
        read=lambda text: struct.unpack(">d", bytes.fromhex(text))[0],
    ),
    complex: Atom(
        name="complex",
        write=lambda value: struct.pack(">dd", value.real, value.imag).hex(),
        read=lambda text: complex(*struct.unpack(">dd", bytes.fromhex(text))),
    ),
    bytes: Atom(name="bytes", write=lambda value: base64.b64encode(value).decode(), read=unbase64),
    bytearray: Atom(
        name="bytearray",
        write=lambda value: base64.b64encode(value).decode(),
        read=lambda text: bytearray(unbase64(text)),
    ),
    torch.dtype: Atom(
        name="dtype",
        write=lambda value: str(value).removeprefix("torch."),
        read=dtype_named,
    ),
    torch.device: Atom(name="device", write=str, read=torch.device),
}
ATOMS_BY_NAME: Mapping[str, Atom] = {atom.name: atom for atom in ATOMS.values()}
SEQUENCES: Mapping[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "Size": torch.Size,
    "set": set,
    "frozenset": frozenset,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Raw data beside a tree."""

    dtype: str
    """As in a safetensors file."""
    shape: tuple[int, ...]
    data: torch.Tensor
    """A reference, on any device, to what the next step may change; of as many bytes as `dtype` and `shape` say."""

    def chunks(self) -> Iterator[memoryview]:
        yield self.data.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class Encoder:
    """Encodes values; collects the raw data they refer to in `blobs`, by name."""

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self._names: dict[Hashable, str] = {}

    def encode(self, value: Any, path: Path) -> Tree:
        """Returns the tree of `value`; raises StateNotEncodable."""
        kind = type(value)
        if value is None or kind in (bool, str) or (kind is float and math.isfinite(value)):
            return value  # repr() of a float, which json uses, is exact
        if kind is int and abs(value) < INTEGER_LIMIT:
            return value
        if atom := ATOMS.get(kind):
            return {"$": atom.name, "value": atom.write(value)}
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), path)
        if isinstance(value, np.generic) and value.dtype.str in ARRAY_DTYPES:
            return {"$": "scalar", "dtype": value.dtype.str, "value": value.tobytes().hex()}
        if kind is np.ndarray and value.dtype.str in ARRAY_DTYPES:
            return self._array(value, path)
        return self._container(value, path)

    def _container(self, value: Any, path: Path) -> Tree:
        kind = type(value)
        if len(path) > DEPTH_LIMIT:
            raise refusal(path[:3], f"nested more than {DEPTH_LIMIT} deep, or in itself")
        if kind in (dict, OrderedDict, defaultdict, Counter):
            return self._mapping(value, path)
        if kind in (list, tuple, torch.Size, deque):
            items = [self.encode(item, (*path, index)) for index, item in enumerate(value)]
            if kind is list:
                return items
            return {"$": kind.__name__, "items": items, **({"maxlen": value.maxlen} if kind is deque else {})}
        if kind in (set, frozenset):
            return {"$": kind.__name__, "items": sorted(self._keys(value, path), key=dumps)}
        raise refusal(path, f"a {kind.__module__}.{kind.__qualname__} cannot be stored exactly: {describe(value)}")

    def _mapping(self, value: Mapping[Any, Any], path: Path) -> Tree:
        kind = type(value)
        if kind is dict and "$" not in value and all(type(key) is str for key in value):
            return {key: self.encode(item, (*path, key)) for key, item in value.items()}
        keys = self._keys(value, path)
        items = [[key, self.encode(value[name], (*path, name))] for key, name in zip(keys, value, strict=True)]
        tree: dict[str, Tree] = {"$": kind.__name__, "items": items}
        if isinstance(value, defaultdict):
            factory = getattr(value.default_factory, "__name__", None)
            if FACTORIES.get(factory or "") is not value.default_factory:
                raise refusal(path, f"a defaultdict may make {', '.join(FACTORIES)}, not {value.default_factory!r}")
            tree["factory"] = factory
        if metadata := getattr(value, "_metadata", None):  # versions of modules, which load_state_dict looks at
            tree["metadata"] = self.encode(dict(metadata), (*path, "_metadata"))
        return tree

    def _keys(self, keys: Iterable[Any], path: Path) -> list[Tree]:
        blobs = len(self.blobs)
        trees = [self.encode(key, path) for key in keys]
        if len(self.blobs) > blobs:
            raise refusal(path, "tensors as keys, or in a set, are equal only to themselves")
        return trees

    def _tensor(self, value: torch.Tensor, path: Path) -> Tree:
        if type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise refusal(path, f"a {type(value).__qualname__} of layout {value.layout}, on {value.device}")
        shape = list(value.shape)
        tree: dict[str, Tree] = {"$": "tensor", "dtype": ATOMS[torch.dtype].write(value.dtype), "shape": shape}
        if value.device.type != "cpu":
            tree["device"] = str(value.device)
        if not value.is_contiguous():
            # Channels-last and the like are given back as they were: kernels choose their way by the strides.
            order = sorted(range(value.dim()), key=value.stride().__getitem__, reverse=True)
            if value.permute(order).is_contiguous():
                tree["order"] = order
        same = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
        if same not in self._names:  # tied weights are stored once
            known = DTYPES.get(value.dtype)
            stored = value.shape if known else (value.nbytes,)
            self._names[same] = self._add(path, Blob(dtype=known or "U8", shape=stored, data=value))
        return {**tree, "name": self._names[same]}

    def _array(self, value: np.ndarray[Any, Any], path: Path) -> Tree:
        data = torch.tensor(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        name = self._add(path, Blob(dtype=ARRAY_DTYPES[value.dtype.str], shape=value.shape, data=data))
        return {"$": "array", "dtype": value.dtype.str, "shape": list(value.shape), "name": name}

    def _add(self, path: Path, blob: Blob) -> str:
        name = "/".join(map(str, path))
        while name in self.blobs:  # {"a": {"b": x}, "a/b": y}
            name += "'"
        self.blobs[name] = blob
        return name


class Decoder:
    """Decodes trees; every tensor and array it returns is a copy of its own."""

    def __init__(self, read: Callable[[str], torch.Tensor], device: torch.device) -> None:
        self._read = read
        """Returns the bytes of a name, as a flat tensor of torch.uint8."""
        self._device = device
        """Where tensors go that were not on a CPU."""

    def decode(self, tree: Tree) -> Any:
        """Returns the value that `tree` was made from; raises SnapshotInvalid."""
        if isinstance(tree, list):
            return [self.decode(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "$" not in tree:
            return {key: self.decode(item) for key, item in tree.items()}
        try:
            return self._tagged(tree["$"], tree)
        except (KeyError, ValueError, TypeError, RuntimeError, struct.error) as error:
            raise SnapshotInvalid(f"cannot read back {describe(tree)}: {error}") from error

    def _tagged(self, tag: str, tree: Mapping[str, Tree]) -> Any:
        if atom := ATOMS_BY_NAME.get(tag):
            return atom.read(tree["value"])
        if sequence := SEQUENCES.get(tag):
            return sequence(self.decode(tree["items"]))
        match tag:
            case "tensor":
                return self._tensor(tree)
            case "array":
                data = self._read(tree["name"]).numpy().copy()
                return data.view(np.dtype(tree["dtype"])).reshape(tree["shape"])
            case "scalar":
                return np.frombuffer(bytes.fromhex(tree["value"]), np.dtype(tree["dtype"]))[0]
            case "deque":
                return deque(self.decode(tree["items"]), tree["maxlen"])
            case _:
                return self._mapping(tag, tree)

    def _mapping(self, tag: str, tree: Mapping[str, Tree]) -> Any:
        items = {self.decode(key): self.decode(value) for key, value in tree["items"]}
        match tag:
            case "dict":
                return items
            case "Counter":
                return Counter(items)
            case "defaultdict":
                return defaultdict(FACTORIES[tree["factory"]] if tree["factory"] else None, items)
            case "OrderedDict":
                ordered: OrderedDict[Any, Any] = OrderedDict(items)
                if "metadata" in tree:
                    vars(ordered)["_metadata"] = OrderedDict(self.decode(tree["metadata"]))
                return ordered
            case _:
                raise SnapshotInvalid(f"unknown tag {tag!r}")

    def _tensor(self, tree: Mapping[str, Tree]) -> torch.Tensor:
        value = self._read(tree["name"]).clone().view(dtype_named(tree["dtype"])).reshape(tree["shape"])
        if order := tree.get("order"):
            inverse = sorted(range(len(order)), key=order.__getitem__)
            value = value.permute(order).contiguous().permute(inverse)
        return value.to(self._device) if "device" in tree else value


def describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def refusal(path: Path, why: str) -> StateNotEncodable:
    return StateNotEncodable(str(path[0]) + "".join(f"[{key!r}]" for key in path[1:]), why)
