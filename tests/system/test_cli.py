"""The command line as people and scripts use it: against a real stack, every command its own process."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job
from tests.harness.jobs import EPOCHS, SCRIPT, SEED, Gate, GatedJob, GatedJobs, Outcome

if TYPE_CHECKING:
    from tests.system.conftest import Ran

pytestmark = pytest.mark.asyncio(loop_scope="session")

Adjourn = Callable[..., Awaitable["Ran"]]
Said = Callable[..., Coroutine[Any, Any, str]]
Submit = Callable[..., Awaitable[GatedJob]]

THEIRS = """
import mlp

def main(run):
    assert (run.args["width"], run.args["deep"]) == (2, {"a": [1.5, None], "on": True}), run.args
    with (run.output_directory / "log.txt").open("a") as log:
        print("begun", file=log)
        mlp.main(run)
        print("ended", file=log)
"""


@pytest.fixture
def adjourn(run: Callable[..., Awaitable["Ran"]]) -> Adjourn:
    """Runs `adjourn` to its end; there is no traceback, whatever happens."""

    async def command(*words: object) -> "Ran":
        ran = await run("adjourn", *words)
        assert "Traceback" not in ran.out + ran.err
        return ran

    return command


@pytest.fixture
def said(adjourn: Adjourn) -> Said:
    """Returns what a command that has to succeed prints."""

    async def output(*words: object) -> str:
        ran = await adjourn(*words)
        assert (ran.status, ran.err) == (0, ""), ran
        return ran.out

    return output


@pytest.fixture
def submit(said: Said, gated_jobs: GatedJobs, tmp_path: Path) -> Submit:
    """Submits a script of their own that needs a module beside it; it may not go beyond epoch `limit`."""

    async def queue(name: str, limit: int = 0) -> GatedJob:
        gate = Gate(tmp_path / "gate", limit)
        script = tmp_path / "theirs.py"
        script.write_text(THEIRS)
        words = ("--job-id", name, "--epochs", EPOCHS, "--seed", SEED, "--include", SCRIPT, "--label", "by=hand")
        args = ("--args", '{"width": 1, "deep": {"a": [1.5, null], "on": true}}', "--arg", "width=2")
        out = await said("submit", f"{script}:main", *words, *args, "--arg", f"gate={gate.directory}")
        assert out.startswith(f"jobs/{name} is queued: theirs:main, {EPOCHS} epochs, with ")
        return gated_jobs.add(await gated_jobs.client.get_job(name), gate)

    return queue


def objects(text: str) -> list[Any]:
    """Reads one JSON object a line."""
    return [json.loads(line) for line in text.splitlines()]


async def test_a_script_of_their_own_from_its_submission_to_its_deletion(
    submit: Submit,
    said: Said,
    gated_jobs: GatedJobs,
    uninterrupted: Outcome,
    tmp_path: Path,
) -> None:
    gated = await submit("theirs", limit=1)
    await gated.inside(2)
    assert "theirs" in await said("list", "--state", "running", "--label", "by=hand")

    pausing = asyncio.create_task(said("pause", "theirs", "--wait", "--reason", "lunch"))
    await gated.until(lambda job: job.pause.boundary_epoch == 2)
    assert (await said("pause", "theirs", "--reason", "lunch")).startswith("theirs will pause after epoch 2")
    gated.gate.open(2)
    asked, rests, phases = (await pausing).splitlines()
    assert asked.startswith(("theirs will pause after epoch 2", "theirs will pause at the next epoch boundary"))
    assert rests == "theirs rests after epoch 2, on no worker; `adjourn resume theirs` goes on with epoch 3"
    assert phases.startswith("boundary reached after ")
    shown = await said("get", "jobs/theirs")
    for words in ("PAUSED", "lunch", "Phases"):
        assert words in shown
    (job,) = objects(await said("get", "theirs", "-o", "json"))
    assert (job["state"], job["pause"]["epoch"], job["holds"][0]["reason"]) == ("PAUSED", 2, "lunch")

    resumed = (await said("resume", "theirs", "--wait")).splitlines()
    assert resumed[0].startswith("theirs resumes from epoch 2, step 12")
    assert resumed[-1] == "restored state: EXACT"
    watching = asyncio.create_task(said("watch", "theirs"))
    watching_json = asyncio.create_task(said("watch", "theirs", "-o", "json"))
    told = asyncio.create_task(said("events", "theirs", "--follow", "-o", "json"))
    await gated.finish()
    assert f"SUCCEEDED   epoch {EPOCHS}/{EPOCHS}" in (await watching).splitlines()[-1]
    assert objects(await watching_json)[-1]["job"]["state"] == "SUCCEEDED"
    assert await gated.outcome() == uninterrupted
    followed = [each["event"] for each in objects(await told)]
    assert "SUCCEEDED" in [event["type"] for event in followed]
    happened = objects(await said("events", "theirs", "-o", "json"))
    assert followed == happened[: len(followed)], "history and watch together: each once, in order"
    assert objects(await said("metrics", "theirs", "--steps", "-o", "json"))[-1]["step"] == 6 * EPOCHS

    epochs = objects(await said("metrics", "theirs", "-o", "json"))
    assert {epoch["epoch"]: epoch["values"] for epoch in epochs} == uninterrupted.metrics
    assert len((await said("metrics", "theirs")).splitlines()) == 1 + EPOCHS
    assert (await said("logs", "theirs", "--tail", "1")).startswith(f"epoch {EPOCHS}: ")
    assert "epoch 2: " in await said("logs", "theirs", "--attempt", "1")
    newest = objects(await said("checkpoints", "theirs", "-o", "json"))[0]
    assert newest["componentDigests"] == uninterrupted.digests
    assert "latest, final" in await said("checkpoints", "theirs")
    exported = tmp_path / "theirs.pt"
    await said("checkpoint", "export", "theirs", "--format", "torch", "-o", str(exported))
    about = torch.load(exported, weights_only=True)["adjourn.checkpoint"]
    assert (about["epoch"], about["state_digest"]) == (EPOCHS, newest["stateDigest"])
    assert [worker["name"] for worker in objects(await said("workers", "-o", "json"))] == [
        "workers/worker-1",
        "workers/worker-2",
    ]
    assert "ACTIVE" in await said("workers")

    await said("cp", "theirs:log.txt", tmp_path)
    assert (tmp_path / "log.txt").read_text() == "begun\nended\n"

    assert await said("delete", "theirs") == "theirs is deleted\n"
    gated_jobs.made.remove(gated)
    assert await said("list", "--label", "by=hand") == "no such jobs\n"


async def test_a_running_job_is_cancelled(submit: Submit, said: Said) -> None:
    gated = await submit("unwanted")
    await gated.inside(1)
    assert await said("cancel", "unwanted", "--reason", "a typo") == "unwanted is being stopped for good\n"
    await gated.until(Job.CANCELLED)
    shown = " ".join((await said("get", "unwanted")).replace("│", " ").split())
    assert re.search(
        r"was stopped (before its first epoch ended|within epoch 1, after \d of 6 steps); no checkpoint", shown
    )


async def test_a_submission_that_is_waited_for_tells_how_it_ended(adjourn: Adjourn) -> None:
    ran = await adjourn("submit", "no.such.module:main", "--epochs", 1, "--job-id", "doomed", "--wait")
    assert (ran.status, ran.err) == (5, "")
    (last,) = (line for line in ran.out.splitlines() if "FAILED" in line)
    why = "ENTRY_POINT_NOT_IMPORTABLE: ModuleNotFoundError: No module named 'no'"
    assert last.endswith(why)
    assert "doomed failed (ENTRY_POINT_NOT_IMPORTABLE):\n" in ran.out, "the message of the failure follows"
    assert "ENTRY_POINT_NOT_IMPORTABLE: " in (await adjourn("list")).out, "cut to the width, with other jobs' labels"
    assert "ENTRY_POINT_NOT_IMPORTABLE" in (await adjourn("get", "doomed")).out
    assert (await adjourn("watch", "doomed")).status == 5


async def test_ctrl_c_ends_a_watch_quietly(stack: Stack, uninterrupted: Outcome) -> None:
    adjourn = Path(sys.executable).parent / "adjourn"
    watch = await asyncio.create_subprocess_exec(
        *(adjourn, "--address", stack.address, "watch"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert watch.stdout
    async with asyncio.timeout(30):
        assert await watch.stdout.readline()
        watch.send_signal(signal.SIGINT)
        _, err = await watch.communicate()
    assert (watch.returncode, err) == (130, b"")


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("get", "none"), 3, "adjourn: there is no jobs/none; `adjourn list` shows what there is"),
        (("watch", "none"), 3, "there is no jobs/none"),
        (("metrics", "none"), 3, "there is no jobs/none"),
        (("checkpoints", "none"), 3, "there is no jobs/none"),
        (("cancel", "none"), 3, "there is no jobs/none"),
        (("get", "Not A Name"), 1, "name: must be 'jobs/{id}'"),
        (("pause", "uninterrupted"), 1, "jobs/uninterrupted is SUCCEEDED; pausing needs one of: QUEUED"),
        (("resume", "uninterrupted"), 1, "jobs/uninterrupted is SUCCEEDED; resuming needs one of"),
        (("cancel", "uninterrupted", "--mode", "step"), 2, "is for --save"),
        (("submit", "m:f", "--epochs", "-1"), 1, "--epochs: must be 0 to 10000000; is -1"),
        (("submit", "m:f", "--epochs", "1", "--job-id", "uninterrupted"), 1, "jobs/uninterrupted is taken"),
        (("--address", "127.0.0.1:1", "list"), 4, "no control plane answers at 127.0.0.1:1"),
        (("submit", "nowhere.py:main", "--epochs", "1"), 2, "there is no file nowhere.py"),
        (("list", "--state", "asleep"), 2, "'asleep' is none of queued"),
        (("frobnicate",), 2, "No such command 'frobnicate'"),
    ],
)
async def test_what_is_wrong_is_told_in_a_line(
    adjourn: Adjourn, uninterrupted: Outcome, words: tuple[str, ...], status: int, told: str
) -> None:
    ran = await adjourn(*words)
    assert (ran.status, ran.out) == (status, "")
    assert told in ran.err
    if status != 2:
        assert ran.err.startswith("adjourn: ")
        assert ran.err.count("\n") == 1


async def test_a_run_starts_in_a_copy_of_its_folder_and_finds_its_modules_by_whatever_name(
    said: Said, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text("ANSWER = 42\n")
    (tmp_path / "control_plane.py").write_text("def answer(): import worker; return worker.ANSWER / 2\n")
    script = tmp_path / "train.py"
    script.write_text(
        "import os, control_plane, worker\n"
        "def main(run):\n"
        "    for _ in run.epochs():\n"
        "        run.log(whole=worker.ANSWER, half=control_plane.answer(), rows=len(list(open('data/rows.csv'))))\n"
        "        run.log(rate=float(os.environ['RATE']))\n"
    )
    rows = tmp_path / "data" / "rows.csv"
    rows.parent.mkdir()
    rows.write_text("a\nb\nc\n")
    words = ("--epochs", "1", "--name", "own-modules", "--wait", "--include", rows, "--env", "RATE=0.5")
    out = await said("submit", f"{script}:main", *words)
    assert "1 epoch, with train.py, data/, control_plane.py and worker.py (4 files, " in out.splitlines()[0]
    (epoch,) = (json.loads(line) for line in (await said("metrics", "own-modules", "-o", "json")).splitlines())
    assert epoch["values"] == {"whole": 42.0, "half": 21.0, "rows": 3.0, "rate": 0.5}
    assert re.search(r"environment +RATE=0.5", await said("get", "own-modules"))
    events = [json.loads(line) for line in (await said("events", "own-modules", "-o", "json")).splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert {"CREATED", "PLACED", "BEGAN", "SUCCEEDED"} <= {event["type"] for event in events}


async def test_labels_and_epochs_are_changed_and_the_run_goes_on_to_the_new_end(
    said: Said, adjourn: Adjourn, submit: Submit
) -> None:
    gated = await submit("longer", limit=1)
    training = await gated.inside(2)
    refused = await adjourn("update", "longer", "--epochs", EPOCHS + 2)
    assert refused.status == 1
    assert "`adjourn pause --wait` it first" in refused.err
    assert "labels by=hand, team=a" in await said("update", "longer", "--label", "team=a")
    await gated.ask_for_pause(training)
    gated.gate.open(2)
    await gated.until(Job.PAUSED)
    assert f"{EPOCHS + 2} epochs" in await said("update", "longer", "--epochs", EPOCHS + 2)
    await said("resume", "longer")
    gated.gate.open(EPOCHS + 2)
    job = await gated.until(Job.SUCCEEDED)
    assert (job.progress.epoch, dict(job.labels)) == (EPOCHS + 2, {"by": "hand", "team": "a"})
