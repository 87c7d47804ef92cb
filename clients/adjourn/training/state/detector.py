"""Finds what decides how a training goes on, and is in no snapshot, while the training still runs.

Two looks are compared: one when the first epoch begins, one at the end of an epoch. What changed in between, and is not
reached by what is tracked, is found. What did not change is a constant: a frozen teacher, a loss, a generator that was
used once to split the data.

Some of it is certain to be missing in a resumed run: optimizers, schedulers, modules and random generators that
changed. Of the rest (variables, objects that were made within the epoch) only the code knows whether it is used again:
it lowers the verdict of a resume, and the training goes on.
"""

import ctypes
import gc
import itertools
import multiprocessing
import random
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CellType, FrameType, GeneratorType, ModuleType
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
from adjourn.training.fetching import Fetcher, Reader, generators_of, state_of
from adjourn.training.loader import Loader, Pass
from adjourn.training.probes import Probes
from adjourn.training.state.codec import Encoder
from adjourn.training.state.components import Component
from adjourn.training.state.entrusted import Attribute, Entrusted, attributes_of, is_entrusted
from adjourn.training.state.fields import OPAQUE, SCALARS, parts_of
from adjourn.training.state.generators import GENERATORS, access
from adjourn.training.state.liveness import gathers, overwritten
from adjourn.training.state.modules import PARALLEL, attributes, objects, own_attributes, qualified
from adjourn.training.state.origins import Origin, made_at
from adjourn.training.state.values import is_value
from adjourn.training.state.variables import (
    Comparison,
    Frame,
    Variable,
    checksum,
    has_content,
    user_frames,
    variables,
)

ALWAYS: Final = (Optimizer, LRScheduler, torch.amp.GradScaler, EarlyStopping)
"""What has a state that matters even if the first epoch did not change it."""
LISTED: Final = 20
"""Findings of one look that are told; located is each of them only."""
LARGE: Final = 10_000
"""A clock that shows less is not told from a loss or a learning rate."""
SHARED: Final = frozenset(map(id, (None, (), frozenset(), Ellipsis, NotImplemented)))
"""Objects that are everyone's."""
HOLDERS: Final = 10_000
"""Objects whose references are gathered at a time."""
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

    def __init__(self, own: Sequence[Any] = (), code_directory: str = "") -> None:
        """Remembers what libraries made before user code ran; what `own` refers to is ours, and never found.

        `code_directory` is where the user's modules are.
        """
        self._before = of_kind(gc.get_objects())
        self._code_directory = code_directory
        self._clocks = Clocks()
        self._known = {id(item) for item in (*self._before, *library_generators())}
        self._own = own
        self._ignored: list[tuple[Any, str]] = []
        self._objects: dict[int, tuple[weakref.ref[Any] | None, str]] = {}
        self._variables: dict[str, tuple[Any, str]] = {}
        """What variables were, and their texts, by place. Of what can be referred to weakly, a weak reference."""
        self._entrusted: dict[str, str] = {}
        """How attributes of tracked objects stood that have a state_dict() of the user's own, by place."""
        self._bound: set[tuple[str, str]] = set()
        self._newest = Look.empty()

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
        self._variables = {
            place: (weak(variable.value) or variable.value, text) for place, (variable, text) in look.variables.items()
        }
        self._entrusted = {each.place: each.text for each in self._attributes(tracked, loaders)}
        self._bound = {(frame.function, name) for frame in look.frames for name in frame.variables}

    def carried(self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None) -> dict[str, str]:
        """Returns what user code carries into a stage in variables that are not tracked: a text for each place.

        Equal texts stand for equal values, in other processes too. A time of day is left out.
        """
        return {variable.place: text for variable, text in self._carried(tracked, loaders, frame)}

    def carried_otherwise(
        self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None, before: Mapping[str, str]
    ) -> list[str]:
        """Returns which variables are others than `carried` told before, each with the line that makes it."""
        return [
            located_at(variable.place, made_at(variable.origins, self._code_directory))
            for variable, text in self._carried(tracked, loaders, frame)
            if before.get(variable.place, text) != text
        ]

    def _carried(
        self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None
    ) -> Iterator[tuple[Variable, str]]:
        frames = [Frame.of(each) for each in user_frames(frame)]
        hidden = self._hidden(tracked, loaders)
        covered = {field for loader in loaders for field in loader.fields.covered()}
        comparison = Comparison(tracked_storages(tracked), hidden, covered, objects=True)
        for variable in variables(frames, self._code_directory, loaders, hidden, covered):
            skipped = variable.overwritten or variable.saved or self._clocks.read(variable.value)
            if not skipped and not self._ignores_name(variable.name):
                text = comparison.text(variable.value)
                if text is not None:
                    yield variable, text

    def findings(
        self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None, *, amid: bool = False
    ) -> list[Finding]:
        """Returns what is found at the end of an epoch, or `amid` one, certain ones first; `begin` came before."""
        found = self._findings(tracked, loaders, frame, amid=amid)
        if any(finding.certain for finding in found):
            self._let_go(self._newest)
            self._newest = Look.empty()
            gc.collect()  # something may be garbage that refers to itself
            found = self._findings(tracked, loaders, frame, amid=amid)
        for key, seen in self._newest.objects.items():  # what this epoch made is compared from here on
            if self._earlier(key, seen) is None:
                self._objects[key] = (weak(seen.subject), seen.text)
        self._newest = Look.empty()
        return found

    def standing(self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None) -> dict[str, str]:
        """Returns texts of what is in no snapshot and may be read again behind this batch, by place.

        Equal texts are equal values. The code of an epoch that is resumed amid is executed anew, up to the same batch:
        what has another text there than at the cut was lost.
        """
        look = self._look(tracked, loaders, frame, amid=True, whole=False)
        found = {
            place: CLOCK if self._clocks.read(variable.value) else text
            for place, (variable, text) in look.variables.items()
            if not variable.saved
        }
        found |= {f"the count around {name}": str(count) for name, (_, count) in counts().items()}
        for each in look.frames:
            unread = overwritten(each.code, each.last, goes_on=True)
            for name, value in each.variables.items():
                seen = look.objects.get(id(value))
                if name not in unread and seen is not None and seen.subject is value:
                    found[f"variable {name} of {each.function}"] = state_text(seen)
        return found

    def changed(self, standing: Mapping[str, str]) -> dict[str, str]:
        """Returns what of `standing` is not as it was when the first epoch began: the rest comes from the same code."""
        return {
            place: text
            for place, text in standing.items()
            if place not in self._variables or self._variables[place][1] != text
        }

    def _begins_anew(self, subject: Any, frames: "list[Frame]", ours: object = None) -> bool:
        """Tells whether a new object is in nothing but local variables that had no value when the first epoch began.

        They have none in a resumed run either: its code assigns to them before it reads them, or fails. That `ours`
        refers to the object does not count.
        """
        places = []
        for frame in frames:  # no inner functions here: their cells would be holders
            for name, value in frame.variables.items():
                if value is subject:
                    places.append((frame.function, name))
        if not places or not self._bound.isdisjoint(places):
            return False
        known = {id(ours), *(id(frame.variables) for frame in frames)}
        for holder in gc.get_referrers(subject):
            if not isinstance(holder, FrameType | Seen) and id(holder) not in known:
                return False
        return True

    def _let_go(self, look: "Look") -> None:
        """Forgets containers of variables that have others by now: what only this refers to is no state."""
        for place, (earlier, text) in self._variables.items():
            if isinstance(earlier, dict | list | tuple):  # there are no weak references to them
                variable = look.variables.get(place)
                if variable is None or variable[0].value is not earlier:
                    self._variables[place] = (None, text)

    def _replaced(self, variable: Variable) -> bool:
        """Tells whether nothing of an earlier value matters: the variable has another object now and is assigned before
        it is read, or it is the time of day.
        """
        earlier = self._variables[variable.place][0]
        if isinstance(earlier, weakref.ref):
            earlier = earlier()
        if self._clocks.read(earlier) and self._clocks.read(variable.value):
            return True
        return variable.overwritten and (earlier is not variable.value or type(earlier) in SCALARS)

    def _earlier(self, key: int, seen: "Seen") -> str | None:
        """Returns how the object stood at an earlier look; None: it was not there."""
        reference, text = self._objects.get(key, (None, None))
        return None if reference is not None and reference() is not seen.subject else text

    def refuse(self, found: Sequence[Finding]) -> None:
        """Raises UntrackedState if some of what was found is certain."""
        certain = [str(finding) for finding in found if finding.certain]
        if certain:
            raise UntrackedState("\n".join(["a resumed run would not be the same:", *certain]))

    def _findings(
        self, tracked: State, loaders: Iterable[Loader], frame: FrameType | None, *, amid: bool
    ) -> list[Finding]:
        look = self._newest = self._look(tracked, loaders, frame, amid=amid)
        found = [*self._compared(look), *self._forgotten(tracked, loaders)]
        if amid:
            found.extend(begun_anew(look.frames))
        for number, loader in enumerate(loaders):
            passes = [] if amid or loader.may_be_kept or self._ignores(loader) else loader.open_passes
            going_on = [each for each in passes if not self._begins_anew(each, look.frames, passes)]
            for each in going_on:
                loader.positions.doubt(each.record)
            if going_on:
                found.append(
                    Finding(
                        what="an iterator over",
                        where=f"loader {number}",
                        advice="has batches left; a resumed run goes on with it, whether or not this one does",
                        certain=False,
                    )
                )
        found.sort(key=lambda finding: (not finding.certain, str(finding)))
        if len(found) > LISTED:
            rest = f"and {len(found) - LISTED} more"
            found[LISTED:] = [Finding(what=rest, where="like these", advice="not listed", certain=False)]
        return found

    def _attributes(self, tracked: State, loaders: Iterable[Loader]) -> Iterator[Attribute]:
        """Returns how attributes stand of what has a state_dict() of the user's own."""
        parts = [
            Entrusted(name=name, place=name, subject=item.subject, state=item.state)
            for name, item in tracked.items()
            if is_entrusted(item.subject)
        ]
        for number, loader in enumerate(loaders):
            for kind, part in loader.parts.items():
                if is_entrusted(part) and part in loader.stateful:
                    place = f"the {kind} of loader {number} ({qualified(type(part))})"
                    parts.append(Entrusted(name=kind, place=place, subject=part, state=partial(state_of, part)))
        storages = tracked_storages(tracked)
        for part in parts:
            others = {name: item for name, item in tracked.items() if item.subject is not part.subject}
            hidden = reached(others).union(*map(below, (subject for subject, _ in self._ignored)))
            yield from attributes_of(part, Comparison(storages, hidden).text, hidden)

    def _forgotten(self, tracked: State, loaders: Iterable[Loader]) -> Iterator[Finding]:
        for each in self._attributes(tracked, loaders):
            before = self._entrusted.get(each.place, each.text)
            if not each.saved and each.text != before and not self._ignores_name(each.name):
                advice = (
                    "changed in training, and is not in what state_dict() returns. If it matters: add it there and to"
                    f' load_state_dict(). If not: run.ignore("{each.name}", reason="...")'
                )
                where = located_at(each.place, made_at([each.origin], self._code_directory))
                yield Finding(what="the value of", where=where, advice=advice, certain=False)

    def _ignores(self, subject: Any) -> bool:
        return any(subject is ignored for ignored, _ in self._ignored)

    def _look(
        self,
        tracked: State,
        loaders: Iterable[Loader],
        frame: FrameType | None,
        *,
        amid: bool = False,
        whole: bool = True,
    ) -> "Look":
        """Looks at what is live; unless at the `whole` of it, which takes its time, at what local variables hold."""
        frames = [Frame.of(each) for each in user_frames(frame)]
        live = [item for item in (self._live(frames) if whole else local(frames)) if id(item) not in self._known]
        hidden = self._hidden(tracked, loaders)
        roots = [item for item in live if id(item) not in hidden]
        inner = {
            id(part) for item in roots if isinstance(item, nn.Module) for part in item.modules() if part is not item
        }
        storages = tracked_storages(tracked)
        loose = [each for each in loose_parameters(tracked, live, storages) if not self._ignores(each)]
        roots += loose
        known = storages | {parameter.untyped_storage().data_ptr() for parameter in loose}
        covered = {field for loader in loaders for field in loader.fields.covered()}
        comparison = Comparison(known, hidden, covered)
        return Look(
            objects={id(item): Seen(item, text_of(item, storages)) for item in roots if id(item) not in inner},
            variables={
                variable.place: (variable, text)
                for variable in variables(frames, self._code_directory, loaders, hidden, covered, amid=amid)
                if not self._ignores_name(variable.name) and (text := comparison.text(variable.value)) is not None
            },
            frames=frames,
            code_directory=self._code_directory,
        )

    def _hidden(self, tracked: State, loaders: Iterable[Loader]) -> set[int]:
        """Returns the ids of what is saved, ours, or ignored."""
        hidden = reached(tracked)
        for subject in (*self._own, *(subject for subject, _ in self._ignored)):
            hidden |= below(subject)
        for loader in loaders:
            for part in loader.stateful:
                hidden |= below(part)
            for sampler in (loader.sampler, loader.batch_sampler):  # their generators are seeded for each pass
                hidden |= set(map(id, generators_of(sampler)))
        return hidden | drawn_again(loaders)

    def _ignores_name(self, name: str) -> bool:
        names = (subject for subject, _ in self._ignored if isinstance(subject, str))
        return any(name == ignored or name.startswith(f"{ignored}.") for ignored in names)

    def _live(self, frames: "list[Frame]") -> list[Any]:
        objects = gc.get_objects()
        found = {id(item): item for item in of_kind(objects)}
        holders = [*objects, *(frame.variables for frame in frames)]
        for begin in range(0, len(holders), HOLDERS):  # torch's generators are not known to gc themselves
            held = gc.get_referents(*holders[begin : begin + HOLDERS])
            found |= {id(item): item for item in held if type(item) is torch.Generator}
        return list((found | {id(item): item for item in local(frames)}).values())

    def _compared(self, look: "Look") -> Iterator[Finding]:
        located = 0
        for key, seen in look.objects.items():
            before = self._earlier(key, seen)
            if before is None and self._begins_anew(seen.subject, look.frames):
                continue
            for finding in judged(seen, before, look, search=located < LISTED):
                located += 1
                yield finding
        for place, (variable, text) in look.variables.items():
            if variable.saved or place not in self._variables or self._variables[place][1] == text:
                continue
            if not self._replaced(variable):
                where = located_at(place, made_at(variable.origins, look.code_directory))
                yield Finding(what="the value of", where=where, advice=advice_on(variable), certain=False)
        children = multiprocessing.active_children()
        workers = {worker.pid for item in (gc.get_objects() if children else ()) for worker in workers_of(item)}
        for child in children:
            if child.pid not in workers:
                yield Finding(
                    what="the process",
                    where=child.name,
                    advice="outlives the epoch; what it holds is not saved",
                    certain=False,
                )


class Clocks:
    """Tells what was read from a clock: a training that depended on that would be equal to no other."""

    def __init__(self) -> None:
        readings = ((clock, clock()) for clock in (time.time, time.perf_counter, time.monotonic))
        self._clocks = [(clock, begin) for clock, begin in readings if begin > LARGE]

    def read(self, value: Any) -> bool:
        """Tells whether a value is a time since this object was made."""
        if type(value) is not float or value.is_integer():
            return False
        return any(begin <= value <= clock() for clock, begin in self._clocks)


@dataclass(frozen=True, slots=True)
class Seen:
    """An object at one look."""

    subject: Any
    text: str
    """Equal for equal states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is live and not tracked, at one moment."""

    objects: Mapping[int, Seen]
    variables: Mapping[str, tuple[Variable, str]]
    """Each with its text, by place."""
    frames: list[Frame]
    code_directory: str

    @classmethod
    def empty(cls) -> "Look":
        return cls(objects={}, variables={}, frames=[], code_directory="")


def located_at(place: str, made: str | None) -> str:
    return f"{place} ({made})" if made else place


CLOCK: Final = "a time"
"""The text of what was read from a clock."""


def state_text(seen: Seen) -> str:
    """Returns a text of an object that is equal for equal states, also of one that is always told of."""
    if isinstance(seen.subject, ALWAYS):
        return digest(seen.subject.state_dict()) or EMPTY
    return seen.text


def lost(at_cut: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Returns, in sentences, what of `Detector.standing` at a cut is not as it was where the resumed run is back."""
    return [
        f"the value of {place}: is not as it was where the run was cut, amid an epoch whose code was executed anew:"
        " keep it in run.state"
        for place, text in at_cut.items()
        if here.get(place) != text
    ]


COUNTING: Final = (zip, itertools.islice)
"""Iterators that count, or have others beside the loader's. `enumerate` is made to go on."""


def counts() -> dict[str, tuple[Any, int]]:
    """Returns each enumerate() that goes through a loader, and the number that it gives next, by the loader's pass."""
    found: dict[str, tuple[Any, int]] = {}
    for item in gc.get_objects():
        if type(item) is enumerate:
            arguments: Any = item.__reduce__()[1]
            inner, count = arguments
            if type(inner) is Pass and inner.open:
                record = inner.record
                found[f"loader {record.loader} of epoch {record.epoch}, pass {record.number}"] = (item, int(count))
    return found


def go_on_counting(standing: Mapping[str, str]) -> None:
    """Lets enumerate() around the loaders give the numbers that are next in `standing`.

    Where this Python has its number elsewhere, nothing is changed, and the comparison tells.
    """
    for name, (item, count) in counts().items():
        wanted = standing.get(f"the count around {name}")
        if wanted is not None:
            number = ctypes.c_ssize_t.from_address(id(item) + object.__basicsize__)
            if number.value == count:
                number.value = int(wanted)


def begun_anew(frames: Sequence[Frame]) -> Iterator[Finding]:
    """Returns what is around a loop over a loader and begins anew with it, though the loader goes on."""
    for frame in frames:
        if gathers(frame.code, frame.last):
            yield Finding(
                what="what was gathered by",
                where=f"a comprehension in {frame.code.co_filename}:{frame.code.co_firstlineno}",
                advice="a resume amid an epoch begins anew with it: gather in a list that is tracked",
                certain=False,
            )
    passes = [item for item in gc.get_objects() if type(item) is Pass and item.open and item.record.taken]
    for holder in gc.get_referrers(*passes) if passes else ():
        for around in gc.get_referrers(holder) if type(holder) is tuple else [holder]:  # zip has a tuple of them
            if isinstance(around, COUNTING) and not (type(around) is zip and is_of_passes(around)):
                yield Finding(
                    what="the count of",
                    where=f"{type(around).__name__}() around a loader",
                    advice="a resume amid an epoch begins anew with it: count in run.state",
                    certain=False,
                )


def is_of_passes(zipped: Any) -> bool:
    """Tells whether a zip goes through nothing but loaders."""
    members = [each for part in gc.get_referents(zipped) if type(part) is tuple for each in part]
    return all(type(each) is Pass or is_endless(each) or not isinstance(each, Iterator) for each in members)


def is_endless(iterator: Any) -> bool:
    """Tells whether a generator of user code goes through a loader, again and again: the loader goes on in it."""
    return isinstance(iterator, GeneratorType) and type(iterator.gi_yieldfrom) is Pass


def weak(subject: Any) -> "weakref.ref[Any] | None":
    try:
        return weakref.ref(subject)
    except TypeError:  # NumPy's generators
        return None


def workers_of(item: Any) -> Sequence[Any]:
    # By its type: isinstance() asks an object for its class, and some of torch's warn when they are asked for anything.
    return getattr(item, "_workers", ()) if issubclass(type(item), _BaseDataLoaderIter) else ()


def judged(seen: Seen, before: str | None, look: Look, *, search: bool) -> Iterator[Finding]:
    """Returns what there is to say of a live object that is not tracked; `before`: its state at the first look.

    `search` says whether to look for where it is: that goes through all objects.
    """
    subject = seen.subject
    kind = qualified(type(subject))
    changed = before is not None and before != seen.text
    if isinstance(subject, torch.amp.GradScaler) and not subject.is_enabled():
        return
    if isinstance(subject, GENERATORS) and is_of_the_library(subject):
        return
    if isinstance(subject, PARALLEL):
        yield finding(seen, kind, look if search else None, "is not supported yet: train on one GPU", certain=True)
    elif isinstance(subject, DataLoader):
        if not isinstance(subject.dataset, Fetcher | Reader) and subject.num_workers and subject.persistent_workers:
            advice = "keeps its workers, and so their random draws, across epochs: use run.loader"
            yield finding(seen, kind, look if search else None, advice, certain=True)
    elif isinstance(subject, _BaseDataLoaderIter):
        advice = "is still iterated over when the epoch ends: a resumed run begins anew. Use run.loader"
        ours = isinstance(subject._dataset, Fetcher | Reader | Probes)  # noqa: SLF001
        if not ours and before != seen.text and has_batches_left(subject):
            yield finding(seen, kind, look if search else None, advice, certain=before is not None)
    elif changed or isinstance(subject, ALWAYS):
        name = variable_name(subject, look.frames) or "it"
        advice = (
            f"is not tracked, so a resumed run would begin with a new one: run.track({name}={name}), or"
            f' run.ignore({name}, reason="...") if it does not matter, before the first epoch'
        )
        yield finding(seen, kind, look if search else None, advice, certain=True)
    elif before is None and seen.text != EMPTY:
        advice = "was made in this epoch and is not tracked. If a later epoch uses it: make it before, and run.track it"
        yield finding(seen, kind, look if search else None, advice, certain=False)


def has_batches_left(iterator: Any) -> bool:
    """Tells whether an iterator of a plain DataLoader may have batches left; of an unknown number, it may."""
    try:
        return int(iterator._num_yielded) < len(iterator)  # noqa: SLF001
    except TypeError:
        return True


def finding(seen: Seen, kind: str, look: Look | None, advice: str, *, certain: bool) -> Finding:
    where = "somewhere" if look is None else located(seen.subject, look)
    return Finding(what=f"a {kind}", where=where, advice=advice, certain=certain)


def advice_on(variable: Variable) -> str:
    """Returns what to do about a value that changed: how it is tracked, if it can be, and how it is left out."""
    track = "keep it" if type(variable.value) in SCALARS else "keep what changes of it"
    track += " in run.state"
    if is_value(variable.value) and digest(variable.value):
        short = variable.name.rpartition(".")[2]
        track = f"run.track({short}={variable.name}) before the first epoch, and change it in place"
    return (
        f"changed in training and is not tracked. If a later epoch uses it: {track}. If not:"
        f' run.ignore("{variable.name}", reason="...")'
    )


# What is live.


def of_kind(items: Iterable[Any]) -> list[Any]:
    """Returns those objects that are of a kind that may hold state."""
    return [item for item in items if KINDS[type(item)]]


def local(frames: Iterable[Frame]) -> list[Any]:
    """Returns those that local variables are."""
    return [item for frame in frames for item in of_kind(frame.variables.values())]


class Kinds(dict[type, bool]):
    """Tells of a type whether its objects may hold state."""

    def __missing__(self, kind: type) -> bool:
        known = (*ALWAYS, *GENERATORS, nn.Module, DataLoader, _BaseDataLoaderIter)
        self[kind] = found = issubclass(kind, known) or (
            callable(getattr(kind, "state_dict", None)) and callable(getattr(kind, "load_state_dict", None))
        )
        return found


KINDS: Final = Kinds()


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
                found |= {
                    id(value) for _, value in objects(own_attributes(subject.named_modules()))
                }  # the module says it if they change
                found |= {
                    id(value)
                    for part in subject.modules()
                    for value in vars(part).values()
                    if isinstance(value, GENERATORS)
                }
            case Optimizer():
                found |= {id(subject.param_groups), *map(id, subject.param_groups)}
            case LRScheduler():
                inner = [*vars(subject).get("_schedulers", ()), *vars(subject).get("_milestones", ())]
                found |= {id(part) for part in inner}
            case _ if type(subject).__module__.startswith("torch.") or isinstance(subject, GENERATORS):
                pass
            case _:  # of the user's own: its state_dict() is trusted to cover what it holds
                found |= below(subject)
    return found


def drawn_again(loaders: Iterable[Loader]) -> set[int]:
    """Returns the ids of random generators that passes amid which a run is cut hold: a resumed run draws again there.

    That is, those of samplers, and of iterable datasets that are read again. What goes on from a state does not.
    """
    iterated = {
        id(item)
        for loader in loaders
        for part in loader.parts.values()
        if part is not None and not (part is loader.dataset and loader.stateful)
        for _, item in parts_of(part, "")
    }
    if not iterated:
        return set()
    found: set[int] = set()
    for item in gc.get_objects():
        if type(item) is GeneratorType:
            held = gc.get_referents(item)
            held += [cell.cell_contents for cell in held if type(cell) is CellType and has_content(cell)]
            if not iterated.isdisjoint(map(id, held)):
                found |= {id(each) for each in held if isinstance(each, GENERATORS)}
    return found


def below(subject: Any) -> set[int]:
    """Returns the ids of all that an object refers to, however far."""
    found: set[int] = set()
    waiting = [subject]
    while waiting and len(found) < REACH_LIMIT:
        item = waiting.pop()
        if id(item) in found or isinstance(item, OPAQUE) or id(item) in SHARED:
            continue
        found.add(id(item))
        waiting.extend(gc.get_referents(item))
    return found


def tracked_storages(tracked: State) -> set[int]:
    """Returns where the memory of tracked parameters, buffers and values begins.

    An optimizer saves what it computes with, and not its parameters.
    """
    found = set()
    for item in tracked.values():
        subject = item.subject
        tensors: Iterable[torch.Tensor] = ()
        if isinstance(subject, nn.Module):
            tensors = [*subject.parameters(), *subject.buffers()]
        elif isinstance(subject, torch.Tensor):
            tensors = [subject]
        elif is_value(subject):
            tensors = tensors_below(subject)
        found |= {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor.is_meta}
    return found


def tensors_below(value: Any) -> Iterator[torch.Tensor]:
    """Returns the tensors that a value holds, in containers and objects."""
    seen: set[int] = set()
    waiting = [value]
    while waiting and len(seen) < REACH_LIMIT:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif id(item) not in seen and not isinstance(item, OPAQUE):
            seen.add(id(item))
            waiting.extend(gc.get_referents(item))


def loose_parameters(tracked: State, live: Iterable[Any], storages: set[int]) -> list[torch.Tensor]:
    """Returns the parameters of tracked optimizers that neither what is tracked nor a module that lives has."""
    of_modules = {id(parameter) for item in live if isinstance(item, nn.Module) for parameter in item.parameters()}
    return [
        parameter
        for item in tracked.values()
        if isinstance(item.subject, Optimizer)
        for group in item.subject.param_groups
        for parameter in group["params"]
        if id(parameter) not in of_modules and parameter.untyped_storage().data_ptr() not in storages
    ]


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
            own |= {
                place: digest(value) or 0
                for place, value, text in attributes(own_attributes(item.named_modules()))
                if text is None
            }
            return repr(own) if own else EMPTY
        case torch.Tensor():
            return str(checksum(item))
        case DataLoader():
            return "an iterable"
        case _BaseDataLoaderIter():
            return f"after {item._num_yielded} batches"  # noqa: SLF001
        case _ if isinstance(item, GENERATORS):
            return digest(access(item)[0]()) or EMPTY
        case _ if isinstance(item, ALWAYS):
            return "state"
    try:
        return digest(item.state_dict()) or EMPTY
    except Exception:  # noqa: BLE001  (a state_dict() is anyone's, and may raise anything)
        return EMPTY


def digest(value: Any) -> str | None:
    """Returns the digest of a value; None: it cannot be encoded."""
    encoder = Encoder()
    try:
        tree = encoder.encode(value, ("it",))
    except (StateNotEncodable, RuntimeError):  # or another thread changes it meanwhile
        return None
    return component_digest(tree, lambda blob: encoder.blobs[blob].chunks())


# Where it is.


def variable_name(subject: Any, frames: list[Frame]) -> str | None:
    """Returns the name of a variable that is the object."""
    for frame in frames:
        for scope in (frame.variables, frame.globals):
            for name, value in list(scope.items()):
                if value is subject:
                    return name
    return None


def located(subject: Any, look: Look) -> str:
    """Returns where an object is, with the line that put it there."""
    place, origin = holder_of(subject, look.frames)
    made = made_at([origin], look.code_directory) if origin else None
    return f"{place} ({made})" if made else place


def holder_of(subject: Any, frames: list[Frame]) -> tuple[str, Origin | None]:
    """Returns what an object is called for people, and for code."""
    for frame in frames:
        for name, value in frame.variables.items():
            if value is subject:
                return f"in variable {name} of {frame.function}", (frame.code, name)
    for owner, name in owners(subject):
        if isinstance(owner, ModuleType):
            return f"in variable {name} of module {owner.__name__}", (vars(owner), name)
        return f"in attribute {name} of a {qualified(type(owner))}", (owner, name)
    containers = {id(holder) for holder in gc.get_referrers(subject) if type(holder) in (dict, list, tuple, deque)}
    for frame in frames:
        for name, value in frame.variables.items():
            if id(value) in containers:
                return f"in variable {name} of {frame.function}", (frame.code, name)
    return "in a container or an inner function of user code", None


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
