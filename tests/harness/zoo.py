"""The zoo: small trainings as people write them, each in a plain form and in that of Adjourn.

`plain.py` has `main(args)` with `args.epochs` and `args.workers`, `ported.py` has `main(run)` with
`run.args["workers"]`. `tests/trainings/zoo_process.py` runs them.
"""

import difflib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from adjourn.v1 import job_pb2
from tests.harness.training_processes import TRAININGS, Attempt, TrainingProcesses

ZOO = TRAININGS / "zoo"
NAMES = sorted(path.parent.name for path in ZOO.glob("*/ported.py"))
EPOCHS = 5
ENTRY_POINT = "zoo_process:main"
WORKERS = (0, 2)
"""Of loaders, in one attempt after the other."""
ONLY_AFTER_EPOCHS = {"deep_q": "its steps take no batches of a loader"}
"""Trainings that are not cut amid an epoch, and why."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Asks training to rest after an epoch, or after a step: counted as they are completed."""

    unit: Literal["epoch", "step"]
    count: int


def added_lines(name: str) -> list[str]:
    """Returns the lines that the ported form has, and the plain one has not or elsewhere."""
    plain, ported = ((ZOO / name / form).read_text().splitlines() for form in ("plain.py", "ported.py"))
    return [line[2:] for line in difflib.ndiff(plain, ported) if line.startswith("+ ")]


def train(
    trainings: TrainingProcesses,
    name: str,
    *,
    port: str = "ported",
    workers: int = 0,
    pause: Pause | None = None,
    **fields: Any,
) -> Attempt:
    """Trains on from `restore` to the end, or to where it is paused."""
    args = {"training": name, "port": port, "workers": workers}
    if pause:
        args[f"pause_at_{pause.unit}"] = pause.count
    return trainings.run(ENTRY_POINT, epochs=EPOCHS, args=args, **fields)


def cut(trainings: TrainingProcesses, name: str, pauses: Sequence[Pause], **fields: Any) -> list[Attempt]:
    """Trains with pauses, the number of loader workers changing from attempt to attempt, until one is not paused."""
    attempts: list[Attempt] = []
    for number, pause in enumerate((*pauses, None)):
        restore = attempts[-1] if attempts else None
        workers = WORKERS[number % len(WORKERS)]
        attempts.append(train(trainings, name, workers=workers, pause=pause, restore=restore, **fields))
        if not attempts[-1].last.HasField("paused"):
            break
    return attempts


def random_pauses(whole: Attempt, name: str, *, epochs: int = 0, steps: int = 0) -> list[Pause]:
    """Returns places to pause at in a run that was whole, in their order: always the same for one training."""
    draw = random.Random(name)
    step_of = {metrics.epoch: metrics.step for metrics in whole.epochs}
    pauses = {step_of[epoch]: Pause("epoch", epoch) for epoch in draw.sample(sorted(step_of)[:-1], epochs)}
    pauses |= {step: Pause("step", step) for step in draw.sample(range(1, whole.last.progress.step), steps)}
    return [pauses[step] for step in sorted(pauses)]


@cache
def whole(trainings: TrainingProcesses, name: str) -> Attempt:
    """Trains without a pause, once."""
    attempt = train(trainings, name)
    assert attempt.last.HasField("finished"), attempt.log
    return attempt


def is_over_before(attempt: Attempt, pause: Pause) -> bool:
    """Tells whether an attempt ended before it asked for the pause."""
    progress = attempt.last.progress
    return (progress.epoch if pause.unit == "epoch" else progress.step) < pause.count


def amid(attempt: Attempt) -> bool:
    """Tells whether an attempt was paused amid an epoch."""
    return attempt.last.HasField("paused") and attempt.last.progress.epoch_step > 0


def end(attempt: Attempt) -> dict[str, str]:
    """Returns the digests of what the ported form tracks, when the training has ended, tracked or not."""
    found: dict[str, str] = json.loads((attempt.directory / "end").read_text())
    return found


def forgotten(attempt: Attempt) -> set[str]:
    """Returns what the ported form tracks, and this port of it does not."""
    return set((attempt.directory / "forgotten").read_text().split())


def names(name: str, subject: str, said: str) -> bool:
    """Tells whether a line of what was said names a subject, and a line of the ported form that makes it.

    Or the variable of the module that stands for `run.state`.
    """
    if subject == "state":
        return f"of state in module zoo.{name}.ported: " in said
    code = (ZOO / name / "ported.py").read_text()
    variables = re.findall(rf"\b{subject}=(\w+)", code)  # in run.track(weights=sampler.weights)
    found = re.findall(rf"\b{subject}\b.*\(zoo/{name}/ported\.py:(\d+)\)", said)
    lines = [code.splitlines()[int(number) - 1] for number in found]
    return any(f"{variable} = " in line or f"{variable}, " in line for variable in variables for line in lines)


def history(attempts: Sequence[Attempt]) -> Mapping[int, Mapping[str, float]]:
    """Returns the metrics of each epoch, over all attempts."""
    return {epoch: values for attempt in attempts for epoch, values in attempt.values.items()}


def verdict(attempt: Attempt) -> tuple[job_pb2.Pause.Verdict.ValueType, list[str]]:
    """Returns what an attempt that began says of its resume, and the reasons."""
    began = next(event.began for event in attempt.events if event.HasField("began"))
    return began.verdict, list(began.verdict_reasons)
