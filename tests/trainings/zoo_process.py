"""Runs a training of the zoo, as its arguments say: asks for a pause, waits for one, or tracks too little."""

import functools
import importlib
import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from adjourn import training
from adjourn.desired_state import DesiredState
from adjourn.shared_files import Control
from adjourn.snapshots import component_digest
from adjourn.training.state.codec import Encoder
from adjourn.training.state.components import component
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode

Ports = dict[str, Callable[[str, Any], bool]]

PORTS: Ports = {
    "ported": lambda _, __: True,
    "naive": lambda name, subject: (
        isinstance(subject, torch.optim.Optimizer | LRScheduler)
        or (isinstance(subject, torch.nn.Module) and name.startswith(("model", "net")))
    ),
    "nothing": lambda _, __: False,
}
"""What of that which the ported form tracks gets through to Adjourn."""


def form(run: training.Run, name: str) -> ModuleType:
    return importlib.import_module(f"zoo.{run.args['training']}.{name}")


def plain(run: training.Run) -> None:
    """Trains without Adjourn."""
    form(run, "plain").main(SimpleNamespace(epochs=run.args["epochs"], workers=run.args["workers"]))


def main(run: training.Run) -> None:
    """Trains with Adjourn; writes how all stands in the end that the ported form tracks, tracked or not."""
    training.Run.step = functools.partialmethod(asking, training.Run.step)  # type: ignore[assignment]
    training.Run.track = functools.partialmethod(  # type: ignore[assignment]
        tracking, training.Run.track, PORTS[run.args["port"]]
    )
    ported = form(run, "ported")
    if run.args["port"] == "ported":
        training.Run.state = noted(vars(training.Run)["state"])  # type: ignore[assignment]
    else:
        training.Run.ignore = lambda *_, **__: None  # type: ignore[method-assign]
        training.Run.state = untracked(ported)  # type: ignore[assignment]
    ported.main(run)
    subjects = vars(run)["subjects"]
    Path("../end").write_text(json.dumps({name: digest(name, subject) for name, subject in subjects.items()}))


def job(run: training.Run) -> None:
    """Trains as a job that a test cuts at the steps `cuts`, one in each attempt: see `waiting`.

    `workers` has the numbers of loader workers that the attempts take turns with.
    """
    prepare(run)
    form(run, "ported").main(run)


def prepare(run: training.Run) -> None:
    gate = Path(run.args["gate"])
    met = len(list(gate.glob("cut-*")))
    run.args["workers"] = run.args["workers"][met % len(run.args["workers"])]
    cut = (*run.args["cuts"], math.inf)[met]
    training.Run.step = functools.partialmethod(  # type: ignore[assignment]
        waiting, training.Run.step, cut, gate / f"cut-{met}"
    )


def waiting(run: training.Run, step: Callable[..., None], cut: float, said: Path, *args: Any, **kwargs: Any) -> None:
    """Takes the step; before the first that is not before `cut` it says so, and waits until it is to pause."""
    if run.steps + 1 >= cut and not said.exists():
        said.touch()
        with closing(Control(Path.cwd().parent / "control")) as control:
            while control.read().target != Assignment.PAUSE:
                time.sleep(0.005)
    step(run, *args, **kwargs)


def asking(run: training.Run, step: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Asks for the pause that is due in this step or epoch, as the agent does, and takes the step."""
    if run.steps + 1 >= run.args.get("pause_at_step", math.inf):
        ask(PauseMode.STEP)
    if run.epoch + 1 == run.args.get("pause_at_epoch"):
        ask(PauseMode.EPOCH)
    step(run, *args, **kwargs)


def ask(mode: PauseMode.ValueType) -> None:
    with closing(Control(Path.cwd().parent / "control")) as control:
        control.write(DesiredState(generation=1, target=Assignment.PAUSE, mode=mode))


def tracking(
    run: training.Run,
    track: Callable[..., None],
    gets_through: Callable[[str, Any], bool],
    **objects: Any,
) -> None:
    note(run, **objects)
    tracked = {name: subject for name, subject in objects.items() if gets_through(name, subject)}
    forget(objects.keys() - tracked.keys())
    track(run, **tracked)


def note(run: training.Run, **objects: Any) -> None:
    vars(run).setdefault("subjects", {}).update(objects)


def forget(names: Iterable[str]) -> None:
    with Path("../forgotten").open("a") as file:
        file.writelines(f"{name}\n" for name in names)


def noted(state: property) -> property:
    """Returns `run.state`, which is digested in the end."""

    def values(run: training.Run) -> SimpleNamespace:
        note(run, state=state.__get__(run))
        return state.__get__(run)  # type: ignore[no-any-return]

    return property(values)


def untracked(ported: ModuleType) -> property:
    """Returns what somebody has in the place of `run.state` who knows nothing of it: a variable of the module."""

    def values(run: training.Run) -> SimpleNamespace:
        if "state" not in vars(ported):
            ported.state = SimpleNamespace()  # type: ignore[attr-defined]
            note(run, state=ported.state)
            forget(["state"])
        return ported.state  # type: ignore[no-any-return]

    return property(values)


def digest(name: str, subject: Any) -> str:
    encoder = Encoder()
    tree = encoder.encode(component(name, subject).state(), (name,))
    return component_digest(tree, lambda blob: encoder.blobs[blob].chunks())
