"""Everything that decides how a training goes on: tracked objects, random generators, place in the data."""

from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from adjourn.snapshots import Chunks, Tree, component_digest
from adjourn.training.errors import RestoreDiverged, StateMismatch
from adjourn.training.snapshot.reader import SnapshotReader
from adjourn.training.state.codec import Blob, Blobs, Encoder
from adjourn.training.state.components import Component, component
from adjourn.training.state.generators import generator_states, restore_generator
from adjourn.training.state.gradients import Groups, parameters_of
from adjourn.training.state.modules import named_modules, named_parameters
from adjourn.training.state.numerics import NUMERICS, numerics, restore_numerics
from adjourn.training.state.recall import Recall

HASHING = 2
"""Components that are hashed at a time."""
DATA = "data"
"""Component with epoch, step and loaders."""


class State:
    """The components of a run: encoded for a snapshot, loaded from one, compared with it."""

    def __init__(
        self,
        data: Callable[[], Any],
        restored: SnapshotReader | None,
        *,
        later: bool = False,
        before: Mapping[str, Mapping[str, str] | None] | None = None,
        late: Mapping[str, int] | None = None,
        amid: int | None = None,
        sources: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """`later`: what is restored is loaded by `complete`, and not as it is tracked. `before`: see `component`.

        `late`: that of the state that is restored, `amid`: the epoch that it was saved amid. `sources`: see there.
        """
        self.late: dict[str, int] = dict(late or {})
        """The epochs within which names were tracked, or given to other objects."""
        self._amid = amid
        self.awaited: set[str] = {name for name, epoch in self.late.items() if epoch == amid}
        """Names that are saved, and are to be tracked within the epoch that comes."""
        self._before = before or {}
        self.tracked: dict[str, Component] = {}
        self.changed: set[str] = set()
        """Names that were given to objects since somebody emptied this."""
        self._data = data
        self._restored = restored
        self._later = later
        self._additions = 0
        self._recall = Recall()
        self.groups: Mapping[str, Groups] = {}
        """Of optimizers, as the running epoch began: its code, executed anew after a cut, adds what it has added."""
        self.unproven: list[str] = []
        """Why a resume of this job may not be exact, in sentences; of earlier attempts too."""
        self.suspected: list[str] = []
        """The same, as long as it is so."""
        self.remarks: list[str] = []
        """All of that, and what the newest `encode` could not see to coming back as it was."""
        self.standing: dict[str, str] = {}
        """Texts of what a cut amid an epoch finds in no snapshot, by place (`Detector.standing`)."""
        self.drilled: bool | None = None
        """Whether a drill of the job came to the same bits; None: it is not known."""
        self.sources: Mapping[str, Mapping[str, Any]] = {} if sources is None else sources
        """Which data the run has had, by the URI that it asked for."""
        self._kept: SnapshotReader | None = None
        """The snapshot that this state is."""

    def keep(self, restored: SnapshotReader) -> None:
        """Is what was saved, as it is: nothing of it is loaded, and nothing tracked."""
        self._kept, self.unproven, self.drilled = restored, list(restored.remarks), restored.drilled

    def add(self, subjects: Mapping[str, Any], *, replacing: bool = False, load: bool = True) -> None:
        """Tracks objects, and loads them if something is restored.

        If `replacing`, a name that is taken goes over to the new object. Raises TypeError, StateNotEncodable, or
        StateMismatch: an object that was not saved, or does not take what was.
        """
        there = {name for name, subject in subjects.items() if replacing and self._has(name, subject)}
        added = {
            name: component(name, subject, self._parameters, self._before.get(name), self._owned)
            for name, subject in subjects.items()
            if name not in there
        }
        for name, item in added.items():
            if not name.isidentifier() or name in (DATA, NUMERICS) or (name in self.tracked and not replacing):
                raise ValueError(f"{name!r} is taken, or not a name")
            Encoder().encode(item.state(), (name,))
        self.tracked |= added
        self.changed |= added.keys()
        self._additions += 1
        if load and not self._later:
            self._load({name: item for name, item in added.items() if name not in self.awaited})

    def _has(self, name: str, subject: Any) -> bool:
        return name in self.tracked and self.tracked[name].subject is subject

    def _parameters(self) -> dict[str, torch.Tensor]:
        items = self.tracked.items()
        return parameters({name: item.subject for name, item in items if isinstance(item.subject, nn.Module)})

    def _owned(self) -> set[int]:
        """Returns the ids of the parameters that tracked optimizers have."""
        optimizers = [item.subject for item in self.tracked.values() if item.optimizer]
        return {id(parameter) for optimizer in optimizers for parameter in parameters_of(optimizer)}

    def encode(self, *, anew: bool = False) -> tuple[dict[str, Tree], Blobs]:
        """Returns the trees by component, and the raw data beside them, by reference; raises StateNotEncodable.

        `anew`: without regard to what was encoded before.
        """
        if self._kept is not None:
            states = {name: self._kept.value(name) for name in self._kept.components}
        else:
            states = {name: item.state() for name, item in self.tracked.items()}
            states |= {DATA: self._data(), NUMERICS: numerics(), **generator_states()}
        encoded = (Recall() if anew else self._recall).encode(states)
        remarks = [*encoded.remarks, *(remark for item in self.tracked.values() for remark in item.remarks())]
        self.remarks = list(dict.fromkeys([*self.unproven, *self.suspected, *remarks]))
        return encoded.trees, encoded.blobs

    def digests(self, wanted: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
        """Returns the digest of components as they are now, as `snapshots.component_digests` of a snapshot of them.

        `wanted` tells of a name whether its digest is.
        """
        trees, blobs = self.encode()
        names = [name for name in trees if wanted(name)]
        chunks = chunks_of(blobs)
        with ThreadPoolExecutor(HASHING) as threads:
            found = threads.map(lambda name: component_digest(trees[name], chunks), names)
            return dict(zip(names, found, strict=True))

    def complete(self) -> None:
        """Ends the restore, just before the first epoch: nothing may draw a random number in between.

        Raises StateMismatch if something that was saved was not tracked.
        """
        if self._restored is None:
            return
        missing = [name for name in self._restored.components if name not in self._expected()]
        if absent := [name for name in missing if name not in self.late]:
            raise StateMismatch(f"saved, but not tracked now: {', '.join(absent)}")
        self.awaited |= set(missing)
        # What was tracked later may have been built upon what was loaded, and a namespace was given its defaults.
        named = any(isinstance(item.subject, SimpleNamespace) for item in self.tracked.values())
        if self._later or self._additions > 1 or named:
            self._load({name: item for name, item in self.tracked.items() if name not in self.awaited})
        self.unproven = list(self._restored.remarks)
        self.drilled = self._restored.drilled
        self.standing = dict(self._restored.standing)
        self._put_switches(self._restored)

    def put_back(self) -> None:
        """Restores everything once more: code that was executed meanwhile has changed nothing. Raises StateMismatch."""
        if self._restored is not None:
            self._load(self.tracked)
            self.awaited -= self.tracked.keys()
            self._put_switches(self._restored)

    def load_late(self, names: Iterable[str], expected: Mapping[str, str]) -> bool:
        """Loads and compares what is tracked within an epoch, if it is awaited. Generators are put back, too.

        Returns whether random numbers were drawn since the restore. Raises StateMismatch or RestoreDiverged.
        """
        due = {name: self.tracked[name] for name in names if name in self.awaited}
        if self._restored is None or not due:
            return False
        built_on = [item.subject.optimizer for item in due.values() if isinstance(item.subject, LRScheduler)]
        # A scheduler's constructor changes its optimizer, which is loaded again.
        again = {name: item for name, item in self.tracked.items() if any(item.subject is each for each in built_on)}
        self._load(due | again)
        self.awaited -= due.keys()
        self.compare(expected, due.__contains__)
        self.regroup(due)
        drawn = self.digests(is_random)
        for name in filter(is_random, self._restored.components):
            restore_generator(name, self._restored.value(name))
        return any(expected.get(name) != digest for name, digest in drawn.items())

    def check_awaited(self) -> None:
        """Raises StateMismatch if something is missing that was tracked within an epoch."""
        if self.awaited:
            listed = ", ".join(f"{name} (in epoch {self.late[name]})" for name in sorted(self.awaited))
            raise StateMismatch(
                f"saved, but not tracked before the first step: {listed}. Track it wherever the run goes on: before the"
                " loop `if run.epoch >= ...`, or within it in later epochs too"
            )

    def note_groups(self) -> None:
        """Takes the groups of optimizers for those that the epoch begins with; of those that are awaited they stay."""
        awaited = {name: groups for name, groups in self.groups.items() if name in self.awaited}
        self.groups = awaited | {name: item.optimizer.groups() for name, item in self.tracked.items() if item.optimizer}

    def regrouped(self, epoch: int) -> dict[str, Groups]:
        """Returns `groups` of the optimizers that have got others since; not of those that began within the epoch."""
        now = {name: item.optimizer.groups() for name, item in self.tracked.items() if item.optimizer}
        return {
            name: groups
            for name, groups in self.groups.items()
            if groups != now.get(name) and self.late.get(name) != epoch
        }

    def regroup(self, names: Container[str]) -> None:
        """Gives optimizers their `groups`, until they are loaded again; raises StateMismatch."""
        for name, groups in self.groups.items():
            item = self.tracked.get(name)
            if item and item.optimizer and name in names:
                item.optimizer.regroup(groups)

    def _put_switches(self, restored: SnapshotReader) -> None:
        restore_numerics(restored.value(NUMERICS))
        for name in restored.components:
            if name.startswith("random."):
                restore_generator(name, restored.value(name))

    def restored(self) -> None:
        """Lets go of what is restored."""
        self._restored = None

    def compare(self, expected: Mapping[str, str], wanted: Callable[[str], bool] = lambda _: True) -> None:
        """Raises RestoreDiverged, unless the digest of every component that is `wanted` is the expected one."""
        trees, blobs = self.encode()
        names = [name for name in trees.keys() | expected.keys() if wanted(name) and name not in self.awaited]

        def is_equal(name: str) -> bool:
            if name not in trees or name not in expected:
                return False
            tree, chunks = trees[name], chunks_of(blobs)
            content = self._restored.content(name) if self._restored is not None else None
            if content is not None and content.digest == expected[name]:
                return content.is_of(tree, chunks)
            return component_digest(tree, chunks) == expected[name]

        with ThreadPoolExecutor(HASHING) as threads:
            equal = threads.map(is_equal, names)
            different = [name for name, is_so in zip(names, equal, strict=True) if not is_so]
        if different:
            raise RestoreDiverged(different)

    def _expected(self) -> set[str]:
        return {*self.tracked, DATA, NUMERICS, *generator_states()}

    def _load(self, components: Mapping[str, Component]) -> None:
        if self._restored is None:
            return
        for name, item in sorted(components.items(), key=lambda pair: pair[1].rank):
            if name not in self._restored.components:
                raise StateMismatch(f"tracked, but not in the snapshot: {name}")
            value = self._restored.value(name, item.lent())
            try:
                item.load(value)
            except Exception as error:  # load_state_dict() is anyone's, and may raise anything
                remedy = self._remedy(name)
                raise StateMismatch(f"{name} does not take the state that was saved: {error}{remedy}") from error

    def _remedy(self, name: str) -> str:
        """Says what to do about a name that does not take its state, if that is known."""
        epoch = self.late.get(name)
        if epoch is None:
            return ""
        if epoch == self._amid:
            return (
                f". Another object has it since a batch of epoch {epoch}, and the run was cut behind that one: replace"
                " it before the loop over the batches, which a resumed run executes"
            )
        return f". Another object has it since epoch {epoch}: build that one before the loop if run.epoch >= {epoch}"


def chunks_of(blobs: Mapping[str, Blob]) -> Chunks:
    return lambda name: blobs[name].chunks()


def is_random(name: str) -> bool:
    return name.startswith("random.")


def parameters(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Returns the parameters of modules by name, as `model.head.weight`; one that has many names by its first."""
    return {
        f"{name}.{place}": parameter
        for name, module in modules.items()
        for place, parameter in named_parameters(named_modules(module))
    }
