"""Values that user code may carry from one epoch to the next, tracked or not: where they are, and how they stand.

Local variables of the functions that run, variables of the user's modules, attributes of the user's objects, and what
containers, closures and iterators among them hold.
"""

import functools
import gc
import hashlib
import inspect
import itertools
import operator
import sys
import zlib
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from adjourn.training.loader import Loader
from adjourn.training.state.fields import OPAQUE, SCALARS, parts_of
from adjourn.training.state.generators import GENERATORS, access
from adjourn.training.state.liveness import overwritten
from adjourn.training.state.modules import qualified
from adjourn.training.state.origins import INSTALLED, Origin

OURS: Final = "adjourn."
EXAMPLES: Final = "adjourn.examples."
NOT_THE_USERS: Final = frozenset({"torch", "numpy", "adjourn", "builtins", "random", "functools", "itertools"})
REPORTING: Final = frozenset(
    {
        *("tqdm", "logging", "io", "csv", "threading", "argparse", "pathlib", "matplotlib", "rich", "tensorboard"),
        *("tensorboardX", "wandb", "mlflow", "comet_ml", "neptune", "aim", "clearml", "progressbar", "alive_progress"),
    }
)
"""Packages whose objects show how a training goes, and do not decide it."""
ASKING: Final = frozenset({"hasattr", "getattr", "__dict__", "vars"})
CONTAINERS: Final = (dict, list, tuple, deque, set, frozenset)
ITEM_LIMIT: Final = 1000
"""Of containers with more items, only their number and the items at both ends are compared."""
ENDS: Final = 8
VISIT_LIMIT: Final = 50_000
"""Values below one variable that are compared."""
DEPTH_LIMIT: Final = 10
BYTES_LIMIT: Final = 1 << 29
"""Of tensors and arrays in variables, so much is compared at one look; of the others, type and shape."""
CHUNK_WORDS: Final = 1 << 15
"""As much as a processor's cache holds, with the products."""
GPU_CHUNK_WORDS: Final = 1 << 22
ODD: Final = 0x9E3779B1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable, or an attribute of an object that is reached through one."""

    name: str
    """As code has it, and as `Run.ignore` takes it: `self.best`."""
    place: str
    """For people, and unlike that of any other: `attribute best of self in train`."""
    value: Any
    overwritten: bool = False
    """It is assigned before it is read, from here on."""
    saved: bool = False
    """It is part of a loader's state."""
    origins: tuple[Origin, ...] = ()
    """What has it, from the inside out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A call of user code that is under way."""

    function: str
    variables: Mapping[str, Any]
    globals: Mapping[str, Any]
    code: CodeType
    last: int
    """Offset of the instruction that it has come to."""

    @classmethod
    def of(cls, frame: FrameType) -> "Frame":
        code = frame.f_code
        found = cls(
            function=code.co_name,
            variables=dict(frame.f_locals),
            globals=frame.f_globals,
            code=code,
            last=frame.f_lasti,
        )
        if sys.version_info < (3, 13) and code.co_flags & inspect.CO_OPTIMIZED:
            frame.f_locals.clear()  # a copy that the frame would keep, and with it tensors of this epoch
        return found


def user_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Returns the frames of user code, from the innermost out: those between two of ours, without progress bars."""
    inside = False
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(OURS) or name.startswith(EXAMPLES):
            inside = True
            if name.partition(".")[0] not in REPORTING:
                yield frame
        elif inside:
            return
        frame = frame.f_back


def user_modules(frames: Iterable[Frame], code_directory: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Returns name and variables of the modules of user code: those of the frames, and all in the code's directory."""
    scopes = {id(frame.globals): frame.globals for frame in frames}
    below_code = code_directory.rstrip("/") + "/"  # a prefix: thousands of modules are looked at, at every boundary
    for module in list(sys.modules.values()) if code_directory else ():
        file = getattr(module, "__file__", None) if type(module) is ModuleType else None
        if isinstance(file, str) and file.startswith(below_code):
            scopes[id(vars(module))] = vars(module)
    for scope in scopes.values():
        yield str(scope.get("__name__")), scope


def variables(
    frames: list[Frame],
    code_directory: str,
    loaders: Iterable[Loader],
    hidden: Container[int],
    covered: Container[tuple[int, str]] = (),
    *,
    amid: bool = False,
) -> Iterator[Variable]:
    """Returns what user code may carry from one epoch to the next, without objects whose ids are `hidden`.

    Local variables, variables of modules, attributes of objects in these, and of the loaders' datasets. `covered`:
    attributes that are saved with a loader, each as the id of its owner and its name. `amid` an epoch a batch is asked
    for, and there is one: local variables that are assigned before they are read carry nothing, and are left out.
    """
    for frame in frames:
        for variable in local_variables(frame, amid=amid):
            yield from below(variable, f"in {frame.function}", hidden, covered, set())
    for module, scope in user_modules(frames, code_directory):
        for name in [name for name in scope if not name.startswith("__")]:
            place = f"variable {name} of module {module}"
            variable = Variable(name=name, place=place, value=scope[name], origins=((scope, name),))
            yield from below(variable, f"in module {module}", hidden, covered, set())
    for number, loader in enumerate(loaders):
        for kind, part in loader.parts.items():
            for place, item in parts_of(part, f"the {kind} of loader {number}"):
                if id(item) not in hidden:
                    for field, value in list(vars(item).items()):
                        yield Variable(
                            name=field,
                            place=f"attribute {field} of {place} ({qualified(type(item))})",
                            value=value,
                            saved=(id(item), field) in covered,
                            origins=((item, field), *holders(item, frames), *holders(loader, frames)),
                        )


def holders(subject: Any, frames: Iterable[Frame]) -> Iterator[Origin]:
    """Returns the local variables that are an object."""
    for frame in frames:
        for name, value in frame.variables.items():
            if value is subject:
                yield frame.code, name


def local_variables(frame: Frame, *, amid: bool) -> Iterator[Variable]:
    unread = overwritten(frame.code, frame.last, goes_on=amid)
    for name, value in frame.variables.items():
        if not (amid and name in unread):
            place = f"variable {name} of {frame.function}"
            yield Variable(
                name=name, place=place, value=value, overwritten=name in unread, origins=((frame.code, name),)
            )


def below(
    variable: Variable,
    where: str,
    hidden: Container[int],
    covered: Container[tuple[int, str]],
    seen: set[int],
    depth: int = 3,
) -> Iterator[Variable]:
    """Returns a variable; in place of an object of user code its attributes, and so on."""
    value = variable.value
    if id(value) in hidden or id(value) in seen:
        return
    if not depth or not is_users(value):
        yield variable
        return
    seen.add(id(value))
    for field, item in fields_of(value).items():
        name = f"{variable.name}.{field}"
        attribute = Variable(
            name=name,
            place=f"attribute {field} of {variable.name} {where}",
            value=item,
            saved=(id(value), field) in covered,
            origins=((value, field), *variable.origins),
        )
        yield from below(attribute, where, hidden, covered, seen, depth - 1)


def is_users(value: Any) -> bool:
    """Tells whether an object is of a class that may be the user's, and no module; of a class, whether it is."""
    kind = value if issubclass(type(value), type) else type(value)
    package = str(kind.__module__).partition(".")[0]
    if package in NOT_THE_USERS or package in REPORTING or issubclass(kind, (*OPAQUE, *CONTAINERS, nn.Module)):
        return False
    return kind is not value or is_of_user_code(kind)


def fields_of(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object or a class: those that are no code.

    An attribute whose default is the class's is there even while the object has none of its own. One that the class's
    code asks for by its name (`hasattr(self, "best")`) is there as None.
    """
    if isinstance(value, type):
        return {name: item for name, item in vars(value).items() if not name.startswith("__") and not is_code(item)}
    found: dict[str, Any] = {}
    for kind in reversed(type(value).__mro__):
        if not is_users(kind):
            continue
        for name, item in list(vars(kind).items()):
            if isinstance(item, FunctionType):
                if ASKING & set(item.__code__.co_names):
                    found |= dict.fromkeys(text for text in item.__code__.co_consts if isinstance(text, str))
            elif not name.startswith("__") and not is_code(item):
                found[name] = item
            elif inspect.ismemberdescriptor(item):  # of __slots__
                found[name] = getattr(value, name, None)
    return found | dict(getattr(value, "__dict__", {}))


def is_code(item: Any) -> bool:
    return callable(item) or hasattr(type(item), "__get__")


# How a value stands.


class Comparison:
    """Texts of values at one look. What is tracked, and what is not known, does not count."""

    def __init__(
        self,
        storages: Container[int],
        hidden: Container[int],
        covered: Container[tuple[int, str]] = (),
        *,
        objects: bool = False,
    ) -> None:
        """`objects`: modules and random generators count too."""
        self._objects = objects
        self._storages = storages
        self._hidden = hidden
        self._covered = covered
        self._bytes = BYTES_LIMIT
        self._sums: dict[int, tuple[Any, int]] = {}
        """Of large tensors and arrays, which many variables may have; each kept alive."""
        self._begin()

    def text(self, value: Any) -> str | None:
        """Returns a text that is equal for equal values; None: nothing in it can be compared."""
        self._begin()
        try:
            self._add(value, DEPTH_LIMIT)
        except Exception:  # noqa: BLE001  (it may be of any class, another thread may change it: training must go on)
            return None
        return self._hasher.hexdigest() if self._found else None

    def _begin(self) -> None:
        self._hasher = hashlib.blake2b(digest_size=16)
        self._found = False
        self._seen: set[int] = set()
        self._left = VISIT_LIMIT

    def _add(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind in SCALARS or issubclass(kind, str | int | float):
            self._text(f"{kind.__name__} {value!r}" if kind in SCALARS else f"{kind.__name__} {super_repr(value)}")
        elif kind in (bytes, bytearray):
            self._text(f"{len(value)} bytes")
            self._hasher.update(value[: 1 << 20])
        elif issubclass(kind, torch.Tensor):
            if is_strided(value) and value.untyped_storage().data_ptr() not in self._storages:
                self._data(value, f"{value.dtype} {tuple(value.shape)}", checksum)
        elif issubclass(kind, np.ndarray | np.generic):
            if not value.dtype.hasobject:
                self._data(value, f"{value.dtype} {value.shape}", array_checksum)
        elif depth and self._left and id(value) not in self._hidden and id(value) not in self._seen:
            self._seen.add(id(value))
            self._left -= 1
            for part in self._parts(kind, value):
                self._add(part, depth - 1)

    def _text(self, text: str) -> None:
        self._found = True
        self._hasher.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))

    def _data(self, value: Any, text: str, checksum: Callable[[Any], int]) -> None:
        if id(value) not in self._sums:
            if value.nbytes > self._bytes:
                return self._text(text)
            self._bytes -= value.nbytes
            self._sums[id(value)] = (value, checksum(value))
        return self._text(f"{text} {self._sums[id(value)][1]}")

    def _parts(self, kind: type, value: Any) -> Iterable[Any]:
        """Returns what of a value is to be compared in its place."""
        if issubclass(kind, dict):
            return self._items(list(value.items()))
        if issubclass(kind, CONTAINERS):
            return self._items(value) if not issubclass(kind, set | frozenset) else self._items(in_order(value))
        if self._objects and issubclass(kind, (nn.Module, *GENERATORS)):
            return self._state_of(value)
        if issubclass(kind, functools.partial):
            return [value.func, value.args, value.keywords]
        if kind is MethodType:
            return [value.__self__]
        if kind is FunctionType:
            return carried_by(value) if is_of_user_code(value) else []
        if issubclass(kind, Iterator) and kind.__module__ in ("builtins", "itertools"):
            return self._place_of(value)
        if not is_users(value):
            return []
        return [(name, item) for name, item in fields_of(value).items() if (id(value), name) not in self._covered]

    def _state_of(self, value: Any) -> Iterable[Any]:
        if isinstance(value, nn.Module):
            return self._items([*value.named_parameters(), *value.named_buffers()])
        return [access(value)[0]()]

    def _place_of(self, iterator: Any) -> list[Any]:
        """Returns what tells how far an iterator has come."""
        if isinstance(iterator, GeneratorType):
            if iterator.gi_running or is_ours(iterator.gi_frame):
                return []
            return ["generator", *([frame.f_lasti, frame.f_locals] if (frame := iterator.gi_frame) else ())]
        if type(iterator) in (itertools.count, itertools.repeat):
            return [repr(iterator)]
        return [type(iterator).__name__, operator.length_hint(iterator, -1), gc.get_referents(iterator)]

    def _items(self, items: Any) -> Iterable[Any]:
        if items or not self._found:
            self._text(f"{len(items)} items")
        if len(items) <= ITEM_LIMIT:
            return list(items)
        return [items[index] for index in (*range(ENDS), *range(-ENDS, 0))]


def in_order(values: Collection[Any]) -> list[str]:
    return sorted(map(repr, values)) if len(values) <= ITEM_LIMIT else []


def carried_by(function: FunctionType) -> list[Any]:
    """Returns what a function keeps between its calls."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if has_content(cell)]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), vars(function)]


def super_repr(value: Any) -> str:
    """Returns the value of an object of a subclass of str, int or float: its own repr() may be anything."""
    return next(base.__repr__(value) for base in (str, int, float) if isinstance(value, base))


def has_content(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def is_ours(frame: FrameType | None) -> bool:
    name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return name.startswith(OURS) and not name.startswith(EXAMPLES)


def is_of_user_code(code: Any) -> bool:
    """Tells whether a function or class is in no installed package and not Python's own."""
    name = str(getattr(code, "__module__", ""))
    if name.startswith(EXAMPLES) or name == "__main__":
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and not file.startswith(INSTALLED) and not name.startswith(OURS)


def is_strided(tensor: torch.Tensor) -> bool:
    return not (tensor.is_meta or tensor.is_quantized) and tensor.layout is torch.strided


def array_checksum(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def checksum(tensor: torch.Tensor) -> int:
    """Returns a sum over the bits of a tensor, computed where it lies: cheap, and another after any update."""
    if not is_strided(tensor):
        return 0
    raw = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    whole = len(raw) // 8 * 8
    # Mixed with their places and multiplied, so that neither bits nor words which swap places cancel out. In chunks:
    # the products take memory too.
    words = raw[:whole].view(torch.int64).split(CHUNK_WORDS if tensor.is_cpu else GPU_CHUNK_WORDS)
    places = torch.arange(len(words[0]), device=tensor.device) * ODD
    sums = [
        ((chunk ^ places[: len(chunk)]) * ODD ^ chunk >> 29).sum() * (2 * number + 1)
        for number, chunk in enumerate(words)
    ]
    rest = (raw[whole:].long() << 8 * torch.arange(len(raw) - whole, device=tensor.device)).sum()
    return int(torch.stack([rest, *sums]).sum().item())
