"""What a snapshot directory holds, read without torch, and the digests that say whether two states are the same bits.

`tensors.safetensors` has the raw tensors: a little-endian 8-byte header length, a JSON header, the data. `state.json`
has everything else as trees: JSON, with objects tagged by `$` for what JSON lacks; a tensor is
`{"$": "tensor", "name", "dtype", "shape"}`, by its name in the other file. The format of the tensors is that of
https://github.com/huggingface/safetensors; nothing in either file is ever executed.
"""

import hashlib
import json
import math
import operator
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from blake3 import blake3

T = TypeVar("T")

TENSORS = "tensors.safetensors"
STATE = "state.json"
IN_USE = "in-use"
"""While this file is there, the snapshot is the agent's; once it is gone, training may write over it."""

FORMAT = 2
"""Grows whenever a snapshot of an earlier version would not be restored as it was: such a snapshot is refused."""
HEADER_LIMIT = 100_000_000
"""Longest header, in bytes; that of the safetensors library."""
HEADER_ALIGNMENT = 4096
"""Headers are padded to pages, so that data keeps its place when a header grows a little."""
CHUNK = 1 << 20

ITEM_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
"""Bytes of one element, by safetensors' name of the type."""

Tree = Any
"""JSON value; objects with a key `$` stand for what JSON lacks."""
Chunks = Callable[[str], Iterable[bytes | memoryview]]
"""Returns the bytes of the tensor of a name, row by row, in pieces of any size."""


class SnapshotInvalid(ValueError):
    """The directory does not hold a snapshot that can be read; the message says what is wrong, and in which file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a tensor lies in `tensors.safetensors`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file."""
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`state.json`."""

    components: Mapping[str, Tree]
    environment: Mapping[str, str]
    progress: Mapping[str, Any]
    """An adjourn.v1.Progress in proto3 JSON."""
    standing: Mapping[str, str] = field(default_factory=dict)
    """Amid an epoch: how what is in no component stood, a text for each place, equal for equal values."""
    remarks: Sequence[str] = ()
    """What had changed in training and may not come back as it was, a sentence each."""
    drilled: bool | None = None
    """Whether a drill of the job came to the same bits; None: it is not known."""
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Which data the run has had, by the URI that it asked for: fields of an adjourn.internal.v1.DataIdentity."""


def layout(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Entry]]:
    """Returns the first bytes of a tensors file, and where each tensor goes, for (name, type, shape) of each."""
    # Wide elements first: every tensor is then aligned to its own width, whatever stands before it.
    ordered = sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor[1]])
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    entries: dict[str, Entry] = {}
    offset = 0
    for name, dtype, shape in ordered:
        end = offset + ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        entries[name] = Entry(dtype=dtype, shape=tuple(shape), begin=offset, end=end)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    start = -(-(8 + len(text)) // HEADER_ALIGNMENT) * HEADER_ALIGNMENT
    head = struct.pack("<Q", start - 8) + text.ljust(start - 8)
    return head, {
        name: Entry(dtype=entry.dtype, shape=entry.shape, begin=start + entry.begin, end=start + entry.end)
        for name, entry in entries.items()
    }


def read_layout(path: Path) -> dict[str, Entry]:
    """Returns where each tensor of a file lies; raises SnapshotInvalid if header and file do not fit together."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise SnapshotInvalid(f"{path.name}: a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {name: read_entry(name, value, 8 + length) for name, value in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotInvalid(f"{path.name}: {error}") from error
    expected = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != expected:
            raise SnapshotInvalid(f"{path.name}: {name} begins at byte {entry.begin}, not at {expected}")
        expected = entry.end
    if expected != size:
        raise SnapshotInvalid(f"{path.name}: tensors end at byte {expected} of {size}")
    return entries


def read_entry(name: str, value: Mapping[str, Any], data: int) -> Entry:
    begin, end = map(int, value["data_offsets"])
    shape = tuple(map(int, value["shape"]))
    dtype = value["dtype"]
    if any(size < 0 for size in shape) or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise SnapshotInvalid(f"{name}: bytes {begin} to {end} cannot be {dtype} of shape {shape}")
    return Entry(dtype=dtype, shape=shape, begin=data + begin, end=data + end)


def read_state(directory: Path) -> State:
    """Returns what `state.json` says; raises SnapshotInvalid."""
    try:
        document = json.loads((directory / STATE).read_bytes())
        version = document["format"]
        if version == FORMAT:
            return State(
                components=dict(document["components"]),
                environment=dict(document["environment"]),
                progress=dict(document["progress"]),
                remarks=tuple(document.get("remarks", ())),
                standing=dict(document.get("standing", {})),
                drilled=document.get("drilled"),
                sources=dict(document.get("sources", {})),
            )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotInvalid(f"{STATE}: {error!r}") from error
    raise SnapshotInvalid(f"{STATE}: format {version!r}; this version reads {FORMAT}")


def canonical(tree: Tree) -> tuple[bytes, list[str]]:
    """Returns a text that is equal for equal trees, and the names of their tensors in its order.

    Mappings are sorted, since a state that was loaded may have its keys in another order and still be the same state;
    an OrderedDict keeps its order. The name and the device of a tensor do not count. Its strides do, and whether it is
    the same as an earlier one, or part of it.
    """
    names: list[str] = []
    first: dict[str, int] = {}

    def walk(node: Tree) -> Tree:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        match node.get("$"):
            case "tensor" | "array":
                names.append(node["name"])
                earlier = first.setdefault(node["name"], len(names))
                text = {key: value for key, value in node.items() if key not in ("name", "device", "of")}
                if "of" in node:
                    text["of"] = first.get(node["of"], 0)
                return text if earlier == len(names) else {**text, "same": earlier}
            case "set" | "frozenset":
                return {**node, "items": sorted(node["items"], key=dumps)}
            case "dict" | "defaultdict" | "Counter":
                items = sorted(node["items"], key=lambda item: dumps(item[0]))
                return {**node, "items": [[key, walk(value)] for key, value in items]}
            case _:
                return {key: walk(node[key]) for key in sorted(node)}

    return dumps(walk(tree)).encode(), names


def dumps(tree: Tree) -> str:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def component_digest(tree: Tree, chunks: Chunks) -> str:
    """Returns the SHA-256, hex, of a component: its canonical text, then the bytes of its tensors."""
    text, names = canonical(tree)
    hasher = hashlib.sha256(text)
    for name in names:
        for chunk in chunks(name):
            hasher.update(chunk)
    return hasher.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a component consisted of when its digest was taken, in a form that others are quickly compared with."""

    digest: str
    text: bytes
    """Its canonical text."""
    tensors: Sequence[bytes]
    """BLAKE3 of the bytes of each tensor, in the order of the text: four times as fast as SHA-256."""

    @classmethod
    def of(cls, tree: Tree, chunks: Chunks) -> "Content":
        """Takes digest and content from the same bytes; `chunks` as for `component_digest`."""
        text, names = canonical(tree)
        whole, tensors = hashlib.sha256(text), []
        for name in names:
            part = blake3()
            for chunk in chunks(name):
                whole.update(chunk)
                part.update(chunk)
            tensors.append(part.digest())
        return cls(digest=whole.hexdigest(), text=text, tensors=tensors)

    def is_of(self, tree: Tree, chunks: Chunks) -> bool:
        """Tells whether another component consists of the same: then it has the same digest."""
        text, names = canonical(tree)
        return text == self.text and all(map(operator.eq, self.tensors, map(tensor_digest, map(chunks, names))))


def tensor_digest(chunks: Iterable[bytes | memoryview]) -> bytes:
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def component_digests(directory: Path) -> dict[str, str]:
    """Returns the digest of each component of a snapshot; raises SnapshotInvalid.

    Reads the whole of it, a mebibyte at a time: not for an event loop.
    """
    state, entries = read_state(directory), read_layout(directory / TENSORS)
    return {name: of_stored(component_digest, tree, directory, entries) for name, tree in state.components.items()}


def of_stored(make: Callable[[Tree, Chunks], T], tree: Tree, directory: Path, entries: Mapping[str, Entry]) -> T:
    """Returns what `make` makes of a component and the bytes of its tensors, as they are read; raises SnapshotInvalid.

    `entries`: where tensors lie in the snapshot's file.
    """
    try:
        with (directory / TENSORS).open("rb") as file:

            def chunks(name: str) -> Iterator[bytes]:
                entry = entries[name]
                file.seek(entry.begin)
                for position in range(entry.begin, entry.end, CHUNK):
                    chunk = file.read(min(CHUNK, entry.end - position))
                    if not chunk:
                        raise SnapshotInvalid(f"{TENSORS}: ends inside {name}")
                    yield chunk

            return make(tree, chunks)
    except (OSError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotInvalid(f"{STATE}: {error!r}") from error


def state_digest(digests: Mapping[str, str]) -> str:
    """Returns the BLAKE3, hex, over the components' digests by name: one value for a whole state."""
    return blake3("".join(f"{name}={digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
