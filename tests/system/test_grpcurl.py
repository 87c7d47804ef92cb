"""The contract as other programs see it: with the real grpcurl, over reflection and with the published descriptors."""

import asyncio
import base64
import json
import shlex
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.json_format import Parse

from adjourn import bundles
from adjourn.client import AsyncClient
from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job
from tests.harness.jobs import EPOCHS, SCRIPT, SEED, WAIT_SECONDS, Gate, GatedJobs, Outcome

if TYPE_CHECKING:
    from tests.system.conftest import Ran

pytestmark = pytest.mark.asyncio(loop_scope="session")

Run = Callable[..., Awaitable["Ran"]]
Grpcurl = Callable[..., Awaitable["Ran"]]
Eventually = Callable[..., Awaitable[None]]
Watched = Callable[[object], AsyncGenerator[Any]]

ROOT = Path(__file__).parents[2]
PROTOSET = ROOT / "deploy" / "adjourn.protoset"
JOBS = "adjourn.v1.JobService"
NOT_FOUND, INVALID_ARGUMENT, FAILED_PRECONDITION = 64 + 5, 64 + 3, 64 + 9
"""What grpcurl exits with: 64 and the status code."""


@pytest.fixture
def grpcurl(run: Run, stack: Stack) -> Grpcurl:
    """Calls a method of JobService with a request; options come before."""

    async def call(method: str, request: object, *options: str) -> "Ran":
        return await run(
            "grpcurl", "-plaintext", *options, "-d", json.dumps(request), stack.address, f"{JOBS}/{method}"
        )

    return call


@pytest.fixture
def watched(stack: Stack) -> Watched:
    """Yields the messages of a WatchJobs, which ends when it is closed."""

    async def follow(request: object) -> AsyncGenerator[Any]:
        words = ("-plaintext", "-d", json.dumps(request), stack.address, f"{JOBS}/WatchJobs")
        grpcurl = Path(sys.executable).parent / "grpcurl"
        process = await asyncio.create_subprocess_exec(grpcurl, *words, stdout=asyncio.subprocess.PIPE)
        assert process.stdout
        try:
            text = b""
            async for line in process.stdout:
                text += line
                if line == b"}\n":
                    yield json.loads(text)
                    text = b""
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    return follow


def messages(text: str) -> list[Any]:
    """Reads the JSON objects that grpcurl printed one after the other."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def changes(text: str) -> list[Any]:
    """Reads what a watch printed, without the keep-alives."""
    return [message for message in messages(text) if "job" in message]


async def test_reflection_lists_and_describes(run: Run, stack: Stack) -> None:
    listed = await run("grpcurl", "-plaintext", stack.address, "list")
    services = {"JobService", "CheckpointService", "WorkerService", "AgentService"}
    assert {f"adjourn.v1.{name}" for name in services} | {"grpc.health.v1.Health"} <= set(listed.out.split())
    described = await run("grpcurl", "-plaintext", stack.address, "describe", "adjourn.v1.Job.State")
    assert "PAUSED = 5;" in described.out
    healthy = await run("grpcurl", "-plaintext", stack.address, "grpc.health.v1.Health/Check")
    assert json.loads(healthy.out) == {"status": "SERVING"}


async def test_a_job_from_its_creation_to_its_end(
    grpcurl: Grpcurl, gated_jobs: GatedJobs, tmp_path: Path, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gate = Gate(tmp_path / "gate", 1)
    spec = {
        "entry_point": "mlp:main",
        "bundle": await gated_jobs.client.upload_bundle(bundles.pack(SCRIPT)),
        "total_epochs": EPOCHS,
        "seed": SEED,
        "args": {"gate": str(gate.directory)},
    }
    wanted = {"job_id": "from-grpcurl", "job": {"spec": spec, "labels": {"by": "grpcurl"}}}
    created = await grpcurl("CreateJob", wanted)
    assert (created.status, created.err) == (0, "")
    gated = gated_jobs.add(Parse(created.out, Job()), gate)
    assert json.loads(created.out)["state"] == "QUEUED"

    training = await gated.inside(2)
    pausing = json.loads((await grpcurl("PauseJob", {"name": gated.name, "reason": "lunch"})).out)
    assert pausing["state"] == "PAUSING"
    assert [(hold["kind"], hold["reason"]) for hold in pausing["holds"]] == [("USER", "lunch")]
    await eventually(training.is_to_pause)
    gate.open(EPOCHS)
    rested = await gated.until({Job.PAUSED})
    paused = json.loads((await grpcurl("GetJob", {"name": gated.name})).out)
    assert (paused["state"], paused["pause"]["checkpoint"]) == ("PAUSED", rested.latest_checkpoint)
    assert paused["progress"]["step"] == rested.progress.step
    found = json.loads((await grpcurl("ListJobs", {"states": ["PAUSED"], "labels": {"by": "grpcurl"}})).out)
    assert [job["name"] for job in found["jobs"]] == [gated.name]
    assert json.loads((await grpcurl("ResumeJob", {"name": gated.name})).out)["state"] in ("QUEUED", "STARTING")
    await gated.finish()
    assert await gated.outcome() == uninterrupted


async def test_a_watch_streams_states_and_goes_on_from_its_token(watched: Watched, gated_jobs: GatedJobs) -> None:
    gated = await gated_jobs.start("watched")
    watch = {"names": [gated.name]}
    seen, tokens = [], []
    async with asyncio.timeout(WAIT_SECONDS), aclosing(watched(watch)) as streamed:
        async for message in streamed:
            seen += [message["job"]] if "job" in message else []
            tokens += [message["resume_token"]] if "resume_token" in message else []
            if tokens:
                gated.gate.open(EPOCHS)
            if seen[-1]["state"] == "SUCCEEDED":
                break
    epochs = [job.get("progress", {}).get("epoch", 0) for job in seen]
    assert epochs == sorted(epochs)
    async with asyncio.timeout(WAIT_SECONDS), aclosing(watched({**watch, "resume_token": tokens[0]})) as later:
        async for message in later:
            if message.get("job") == seen[-1]:
                break
    token: str = tokens[-1]
    async with asyncio.timeout(WAIT_SECONDS):
        while True:  # each change is told as the job is by then, also one after its end
            async with aclosing(watched({**watch, "resume_token": token})) as rest:
                told = await anext(rest)
            if "job" not in told:
                break
            assert told["job"]["state"] == "SUCCEEDED"
            token = told["resume_token"]
    assert told == {"resume_token": token}, "it lives, and that is all"


@pytest.mark.parametrize(
    ("method", "request_", "status", "details"),
    [
        ("PauseJob", {"name": "jobs/none"}, NOT_FOUND, ["google.rpc.ErrorInfo", '"reason":"NOT_FOUND"']),
        (
            "PauseJob",
            {"name": "jobs/uninterrupted"},
            FAILED_PRECONDITION,
            ["google.rpc.PreconditionFailure", '"reason":"JOB_FINISHED"', '"state":"SUCCEEDED"', "allowed_states"],
        ),
        (
            "CreateJob",
            {"job": {"spec": {"entry_point": "nothing", "total_epochs": -1}}},
            INVALID_ARGUMENT,
            ["google.rpc.BadRequest", '"field":"job.spec.entry_point"', '"field":"job.spec.total_epochs"'],
        ),
        (
            "CancelJob",
            {"name": "jobs/uninterrupted", "mode": "LATEST", "save_checkpoint": True},
            INVALID_ARGUMENT,
            ["google.rpc.BadRequest", '"field":"mode"'],
        ),
    ],
)
async def test_an_error_says_why_in_words_and_in_data(
    grpcurl: Grpcurl, uninterrupted: Outcome, method: str, request_: object, status: int, details: list[str]
) -> None:
    refused = await grpcurl(method, request_)
    assert (refused.status, refused.out) == (status, "")
    assert [detail for detail in details if detail not in refused.err] == []


async def test_the_lines_of_the_readme_work(
    run: Run, stack: Stack, client: AsyncClient, gated_jobs: GatedJobs, tmp_path: Path, undrained: None
) -> None:
    """Its job has no worker until it was paused, or it could end before."""
    workers = [worker.name async for worker in client.list_workers()]
    for worker in workers:
        await client.drain_worker(worker)
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("grpcurl ")]
    answers = []
    for line in lines:
        command, *words = shlex.split(line.replace("127.0.0.1:7400", stack.address))
        answers.append(await run(command, *words))
        if line.endswith("PauseJob"):
            for worker in workers:
                await client.undrain_worker(worker)
    assert len(answers) == 5
    gated_jobs.add(Parse(answers[1].out, Job()), Gate(tmp_path / "unused", EPOCHS))
    assert [answer.status for answer in answers[:4]] == [0, 0, 0, 0]
    states = [json.loads(answer.out)["state"] for answer in answers[1:4]]
    assert states == ["QUEUED", "PAUSED", "QUEUED"]
    assert {message["job"]["name"] for message in changes(answers[4].out)} == {"jobs/digits"}


async def test_the_descriptors_have_the_comments(run: Run) -> None:
    described = await run("grpcurl", "-protoset", PROTOSET, "describe", f"{JOBS}.PauseJob")
    assert "// Adds the USER hold." in described.out
    listed = await run("grpcurl", "-protoset", PROTOSET, "list")
    assert JOBS in listed.out.split()


async def test_what_a_job_has_printed(grpcurl: Grpcurl, uninterrupted: Outcome) -> None:
    whole = await grpcurl("StreamLogs", {"name": "jobs/uninterrupted", "follow": True})
    found = messages(whole.out)
    text = b"".join(base64.b64decode(message.get("data", "")) for message in found)
    assert [f"epoch {epoch}: ".encode() in text for epoch in range(1, EPOCHS + 1)] == [True] * EPOCHS
    last = {"attempt": 1, "offset": str(len(text)), "next_offset": str(len(text)), "end": "WHOLE"}
    assert found[-1] == last
    wrong = await grpcurl("StreamLogs", {"name": "jobs/uninterrupted", "attempt": 2})
    assert (wrong.status, "attempt" in wrong.err) == (INVALID_ARGUMENT, True)
