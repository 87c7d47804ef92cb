"""Turns a state (what `state_dict()` returns) into a tree of tagged JSON and raw tensors, and back, exactly.

No pickle: a value of a type that is not listed here is refused with its path, so that a snapshot never holds, and a
restore never runs, code. Types are matched exactly; a subclass may carry what its base does not.

Besides values, what changes the bits of later results is kept: the strides of tensors and arrays, conjugate and
negative bits, and sharing. A container, array or tensor that is reached twice within a component comes back as one
object; a tensor that is part of another one comes back as part of it.
"""

import base64
import functools
import math
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any, NamedTuple

import numpy as np
import torch

from adjourn.snapshots import SnapshotInvalid, Tree
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


class Blob(NamedTuple):
    """Raw data beside a tree."""

    dtype: str
    """As in a safetensors file."""
    shape: tuple[int, ...]
    data: torch.Tensor
    """A reference, on any device, to what the next step may change; of as many bytes as `dtype` and `shape` say."""

    def chunks(self) -> Iterator[memoryview]:
        yield self.data.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


Head = tuple[str, str, tuple[int, ...]]
"""Of a blob: its name, type and shape."""


class Blobs(Mapping[str, Blob]):
    """Blobs by name. Those with the same list of `heads` have data of the same types and shapes, too."""

    def __init__(self, heads: Sequence[Head], data: list[torch.Tensor]) -> None:
        """`data`: of each head."""
        self.heads = heads
        self.data = data

    @classmethod
    def of(cls, blobs: Mapping[str, Blob]) -> "Blobs":
        if isinstance(blobs, cls):
            return blobs
        heads = [(name, blob.dtype, blob.shape) for name, blob in blobs.items()]
        return cls(heads, [blob.data for blob in blobs.values()])

    def __getitem__(self, name: str) -> Blob:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _, _ in self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    @functools.cached_property
    def _found(self) -> dict[str, Blob]:
        """Made only if somebody asks: most snapshots need just the data."""
        items = zip(self.heads, self.data, strict=True)
        return {name: Blob(dtype, shape, data) for (name, dtype, shape), data in items}


class Kind(NamedTuple):
    """What tensors of one type, shape and place have in common."""

    tree: Mapping[str, Tree]
    """All but the name."""
    dtype: str
    """Of the stored data, as in a safetensors file."""
    shape: tuple[int, ...]
    """Of the stored data."""
    lazy: bool
    """Whether values are conjugated or negated when they are read."""
    device: str
    extent: int
    """Bytes from the first to the last; 0 without elements."""


class Encoder:
    """Encodes values; collects the raw data they refer to in `blobs`, by name.

    Training stands still meanwhile, so this is written for speed where values are many.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, Blob] = {}
        self.remarks: list[str] = []
        """What may not come back as it was, in sentences."""
        self.met: list[str] = []
        """The names of tensors and arrays, in order; of one that is met twice, twice."""
        self._names: dict[Hashable, str] = {}
        self._component: Hashable = None
        self._seen: dict[int, tuple[Any, Path | None]] = {}
        """Containers of the running component, by id; each kept alive, with its path once it is complete."""
        self._memory = SharedMemory()
        self._kinds: dict[Hashable, Kind] = {}

    def encode(self, value: Any, path: Path) -> Tree:
        """Returns the tree of `value`; raises StateNotEncodable."""
        if path[0] != self._component:  # sharing ends with a component: each is restored by itself
            self._component, self._seen, self._memory = path[0], {}, SharedMemory()
        kind = type(value)
        if kind is torch.Tensor:
            return self._tensor(value.detach() if value.requires_grad else value, path)
        if value is None or kind in (bool, str) or (kind is float and math.isfinite(value)):
            return value  # repr() of a float, which json uses, is exact
        if kind is int and abs(value) < INTEGER_LIMIT:
            return value
        if kind is not bytearray and (atom := ATOMS.get(kind)):
            return {"$": atom.name, "value": atom.write(value)}
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), path)
        if isinstance(value, np.generic) and value.dtype.str in ARRAY_DTYPES:
            return {"$": "scalar", "dtype": value.dtype.str, "value": value.tobytes().hex()}
        if kind in (tuple, frozenset, torch.Size):
            return self._container(value, path)
        return self._once(value, path)

    def _once(self, value: Any, path: Path) -> Tree:
        """Encodes what can be changed in place; where it is met again, only the place of the first time."""
        if len(path) > DEPTH_LIMIT:
            raise refusal(path[:3], f"nested more than {DEPTH_LIMIT} deep, or in itself")
        if seen := self._seen.get(id(value)):
            if seen[1] is None:
                raise refusal(path, "nested in itself")
            return {"$": "same", "place": steps(seen[1])}
        self._seen[id(value)] = (value, None)
        if type(value) is np.ndarray and value.dtype.str in ARRAY_DTYPES:
            tree = self._array(value, path)
        elif type(value) is bytearray:
            tree = {"$": "bytearray", "value": ATOMS[bytearray].write(value)}
        else:
            tree = self._container(value, path)
        self._seen[id(value)] = (value, path)
        return tree

    def _container(self, value: Any, path: Path) -> Tree:
        kind = type(value)
        if len(path) > DEPTH_LIMIT:
            raise refusal(path[:3], f"nested more than {DEPTH_LIMIT} deep, or in itself")
        if kind in (dict, OrderedDict, defaultdict, Counter):
            return self._mapping(value, path)
        if kind in (list, tuple, torch.Size, deque):
            if is_plain(value):
                items = list(value)
            else:
                items = [self.encode(item, (*path, index)) for index, item in enumerate(value)]
            if kind is list:
                return items
            return {"$": kind.__name__, "items": items, **({"maxlen": value.maxlen} if kind is deque else {})}
        if kind in (set, frozenset):
            if list(kind(list(value))) != list(value):
                self.remarks.append(
                    f"{place(path)}: the order of this {kind.__name__} comes from how it grew and shrank, and is not"
                    " restored: iterate over sorted(...) of it, or keep a dict"
                )
            return {"$": kind.__name__, "items": self._keys(value, path)}
        raise refusal(path, f"a {kind.__module__}.{kind.__qualname__} cannot be stored exactly: {describe(value)}")

    def _mapping(self, value: Mapping[Any, Any], path: Path) -> Tree:
        kind = type(value)
        if kind is dict and "$" not in value and set(map(type, value)) <= {str}:
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
        if type(value) is not torch.Tensor:
            raise refusal(path, f"a {type(value).__qualname__} of layout {value.layout}, on {value.device}")
        if value.layout is not torch.strided:
            if value.layout in SPARSE:
                return self._sparse(value, path)
            raise refusal(path, f"a tensor of layout {value.layout}: convert it with to_dense() or to_sparse()")
        key = (value.dtype, value.shape, value.stride(), value.device, value.is_conj(), value.is_neg())
        kind = self._kinds.get(key)
        if kind is None:
            if value.is_quantized or value.is_meta:
                raise refusal(path, f"a {type(value).__qualname__} of layout {value.layout}, on {value.device}")
            if not regular(value.shape, value.stride()) and overlapping(value.shape, value.stride()):
                raise refusal(path, f"elements of strides {value.stride()} overlap in memory: keep a clone() of it")
            kind = self._kinds[key] = described(value)
        begin = value.data_ptr()
        same = (begin, id(kind))  # the encoder keeps it
        name = self._names.get(same)
        if name is None:  # tied weights are stored once
            data = value.resolve_conj().resolve_neg() if kind.lazy else value
            name = self._names[same] = self._add(path, Blob(dtype=kind.dtype, shape=kind.shape, data=data))
        self.met.append(name)
        tree = {**kind.tree, "name": name}
        if kind.extent:
            storage = (value.untyped_storage().data_ptr(), kind.device)
            tree |= self._memory.relation(storage, begin, begin + kind.extent, same, name, path)
        return tree

    def _sparse(self, value: torch.Tensor, path: Path) -> Tree:
        parts = [
            self.encode(getattr(value, name)().detach(), (*path, name.strip("_")))
            for name in SPARSE[value.layout].parts
        ]
        tree: dict[str, Tree] = {
            "$": "sparse",
            "layout": SPARSE[value.layout].name,
            "shape": list(value.shape),
            "parts": parts,
        }
        return tree | ({"coalesced": value.is_coalesced()} if value.layout is torch.sparse_coo else {})

    def _array(self, value: np.ndarray[Any, Any], path: Path) -> Tree:
        data = torch.tensor(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        name = self._add(path, Blob(dtype=ARRAY_DTYPES[value.dtype.str], shape=value.shape, data=data))
        self.met.append(name)
        tree: dict[str, Tree] = {"$": "array", "dtype": value.dtype.str, "shape": list(value.shape), "name": name}
        strides = [stride // value.itemsize for stride in value.strides]
        if not regular(value.shape, strides):
            if any(stride % value.itemsize for stride in value.strides):
                raise refusal(path, f"strides {value.strides} are not those of whole elements: keep a copy() of it")
            tree["strides"] = strides
        if value.size:
            begin, end = np.lib.array_utils.byte_bounds(value)
            root = value
            while isinstance(root.base, np.ndarray):
                root = root.base
            self._memory.relation((root.ctypes.data, "cpu"), begin, end, id(value), None, path)
        return tree

    def _add(self, path: Path, blob: Blob) -> str:
        name = "/".join(map(str, path))
        while name in self.blobs:  # {"a": {"b": x}, "a/b": y}
            name += "'"
        self.blobs[name] = blob
        return name


def described(value: torch.Tensor) -> Kind:
    tree: dict[str, Tree] = {
        "$": "tensor",
        "dtype": ATOMS[torch.dtype].write(value.dtype),
        "shape": list(value.shape),
    }
    if value.device.type != "cpu":
        tree["device"] = str(value.device)
    if not regular(value.shape, value.stride()):
        tree["strides"] = list(value.stride())
    lazy = {flag: True for flag, is_set in (("conj", value.is_conj()), ("neg", value.is_neg())) if is_set}
    known = DTYPES.get(value.dtype)
    return Kind(
        tree=tree | lazy,
        dtype=known or "U8",
        shape=value.shape if known else (value.nbytes,),
        lazy=bool(lazy),
        device=str(value.device),
        extent=extent(value.shape, value.stride()) * value.element_size() if value.numel() else 0,
    )


def is_plain(values: Collection[Any]) -> bool:
    """Tells, quickly, whether values stand for themselves in a tree."""
    kinds = set(map(type, values))
    if not kinds <= {int, str, bool, NoneType}:
        return False
    return int not in kinds or (kinds <= {int, bool} and -INTEGER_LIMIT < min(values) <= max(values) < INTEGER_LIMIT)


class SharedMemory:
    """Which memory the tensors and arrays of a component lie in."""

    def __init__(self) -> None:
        self._found: dict[Hashable, list[tuple[int, int, Hashable, str | None, Path]]] = defaultdict(list)

    def relation(
        self, storage: Hashable, begin: int, end: int, identity: Hashable, name: str | None, path: Path
    ) -> dict[str, Tree]:
        """Returns how a tree says that its memory is part of that of another; empty: it is not.

        `identity` is equal for two that are the same tensor, `name` that of its data; None if it is an array. Raises
        StateNotEncodable if memory is shared in another way.
        """
        found = self._found[storage]
        for other_begin, other_end, other, other_name, other_path in found:
            if other == identity:
                return {}
            if begin < other_end and other_begin < end:
                if name and other_name and other_begin <= begin and end <= other_end:
                    return {"of": other_name, "offset": begin - other_begin}
                raise refusal(
                    path,
                    f"shares memory with {place(other_path)}, which begins or ends within it: keep a copy of it, or put"
                    " the larger one first",
                )
        found.append((begin, end, identity, name, path))
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseLayout:
    """What a sparse tensor is made of."""

    name: str
    parts: tuple[str, ...]
    """Methods that return its dense parts."""


SPARSE: Mapping[torch.layout, SparseLayout] = {
    torch.sparse_coo: SparseLayout(name="coo", parts=("_indices", "_values")),
    torch.sparse_csr: SparseLayout(name="csr", parts=("crow_indices", "col_indices", "values")),
}


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides, size = [], 1
    for length in reversed(shape):
        strides.append(size)
        size *= max(length, 1)
    return strides[::-1]


def regular(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tells whether strides, in elements, are those of a new tensor; without elements, all are alike."""
    return 0 in shape or list(strides) == contiguous_strides(shape)


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Returns how many elements lie from the first to the last, for strides that are not negative."""
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))


def overlapping(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tells whether two indices may mean one element, for another reason than a stride of 0."""
    dimensions = sorted(
        (stride, length) for length, stride in zip(shape, strides, strict=True) if length > 1 and stride
    )
    reach = 0
    for stride, length in dimensions:
        if stride <= reach:
            return True
        reach += stride * (length - 1)
    return False


class Decoder:
    """Decodes trees; every tensor and array it returns is a copy, shared with nothing outside the value."""

    def __init__(self, read: Callable[[str], torch.Tensor], device: torch.device) -> None:
        self._read = read
        """Returns the bytes of a name, as a flat tensor of torch.uint8."""
        self._device = device
        """Where tensors go that were not on a CPU."""
        self._places: dict[str, Any] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._taken: Mapping[str, torch.Tensor] = MappingProxyType({})

    def decode(self, tree: Tree, taken: Mapping[str, torch.Tensor] = MappingProxyType({})) -> Any:
        """Returns the value that `tree` was made from; raises SnapshotInvalid.

        `taken`: bytes of tensors by name, of which no copy needs to be made.
        """
        self._places, self._tensors, self._taken = {}, {}, taken
        try:
            return self._decode(tree, ("",))
        finally:
            self._places, self._tensors, self._taken = {}, {}, MappingProxyType({})

    def _decode(self, tree: Tree, path: Path) -> Any:
        if isinstance(tree, list):
            return self._kept([self._decode(item, (*path, index)) for index, item in enumerate(tree)], path)
        if not isinstance(tree, dict):
            return tree
        if "$" not in tree:
            return self._kept({key: self._decode(item, (*path, key)) for key, item in tree.items()}, path)
        try:
            return self._tagged(tree["$"], tree, path)
        except (KeyError, ValueError, TypeError, AttributeError, StopIteration, RuntimeError, struct.error) as error:
            raise SnapshotInvalid(f"cannot read back {describe(tree)}: {error}") from error

    def _kept(self, value: Any, path: Path) -> Any:
        """Remembers where a value is that can be changed in place: another may be the same."""
        self._places[steps(path)] = value
        return value

    def _tagged(self, tag: str, tree: Mapping[str, Tree], path: Path) -> Any:
        if atom := ATOMS_BY_NAME.get(tag):
            value = atom.read(tree["value"])
            return self._kept(value, path) if tag == "bytearray" else value
        if sequence := SEQUENCES.get(tag):
            value = sequence([self._decode(item, (*path, index)) for index, item in enumerate(tree["items"])])
            return self._kept(value, path) if tag == "set" else value
        match tag:
            case "same":
                return self._places[tree["place"]]
            case "tensor":
                return self._tensor(tree)
            case "sparse":
                return self._sparse(tree, path)
            case "array":
                return self._kept(self._array(tree), path)
            case "scalar":
                return np.frombuffer(bytes.fromhex(tree["value"]), np.dtype(tree["dtype"]))[0]
            case "deque":
                items = [self._decode(item, (*path, index)) for index, item in enumerate(tree["items"])]
                return self._kept(deque(items, tree["maxlen"]), path)
            case _:
                return self._kept(self._mapping(tag, tree, path), path)

    def _mapping(self, tag: str, tree: Mapping[str, Tree], path: Path) -> Any:
        keys = [self._decode(key, path) for key, _ in tree["items"]]
        items = {key: self._decode(value, (*path, key)) for key, (_, value) in zip(keys, tree["items"], strict=True)}
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
                    vars(ordered)["_metadata"] = OrderedDict(self._decode(tree["metadata"], (*path, "_metadata")))
                return ordered
            case _:
                raise SnapshotInvalid(f"unknown tag {tag!r}")

    def _tensor(self, tree: Mapping[str, Tree]) -> torch.Tensor:
        name, dtype = tree["name"], dtype_named(tree["dtype"])
        shape, strides = tree["shape"], tree.get("strides") or contiguous_strides(tree["shape"])
        if name in self._tensors and "of" not in tree:
            return self._tensors[name]
        taken = self._taken.get(name)
        data = self._read(name) if taken is None else taken
        if "of" in tree:
            whole = self._tensors[tree["of"]]
            start = whole.storage_offset() * whole.element_size() + tree["offset"]
            value = torch.empty(0, dtype=dtype, device=whole.device)
            value.set_(whole.untyped_storage(), start // dtype.itemsize, shape, strides)
        else:
            moved = "device" in tree and self._device.type != "cpu"
            value = (data if moved or taken is not None else data.clone()).view(dtype).reshape(shape)
            value = value.conj_physical() if "conj" in tree else value
            value = -value if "neg" in tree else value
            # What follows on the device's stream comes after the copy; the memory that is read stays as it is.
            value = value.to(self._device, non_blocking=True) if moved else value
            value = with_strides(value, strides) if "strides" in tree else value
        value = value.conj() if "conj" in tree else value
        value = torch._neg_view(value) if "neg" in tree else value  # noqa: SLF001  (no public way to set the bit)
        if "of" in tree and not torch.equal(raw(value), data.to(value.device)):
            raise ValueError(f"{name} is not part of {tree['of']}")
        self._tensors[name] = value
        return value

    def _sparse(self, tree: Mapping[str, Tree], path: Path) -> torch.Tensor:
        names = next(layout.parts for layout in SPARSE.values() if layout.name == tree["layout"])
        parts = [self._decode(part, (*path, name.strip("_"))) for name, part in zip(names, tree["parts"], strict=True)]
        if tree["layout"] == "csr":
            return torch.sparse_csr_tensor(parts[0], parts[1], parts[2], tree["shape"], check_invariants=True)
        value = torch.sparse_coo_tensor(parts[0], parts[1], tree["shape"], check_invariants=True)
        return value._coalesced_(tree["coalesced"])

    def _array(self, tree: Mapping[str, Tree]) -> np.ndarray[Any, Any]:
        data = self._read(tree["name"]).numpy().copy().view(np.dtype(tree["dtype"])).reshape(tree["shape"])
        if "strides" not in tree:
            return data
        shape, strides = tree["shape"], tree["strides"]
        first = sum((1 - length) * stride for length, stride in zip(shape, strides, strict=True) if stride < 0)
        memory = np.zeros(first + extent(shape, [max(stride, 0) for stride in strides]), data.dtype)
        value: np.ndarray[Any, Any] = np.ndarray(
            shape, data.dtype, memory, first * data.itemsize, [stride * data.itemsize for stride in strides]
        )
        value[...] = data
        return value


def tensors_in(tree: Tree) -> Iterator[tuple[str, bool]]:
    """Yields the names of a tree's tensors, and of those that they are part of, and whether a tensor has a copy of all.

    One that is part of another has none of its own, an array makes its own.
    """
    if isinstance(tree, list):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        tag = tree.get("$")
        if tag in ("tensor", "array"):
            yield tree["name"], tag == "tensor" and "of" not in tree
            if "of" in tree:
                yield tree["of"], False
        else:
            for item in tree.values():
                yield from tensors_in(item)


def raw(value: torch.Tensor) -> torch.Tensor:
    return value.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def with_strides(value: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """Returns a copy with these strides; those of 0 repeat one element."""
    shape = value.shape
    for dimension, stride in enumerate(strides):
        if stride == 0 and shape[dimension] > 1:
            value = value.narrow(dimension, 0, 1)
    made = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    return made.copy_(value).as_strided(shape, strides)


def describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def place(path: Path) -> str:
    """Returns a path as one would write it in Python."""
    return str(path[0]) + steps(path)


def steps(path: Path) -> str:
    """Returns how one gets from a component to a place in it."""
    return "".join(f"[{key!r}]" for key in path[1:])


def refusal(path: Path, why: str) -> StateNotEncodable:
    return StateNotEncodable(place(path), why)
