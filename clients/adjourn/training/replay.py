"""The second process of a drill: it goes on from a copied snapshot, tells how its state stands, and leaves.

`python -m adjourn.training.replay DIRECTORY`, started by `drill`, below the training process, so that it ends with it.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from adjourn.internal.v1.trainer_pb2 import TrainingEvent
from adjourn.training import process
from adjourn.training.session import ABANDONED, Session

NICENESS: Final = 5
"""The training itself comes first."""
OOM_SCORE: Final = "1000"
"""When memory runs out the kernel shall take this process, not the training."""


class Replay(Session):
    """Saves nothing, never pauses, and leaves where the drill compares."""

    def _check_room(self) -> None:
        pass

    def _prepare_slots(self) -> None:
        pass

    def _boundary(self) -> None:
        if self.tracker.epoch == self.start.spec.total_epochs:
            return  # `finish` follows
        if self._abandoned:
            self._leave(ABANDONED)
        if self._stepless:
            self._compare_here()

    def _compare_here(self) -> None:
        self.append(TrainingEvent(drilled=self._standing()))
        self._leave(0)


def main() -> NoReturn:
    directory = Path(sys.argv.pop())
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    code = process.main(directory, Replay)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
