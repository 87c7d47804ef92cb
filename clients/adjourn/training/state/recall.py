"""Encodes a state that has the structure of the last one by comparing it with that, and not anew.

Training stands still while its state is encoded, and from one snapshot to the next little of what that takes changes:
where tensors are, of which type and shape, what shares memory with what. So a component is first read in outline. If
the outline is the one that was encoded the last time, so is the tree, but for plain values that have changed. What an
outline cannot tell (sets, views, containers that are met twice, types of the encoder's that are rare) is encoded anew.
"""

import copy
import operator
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

import numpy as np
import torch
from torch._C._dynamo.guards import TensorGuards
from torch.nn import Parameter

from adjourn.snapshots import Tree
from adjourn.training.state.codec import ARRAY_DTYPES, Blob, Blobs, Encoder, Head, Path, extent

PLAIN: Final = frozenset({str, int, bool, NoneType, bytes, torch.dtype, torch.device})
METADATA: Final = "_metadata"
MEMBERS: Final = frozenset({str, int, bool, NoneType})
"""Kinds of values that stand for themselves in a list, however many they are."""
KEY: Final[Callable[[torch.Tensor], tuple[Any, ...]]] = operator.attrgetter("dtype", "shape", "device", "layout")
REQUIRES_GRAD: Final[Callable[[torch.Tensor], bool]] = operator.attrgetter("requires_grad")
TENSORS: Final = frozenset({torch.Tensor})
Place = tuple[Path, tuple[Any, ...]]
"""Where a value is: keys and indices that lead to it in the state, and those in its tree."""


class Unlike(Exception):
    """A value of a kind that outlines do not tell."""


class Outline:
    """What a component consists of, read quickly: equal outlines have equal trees, but for names."""

    __slots__ = ("_seen", "exact", "leaves", "structure", "values")

    def __init__(self, state: Any) -> None:
        """Raises Unlike."""
        self.structure: list[Any] = []
        """Types, keys, lengths."""
        self.values: list[Any] = []
        """Those that stand for themselves in a tree."""
        self.exact: list[Any] = []
        """The same, of the running moment, in a form that is equal for the same bits only."""
        self.leaves: list[torch.Tensor] = []
        """The raw data of tensors and arrays, by reference."""
        self._seen: set[int] = set()
        self._read(state)

    def _read(self, value: Any) -> None:
        kind = type(value)
        if kind is torch.Tensor or kind is Parameter:
            self.structure.append(torch.Tensor)
            self.leaves.append(value.detach() if value.requires_grad or kind is Parameter else value)
        elif kind in PLAIN:
            self.structure.append(kind)
            self.values.append(value)
            self.exact.append(value)
        elif kind is float:
            self.structure.append(kind)
            self.values.append(value)
            self.exact.append(struct.pack("d", value))
        elif kind is dict or kind is OrderedDict:
            self._read_mapping(kind, value)
        elif kind is list or kind is tuple:
            self._read_sequence(kind, value)
        elif kind is np.ndarray:
            self._read_array(value)
        else:
            raise Unlike(kind)

    def _read_mapping(self, kind: type, value: Any) -> None:
        self._meet(value)
        keys = tuple(value)
        if not (kinds := set(map(type, keys))) <= {str} and kinds != {int}:
            raise Unlike(kinds)
        self.structure += (kind, keys)
        items = value.values()
        if set(map(type, items)) == TENSORS:  # most dicts of a state: all at once
            self.structure.append(torch.Tensor)
            self.leaves += map(torch.Tensor.detach, items) if any(map(REQUIRES_GRAD, items)) else items
        else:
            for item in items:
                self._read(item)
        if kind is OrderedDict and (metadata := getattr(value, METADATA, None)):
            self.structure.append(METADATA)
            self._read(metadata)

    def _read_sequence(self, kind: type, value: Any) -> None:
        if kind is list:
            self._meet(value)
        if (kinds := set(map(type, value))) <= MEMBERS:
            self.structure.append((kind, len(value)))
            self.values.append(value)
            self.exact.append((tuple(value), kinds if len(kinds) < 2 else tuple(map(type, value))))
        else:
            self.structure.append((kind, len(value), None))
            for item in value:
                self._read(item)

    def _read_array(self, value: np.ndarray[Any, Any]) -> None:
        self._meet(value)
        flags = value.flags
        if value.dtype.str not in ARRAY_DTYPES or not (flags.c_contiguous and flags.writeable):
            raise Unlike(value.dtype)
        self.structure.append((np.ndarray, value.dtype.str, value.shape, value.strides))
        self.leaves.append(torch.from_numpy(value.reshape(-1).view(np.uint8)))

    def _meet(self, value: Any) -> None:
        """Raises Unlike for what is met again: in the tree, only its place is written then."""
        if id(value) in self._seen:
            raise Unlike(type(value))
        self._seen.add(id(value))


def outlined(state: Any) -> Outline | None:
    try:
        return Outline(state)
    except Unlike:
        return None


def places(value: Any, path: Path, at: tuple[Any, ...] = ()) -> Iterator[Place]:
    """Yields where the values of an outline are, in its order."""
    kind = type(value)
    if kind in PLAIN or kind is float:
        yield path, at
    elif kind is dict or kind is OrderedDict:
        plain = kind is dict and "$" not in value and set(map(type, value)) <= {str}
        for index, (key, item) in enumerate(value.items()):
            yield from places(item, (*path, key), (*at, key) if plain else (*at, "items", index, 1))
        if kind is OrderedDict and (metadata := getattr(value, METADATA, None)):
            yield from places(dict(metadata), (*path, METADATA), (*at, "metadata"))
    elif kind is list or kind is tuple:
        if set(map(type, value)) <= MEMBERS:
            yield path, at
        else:
            inner = at if kind is list else (*at, "items")
            for index, item in enumerate(value):
                yield from places(item, (*path, index), (*inner, index))


def replaced(tree: Tree, changes: Sequence[tuple[tuple[Any, ...], Tree]]) -> Tree:
    """Returns a tree with other values in places of it; what does not change, both trees share."""
    copies: dict[tuple[Any, ...], Any] = {(): copy.copy(tree)}
    for at, value in changes:
        if not at:
            return value
        node = copies[()]
        for depth, step in enumerate(at[:-1], 1):
            if at[:depth] not in copies:
                copies[at[:depth]] = node[step] = copy.copy(node[step])
            node = node[step]
        node[at[-1]] = value
    return copies[()]


class Known:
    """A component as it was encoded the last time. Holds no tensor."""

    def __init__(self, name: str, tree: Tree, outline: Outline, blobs: Sequence[tuple[str, Blob]]) -> None:
        """`blobs`: name and data of each leaf."""
        self._name = name
        self._tree = tree
        self._structure = outline.structure
        self._exact = outline.exact
        self._keys = list(map(KEY, outline.leaves))
        self._strides = list(map(torch.Tensor.stride, outline.leaves))
        self._are_alike = guard(outline.leaves)
        self._places: list[Place] | None = None
        self.heads = [(name, blob.dtype, blob.shape) for name, blob in blobs]
        """Name, type and shape of each blob."""
        self.extents = [
            extent(leaf.shape, leaf.stride()) * leaf.element_size() if leaf.numel() else 0 for leaf in outline.leaves
        ]
        """Bytes of each leaf, from the first to the last."""
        self.kinds: list[Hashable] = list(zip(self._keys, self._strides, strict=True))

    def fits(self, outline: Outline) -> bool:
        """Tells whether a component has this structure, and its tensors are of the same types and shapes."""
        leaves = outline.leaves
        return outline.structure == self._structure and (
            self._are_alike(*leaves)
            or (
                list(map(KEY, leaves)) == self._keys
                and list(map(torch.Tensor.stride, leaves)) == self._strides
                and not is_lazy(leaves)
            )
        )

    def tree(self, state: Any, outline: Outline) -> Tree:
        """Returns the tree of a component that fits; raises StateNotEncodable."""
        if outline.exact != self._exact:
            if self._places is None:
                self._places = list(places(state, (self._name,)))
            found = zip(self._places, outline.values, outline.exact, self._exact, strict=True)
            changes = [(at, Encoder().encode(value, path)) for (path, at), value, new, old in found if new != old]
            self._tree, self._exact = replaced(self._tree, changes), outline.exact
        return self._tree


def guard(leaves: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """Returns what tells quickly that other tensors have the types, shapes, strides and devices of these.

    It may deny that they have, if modes of torch are others (autocast).
    """
    if not leaves or not is_dense(leaves):
        return lambda *_: False
    sizes: list[Any] = [list(leaf.shape) for leaf in leaves]
    strides: list[Any] = [list(leaf.stride()) for leaf in leaves]
    # What torch.compile asks before it runs code that it has made.
    return TensorGuards(*leaves, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check


def is_lazy(leaves: Sequence[torch.Tensor]) -> bool:
    """Tells whether values of tensors are conjugated or negated when they are read."""
    return any(map(torch.Tensor.is_conj, leaves)) or any(map(torch.Tensor.is_neg, leaves))


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded state."""

    trees: dict[str, Tree]
    """By component."""
    blobs: Blobs
    remarks: list[str]
    """As the encoder's."""


class Recall:
    """Encodes states of a run, one after another."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        """In the order in which they were encoded; all that have tensors, or none."""
        self._pattern: list[int] | None = None
        """Of the leaves of all of them: see `pattern`."""
        self._heads: list[Head] = []
        """Of the blobs of all of them."""
        self._pointers: list[int] = []
        """Where the leaves lay, in memory that they do not share but as the pattern says."""

    def encode(self, states: Mapping[str, Any]) -> Encoded:
        """Returns what an `Encoder` returns for these components; raises StateNotEncodable.

        Trees may share parts with those of earlier calls: nobody may change one.
        """
        outlines = {name: outlined(state) for name, state in states.items()}
        return self._recalled(states, outlines) or self._encoded(states, outlines)

    def _recalled(self, states: Mapping[str, Any], outlines: Mapping[str, Outline | None]) -> Encoded | None:
        trees: dict[str, Tree] = {}
        remarks: list[str] = []
        here: list[str] = []
        leaves: list[torch.Tensor] = []
        for name, state in states.items():
            known, outline = self._known.get(name), outlines[name]
            if known and outline and known.fits(outline):
                trees[name] = known.tree(state, outline)
                if outline.leaves:
                    here.append(name)
                    leaves += outline.leaves
                continue
            encoder = Encoder()
            trees[name] = encoder.encode(state, (name,))
            if encoder.blobs or (known and known.heads):
                return None
            remarks += encoder.remarks
            if outline:
                self._known[name] = Known(name, trees[name], outline, [])
        if here != [name for name, known in self._known.items() if known.heads]:
            return None
        known_here = [self._known[name] for name in here]
        pointers = list(map(torch.Tensor.data_ptr, leaves))
        if pointers != self._pointers:
            apart, found = pattern(pointers, known_here)
            if not apart or found != self._pattern:
                return None
            self._pointers = pointers
        blobs = Blobs(self._heads, leaves)
        return Encoded(trees, blobs if self._pattern is None else Blobs.of(dict(blobs)), remarks)

    def _encoded(self, states: Mapping[str, Any], outlines: Mapping[str, Outline | None]) -> Encoded:
        self._known, self._heads = {}, []
        encoder = Encoder()
        trees: dict[str, Tree] = {}
        names: dict[str, list[str]] = {}
        for name, state in states.items():
            met = len(encoder.met)
            trees[name] = encoder.encode(state, (name,))
            names[name] = encoder.met[met:]
        self._learn(trees, outlines, names, encoder.blobs)
        return Encoded(trees, Blobs.of(encoder.blobs), encoder.remarks)

    def _learn(
        self,
        trees: Mapping[str, Tree],
        outlines: Mapping[str, Outline | None],
        names: Mapping[str, Sequence[str]],
        blobs: Mapping[str, Blob],
    ) -> None:
        found: dict[str, Known] = {}
        leaves: list[torch.Tensor] = []
        for name, tree in trees.items():
            outline = outlines[name]
            if outline is None or not is_dense(outline.leaves) or len(names[name]) != len(outline.leaves):
                if names[name]:
                    return
                continue
            found[name] = Known(name, tree, outline, [(each, blobs[each]) for each in names[name]])
            leaves += outline.leaves
        self._pointers = list(map(torch.Tensor.data_ptr, leaves))
        apart, self._pattern = pattern(self._pointers, list(found.values()))
        if apart:
            self._known = found
            self._heads = [head for known in found.values() for head in known.heads]


def is_dense(leaves: Sequence[torch.Tensor]) -> bool:
    return all(leaf.layout is torch.strided for leaf in leaves) and not is_lazy(leaves)


def pattern(pointers: Sequence[int], known: Sequence[Known]) -> tuple[bool, list[int] | None]:
    """Returns whether leaves share no memory, unless they are the same, and which are; None: no two are.

    Of each, the number of the first that it is the same as: of the same kind, at the same place.
    """
    extents = [size for each in known for size in each.extents]
    ends = list(map(operator.add, pointers, extents))
    if len(set(pointers)) == len(pointers):
        return are_apart(list(zip(pointers, ends, strict=True))), None
    kinds = [kind for each in known for kind in each.kinds]
    numbers: dict[Hashable, int] = {}
    found = [numbers.setdefault(same, number) for number, same in enumerate(zip(pointers, kinds, strict=True))]
    distinct = [number for number, first in enumerate(found) if number == first and extents[number]]
    return are_apart([(pointers[number], ends[number]) for number in distinct]), found


def are_apart(stretches: list[tuple[int, int]]) -> bool:
    """Tells whether no two stretches of memory overlap."""
    stretches.sort()
    begins, ends = zip(*stretches, strict=True) if stretches else ((), ())
    return all(map(operator.le, ends, begins[1:]))
