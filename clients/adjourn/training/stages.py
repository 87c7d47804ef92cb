"""PURE. Which call of `run.epochs()` a run is in, and which of them are over in a run that is resumed.

Each call is a stage of the training. A resumed run executes its code anew, from the first line. Stages that were over
when the snapshot was taken yield nothing, and the code around them runs again, on objects that are not restored yet:
all that it does to what is tracked is undone where the stage of the snapshot begins.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Stages:
    """Counts stages, and the epochs completed in the running one. `saved` is the `state` of a snapshot."""

    def __init__(self, saved: Mapping[str, Any] | None = None) -> None:
        self._began: list[list[int]] = [list(each) for each in saved["began"]] if saved else []
        """Epochs and steps that were completed when each stage began."""
        self._saved = len(self._began)
        """The stage that the snapshot was taken in, counted from 1; 0: nothing is restored."""
        self._done: int = saved["done"] if saved else 0
        self.carried: Mapping[str, str] = saved["carried"] if saved else {}
        """What user code had in variables when the running stage began, by place."""
        self.number = 0
        """Of the newest stage that this attempt has begun; 0: none."""

    @property
    def passing(self) -> bool:
        """Whether code is executed that was executed before the snapshot was taken."""
        return self.number < self._saved

    @property
    def later(self) -> bool:
        """Whether what is restored is that of a later stage than the first."""
        return self._saved > 1

    @property
    def here(self) -> tuple[int, int] | None:
        """Epochs and steps completed when this code was executed first; None: before the stage of the snapshot."""
        if self.number + 1 < self._saved:
            epoch, step = self._began[self.number]
            return epoch, step
        return None

    @property
    def ended_at(self) -> int:
        """Epochs completed at the end of the stage, one that is over in the snapshot."""
        return self._began[self.number][0]

    def enter(self, epoch: int, step: int) -> bool:
        """Begins the next stage, after so many epochs and steps; returns False if it is over in the snapshot."""
        self.number += 1
        if self.number > len(self._began):
            self._began.append([epoch, step])
            self._done, self.carried = 0, {}
        return not self.passing

    def count_epoch(self) -> None:
        self._done += 1

    def left(self, count: int | None) -> bool:
        """Tells whether epochs are left in a stage of `count`; None: of all."""
        return count is None or self._done < count

    def state(self) -> dict[str, Any]:
        return {"began": self._began, "done": self._done, "carried": dict(self.carried)}


class Epochs(Iterable[int]):
    """The epochs of a stage. A loop over it ends where it is left, whoever holds this object: a progress bar does."""

    def __init__(self, begin: Callable[[], Iterator[int]]) -> None:
        self._begin = begin
        self._running: Iterator[int] | None = None

    def __iter__(self) -> Iterator[int]:
        return self._begin()

    def __next__(self) -> int:
        if self._running is None:
            self._running = self._begin()
        return next(self._running)
