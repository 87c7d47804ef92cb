"""What goes wrong in a user's code: the job fails with the reason, or is tried again and ends where it should."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adjourn import errors
from adjourn.client import AsyncClient
from adjourn.v1.job_pb2 import Job, JobSpec
from adjourn.v1.job_service_pb2 import StreamLogsResponse
from tests.harness.jobs import GatedJob, GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

Submit = Callable[..., Awaitable[GatedJob]]

RAISES = """
import pathlib

def main(run):
    counter = pathlib.Path(run.args["gate"]) / "attempts"
    attempt = len(counter.read_text()) + 1 if counter.exists() else 1
    counter.write_text("x" * attempt)
    for epoch in run.epochs():
        deeper(attempt if run.args["changing"] else 0)

def deeper(number):
    raise ValueError(f"no good: {number}")
"""


@pytest.fixture
def submit(gated_jobs: GatedJobs, tmp_path: Path) -> Submit:
    """Queues a script, `main` unless `spec` says otherwise."""

    async def queue(name: str, source: str, **fields: object) -> GatedJob:
        script = tmp_path / f"{name.replace('-', '_')}.py"
        script.write_text(source)
        changing = bool(fields.pop("changing", False))
        return await gated_jobs.start(name, script=script, spec=JobSpec(**fields), changing=changing)  # type: ignore[arg-type]

    return queue


@pytest.fixture
def log(client: AsyncClient) -> Callable[[Job], Awaitable[str]]:
    """Returns what a job's last attempt printed."""

    async def read(job: Job) -> str:
        messages = [message async for message in client.stream_logs(job.name)]
        assert (messages[-1].attempt, messages[-1].end) == (job.attempt, StreamLogsResponse.WHOLE)
        return b"".join(message.data for message in messages).decode()

    return read


@pytest.mark.parametrize(
    ("name", "source", "entry_point", "reason", "said"),
    [
        ("no-function", "x = 1\n", "no_function:main", "ENTRY_POINT_NOT_FOUND", "has no function 'main'"),
        ("no-module", "x = 1\n", "elsewhere.deep:main", "ENTRY_POINT_NOT_IMPORTABLE", "No module named 'elsewhere'"),
        ("not-callable", "main = 1\n", "not_callable:main", "ENTRY_POINT_NOT_FOUND", "has no function 'main'"),
        ("bad-syntax", "def main(run:\n", "bad_syntax:main", "ENTRY_POINT_NOT_IMPORTABLE", "SyntaxError"),
        ("bad-import", "1 / 0\n", "bad_import:main", "ENTRY_POINT_NOT_IMPORTABLE", "ZeroDivisionError"),
        ("leaves", "raise SystemExit('no')\n", "leaves:main", "ENTRY_POINT_NOT_IMPORTABLE", "SystemExit: no"),
        ("no-epochs", "def main(run): ...\n", "no_epochs:main", "TRAINING_WITHOUT_EPOCHS", "run.epochs()"),
    ],
)
async def test_what_only_the_worker_can_find_out_fails_the_job(
    submit: Submit,
    log: Callable[[Job], Awaitable[str]],
    name: str,
    source: str,
    entry_point: str,
    reason: str,
    said: str,
) -> None:
    gated = await submit(name, source, entry_point=entry_point)
    job = await gated.until(Job.FAILED)
    assert (job.failure.reason, job.attempt, job.restart_count) == (reason, 1, 0)
    assert said in job.failure.message
    assert not job.worker
    assert "Traceback (most recent call last)" in await log(job)
    with pytest.raises(errors.NoCheckpointError):
        await gated.client.resume_job(gated.name)


async def test_an_exception_is_told_by_its_last_lines_and_the_log_has_it_all(
    submit: Submit, log: Callable[[Job], Awaitable[str]]
) -> None:
    gated = await submit("raises", RAISES, max_restarts=0)
    job = await gated.until(Job.FAILED)
    assert (job.failure.reason, job.attempt, job.restart_count) == ("TRAINING_RAISED", 1, 0)
    assert "ValueError: no good: 0" in job.failure.message
    assert "in deeper" in job.failure.message
    whole = await log(job)
    assert "in main" in whole
    assert "ValueError: no good: 0" in whole


async def test_restarts_are_limited(submit: Submit) -> None:
    gated = await submit("hopeless", RAISES, max_restarts=1, changing=True)
    job = await gated.until(Job.FAILED)
    assert (job.attempt, job.restart_count, job.failure.attempt) == (2, 1, 2)
    assert "no good: 2" in job.failure.message


async def test_what_fails_three_times_in_the_same_way_is_not_tried_a_fourth_time(submit: Submit) -> None:
    gated = await submit("deterministic", RAISES)
    job = await gated.until(Job.FAILED)
    assert (job.attempt, job.restart_count) == (3, 2)


async def test_what_fails_once_is_tried_again_and_ends_where_it_should(
    gated_jobs: GatedJobs, uninterrupted: Outcome
) -> None:
    gated = await gated_jobs.start("fails-once", fail_in=3)
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (2, 0), "the epochs since have given the restart back"
    assert not job.HasField("failure")
    assert await gated.outcome() == uninterrupted


async def test_a_pause_of_a_run_that_then_fails_comes_to_rest(gated_jobs: GatedJobs, uninterrupted: Outcome) -> None:
    """The attempt ends on its way to the boundary; the pause rests on the checkpoint before."""
    gated = await gated_jobs.start("fails-while-pausing", limit=2, fail_in=3)
    training = await gated.inside(3)
    await gated.durable(2)
    await gated.ask_for_pause(training)
    gated.gate.open(3)
    paused = await gated.until(Job.PAUSED)
    assert (paused.progress.epoch, paused.pause.epoch, paused.failure.reason) == (2, 2, "TRAINING_RAISED")
    assert paused.restart_count == 1
    await gated.client.resume_job(gated.name)
    assert (await gated.finish()).restart_count == 0, "healthy epochs give it back"
    assert await gated.outcome() == uninterrupted


async def test_bad_input_is_refused_by_field_and_nothing_is_stored(client: AsyncClient) -> None:
    before = [job.name async for job in client.list_jobs()]
    bad = (
        (JobSpec(entry_point="no colon", total_epochs=1), "job.spec.entry_point"),
        (JobSpec(entry_point="m:f", total_epochs=-1), "job.spec.total_epochs"),
        (JobSpec(entry_point="m:f", total_epochs=1, bundle="bundles/xyz"), "job.spec.bundle"),
    )
    for spec, field in bad:
        with pytest.raises(errors.InvalidRequestError) as refused:
            await client.create_job(spec)
        assert list(refused.value.violations) == [field]
    with pytest.raises(errors.BundleMissingError, match="upload it again"):
        await client.create_job(JobSpec(entry_point="m:f", total_epochs=1, bundle=f"bundles/{0:064x}"))
    with pytest.raises(errors.InvalidRequestError) as misnamed:
        await client.create_job(JobSpec(entry_point="m:f", total_epochs=1), job_id="Not A Name")
    assert list(misnamed.value.violations) == ["job_id"]
    with pytest.raises(errors.InvalidRequestError) as no_archive:
        await client.upload_bundle(b"certainly no archive")
    assert list(no_archive.value.violations) == ["chunk"]
    assert [job.name async for job in client.list_jobs()] == before
