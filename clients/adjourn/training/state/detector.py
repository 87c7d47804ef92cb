"""Finds what decides how a training goes on, and is in no snapshot, while the training still runs.

Two looks are compared: one when the first epoch begins, one at the end of an epoch. What changed in between, and is not
reached by what is tracked, is found. What did not change is a constant: a frozen teacher, a loss, a generator that was
used once to split the data.

Some of it is certain to be missing in a resumed run: optimizers, schedulers, modules and random generators that
changed. Of the rest (variables, objects that were made within the epoch) only the code knows whether it is used again:
it lowers the verdict of a resume, and the training goes on.
"""

import gc
import inspect
import multiprocessing
import random
import sys
import weakref
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from adjourn.snapshots import component_digest
from adjourn.training.early_stopping import EarlyStopping
from adjourn.training.errors import StateNotEncodable, UntrackedState
from adjourn.training.loader import Fetcher, Loader, Probes
from adjourn.training.state.codec import Encoder
from adjourn.training.state.components import Component
from adjourn.training.state.generators import GENERATORS, access
from adjourn.training.state.modules import PARALLEL, attributes, objects, qualified

ALWAYS: Final = (Optimizer, LRScheduler, torch.amp.GradScaler, EarlyStopping)
"""What has a state that matters even if the first epoch did not change it."""
OPAQUE: Final = (type, ModuleType, FunctionType, MethodType, CodeType, FrameType, str, bytes, int, float, torch.Tensor)
"""What is not looked into for objects that a tracked one reaches."""
OURS: Final = "adjourn."
EXAMPLES: Final = "adjourn.examples."
LEAVES: Final = (FunctionType, CodeType, type, torch.Tensor, nn.Parameter)
"""Types of objects that are not searched for generators."""
ITEM_LIMIT: Final = 1000
"""Of containers with more items, only their number is compared."""
BYTES_LIMIT: Final = 1 << 28
"""Tensors and arrays with more bytes are not compared when they are variables."""
CHUNK_WORDS: Final = 1 << 22
ODD: Final = 0x9E3779B1
REACH_LIMIT: Final = 1_000_000

State = Mapping[str, Component]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that a resumed run would not have, or not as it was."""

    what: str
    """Its type, or what it is."""
    where: str
    """A variable, attribute or item that refers to it."""
    advice: str
    certain: bool
    """A resumed run is sure to differ; otherwise only the code knows."""

    def __str__(self) -> str:
        return f"{self.what} {self.where}: {self.advice}"


class Detector:
    """Looks at a training process from its first line on."""

    def __init__(self, own: Sequence[Any] = ()) -> None:
        """Remembers what libraries made before user code ran; what `own` refers to is ours, and never found."""
        self._before = [item for item in gc.get_objects() if is_kind(item)]
        self._known = {id(item) for item in (*self._before, *library_generators())}
        self._own = own
        self._ignored: list[tuple[Any, str]] = []
        self._objects: dict[int, tuple[weakref.ref[Any] | None, str]] = {}
        self._variables: dict[str, str] = {}
        self._bound: set[tuple[str, str]] = set()
        self._newest = Look(objects={}, variables={}, frames=[])

    @property
    def accepted(self) -> list[str]:
        """Sentences on what user code left out on purpose."""
        return [
            f"{subject if isinstance(subject, str) else qualified(type(subject))} is ignored: {reason}"
            for subject, reason in self._ignored
        ]

    def ignore(self, subject: Any, reason: str) -> None:
        """Leaves an object, or a variable by its name, out of what is found."""
        self._ignored.append((subject, reason))

    def begin(self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None) -> None:
        """Takes the first look, when the first epoch begins; `frame` is that of the caller."""
        look = self._look(tracked, loaders, frame)
        self._objects = {key: (weak(seen.subject), seen.text) for key, seen in look.objects.items()}
        self._variables = {place: seen.text for place, seen in look.variables.items()}
        self._bound = {(frame.function, name) for frame in look.frames for name in frame.variables}

    def findings(self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None) -> list[Finding]:
        """Returns what is found at the end of an epoch, certain ones first; `begin` came before."""
        found = self._findings(tracked, loaders, frame)
        if any(finding.certain for finding in found):
            gc.collect()  # something may be garbage that refers to itself
            found = self._findings(tracked, loaders, frame)
        for key, seen in self._newest.objects.items():  # what this epoch made is compared from here on
            if self._earlier(key, seen) is None:
                self._objects[key] = (weak(seen.subject), seen.text)
        self._newest = Look(objects={}, variables={}, frames=[])
        return found

    def _begins_anew(self, subject: Any, frames: "list[Frame]") -> bool:
        """Tells whether a new object is in nothing but local variables that had no value when the first epoch began.

        They have none in a resumed run either: its code assigns to them before it reads them, or fails.
        """
        places = []
        for frame in frames:  # no inner functions here: their cells would be holders
            for name, value in frame.variables.items():
                if value is subject:
                    places.append((frame.function, name))
        ours = {id(frame.variables) for frame in frames}
        for holder in gc.get_referrers(subject):
            if not isinstance(holder, FrameType | Seen) and id(holder) not in ours:
                return False
        return bool(places) and self._bound.isdisjoint(places)

    def _earlier(self, key: int, seen: "Seen") -> str | None:
        """Returns how the object stood at an earlier look; None: it was not there."""
        reference, text = self._objects.get(key, (None, None))
        return None if reference is not None and reference() is not seen.subject else text

    def refuse(self, found: Sequence[Finding]) -> None:
        """Raises UntrackedState if some of what was found is certain."""
        certain = [str(finding) for finding in found if finding.certain]
        if certain:
            raise UntrackedState("\n".join(["a resumed run would not be the same:", *certain]))

    def _findings(self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None) -> list[Finding]:
        look = self._newest = self._look(tracked, loaders, frame)
        found = list(self._compared(look))
        for number, loader in enumerate(loaders):
            if loader.open_passes and not loader.may_be_kept and not self._ignores(loader):
                found.append(
                    Finding(
                        what="an iterator over",
                        where=f"loader {number}",
                        advice="has batches left at the end of the epoch; a resumed run begins it anew",
                        certain=False,
                    )
                )
        return sorted(found, key=lambda finding: (not finding.certain, str(finding)))

    def _ignores(self, subject: Any) -> bool:
        return any(subject is ignored for ignored, _ in self._ignored)

    def _look(self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None) -> "Look":
        frames = [Frame.of(each) for each in user_frames(frame)]
        live = self._live(frames)
        hidden = reached(tracked)
        for subject in (*self._own, *(subject for subject, _ in self._ignored)):
            hidden |= below(subject)
        roots = [item for item in live if id(item) not in hidden]
        inner = {
            id(part) for item in roots if isinstance(item, nn.Module) for part in item.modules() if part is not item
        }
        names = {subject for subject, _ in self._ignored if isinstance(subject, str)}
        storages = tracked_storages(tracked)
        return Look(
            objects={id(item): Seen(item, text_of(item, storages)) for item in roots if id(item) not in inner},
            variables={
                place: Seen(value, text)
                for place, name, value in variables(frames, loaders, hidden)
                if name not in names and id(value) not in hidden and (text := plain_text(value, storages)) is not None
            },
            frames=frames,
        )

    def _live(self, frames: "list[Frame]") -> list[Any]:
        objects = gc.get_objects()
        found = {id(item): item for item in objects if is_kind(item)}
        for holder in (*objects, *(frame.variables for frame in frames)):
            if type(holder) in LEAVES:
                continue
            for item in gc.get_referents(holder):  # torch's generators are not known to gc themselves
                if type(item) is torch.Generator:
                    found[id(item)] = item
        found |= {id(item): item for frame in frames for item in frame.variables.values() if is_kind(item)}
        return [item for key, item in found.items() if key not in self._known]

    def _compared(self, look: "Look") -> Iterator[Finding]:
        for key, seen in look.objects.items():
            before = self._earlier(key, seen)
            if before is not None or not self._begins_anew(seen.subject, look.frames):
                yield from judged(seen, before, look.frames)
        for place, seen in look.variables.items():
            if self._variables.get(place, seen.text) != seen.text:
                yield Finding(
                    what="the value of",
                    where=place,
                    advice="changed in training and is not tracked. If a later epoch uses it: keep it in a dict and"
                    " run.track that",
                    certain=False,
                )
        workers = {worker.pid for item in gc.get_objects() for worker in workers_of(item)}
        for child in multiprocessing.active_children():
            if child.pid not in workers:
                yield Finding(
                    what="the process",
                    where=child.name,
                    advice="outlives the epoch; what it holds is not saved",
                    certain=False,
                )


@dataclass(frozen=True, slots=True)
class Seen:
    """An object at one look."""

    subject: Any
    text: str
    """Equal for equal states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A call of user code that is under way."""

    function: str
    place: str
    """File and line."""
    variables: Mapping[str, Any]
    globals: Mapping[str, Any]

    @classmethod
    def of(cls, frame: FrameType) -> "Frame":
        code = frame.f_code
        found = cls(
            function=code.co_name,
            place=f"{code.co_filename}:{frame.f_lineno}",
            variables=dict(frame.f_locals),
            globals=frame.f_globals,
        )
        if sys.version_info < (3, 13) and code.co_flags & inspect.CO_OPTIMIZED:
            frame.f_locals.clear()  # a copy that the frame would keep, and with it tensors of this epoch
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is live and not tracked, at one moment."""

    objects: Mapping[int, Seen]
    variables: Mapping[str, Seen]
    frames: list[Frame]


def weak(subject: Any) -> "weakref.ref[Any] | None":
    try:
        return weakref.ref(subject)
    except TypeError:  # NumPy's generators
        return None


def workers_of(item: Any) -> Sequence[Any]:
    # By its type: isinstance() asks an object for its class, and some of torch's warn when they are asked for anything.
    return getattr(item, "_workers", ()) if issubclass(type(item), _BaseDataLoaderIter) else ()


def judged(seen: Seen, before: str | None, frames: list[Frame]) -> Iterator[Finding]:
    """Returns what there is to say of a live object that is not tracked; `before`: its state at the first look."""
    subject = seen.subject
    kind = qualified(type(subject))
    changed = before is not None and before != seen.text
    if isinstance(subject, torch.amp.GradScaler) and not subject.is_enabled():
        return
    if isinstance(subject, GENERATORS) and is_of_the_library(subject):
        return
    if isinstance(subject, PARALLEL):
        yield finding(seen, kind, frames, "is not supported yet: train on one GPU", certain=True)
    elif isinstance(subject, DataLoader):
        if not isinstance(subject.dataset, Fetcher) and subject.num_workers and subject.persistent_workers:
            advice = "keeps its workers, and so their random draws, across epochs: use run.loader"
            yield finding(seen, kind, frames, advice, certain=True)
    elif isinstance(subject, _BaseDataLoaderIter):
        advice = "is still iterated over when the epoch ends: a resumed run begins anew. Use run.loader"
        ended = subject._num_yielded >= len(subject)  # noqa: SLF001
        if not ended and not isinstance(subject._dataset, Fetcher | Probes):  # noqa: SLF001
            yield finding(seen, kind, frames, advice, certain=before is not None)
    elif changed or isinstance(subject, ALWAYS):
        name = variable_name(subject, frames) or "it"
        advice = (
            f"is not tracked, so a resumed run would begin with a new one: run.track({name}=...), or"
            ' run.ignore(it, reason="...") if it does not matter'
        )
        yield finding(seen, kind, frames, advice, certain=True)
    elif before is None and seen.text != EMPTY:
        advice = "was made in this epoch and is not tracked. If a later epoch uses it: make it before, and run.track it"
        yield finding(seen, kind, frames, advice, certain=False)


def finding(seen: Seen, kind: str, frames: list[Frame], advice: str, *, certain: bool) -> Finding:
    return Finding(what=f"a {kind}", where=located(seen.subject, frames), advice=advice, certain=certain)


# What is live.


def is_kind(item: Any) -> bool:
    """Tells whether an object is of a kind that may hold state."""
    kind = type(item)
    known = KINDS.get(kind)
    if known is None:
        known = KINDS[kind] = issubclass(kind, (*ALWAYS, *GENERATORS, nn.Module, DataLoader, _BaseDataLoaderIter)) or (
            callable(getattr(kind, "state_dict", None)) and callable(getattr(kind, "load_state_dict", None))
        )
    return known


KINDS: Final[dict[type, bool]] = {}


def library_generators() -> list[Any]:
    """Returns the global generators, which are saved anyway."""
    found = [torch.default_generator, random._inst, np.random.mtrand._rand]  # noqa: SLF001
    return [*found, *torch.cuda.default_generators]


def reached(tracked: State) -> set[int]:
    """Returns the ids of all that the state of tracked objects covers."""
    found: set[int] = set()
    for item in tracked.values():
        subject = item.subject
        found.add(id(subject))
        match subject:
            case nn.Module():
                found |= {id(part) for part in subject.modules()}
                found |= {id(value) for _, value in objects(subject)}  # the module says it if they change
                found |= {
                    id(value)
                    for part in subject.modules()
                    for value in vars(part).values()
                    if isinstance(value, GENERATORS)
                }
            case LRScheduler():
                inner = [*vars(subject).get("_schedulers", ()), *vars(subject).get("_milestones", ())]
                found |= {id(part) for part in inner}
            case _ if type(subject).__module__.startswith("torch.") or isinstance(subject, GENERATORS):
                pass
            case _:  # of the user's own: its state_dict() is trusted to cover what it holds
                found |= below(subject)
    return found


def below(subject: Any) -> set[int]:
    """Returns the ids of all that an object refers to, however far."""
    found: set[int] = set()
    waiting = [subject]
    while waiting and len(found) < REACH_LIMIT:
        item = waiting.pop()
        if id(item) in found or isinstance(item, OPAQUE):
            continue
        found.add(id(item))
        waiting.extend(gc.get_referents(item))
    return found


def tracked_storages(tracked: State) -> set[int]:
    """Returns where the memory of tracked parameters, buffers and values begins."""
    found = set()
    for item in tracked.values():
        subject = item.subject
        tensors: Iterable[torch.Tensor] = ()
        if isinstance(subject, nn.Module):
            tensors = [*subject.parameters(), *subject.buffers()]
        elif isinstance(subject, torch.Tensor):
            tensors = [subject]
        found |= {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor.is_meta}
    return found


# How it stands.

EMPTY: Final = "nothing"
"""The text of what holds no state."""


def text_of(item: Any, storages: set[int]) -> str:
    """Returns a text that is equal for equal states of an object."""
    match item:
        case nn.Module():
            own: dict[str, Any] = {
                name: checksum(tensor)
                for name, tensor in (*item.named_parameters(), *item.named_buffers())
                if tensor.untyped_storage().data_ptr() not in storages
            }
            own |= {place: digest(value) or 0 for place, value, text in attributes(item) if text is None}
            return repr(own) if own else EMPTY
        case DataLoader() | _BaseDataLoaderIter():
            return "an iterable"
        case _ if isinstance(item, GENERATORS):
            return digest(access(item)[0]()) or EMPTY
        case _ if isinstance(item, ALWAYS):
            return "state"
    try:
        return digest(item.state_dict()) or EMPTY
    except Exception:  # noqa: BLE001  (a state_dict() is anyone's, and may raise anything)
        return EMPTY


def checksum(tensor: torch.Tensor) -> int:
    """Returns a sum over the bits of a tensor, computed where it lies: cheap, and another after any update."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided:
        return 0
    raw = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    whole = len(raw) // 8 * 8
    total = int(raw[whole:].sum().item())
    for words in raw[:whole].view(torch.int64).split(CHUNK_WORDS):  # the products take as much memory as the words
        total += int((words * ODD ^ words >> 29).sum().item())  # so that bits which swap places do not cancel out
    return total


def digest(value: Any) -> str | None:
    """Returns the digest of a value; None: it cannot be encoded."""
    encoder = Encoder()
    try:
        tree = encoder.encode(value, ("it",))
    except (StateNotEncodable, RuntimeError):  # or another thread changes it meanwhile
        return None
    return component_digest(tree, lambda blob: encoder.blobs[blob].chunks())


def plain_text(value: Any, storages: set[int]) -> str | None:
    """Returns a text that is equal for equal values; None: it is no plain value, too large, or tracked."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.nbytes > BYTES_LIMIT or value.layout is not torch.strided:
            return None
        if value.untyped_storage().data_ptr() in storages or isinstance(value, nn.Parameter):
            return None
        return str(checksum(value))
    if isinstance(value, np.ndarray) and value.nbytes > BYTES_LIMIT:
        return None
    if isinstance(value, list | dict | set | tuple | frozenset | str | bytes | bytearray) and len(value) > ITEM_LIMIT:
        return f"{len(value)} items"
    return digest(value)


# Where it is.


def user_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Returns the frames of user code, from the innermost out: those between two of ours."""
    inside = False
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(OURS) or name.startswith(EXAMPLES):
            inside = True
            yield frame
        elif inside:
            return
        frame = frame.f_back


def variables(frames: list[Frame], loaders: Iterable[Loader], hidden: Container[int]) -> Iterator[tuple[str, str, Any]]:
    """Returns place, name and value of what user code may carry from one epoch to the next.

    Local variables of the functions that run, variables of their modules, attributes of objects in local variables, and
    of the loaders' datasets. Not looked into: objects whose ids are `hidden`.
    """
    for frame in frames:
        for name, value in frame.variables.items():
            yield f"variable {name} of {frame.function}", name, value
            if is_users(value) and id(value) not in hidden:
                for field, item in list(vars(value).items()):
                    yield f"attribute {field} of {name} in {frame.function}", f"{name}.{field}", item
    for scope in {id(frame.globals): frame.globals for frame in frames}.values():
        for name in [name for name in scope if not name.startswith("__")]:
            yield f"variable {name} of module {scope.get('__name__')}", name, scope[name]
    for number, loader in enumerate(loaders):
        for place, item in datasets(loader.dataset, f"the dataset of loader {number}"):
            yield from ((f"attribute {field} of {place}", field, value) for field, value in list(vars(item).items()))


def datasets(dataset: Any, place: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Returns a dataset, and objects that it is made of."""
    if depth and hasattr(dataset, "__dict__") and not isinstance(dataset, (*OPAQUE, nn.Module)):
        yield f"{place} ({qualified(type(dataset))})", dataset
        for name, value in list(vars(dataset).items()):
            yield from datasets(value, f"{place}.{name}", depth - 1)


def is_users(value: Any) -> bool:
    """Tells whether an object is of a class of user code, and no module."""
    kind = type(value).__module__.partition(".")[0]
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (*OPAQUE, nn.Module))
        and kind not in {"torch", "numpy", "adjourn", "builtins", "random"}
    )


def variable_name(subject: Any, frames: list[Frame]) -> str | None:
    """Returns the name of a variable that is the object."""
    for frame in frames:
        for scope in (frame.variables, frame.globals):
            for name, value in list(scope.items()):
                if value is subject:
                    return name
    return None


def located(subject: Any, frames: list[Frame]) -> str:
    """Returns where an object is: the line that made it is not known."""
    for frame in frames:
        for name, value in frame.variables.items():
            if value is subject:
                return f"in variable {name} of {frame.function} ({frame.place})"
    for owner, name in owners(subject):
        if isinstance(owner, ModuleType):
            return f"in variable {name} of module {owner.__name__}"
        return f"in attribute {name} of a {qualified(type(owner))}"
    return "in a container or an inner function of user code"


def owners(subject: Any) -> Iterator[tuple[Any, str]]:
    """Returns objects and modules that have the subject as an attribute, and its name there."""
    for holder in gc.get_referrers(subject):
        candidates = gc.get_referrers(holder) if isinstance(holder, dict) else [holder]
        for owner in candidates:
            attributes_of = getattr(owner, "__dict__", None)
            if isinstance(attributes_of, dict) and (attributes_of is holder or owner is holder):
                for name, value in list(attributes_of.items()):
                    if value is subject:
                        yield owner, name


def is_of_the_library(subject: Any) -> bool:
    """Tells whether an object belongs to Python's own library (`tempfile` draws names)."""
    return any(
        (owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__).partition(".")[0]
        in sys.stdlib_module_names - {"builtins", "__main__"}
        for owner, _ in owners(subject)
    )
