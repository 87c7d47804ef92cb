"""Any other training, which asks for a pause at a step that a test can choose.

Arguments: `training`, its entry point; `pause_at`, the number of steps in all after which it is to pause, if it can.
All others are the training's own.
"""

import importlib
from contextlib import closing
from pathlib import Path
from typing import Any

from adjourn import training
from adjourn.desired_state import DesiredState
from adjourn.shared_files import Control
from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode


def ask_for_pause(mode: PauseMode.ValueType = PauseMode.STEP) -> None:
    """Does what the agent does."""
    with closing(Control(Path.cwd().parent / "control")) as control:
        control.write(DesiredState(generation=1, target=Assignment.PAUSE, mode=mode))


def main(run: training.Run) -> None:
    module, _, function = run.args["training"].partition(":")
    counted = run.step

    def step(*args: Any, **named: Any) -> None:
        if run.steps + 1 == run.args.get("pause_at"):
            ask_for_pause()
        counted(*args, **named)

    run.step = step  # type: ignore[method-assign]
    getattr(importlib.import_module(module), function)(run)
