"""The zoo: small trainings as people write them, each in a plain form and in that of Adjourn.

`plain.py` has `main(args)` with `args.epochs` and `args.workers`, `ported.py` has `main(run)` with
`run.args["workers"]`. `tests/trainings/zoo_process.py` runs them.
"""

import difflib
import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adjourn.v1.job_pb2 import Pause
from tests.harness.training_processes import TRAININGS, Attempt, TrainingProcesses

ZOO = TRAININGS / "zoo"
NAMES = sorted(path.parent.name for path in ZOO.glob("*/ported.py"))
EPOCHS = 5
ENTRY_POINT = "zoo_process:main"
WORKERS = (0, 2)
"""Of loaders, in one attempt after the other."""


def added_lines(name: str) -> list[str]:
    """Returns the lines that the ported form has, and the plain one has not or elsewhere."""
    plain, ported = ((ZOO / name / form).read_text().splitlines() for form in ("plain.py", "ported.py"))
    return [line[2:] for line in difflib.ndiff(plain, ported) if line.startswith("+ ")]


def train(trainings: TrainingProcesses, name: str, *, port: str = "ported", workers: int = 0, **fields: Any) -> Attempt:
    """Trains on from `restore` to the end, or to the boundary of epoch `pause_in`."""
    args = {"training": name, "port": port, "workers": workers}
    if pause_in := fields.pop("pause_in", 0):
        args["pause_in"] = pause_in
    return trainings.run(ENTRY_POINT, epochs=EPOCHS, args=args, **fields)


def cut(trainings: TrainingProcesses, name: str, cuts: Sequence[int], **fields: Any) -> list[Attempt]:
    """Trains with a pause after each epoch of `cuts`, each attempt with another number of loader workers."""
    attempts: list[Attempt] = []
    for number, pause_in in enumerate((*cuts, 0)):
        restore = attempts[-1] if attempts else None
        workers = WORKERS[number % len(WORKERS)]
        attempts.append(train(trainings, name, workers=workers, pause_in=pause_in, restore=restore, **fields))
        if not attempts[-1].last.HasField("paused"):
            break
    return attempts


def random_cuts(whole: Attempt, name: str, count: int = 2) -> list[int]:
    """Returns epochs of an uninterrupted run after which to pause: always the same for one training."""
    return sorted(random.Random(name).sample([metrics.epoch for metrics in whole.epochs[:-1]], count))


def end(attempt: Attempt) -> dict[str, str]:
    """Returns the digests of what the ported form tracks, when the training has ended, tracked or not."""
    found: dict[str, str] = json.loads((attempt.directory / "end").read_text())
    return found


def forgotten(attempt: Attempt) -> set[str]:
    """Returns what the ported form tracks, and this port of it does not."""
    return set((attempt.directory / "forgotten").read_text().split())


def names(name: str, subject: str, said: str) -> bool:
    """Tells whether a line of what was said names a subject, and a line of the ported form that makes it."""
    code = (ZOO / name / "ported.py").read_text()
    variables = re.findall(rf"\b{subject}=(\w+)", code)  # in run.track(weights=sampler.weights)
    found = re.findall(rf"\b{subject}\b.*\(zoo/{name}/ported\.py:(\d+)\)", said)
    lines = [code.splitlines()[int(number) - 1] for number in found]
    return any(f"{variable} = " in line or f"{variable}, " in line for variable in variables for line in lines)


def history(attempts: Sequence[Attempt]) -> Mapping[int, Mapping[str, float]]:
    """Returns the metrics of each epoch, over all attempts."""
    return {epoch: values for attempt in attempts for epoch, values in attempt.values.items()}


def verdict(attempt: Attempt) -> tuple[Pause.Verdict.ValueType, list[str]]:
    """Returns what an attempt that began says of its resume, and the reasons."""
    began = next(event.began for event in attempt.events if event.HasField("began"))
    return began.verdict, list(began.verdict_reasons)
