"""Rehearses a resume while the training still runs: a snapshot is loaded into copies of the tracked objects.

A resumed run builds its objects as in a new run, tracks them, and loads the snapshot. So the copies are made when
objects are tracked, before anything is loaded, and the rehearsal goes through the code of a resume. The copies take
next to no memory until then: their parameters and buffers have a shape and no values. For the rehearsal they lie on the
CPU and are filled with NaN, so that a value which is not restored is seen.
"""

import copy
import gc
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from adjourn.snapshots import Tree, component_digest, dumps
from adjourn.training.errors import RestoreDiverged, StateNotRestorable
from adjourn.training.events import log_line
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.state.codec import Blob
from adjourn.training.state.components import Component, component
from adjourn.training.state.generators import generator_states, restore_generator
from adjourn.training.state.registry import State
from adjourn.training.state.values import is_value

COPY_LIMIT_BYTES = 1 << 30
"""Of what tracked objects hold beside parameters and buffers. A trainer may hold its data set: that is not copied."""
COPY_LIMIT_OBJECTS = 1 << 20
MEMORY_FACTOR = 2.5
"""Memory that must be available for a rehearsal, in sizes of the state: it is decoded, and loaded into the copies."""

V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes")


class CopyTooLarge(Exception):
    """A copy of a tracked object would take more memory than a rehearsal is worth."""


class CopyMemo(dict[int, Any]):
    """The memo of `copy.deepcopy`, which sees every object that is copied. Ends a copy that grows too large."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    def substitute(self, original: object, substitute: object) -> None:
        """Has `substitute` stand for `original` in the copy; it does not count."""
        super().__setitem__(id(original), substitute)

    def __setitem__(self, key: int, value: Any) -> None:
        super().__setitem__(key, value)
        if isinstance(value, torch.Tensor | np.ndarray):
            self._bytes += value.nbytes
        if self._bytes > COPY_LIMIT_BYTES or len(self) > COPY_LIMIT_OBJECTS:
            raise CopyTooLarge(f"it holds over {COPY_LIMIT_BYTES >> 20} MiB, or a million objects, beside its tensors")


class StandIn:
    """Stands for an object that cannot be copied: gives back what it was given, decoded and encoded again."""

    def __init__(self) -> None:
        self._state: Any = None

    def state_dict(self) -> Any:
        return self._state

    def load_state_dict(self, state: Any) -> None:
        self._state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A tensor without values, in a copy; `strides` are those of the original."""

    tensor: torch.Tensor
    strides: tuple[int, ...]

    def filled(self) -> torch.Tensor:
        """Returns a tensor of that shape on the CPU, filled with NaN, or with zeros where there is none."""
        shape, dtype = self.tensor.shape, self.tensor.dtype
        filled = torch.empty_strided(shape, self.strides, dtype=dtype)
        filled.fill_(torch.nan if dtype.is_floating_point or dtype.is_complex else 0)
        return like(self.tensor, filled)


class RoundTrip:
    """Copies of the tracked objects, as a resumed run will build them, and the rehearsal with them."""

    def __init__(self, data: Callable[[], Any]) -> None:
        """`data` returns the component with the place in the data."""
        self._data = data
        self._additions: list[dict[str, Any]] = []
        """Copies of what each call of `track` added, by name."""
        self._customised: set[str] = set()
        """Names of objects whose types have a say in how they are copied: the copy may lack something."""
        self._outlines: dict[int, Outline] = {}
        self._before: dict[str, Mapping[str, str] | None] = {}
        """By name, what the components know of modules that were tracked before they were copied."""
        self._memo = CopyMemo()
        self._originals: list[object] = []
        """Keeps the ids in the memo from being given to other objects."""

    def prepare(self, subjects: Mapping[str, Any]) -> None:
        """Copies objects that are about to be tracked. Call it before they are restored."""
        tensors = [tensor for subject in subjects.values() for tensor in tensors_of(subject)]
        objects = {id(tensor): tensor for tensor in tensors}.values()
        plain = [tensor for tensor in objects if is_plain(tensor)]
        users = Counter(tensor.untyped_storage().data_ptr() for tensor in plain)
        for tensor in plain:
            # What shares memory is really copied: that it is shared is part of the state.
            storage = tensor.untyped_storage()
            if not tensor.numel() or (storage.nbytes() == tensor.nbytes and users[storage.data_ptr()] == 1):
                self._outline(tensor)
        added = {}
        for name, subject in subjects.items():
            try:
                added[name] = copied(subject, self._memo)
            except Exception as error:  # noqa: BLE001  (any object may refuse to be copied, in any way)
                added[name] = self._unproven(name, f"it cannot be copied ({type(error).__name__}: {error})")
            if customises_copying(subject):
                self._customised.add(name)
        self._additions.append(added)

    def discard(self) -> None:
        """Forgets what was prepared last: it is not tracked after all."""
        self._additions.pop()

    def renew(self, tracked: Mapping[str, Component], changed: Container[str]) -> None:
        """Copies all that is tracked anew, as it is now: by then a resumed run will have built it so, too.

        Such a run has optimizers without a state then. A value that has kept its name, which is not among the `changed`
        ones, is not copied again: that may be a replay memory, full by now.
        """
        subjects = {name: item.subject for name, item in tracked.items()}
        self._before = {name: item.before for name, item in tracked.items()}
        before = {name: each for added in self._additions for name, each in added.items()}
        self._additions.clear()
        self._outlines.clear()
        self.seal()
        values = {name for name in before if name in subjects and name not in changed and is_value(subjects[name])}
        for subject in subjects.values():
            for part in (subject, *getattr(subject, "__dict__", {}).values()):
                if isinstance(part, Optimizer):
                    self._memo.substitute(part.state, defaultdict(dict))
        self.prepare({name: subject for name, subject in subjects.items() if name not in values})
        self._additions[-1] |= {name: before[name] for name in values}
        self.seal()

    def seal(self) -> None:
        """Lets go of the live objects: everything has been tracked."""
        self._memo = CopyMemo()
        self._originals.clear()

    def check(
        self, directory: Path, trees: Mapping[str, Tree], blobs: Mapping[str, Blob], live: Mapping[str, str]
    ) -> None:
        """Loads the snapshot in `directory` into copies; compares what they are then with the live state.

        `trees` and `blobs` are the live state, `live` its digests. Random generators are restored too, to the state in
        which they are. Raises StateNotRestorable.
        """
        size = sum(blob.data.nbytes for blob in blobs.values())
        available = available_memory()
        if available is not None and available < MEMORY_FACTOR * size:
            log_line(
                f"a resume was not rehearsed: the state takes {size >> 20} MiB, and only {available >> 20} MiB of"
                " memory are available"
            )
            return
        generators = generator_states()
        try:
            difference = self._rehearse(directory, trees, blobs, live)
            while difference and self._replace_broken_copies():
                difference = self._rehearse(directory, trees, blobs, live)
        finally:
            for name, state in generators.items():
                restore_generator(name, state)
            gc.collect()  # the copies of modules and optimizers refer to each other
        if difference:
            # A load_state_dict() that is a closure over the live object has loaded into that.
            raise StateNotRestorable(difference, damaged=digests(trees, blobs) != dict(live))

    def _rehearse(
        self, directory: Path, trees: Mapping[str, Tree], blobs: Mapping[str, Blob], live: Mapping[str, str]
    ) -> str | None:
        """Does what a resumed run does; returns what would be wrong with it."""
        state = State(self._data, SnapshotReader(directory, torch.device("cpu")), before=self._before)
        try:
            for added in self._filled():
                state.add(added)
            state.complete()
            state.compare(live)
        except RestoreDiverged as error:
            again, blobs_again = state.encode()
            comparison = Comparison(saved=blobs, restored=blobs_again)
            found = first(comparison.difference(trees.get(name), again.get(name), name) for name in error.components)
            return found or str(error)
        except Exception as error:  # noqa: BLE001  (load_state_dict() is anyone's, and may raise anything)
            return str(error) or type(error).__name__
        return None

    def _replace_broken_copies(self) -> bool:
        """Replaces copies that do not even take the state that they have; returns whether there were any.

        Only of types that customise how they are copied. Any other object's copy does what the object would do.
        """
        replaced = False
        for added, filled in zip(self._additions, self._filled(), strict=True):
            for name in self._customised & filled.keys():
                try:
                    item = component(name, filled[name])
                    item.load(item.state())
                except Exception as error:  # noqa: BLE001  (as above)
                    added[name] = self._unproven(name, f"its copy does not work ({type(error).__name__}: {error})")
                    self._customised.discard(name)
                    replaced = True
        return replaced

    def _unproven(self, name: str, why: str) -> StandIn:
        log_line(
            f"{name}: {why}. So it is not proven that the object takes its state in a resumed run; that the state is"
            " stored exactly will be"
        )
        return StandIn()

    def _outline(self, tensor: torch.Tensor) -> None:
        if id(tensor) in self._memo:
            return
        outline = like(tensor, torch.empty((), dtype=tensor.dtype).expand(tensor.shape))
        self._originals.append(tensor)
        self._memo.substitute(tensor, outline)
        self._outlines[id(outline)] = Outline(tensor=outline, strides=tensor.stride())

    def _filled(self) -> list[dict[str, Any]]:
        """Returns copies of the copies, whose tensors have memory."""
        memo: dict[int, Any] = {name: outline.filled() for name, outline in self._outlines.items()}
        return [{name: copied(subject, memo) for name, subject in added.items()} for added in self._additions]


def tensors_of(subject: Any) -> Iterator[torch.Tensor]:
    """Yields the parameters and buffers that belong to an object or to one of its attributes."""
    for part in (subject, *getattr(subject, "__dict__", {}).values()):
        if isinstance(part, nn.Module):
            yield from part.parameters()
            yield from part.buffers()
        elif isinstance(part, Optimizer):
            for group in part.param_groups:
                yield from group["params"]


def is_plain(tensor: torch.Tensor) -> bool:
    """Tells whether type, shape and strides are all that a tensor needs to be made anew before it is loaded."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.is_leaf
        and not (tensor.is_quantized or tensor.is_meta)
    )


def like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Returns `data` as what `tensor` is: a parameter or not, frozen or not, with its plain attributes."""
    result: torch.Tensor
    if isinstance(tensor, nn.Parameter):
        result = nn.Parameter(data, requires_grad=tensor.requires_grad)
    else:
        result = data.requires_grad_(tensor.requires_grad)
    plain = {name: value for name, value in vars(tensor).items() if isinstance(value, bool | int | float | str)}
    vars(result).update(plain)
    return result


def copied(subject: Any, memo: dict[int, Any]) -> Any:
    """Returns a deep copy; raises whatever the object does."""
    if isinstance(subject, torch.Generator):
        generator = torch.Generator(subject.device)
        return generator.set_state(subject.get_state())
    result = copy.deepcopy(subject, memo)
    if isinstance(subject, Optimizer):  # it pickles itself without the attributes of subclasses
        for name, value in vars(subject).items():
            if name not in vars(result) and not callable(value):
                vars(result)[name] = copy.deepcopy(value, memo)
    return result


def customises_copying(subject: Any) -> bool:
    kind = type(subject)
    names = ("__deepcopy__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__")
    standard = (object, nn.Module, Optimizer)
    return not any(all(getattr(kind, name, None) == getattr(base, name, None) for name in names) for base in standard)


def available_memory(root: Path = Path("/")) -> int | None:
    """Returns the bytes that this process may still take, of the machine's memory and its cgroup's; None: unknown."""
    machine = counters(root / "proc/meminfo").get("MemAvailable:")
    found = [] if machine is None else [machine << 10]
    for line in lines(root / "proc/self/cgroup"):
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit, usage = ("memory.max", "memory.current") if not controllers else V1_FILES
        mounted = root / "sys/fs/cgroup" / controllers
        # In a container, the path is that of the host, and what is mounted is the container's own.
        for group in (mounted / place.lstrip("/"), mounted):
            numbers = [text for name in (limit, usage) for text in lines(group / name)]
            if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                reclaimable = counters(group / "memory.stat").get("inactive_file", 0)
                found.append(int(numbers[0]) - int(numbers[1]) + reclaimable)
                break
    return min(found, default=None)


def counters(path: Path) -> dict[str, int]:
    """Returns the numbers of a file of the kernel by the words before them."""
    return {words[0]: int(words[1]) for words in map(str.split, lines(path)) if len(words) > 1 and words[1].isdigit()}


def lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def digests(trees: Mapping[str, Tree], blobs: Mapping[str, Blob]) -> dict[str, str]:
    """Returns the digest of each live component, as `snapshots.component_digests` of a snapshot of it."""
    return {name: component_digest(tree, lambda blob: blobs[blob].chunks()) for name, tree in trees.items()}


class Structures:
    """Tells by a digest what must change in a state before its round trip has to be repeated.

    That is the place, type and shape of each tensor, and the optimizers' groups of parameters. Plain values are not in
    it: a list of losses may grow with each epoch. A part of a tree that is the same object is not looked at again.
    """

    DEPTH = 2
    """Of the parts of a component that are remembered."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Tree, Mapping[str, tuple[Tree, list[str]]]]] = {}
        """By component its last tree, and of that parts by path, with what is told of each."""
        self._digest = ""

    def digest(self, trees: Mapping[str, Tree]) -> str:
        before, self._known = self._known, {}
        changed = before.keys() != trees.keys()
        for name, tree in trees.items():
            known, told = before.get(name, (None, {}))
            if name not in before or known is not tree:
                newly = dict(self._told(f"/{name}", tree, told))
                changed = changed or lines_of(newly) != lines_of(told)
                told = newly
            self._known[name] = (tree, told)
        if changed or not self._digest:
            found = [part for _, told in self._known.values() for part in told.values()]
            lines = sorted(line for _, told_of in found for line in told_of)
            self._digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._digest

    def _told(
        self, place: str, tree: Tree, told: Mapping[str, tuple[Tree, list[str]]]
    ) -> Iterator[tuple[str, tuple[Tree, list[str]]]]:
        for path, node in parts(tree, place, self.DEPTH):
            known = told.get(path)
            yield path, known if known is not None and known[0] is node else (node, list(outline(node, path)))


def lines_of(told: Mapping[str, tuple[Tree, list[str]]]) -> dict[str, list[str]]:
    return {path: lines for path, (_, lines) in told.items()}


def parts(node: Tree, path: str, depth: int) -> Iterator[tuple[str, Tree]]:
    """Yields the lists and mappings that lie so deep in a tree, and tensors above them, with their paths."""
    if depth and isinstance(node, dict) and not is_data(node):
        for key, item in node.items():
            yield from parts(item, f"{path}/{key}", depth - 1)
    elif isinstance(node, dict | list):
        yield path, node


def outline(node: Tree, path: str) -> Iterator[str]:
    """Yields what a structure is, of a part of a tree."""
    if isinstance(node, list):
        if path.endswith("/param_groups"):
            yield f"{path} {[len(group['params']) for group in node]}"
        for index, item in enumerate(node):
            yield from outline(item, f"{path}/{index}")
    elif isinstance(node, dict):
        if is_data(node):
            yield f"{path} {node['dtype']} {node['shape']}"
        else:
            for key, item in node.items():
                yield from outline(item, f"{path}/{key}")


def is_data(node: Mapping[str, Tree]) -> bool:
    return node.get("$") in ("tensor", "array")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Finds where the encoded state that comes back differs from the one that was saved."""

    saved: Mapping[str, Blob]
    restored: Mapping[str, Blob]

    def difference(self, a: Tree, b: Tree, path: str) -> str | None:
        """Returns the first place below `path` where tree `b`, which comes back, is not as `a`; None: nowhere."""
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return f"{path}: {len(a)} items are saved, {len(b)} come back"
            return first(
                self.difference(x, y, f"{path}[{index}]") for index, (x, y) in enumerate(zip(a, b, strict=True))
            )
        if isinstance(a, dict) and isinstance(b, dict) and a.get("$") == b.get("$"):
            tensors = a.get("$") in ("tensor", "array")
            return self._tensors(a, b, path) if tensors else self._mappings(entries(a), entries(b), path)
        return None if type(a) is type(b) and a == b else f"{path}: {brief(a)} is saved, {brief(b)} comes back"

    def _mappings(self, a: Mapping[str, Tree], b: Mapping[str, Tree], path: str) -> str | None:
        if a.keys() != b.keys():
            key = min(a.keys() ^ b.keys())
            return f"{path}[{key}]: {'saved, but does not come back' if key in a else 'comes back, but is not saved'}"
        return first(self.difference(a[key], b[key], f"{path}[{key}]") for key in a)

    def _tensors(self, a: Mapping[str, Tree], b: Mapping[str, Tree], path: str) -> str | None:
        if (a["dtype"], a["shape"]) != (b["dtype"], b["shape"]):
            return f"{path}: {a['dtype']} of shape {a['shape']} is saved, {b['dtype']} of {b['shape']} comes back"
        for key in sorted((a.keys() | b.keys()) - {"name", "device", "of"}):
            if a.get(key) != b.get(key):
                return f"{path}: {key} {a.get(key)} is saved, {key} {b.get(key)} comes back"
        same = b"".join(self.saved[a["name"]].chunks()) == b"".join(self.restored[b["name"]].chunks())
        return None if same else f"{path}: other values come back than are saved"


def entries(tree: Mapping[str, Tree]) -> dict[str, Tree]:
    """Returns the parts of a tree by what stands in brackets after its path."""
    if tree.get("$") in ("dict", "OrderedDict", "defaultdict", "Counter"):
        return {dumps(key): value for key, value in tree["items"]}
    if "$" in tree and isinstance(tree.get("items"), list):
        return {str(index): item for index, item in enumerate(tree["items"])}
    return {repr(key): value for key, value in tree.items() if "$" not in tree or key != "$"}


def first(differences: Iterator[str | None]) -> str | None:
    return next((difference for difference in differences if difference), None)


def brief(tree: Tree) -> str:
    text = repr(tree)
    return text if len(text) <= 80 else f"{text[:80]}..."
