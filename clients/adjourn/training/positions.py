"""PURE. How far each pass over a loader has got, and where the passes of a resumed run begin.

A run is cut where a batch is asked for and the step with the batches before it is made: the code behind that step has
been executed. A run that is resumed amid an epoch executes the code of that epoch anew, from its first line. So a loop
over a loader goes on where it was: passes are matched in the order in which a loader began them. Passes that were open
at the cut go on behind the last batch that was handed out; what loader workers had prepared beyond it is made again.
Of those that had begun before the first open one, those in which steps were made are over, and give nothing; those
without a step (statistics, an example batch) are gone through again. What had begun and ended after that, as a
validation amid the epoch, stands in code that is not executed again: the numbers of later passes go on behind it. If
the batch is asked for by an inner loop, the batch of the outer one, in which that loop began, is handed out again.
The resumed run is back where it was cut when it asks for the same batch (`awaited`): until then it only executes again
what it had executed before, and what that changed is undone there.

At the end of an epoch all of that is forgotten, except for iterators that are kept over epochs: a loader has those
from when one of its iterators was used in a later epoch than the one it was made in. A resumed run makes them anew
before its first epoch; what it takes from them there is what a new run takes, and from the first epoch on they go on.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

BEHIND: Final = 1 << 32
"""Number of the first pass that begins behind a loop over epochs: apart from those of its last epoch."""


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
    taken: int = 0
    """Batches that were handed out."""
    used: int = 0
    """The epoch in which it was used last."""
    begun: int = 0
    """When it began: events are counted, over all loaders of this attempt."""
    first: int = 0
    """When its first batch of this attempt was handed out; 0: none was."""
    latest: int = 0
    """When its newest batch was handed out."""
    ended: int = 0
    """When it was over."""
    handed: int = 0
    """Steps that had been made when its newest batch was handed out."""
    steps: int = 0
    """Optimizer steps that had been made when it began."""
    over: bool = False
    """There are no batches left, or nobody to take them."""
    stepped: bool = False
    """Steps were made until then."""
    gone: bool = False
    """Nobody has the iterator any more."""
    doubtful: bool = False
    """It was open at the end of its epoch, and may be used in the next one."""
    details: Callable[[int], Mapping[str, Any]] = no_details
    """Returns what else it takes to go on behind so many batches."""
    again: bool = True
    """It can go on before its newest batch."""
    upcoming: str | None = None
    """Digest of its next batch, if that had to be made at a cut."""
    restored: Mapping[str, Any] | None = None
    """The same, of the snapshot that it goes on from."""


class Positions:
    """The passes of a run. `saved` is the `state` of the snapshot that it goes on from."""

    def __init__(self, steps: Callable[[], int], saved: Mapping[str, Any] | None = None) -> None:
        self.epoch = 0
        """The running epoch, or the one before; 0 before the first of this attempt."""
        self.clock = 0
        """Counts passes that begin and end, batches that are handed out, and loaders that are made."""
        self.cut_wanted = False
        """Whether the run is to be cut as soon as it may be."""
        self._steps = steps
        self._saved = dict(saved or {})
        self.within = False
        """Whether code within an epoch runs."""
        self._passing = False
        """Code runs that is executed again, between stages that are over."""
        self._first = 0
        """Number of a loader's next first pass."""
        self._records: dict[str, list[Record]] = {}
        self._next: dict[str, int] = {}
        self._kept = {name for name, loader in self._saved.get("loaders", {}).items() if loader["kept"]}
        self._waiting: dict[str, deque[Mapping[str, Any]]] = {}
        self._made: list[int] = []
        """When each loader was made that was made in the running epoch."""
        self._made_again: list[int] = []
        """Numbers of the loaders that the code of a resumed epoch makes again."""
        self._made_before = 0
        """How many it had made in all."""
        self.awaited: Record | None = None
        """The pass whose next batch was asked for at the cut, once it goes on: there the resumed run is back."""
        self.awaits: tuple[str, int, int] | None = None
        """Loader, epoch and number of that pass, until the run is back."""
        self._doubted: list[Record] = []

    def open_epoch(self, epoch: int) -> None:
        self._go_on(amid=self._saved.get("epoch") == epoch)
        self._first = 0
        self.epoch, self.within = epoch, True

    def leave(self, epoch: int, *, passing: bool = False) -> None:
        """Tells that a loop over epochs is left, the last of which was `epoch`.

        Code runs that a resumed run executes too, later on. `passing`: this is such a run, and that code.
        """
        if not passing:
            self._go_on(amid=False)
        self._next, self._first = {}, BEHIND
        self.epoch, self.within, self._passing = epoch, False, passing

    def _go_on(self, *, amid: bool) -> None:
        """Begins with what the snapshot tells, if none of this attempt's epochs has."""
        self._passing = False
        self._next = {}
        for name, loader in self._saved.get("loaders", {}).items():
            self._waiting[name] = deque(each for each in loader["passes"] if amid or each["outlives"])
            if amid:
                self._next[name] = loader["next"]
        self._made = []
        self._made_again, self._made_before = (self._saved["again"], self._saved["made"]) if amid else ([], 0)
        if amid:
            loader, begun, number = self._saved["asked"]
            self.awaits = (loader, begun, number)
        self._saved = {}

    def close_epoch(self) -> None:
        """Ends the epoch. What may go on in the next one is told by `doubt`."""
        self.within = False
        self.back()
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in self._kept}
        for records in self._records.values():
            records[:] = [record for record in records if not record.gone]
        self._trust()

    def back(self) -> None:
        """Tells that a resumed run has come to where it was cut."""
        self.awaited = self.awaits = None

    def name_within(self) -> str:
        """Returns the name of a loader that is made within an epoch: a resumed run does not make those before."""
        self.clock += 1
        self._made.append(self.clock)
        return f"{self._number_within(len(self._made) - 1)} of the epoch"

    def _number_within(self, place: int) -> int:
        again = self._made_again
        return again[place] if place < len(again) else self._made_before + place - len(again)

    def begin(self, loader: str) -> Record:
        """Begins a pass, or goes on with the next one that the snapshot tells of."""
        waiting = self._waiting.get(loader)
        records = self._records.setdefault(loader, [])
        if waiting and not (loader in self._kept and any(map(self._waits, records))):
            record = self._goes_on(loader, waiting)
            if record.epoch != self.epoch:
                self._kept.add(loader)
        else:
            number = self._next.get(loader, self._first)
            self._next[loader] = number + 1
            record = Record(loader=loader, epoch=self.epoch, number=number)
        self._trust(loader)
        self.clock += 1
        record.begun, record.steps, record.used = self.clock, self._steps(), 0 if self._passing else self.epoch
        records.append(record)
        return record

    def _goes_on(self, loader: str, waiting: deque[Mapping[str, Any]]) -> Record:
        record = from_saved(loader, waiting)
        record.handed = self._steps()  # the step with that batch is made, and the next place to cut is behind another
        if (loader, record.epoch, record.number) == self.awaits:
            self.awaited = record
        return record

    def _waits(self, record: Record) -> bool:
        """Tells of an iterator that was made before the first epoch of this attempt, and may go on with a kept one."""
        return record.used == 0 and not record.gone and not record.over

    def enter_epoch(self, record: Record) -> Record | None:
        """Tells that an iterator is used in a later epoch than before.

        Returns the pass that it goes on with, if that is not its own: a resumed run has made it anew.
        """
        self._kept.add(record.loader)
        if self._passing:
            return None
        waiting = self._waiting.get(record.loader)
        if record.used or not waiting:
            record.used = self.epoch
            return None
        going_on = self._goes_on(record.loader, waiting)
        going_on.begun, going_on.steps, going_on.used = record.begun, self._steps(), self.epoch
        records = self._records[record.loader]
        records[records.index(record)] = going_on
        return going_on

    def doubt(self, record: Record) -> None:
        """Tells that somebody has the iterator at the end of its epoch, and may use it in the next one."""
        record.doubtful = True
        self._doubted.append(record)

    def _trust(self, loader: str | None = None) -> None:
        """Ends the doubts: another iterator is used in the place of those of a loader."""
        for record in self._doubted:
            record.doubtful &= loader not in (None, record.loader)
        self._doubted = [record for record in self._doubted if record.doubtful]

    def keeps(self, loader: str) -> bool:
        """Tells whether the loader's iterators outlive an epoch."""
        return loader in self._kept

    def gone(self, record: Record) -> None:
        """Tells that nobody has the iterator any more."""
        waiting = self._waiting.get(record.loader)
        if waiting and self._waits(record):
            from_saved(record.loader, waiting)  # the run before had one here that was used, and was let go of, too
        self.ended(record)
        record.gone = True
        record.details = no_details  # it held what the batches were made of

    def ended(self, record: Record) -> None:
        """Tells that a pass has no batches left, or nobody to take them."""
        if not record.over:
            self.clock += 1
            record.over, record.ended = True, self.clock
            record.stepped |= self._steps() > record.steps

    def _open(self) -> list[Record]:
        return [
            each
            for name, records in self._records.items()
            for each in records
            if not each.over and (each.epoch == self.epoch or (name in self._kept and each.used))
        ]

    def may_cut(self, record: Record, length: int | None) -> bool:
        """Tells whether a run may be cut where the next batch of this pass is asked for.

        It may if steps were made since its newest batch was handed out, and since that of every other open pass. If
        that was its last one, the end of the epoch may be near, where it is known which iterators outlive it.
        """
        if not self.within or record.over or record.taken == 0:
            return False
        steps = self._steps()
        if any(each.handed >= steps for each in (record, *self._open())):
            return False
        loops = self._loops(record)
        return all(each.again for each in loops[1:]) and (
            record.taken != length or all(each in loops for each in self._open())
        )

    def _loops(self, asked: Record | None) -> list[Record]:
        """Returns the passes that the run is within: the one whose batch is asked for, and those whose newest batch is
        not done with.
        """
        return [asked, *(each for each in self._open() if goes_on_within(asked, each))] if asked else []

    def state(self, asked: Record | None = None) -> dict[str, Any]:
        """Returns where a resumed run goes on; empty if that is where an epoch begins.

        `asked` is the pass whose next batch is asked for; None: an epoch has ended.
        """
        if self.epoch == 0 or self._passing:
            return self._saved
        loops = self._loops(asked)
        done = [each for records in self._records.values() for each in records if each.over and each.stepped]
        loaders = {}
        for name in sorted({*self._records, *self._waiting, *self._next}):
            kept = name in self._kept
            told = [
                each for record in self._records.get(name, ()) for each in self._told(record, loops, done, kept=kept)
            ]
            passes = [*joined(told), *self._waiting.get(name, ())]
            following = self._next.get(name, 0) if self.within else 0
            if passes or following:
                loaders[name] = {"kept": kept, "next": following, "passes": passes}
        if not self.within:
            return {"epoch": 0, "again": [], "made": 0, "loaders": loaders} if loaders else {}
        again = [self._number_within(place) for place, time in enumerate(self._made) if is_again(time, loops, done)]
        return {
            "epoch": self.epoch,
            "asked": None if asked is None else [asked.loader, asked.epoch, asked.number],
            "again": again,
            "made": self._made_before + max(0, len(self._made) - len(self._made_again)),
            "loaders": loaders,
        }

    def _told(self, record: Record, loops: list[Record], done: list[Record], *, kept: bool) -> Iterator[dict[str, Any]]:
        """Yields what a snapshot says of a pass, if anything. `done` are the passes that will give nothing any more."""
        outlives = (kept and record.used > 0) or record.doubtful
        if not (outlives or (self.within and record.epoch == self.epoch)):
            return
        taken: int | None = record.taken
        if record.over:
            if (outlives and record.gone) or not (outlives or is_again(record.begun, loops, done)):
                return
            taken = None if record.stepped or outlives else 0
        elif record in loops[1:]:
            taken = record.taken - 1
        yield {
            "epoch": record.epoch,
            "number": record.number,
            "count": 1,
            "taken": taken,
            "stepped": record.stepped or (not record.over and self._steps() > record.steps),
            "outlives": outlives,
            "details": dict(record.details(taken)) if taken else {},
        }


def skips_loops(state: Mapping[str, Any]) -> bool:
    """Tells whether the run that goes on from such a `state` executes loops again that get no batches any more.

    What follows such a loop may not bear that: it divides by the number of batches, or prints the last loss.
    """
    passes = (each for loader in state["loaders"].values() for each in loader["passes"])
    return any(each["taken"] is None and not each["outlives"] for each in passes)


def tell_upcoming(state: Mapping[str, Any], asked: Record) -> None:
    """Adds to such a `state` what the batch is that is asked for."""
    for each in state["loaders"][asked.loader]["passes"]:
        if (each["epoch"], each["number"]) == (asked.epoch, asked.number) and asked.upcoming is not None:
            each["details"]["upcoming"] = asked.upcoming


def uncompared(state: Mapping[str, Any]) -> list[str]:
    """Returns the loaders that go on from a state of their dataset's own, by such a `state`, and are not compared."""

    def blindly(details: Mapping[str, Any]) -> bool:
        return details.get("state") is not None and "upcoming" not in details

    loaders = state["loaders"].items()
    return [name for name, loader in loaders if any(blindly(each["details"]) for each in loader["passes"])]


def is_again(time: int, loops: list[Record], done: list[Record]) -> bool:
    """Tells whether the code is executed again that began a pass, or made a loader, at that time of this epoch."""
    return all(
        time < (loop.first or time + 1) or (loop is not loops[0] and time > loop.latest) for loop in loops
    ) and not any(each.first and each.first < time < each.ended for each in done)


def joined(passes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Joins passes that came to the same end one after the other: there may be very many."""
    last: dict[str, Any] | None = None
    for each in passes:
        following = last and {**last, "number": last["number"] + last["count"], "count": 1}
        if last and not last["taken"] and following == each:
            last["count"] += 1
            continue
        if last:
            yield last
        last = each
    if last:
        yield last


def goes_on_within(inner: Record, outer: Record) -> bool:
    """Tells whether a pass began within the newest batch of another, so that this batch is not done with."""
    return inner is not outer and 0 < outer.latest < inner.begun


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
