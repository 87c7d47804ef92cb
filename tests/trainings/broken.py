"""Trainings that cannot go on, each for a reason of its own."""

import multiprocessing
import sys
from typing import Any

import torch
from torch import nn

from adjourn import training

not_a_function = 3


def raises(run: training.Run) -> None:
    for _ in run.epochs():
        run.step(loss=1)
        raise ValueError("the loss is made of cheese")


def says_a_lot(run: training.Run) -> None:
    raise ValueError("x" * 10_000_000)


def exits(run: training.Run) -> None:
    for _ in run.epochs():
        run.step()
        sys.exit(run.args["code"])


def never_asks(run: training.Run) -> None:
    run.track(model=nn.Linear(1, 1))


class Stateful:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def tracks_a_function(run: training.Run) -> None:
    run.track(ema=Stateful({"decay": [0.9, lambda step: step]}))


def becomes_a_function(run: training.Run) -> None:
    ema = Stateful({"decay": 0.9})
    run.track(ema=ema)
    for _ in run.epochs():
        ema.state["decay"] = print


def is_a_function_for_a_while(run: training.Run) -> None:
    """Has a state that cannot be encoded at the end of its first and of its second epoch."""
    ema = Stateful({"decay": 0.9})
    run.track(ema=ema)
    for epoch in run.epochs():
        ema.state["decay"] = print if epoch < 3 else 0.9


def steps_early(run: training.Run) -> None:
    run.step()


def does_without(run: training.Run) -> None:
    try:
        run.track(ema=Stateful(print))
    except training.StateNotEncodable:
        run.track(ema=Stateful(1))
    for _ in run.epochs():
        run.step()


def tracks_late(run: training.Run) -> None:
    for _ in range(2):
        for _ in run.epochs(2):
            run.track(model=nn.Linear(1, 1))


def tracks_twice(run: training.Run) -> None:
    run.track(model=nn.Linear(1, 1))
    run.track(model=nn.Linear(1, 1))


def loops_twice(run: training.Run) -> None:
    for _ in range(2):
        for _ in run.epochs():
            run.step()


def varies(run: training.Run) -> None:
    """Tracks what its arguments say."""
    torch.set_num_threads(run.args.get("threads", torch.get_num_threads()))
    if "model" in run.args:
        run.track(model=nn.Linear(run.args["model"], 1))
    if "other" in run.args:
        run.track(other=nn.Linear(1, 1))
    loader = run.loader(range(run.args.get("samples", 4)))  # type: ignore[arg-type]
    for _ in run.epochs():
        for _ in loader:
            run.step(loss=torch.tensor(0.5))
    print("trained")


def catches_its_errors(run: training.Run) -> None:
    changes = nn.Linear(2, 1)
    try:
        run.track(model=changes)
        for _ in run.epochs():
            run.step()
    except training.TrainingError as error:
        print("caught", error)


def raises_amid_workers(run: training.Run) -> None:
    loader = run.loader(range(100), num_workers=2)  # type: ignore[arg-type]
    for _ in run.epochs():
        for _ in loader:
            print(*[child.pid for child in multiprocessing.active_children()])
            raise ValueError("amid workers")


def changes_what_was_restored(run: training.Run) -> None:
    model = nn.Linear(2, 1)
    run.track(model=model)
    if run.epoch:
        nn.init.zeros_(model.weight)
    for _ in run.epochs():
        run.step()
