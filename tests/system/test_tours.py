"""The programs that docs/integrating.md is made of do what they say: each takes a job through a pause and a resume."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adjourn import bundles
from adjourn.client import AsyncClient
from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job, Pause
from tests.harness import node, openapi_client
from tests.harness.jobs import Gate

if TYPE_CHECKING:
    from tests.system.conftest import Ran

pytestmark = pytest.mark.asyncio(loop_scope="session")

Run = Callable[..., Awaitable["Ran"]]
Eventually = Callable[..., Awaitable[None]]

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "clients"
TRAINING = ROOT / "tests" / "trainings" / "paced.py"
EPOCHS = 3
SECONDS = 120.0
"""For a tour: a process, and a job that starts twice."""


async def let_go_on(gate: Gate, eventually: Eventually) -> None:
    """Opens the gate once training knows that it is to pause: whoever is slow does not meet one that is over."""
    await eventually(lambda: (training := gate.inside(4)) and training.is_to_pause(), seconds=SECONDS)
    gate.open(1000)


async def command(language: str, made: Path) -> list[str]:
    """Returns the words that run the tour; what is made for it goes into a directory."""
    environment = [f"PATH={Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"]
    if language == "node":
        environment.append(f"NODE_PATH={await asyncio.to_thread(node.packages)}")
        program = [str(node.node()), str(CLIENTS / "node" / "tour.js")]
    elif language == "python":
        program = [sys.executable, str(CLIENTS / "python" / "tour.py")]
    elif language == "openapi":
        await asyncio.to_thread(openapi_client.generate, made / "generated")
        environment.append(f"PYTHONPATH={made}")
        program = [sys.executable, str(ROOT / "tests" / "harness" / "openapi_tour.py")]
    else:
        program = ["bash", str(CLIENTS / "shell" / "tour.sh")]
    return ["/usr/bin/env", *environment, *program]


@pytest.mark.parametrize("language", ["node", "python", "shell", "openapi"])
async def test_a_tour_pauses_and_resumes_a_job(
    run: Run, stack: Stack, client: AsyncClient, tmp_path: Path, eventually: Eventually, language: str
) -> None:
    gate = Gate(tmp_path / "gate", 3)  # steps, half an epoch
    spec = {
        "entry_point": "paced:main",
        "bundle": await client.upload_bundle(bundles.pack(TRAINING)),
        "total_epochs": EPOCHS,
        "seed": 7,
        "args": {"gate": str(gate.directory)},
    }
    words = await command(language, tmp_path)
    opener = asyncio.create_task(let_go_on(gate, eventually))
    try:
        address = stack.web if language == "openapi" else stack.address
        ran = await run(*words, address, json.dumps(spec), seconds=SECONDS)
    finally:
        gate.open(1000)
        opener.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opener
    assert ran.status == 0, ran.out + ran.err
    lines = ran.out.splitlines()
    name = lines[0].removeprefix("created ")
    job = await client.get_job(name)
    assert (job.state, job.labels["by"], job.attempt) == (Job.SUCCEEDED, language, 2)
    assert (job.pause.epoch, job.progress.epoch) == (1, EPOCHS)
    assert job.pause.verdict == Pause.EXACT
    assert any(line.endswith(job.pause.checkpoint) for line in lines)
    happened = [line.split()[-1] for line in lines if len(line.split()) <= 2]
    kinds = ["CREATED", "PLACED", "BEGAN", "PAUSE_REQUESTED", "PAUSED", "RESUME_REQUESTED", "SUCCEEDED"]
    assert [kind for kind in happened if kind in kinds] == [*kinds[:6], "PLACED", "BEGAN", "SUCCEEDED"]
    assert lines[-1] == "a pause is refused now: JOB_FINISHED"


@pytest.mark.parametrize("language", ["node", "python", "shell"])
async def test_a_tour_without_a_control_plane_says_so(run: Run, tmp_path: Path, language: str) -> None:
    ran = await run(*await command(language, tmp_path), "127.0.0.1:1")
    assert ran.status != 0
    assert "127.0.0.1:1" in ran.err
