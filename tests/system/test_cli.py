"""The command line as people and scripts use it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job
from tests.trials import EPOCHS, SCRIPT, SEED, Gate, Outcome, Trial, Trials

if TYPE_CHECKING:
    from tests.system.conftest import Ran

pytestmark = pytest.mark.asyncio(loop_scope="session")

Run = Callable[..., Awaitable["Ran"]]
Adjourn = Callable[..., Awaitable["Ran"]]

SCRIPT_OF_THEIR_OWN = """
import pathlib
from network import Network

def main(run):
    network = Network(run.args["width"])
    run.track(network=network)
    for epoch in run.epochs():
        network.train()
        run.step()
        run.log(total=network.total)
        gate = pathlib.Path(run.args["gate"])
        (gate / f"reached-{epoch}").touch()
        while int((gate / "limit").read_text()) < epoch:
            pass
    print("args", run.args)
"""
NETWORK = """
class Network:
    def __init__(self, width):
        self.width, self.total = width, 0.0

    def train(self):
        self.total += self.width

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]
"""


@pytest.fixture
def adjourn(run: Run) -> Adjourn:
    """Runs `adjourn` to its end; no traceback, whatever happens."""

    async def command(*words: object) -> "Ran":
        ran = await run("adjourn", *words)
        assert "Traceback" not in ran.out + ran.err
        return ran

    return command


async def succeed(ran: Awaitable["Ran"]) -> str:
    done = await ran
    assert (done.status, done.err) == (0, "")
    return done.out


@pytest.fixture
async def submitted(adjourn: Adjourn, trials: Trials, tmp_path: Path) -> Trial:
    """A job of the command line, which may not go beyond its first epoch."""
    gate = Gate(tmp_path / "gate", 0)
    words = ("--job-id", "by-hand", "--epochs", EPOCHS, "--seed", SEED, "--arg", f"gate={gate.directory}")
    said = await succeed(adjourn("submit", f"{SCRIPT}:main", *words, "--label", "by=hand"))
    assert said.startswith(f"jobs/by-hand is queued: mlp:main, {EPOCHS} epochs, with ")
    return trials.add(await trials.client.get_job("by-hand"), gate)


async def test_a_script_with_a_module_beside_it_is_paused_resumed_and_completes(
    adjourn: Adjourn, trials: Trials, tmp_path: Path, stack: Stack
) -> None:
    (tmp_path / "theirs.py").write_text(SCRIPT_OF_THEIR_OWN)
    (tmp_path / "network.py").write_text(NETWORK)
    gate = Gate(tmp_path / "gate", 1)
    script, include = tmp_path / "theirs.py", tmp_path / "network.py"
    words = ("--name", "theirs", "--epochs", 4, "--include", include, "--arg", f"gate={gate.directory}")
    await succeed(adjourn("submit", f"{script}:main", *words, "--args", '{"width": 2, "deep": {"a": [1.5, null]}}'))
    trial = trials.add(await trials.client.get_job("theirs"), gate)

    await trial.eventually((gate.directory / "reached-2").exists)
    await succeed(adjourn("pause", "theirs"))
    gate.open(EPOCHS)
    await trial.until({Job.PAUSED, Job.SUCCEEDED})
    await succeed(adjourn("resume", "theirs"))
    await trial.finish()
    totals = [json.loads(line)["values"]["total"] for line in (await adjourn("metrics", "theirs", "--json")).out.splitlines()]
    assert totals == [2, 4, 6, 8]
