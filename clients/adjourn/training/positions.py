"""PURE. How far each pass over a loader has got, and where the passes of a resumed run begin.

A run is cut where a batch is asked for and the step with the batches before it is made: the code behind that step has
been executed. A run that is resumed amid an epoch executes the code of that epoch anew, from its first line. So a loop
over a loader goes on where it was: passes are matched in the order in which a loader began them. Passes that were open
at the cut go on behind the last batch that was handed out; what loader workers had prepared beyond it is made again.
Of those that had begun before the first open one, those in which steps were made are over, and give nothing; those
without a step (statistics, an example batch) are gone through again. What had begun and ended after that, as a
validation amid the epoch, stands in code that is not executed again: the numbers of later passes go on behind it. If
the batch is asked for by an inner loop, the batch of the outer one, in which that loop began, is handed out again.

At the end of an epoch all of that is forgotten, except for iterators that are kept over epochs: a loader has those
from when one of its iterators was used in a later epoch than the one it was made in. A resumed run makes them anew
before its first epoch; what it takes from them there is what a new run takes, and from the first epoch on they go on.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


def no_details(_taken: int) -> Mapping[str, Any]:
    return {}


@dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """A pass, and how far it is."""

    loader: str
    epoch: int
    """In which it began; 0: before the first epoch."""
    number: int
    """Among the loader's passes of that epoch."""
    count: int = 1
    """Passes that this stands for: those behind it came to the same end."""
    taken: int = 0
    """Batches that were handed out."""
    used: int = 0
    """The epoch in which it was used last."""
    begun: int = 0
    """How many passes, over all loaders of this attempt, had begun before it."""
    latest: int = 0
    """The same, when its latest batch was handed out."""
    steps: int = 0
    """Optimizer steps that had been made when it began."""
    over: bool = False
    """There are no batches left, or nobody to take them."""
    stepped: bool = False
    """Steps were made until then."""
    passed: bool = False
    """An earlier pass was open then, so the code that began it is not executed again."""
    gone: bool = False
    """Nobody has the iterator any more."""
    doubtful: bool = False
    """It was open at the end of its epoch, and may be used in the next one."""
    details: Callable[[int], Mapping[str, Any]] = no_details
    """Returns what else it takes to go on behind so many batches."""
    again: bool = True
    """It can go on before its newest batch."""
    restored: Mapping[str, Any] | None = None
    """The same, of the snapshot that it goes on from."""


class Positions:
    """The passes of a run. `saved` is the `state` of the snapshot that it goes on from."""

    def __init__(self, steps: Callable[[], int], saved: Mapping[str, Any] | None = None) -> None:
        self.epoch = 0
        """The running epoch, or the one before; 0 before the first of this attempt."""
        self.begun = 0
        """How many passes have begun in this attempt."""
        self.cut_wanted = False
        """Whether the run is to be cut as soon as it may be."""
        self.handed_out = 0
        """Steps that had been made when the newest batch was handed out."""
        self._steps = steps
        self._saved = dict(saved or {})
        self._within = False
        self._records: dict[str, list[Record]] = {}
        self._next: dict[str, int] = {}
        self._kept = {name for name, loader in self._saved.get("loaders", {}).items() if loader["kept"]}
        self._waiting: dict[str, deque[Mapping[str, Any]]] = {}
        self._made: list[int] = []
        """Of each loader that was made in the running epoch, how many passes had begun before."""
        self._made_before = (0, 0)
        """Loaders that the code of a resumed epoch makes again, and all that it had made."""

    def open_epoch(self, epoch: int) -> None:
        amid = self._saved.get("epoch") == epoch
        self._next = {}
        for name, loader in self._saved.get("loaders", {}).items():
            self._waiting[name] = deque(each for each in loader["passes"] if amid or each["outlives"])
            if amid:
                self._next[name] = loader["next"]
        self._made, self._made_before = [], tuple(self._saved["made"]) if amid else (0, 0)
        self._saved = {}
        self.epoch, self._within = epoch, True

    def close_epoch(self) -> None:
        """Ends the epoch. What may go on in the next one is told by `doubt`."""
        self._within = False
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in self._kept}
        for records in self._records.values():
            records[:] = [record for record in records if not record.gone]
            for record in records:
                record.doubtful = False

    def name_within(self) -> str:
        """Returns the name of a loader that is made within an epoch: a resumed run does not make those before."""
        self._made.append(self.begun)
        return f"{self._made_within - 1} of the epoch"

    @property
    def _made_within(self) -> int:
        again, made = self._made_before
        return len(self._made) + (made - again if len(self._made) > again else 0)

    def begin(self, loader: str) -> Record:
        """Begins a pass, or goes on with the next one that the snapshot tells of."""
        waiting = self._waiting.get(loader)
        records = self._records.setdefault(loader, [])
        if waiting and not (loader in self._kept and any(map(self._waits, records))):
            record = from_saved(loader, waiting)
            if record.epoch != self.epoch:
                self._kept.add(loader)
        else:
            number = self._next.get(loader, 0)
            self._next[loader] = number + 1
            record = Record(loader=loader, epoch=self.epoch, number=number)
        for each in records:  # it is this one that is used in its place
            each.doubtful = False
        record.begun = record.latest = self.begun
        record.steps, record.used = self._steps(), self.epoch
        self.begun += 1
        records[:] = [each for each in records if not (each.gone and (each.passed or each.used != self.epoch))]
        if len(records) > 1 and records[-1].gone and records[-2].gone and records[-1].stepped == records[-2].stepped:
            records[-2].count += records.pop().count
        records.append(record)
        return record

    def _waits(self, record: Record) -> bool:
        """Tells of an iterator that was made before the first epoch of this attempt, and may go on with a kept one."""
        return record.used == 0 and not record.gone and not record.over

    def enter_epoch(self, record: Record) -> Record | None:
        """Tells that an iterator is used in a later epoch than before.

        Returns the pass that it goes on with, if that is not its own: a resumed run has made it anew.
        """
        self._kept.add(record.loader)
        waiting = self._waiting.get(record.loader)
        if record.used or not waiting:
            record.used = self.epoch
            return None
        going_on = from_saved(record.loader, waiting)
        going_on.begun, going_on.latest, going_on.steps, going_on.used = (
            record.begun,
            self.begun,
            self._steps(),
            self.epoch,
        )
        records = self._records[record.loader]
        records[records.index(record)] = going_on
        return going_on

    def doubt(self, record: Record) -> None:
        """Tells that somebody has the iterator at the end of its epoch, and may use it in the next one."""
        record.doubtful = True

    def keeps(self, loader: str) -> bool:
        """Tells whether the loader's iterators outlive an epoch."""
        return loader in self._kept

    def gone(self, record: Record) -> None:
        """Tells that nobody has the iterator any more."""
        self.ended(record)
        record.gone = True
        record.details = no_details  # it held what the batches were made of

    def ended(self, record: Record) -> None:
        """Tells that a pass has no batches left, or nobody to take them."""
        if not record.over:
            record.over = True
            record.stepped |= self._steps() > record.steps
            record.passed = any(each.begun < record.begun for each in self._open())

    def _open(self) -> list[Record]:
        return [
            each
            for name, records in self._records.items()
            for each in records
            if not each.over and (each.epoch == self.epoch or (name in self._kept and each.used))
        ]

    def may_cut(self, record: Record, length: int | None) -> bool:
        """Tells whether a run may be cut where the next batch of this pass is asked for.

        It may if steps were made since the newest batch of all passes was handed out, and one of this pass was. If it
        was the last one, the end of the epoch is near, where it is known what goes on in the next epoch.
        """
        return (
            0 < record.taken != length
            and self._within
            and self.handed_out < self._steps()
            and all(each.again for each in self._open() if goes_on_within(record, each))
        )

    def state(self, asked: Record | None = None) -> dict[str, Any]:
        """Returns where a resumed run goes on; empty if that is where an epoch begins.

        `asked` is the pass whose next batch is asked for; None: an epoch has ended.
        """
        if self.epoch == 0:
            return self._saved
        found = self._open()
        loaders = {}
        for name in sorted({*self._records, *self._waiting, *self._next}):
            kept = name in self._kept
            records = self._records.get(name, ())
            begun = itertools.chain.from_iterable(self._told(record, found, asked, kept=kept) for record in records)
            passes = [*begun, *self._waiting.get(name, ())]
            following = self._next.get(name, 0) if self._within else 0
            if passes or following:
                loaders[name] = {"kept": kept, "next": following, "passes": passes}
        if not self._within:
            return {"epoch": 0, "made": [0, 0], "loaders": loaders} if loaders else {}
        first = min((each.begun for each in found), default=self.begun)
        again = sum(begun <= first for begun in self._made)
        return {"epoch": self.epoch, "made": [again, self._made_within], "loaders": loaders}

    def _told(
        self, record: Record, found: list[Record], asked: Record | None, *, kept: bool
    ) -> Iterator[dict[str, Any]]:
        """Yields what a snapshot says of a pass, if anything; `found`: those that are open."""
        outlives = (kept and record.used > 0) or record.doubtful
        if not (outlives or (self._within and record.epoch == self.epoch)):
            return
        taken: int | None = record.taken
        if record.over:
            if record.passed or (outlives and record.gone):
                return
            taken = None if record.stepped or outlives else 0
        elif asked and goes_on_within(asked, record):
            taken = record.taken - 1
        yield {
            "epoch": record.epoch,
            "number": record.number,
            "count": record.count,
            "taken": taken,
            "stepped": record.stepped or (not record.over and self._steps() > record.steps),
            "outlives": outlives,
            "details": dict(record.details(taken)) if taken else {},
        }


def goes_on_within(inner: Record, outer: Record) -> bool:
    """Tells whether a pass began within the newest batch of another, so that this batch is not done with."""
    return inner is not outer and outer.taken > 0 and inner.begun >= outer.latest


def from_saved(loader: str, waiting: deque[Mapping[str, Any]]) -> Record:
    entry = waiting.popleft()
    if entry["count"] > 1:
        waiting.appendleft({**entry, "number": entry["number"] + 1, "count": entry["count"] - 1})
    over = entry["taken"] is None
    return Record(
        loader=loader,
        epoch=entry["epoch"],
        number=entry["number"],
        taken=entry["taken"] or 0,
        over=over,
        stepped=entry["stepped"],
        restored=entry["details"],
    )
