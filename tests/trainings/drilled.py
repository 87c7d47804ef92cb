"""Trainings with a drill; most have something that decides how they go on and that nothing finds."""

import ctypes
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from adjourn import training
from adjourn.training import drill


def in_drill() -> bool:
    """Tells the second process from the first, as a training should not."""
    return Path.cwd().parent.name == "drill"


HELD_UNTIL = {
    "for good": "nothing",
    "until saved": "snapshots/slot-2",
    "until looked at": "looked-at",
}
"""For how long the second process stands still: a file of the attempt that is there then."""


def held(how: str | None) -> bool:
    return in_drill() and how is not None and not Path("../..", HELD_UNTIL[how]).exists()


def main(run: training.Run) -> None:
    """Trains; does in the second process what its arguments say."""
    train(run, lambda: 1.0)


def outlasted(run: training.Run) -> None:
    """Has a second process that never comes to its place, and little patience with it."""
    drill.END_SECONDS = 0.1  # type: ignore[misc]
    main(run)


def stepless(run: training.Run) -> None:
    model = nn.Linear(1, 1)
    run.track(model=model)
    for epoch in run.epochs():
        with torch.no_grad():
            model.weight.mul_(0.5 + 0.1 * epoch)


def drills_late(run: training.Run) -> None:
    for _ in run.epochs():
        run.drill()


def fails(run: training.Run) -> None:
    """Raises once its drill runs."""

    def factor() -> float:
        if Path("../drill/events").exists():
            raise RuntimeError("enough")
        return 1.0

    train(run, factor)


def hides(run: training.Run) -> None:
    """Has a factor that is another at each step, in a place that nobody looks at."""
    train(run, PLACES[run.args["place"]]())


def ends_behind_a_look(run: training.Run) -> None:
    """Has a second process that ends right after the first has looked whether it is over, at the end of the run."""
    look = drill.Drill.outcome

    def outcome(self: drill.Drill) -> drill.Outcome | None:
        found = look(self)
        while self.runs and not self.wanted:
            Path("../looked-at").touch()
            time.sleep(0.01)
        return found

    drill.Drill.outcome = outcome  # type: ignore[method-assign]
    hides(run)


def train(run: training.Run, factor: Callable[[], float]) -> None:
    first = nn.Linear(2, 8)
    model = nn.Sequential(first, nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    run.track(model=model, optimizer=optimizer)
    data = [torch.tensor([0.1 * index, 1.0]) for index in range(12)]
    if "drill" in run.args:
        run.drill(run.args["drill"])
    loader = run.loader(data, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    if in_drill() and run.args.get("changes"):
        with torch.no_grad():
            first.weight.mul_(2)
    for _ in run.epochs(strict=not run.args.get("lax", False)):
        for batch in loader:
            optimizer.zero_grad()
            loss = (model(batch) * factor() - 1).square().mean()
            loss.backward()
            optimizer.step()
            run.step(loss=loss)
            if in_drill() and run.args.get("raises"):
                raise RuntimeError("no room for two")
            while held(run.args.get("holds")):
                time.sleep(0.01)
        time.sleep(run.args.get("seconds", 0))


def in_environment() -> Callable[[], float]:
    def factor() -> float:
        os.environ["FACTOR"] = str(0.9 * float(os.environ.get("FACTOR", "1")))
        return float(os.environ["FACTOR"])

    return factor


def in_file() -> Callable[[], float]:
    def factor() -> float:
        file = Path("factor")
        file.write_text(str(0.9 * float(file.read_text() if file.exists() else 1)))
        return float(file.read_text())

    return factor


def in_c() -> Callable[[], float]:
    library = ctypes.CDLL(None)
    library.srand(7)
    rand = library.rand

    def factor() -> float:
        return 0.5 + float(rand() % 1000) / 1000

    return factor


def in_thread() -> Callable[[], float]:
    answers: queue.SimpleQueue[float] = queue.SimpleQueue()
    asked = threading.Semaphore(0)

    def decay() -> None:
        value = 1.0
        while True:
            asked.acquire()
            value *= 0.9
            answers.put(value)

    threading.Thread(target=decay, daemon=True).start()

    def factor() -> float:
        asked.release()
        return answers.get()

    return factor


PLACES = {"environment": in_environment, "file": in_file, "c": in_c, "thread": in_thread}
