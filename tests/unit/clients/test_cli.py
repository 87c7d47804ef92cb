"""The command line against a scripted control plane."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from google.protobuf.json_format import MessageToDict, Parse
from typer.testing import CliRunner, Result

from adjourn import __version__, bundles, cli, errors
from adjourn.cli import failures, verbs
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Hold, Job, Pause, PauseMode
from adjourn.v1.job_service_pb2 import WatchJobsResponse
from adjourn.v1.usage_pb2 import EpochMetrics
from adjourn.v1.worker_pb2 import Worker

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]


@pytest.fixture
def adjourn(plane: "Plane") -> Adjourn:
    def run(*words: str) -> Result:
        result = CliRunner().invoke(cli.app, list(words), env={"ADJOURN_ADDRESS": plane.address, "COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("def main(run): ...\n")
    return path


def asked(plane: "Plane", method: str) -> list[object]:
    return [request for name, request in plane.asked if name == method]


def change(state: Job.State.ValueType, epoch: int = 0, **fields: object) -> WatchJobsResponse:
    response = WatchJobsResponse(job=Job(name="jobs/x", state=state, **fields), resume_token="t")  # type: ignore[arg-type]
    response.job.spec.total_epochs = 3
    response.job.progress.epoch = epoch
    return response


def test_a_script_is_submitted_with_all_that_belongs_to_it(adjourn: Adjourn, plane: "Plane", script: Path) -> None:
    (script.parent / "nets.py").write_text("x = 1\n")
    result = adjourn(
        "submit", f"{script}:main", "--epochs", "20", "--name", "digits", "--gpus", "2", "--seed", "7",
        "--args", '{"lr": 1, "deep": {"a": [1, null]}}', "--arg", "lr=0.001", "--arg", "name=adam", "--arg", "on=true",
        "--arg", "text=a=b", "--include", str(script.parent / "nets.py"), "--checkpoint-epochs", "0",
        "--max-restarts", "1", "--label", "team=a", "--worker-selector", "zone=b",
        "--model-name", "cnn", "--dataset-uri", "s3://d",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "jobs/digits is queued: train:main, 20 epochs, with" in result.stdout
    assert "adjourn watch digits" in result.stdout
    packed = bundles.pack(script, [script.parent / "nets.py"])
    assert asked(plane, "UploadBundle") == [[packed]]
    job = plane.jobs["jobs/digits"]
    spec = job.spec
    assert dict(job.labels) == {"team": "a"}
    assert MessageToDict(spec.args) == {
        "lr": 0.001, "name": "adam", "on": True, "text": "a=b", "deep": {"a": [1, None]},
    }  # fmt: skip
    assert (spec.entry_point, spec.total_epochs, spec.gpu_count, spec.seed) == ("train:main", 20, 2, 7)
    assert (spec.checkpoint_epochs, spec.max_restarts, dict(spec.worker_selector)) == (0, 1, {"zone": "b"})
    assert (spec.model_name, spec.dataset_uri, spec.bundle) == ("cnn", "s3://d", f"bundles/{len(packed):064x}")


def test_installed_code_needs_no_bundle(adjourn: Adjourn, plane: "Plane") -> None:
    assert adjourn("submit", "adjourn.examples.digits:main", "--epochs", "3").exit_code == 0
    spec = plane.jobs["jobs/made-up"].spec
    assert (spec.entry_point, spec.bundle) == ("adjourn.examples.digits:main", "")
    assert {"seed", "checkpoint_epochs", "max_restarts"}.isdisjoint(field.name for field, _ in spec.ListFields())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.py",), "script.py:function"),
        (("missing.py:main",), "there is no file missing.py"),
        (("no-module:main",), "neither a file"),
        (("m:2",), "script.py:function"),
        (("m:f", "--arg", "lr"), "key=value"),
        (("m:f", "--arg", "a=1", "--arg", "a=2"), "given twice"),
        (("m:f", "--args", "[1]"), "JSON object"),
        (("m:f", "--args", "{"), "is not JSON"),
        (("m:f", "--args", '{"a": NaN}'), "NaN is not in JSON"),
        (("m:f", "--arg", "a=9007199254740993"), "does not fit a JSON number"),
        (("m:f", "--arg", "a=[[1e999]]"), "too large"),
        (("m:f", "--label", "=x"), "key=value"),
    ],
)
def test_bad_usage_is_told_and_nothing_is_sent(
    adjourn: Adjourn, plane: "Plane", words: tuple[str, ...], said: str
) -> None:
    result = adjourn("submit", "--epochs", "3", *words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert plane.asked == []


def test_a_script_of_an_impossible_name_is_told(adjourn: Adjourn, script: Path) -> None:
    result = adjourn("submit", f"{script.rename(script.parent / 'my-train.py')}:main", "--epochs", "3")
    assert result.exit_code == 2
    assert "Python identifier" in result.stderr


def test_a_bundle_that_cannot_be_made_is_told_in_a_line(adjourn: Adjourn, script: Path) -> None:
    result = adjourn("submit", f"{script}:main", "--epochs", "3", "--include", str(script.parent / "nowhere"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("adjourn: cannot make a bundle: ")
    assert result.stderr.count("\n") == 1


def test_a_refused_job_is_told_by_field(adjourn: Adjourn, plane: "Plane") -> None:
    plane.failures["CreateJob"] = [errors.InvalidRequestError({"job.spec.total_epochs": "must be 0 to 9; is -1"})]
    result = adjourn("submit", "m:f", "--epochs", "-1")
    assert result.exit_code == 1
    assert result.stderr == "adjourn: job.spec.total_epochs: must be 0 to 9; is -1; nothing was stored\n"


@pytest.mark.parametrize(("end", "status"), [(Job.SUCCEEDED, 0), (Job.FAILED, 1), (Job.CANCELLED, 1)])
@pytest.mark.parametrize("how", ["--wait", "--watch"])
def test_a_submission_can_be_followed(
    adjourn: Adjourn, plane: "Plane", end: Job.State.ValueType, status: int, how: str
) -> None:
    plane.streams = [[change(Job.QUEUED), change(Job.RUNNING, 1), change(Job.RUNNING, 1), change(end, 3)]]
    result = adjourn("submit", "m:f", "--epochs", "3", "--name", "x", how)
    assert result.exit_code == status
    assert Job.State.Name(end) in result.stdout
    assert result.stdout.count("RUNNING") == (1 if how == "--wait" else 0)


def test_jobs_are_listed_and_filtered(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("one", Job.PAUSED)
    for number in range(4):
        plane.add(f"more-{number}", Job.RUNNING)
    assert all(name in adjourn("list").stdout for name in ("one", "more-0", "more-3"))
    result = adjourn("list", "--state", "paused", "--label", "a=b", "--json")
    assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["jobs/one"]
    assert plane.asked[-1][1].labels == {"a": "b"}
    assert len(adjourn("list", "--limit", "2", "--json").stdout.splitlines()) == 2


def test_an_empty_list_says_so(adjourn: Adjourn, plane: "Plane") -> None:
    assert "no jobs yet" in adjourn("list").stdout
    assert adjourn("list", "--state", "FAILED").stdout == "no such jobs\n"
    assert adjourn("list", "--json").stdout == ""
    plane.add("x")
    assert "no epoch has ended" in adjourn("metrics", "x").stdout
    assert "no checkpoint" in adjourn("checkpoints", "x").stdout
    assert "no worker" in adjourn("workers").stdout


def test_an_unknown_state_is_told_with_the_known_ones(adjourn: Adjourn) -> None:
    result = adjourn("list", "--state", "asleep")
    assert result.exit_code == 2
    assert "queued" in result.stderr
    assert "unspecified" not in result.stderr


def test_a_job_is_shown_to_people_and_to_programs(adjourn: Adjourn, plane: "Plane") -> None:
    job = plane.add("x", Job.PAUSED, latest_checkpoint="jobs/x/checkpoints/1")
    assert "adjourn resume x" in adjourn("get", "x").stdout
    assert Parse(adjourn("get", "jobs/x", "--json").stdout, Job()) == job


def test_series_are_shown_to_people_and_to_programs(adjourn: Adjourn, plane: "Plane") -> None:
    plane.epochs = [EpochMetrics(epoch=number, values={"loss": 0.5}) for number in (1, 2, 3)]
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1-ab")]
    plane.workers = [Worker(name="workers/w", state=Worker.ACTIVE)]
    assert "loss" in adjourn("metrics", "x").stdout
    assert [json.loads(line)["epoch"] for line in adjourn("metrics", "x", "--json").stdout.splitlines()] == [1, 2, 3]
    assert "1-ab" in adjourn("checkpoints", "x").stdout
    assert json.loads(adjourn("checkpoints", "x", "--json").stdout)["name"] == "jobs/x/checkpoints/1-ab"
    assert "ACTIVE" in adjourn("workers").stdout
    assert json.loads(adjourn("workers", "--json").stdout)["name"] == "workers/w"


def pausing(plane: "Plane") -> Job:
    job = plane.add("x", Job.PAUSING, holds=[Hold(kind=Hold.USER)])
    job.spec.total_epochs, job.progress.epoch = 20, 4
    now = datetime.now(UTC)
    job.pause.request_time.FromDatetime(now)
    job.pause.predicted_boundary_time.FromDatetime(now + timedelta(hours=4, seconds=30))
    return job


def test_a_pause_tells_when_it_will_come(adjourn: Adjourn, plane: "Plane") -> None:
    pausing(plane)
    result = adjourn("pause", "x", "--reason", "lunch", "--mode", "STEP")
    assert result.stdout == "x will pause after epoch 5, in about 4 h 00 min\n"
    (request,) = [request for method, request in plane.asked if method == "PauseJob"]
    assert (request.reason, request.mode) == ("lunch", PauseMode.STEP)


def test_a_pause_can_be_waited_for(adjourn: Adjourn, plane: "Plane") -> None:
    job = pausing(plane)
    done = Job()
    done.CopyFrom(job)
    done.state, done.progress.epoch = Job.PAUSED, 5
    start = done.pause.request_time.ToDatetime()
    done.pause.boundary_time.FromDatetime(start + timedelta(seconds=4))
    done.pause.pause_time.FromDatetime(start + timedelta(seconds=5))
    plane.streams = [[WatchJobsResponse(job=job), WatchJobsResponse(job=done)]]
    result = adjourn("pause", "x", "--wait")
    assert result.exit_code == 0
    assert "rests after epoch 5" in result.stdout
    assert result.stdout.splitlines()[-1] == "boundary reached after 4.0 s"


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [(Job.SUCCEEDED, 0, "trained to its end"), (Job.RUNNING, 1, "trains on"), (Job.FAILED, 1, "gave up")],
)
def test_a_pause_that_does_not_come_is_told(
    adjourn: Adjourn, plane: "Plane", end: Job.State.ValueType, status: int, said: str
) -> None:
    pausing(plane)
    plane.streams = [[change(end)]]
    result = adjourn("pause", "x", "--wait")
    assert result.exit_code == status
    assert said in result.stdout


def test_an_unknown_mode_is_bad_usage(adjourn: Adjourn) -> None:
    result = adjourn("pause", "x", "--mode", "soon")
    assert result.exit_code == 2
    assert "epoch, step, latest" in result.stderr


def test_a_resume_tells_from_where(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, latest_checkpoint="jobs/x/checkpoints/1")
    plane.checkpoints = [Checkpoint(name="jobs/x/checkpoints/1", epoch=5, step=500)]
    result = adjourn("resume", "x", "--allow-inexact")
    assert result.stdout == "x resumes from epoch 5, step 500, as soon as a worker is free\n"
    assert [request.allow_inexact for method, request in plane.asked if method == "ResumeJob"] == [True]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job(state=Job.QUEUED), "starts from the beginning"),
        (Job(state=Job.RUNNING), "had not left its worker yet"),
        (Job(state=Job.PAUSING), "as soon as its checkpoint is durable"),
        (Job(state=Job.PAUSED, holds=[Hold(kind=Hold.BUDGET, reason="spent")]), "is still held by budget: spent"),
    ],
)
def test_a_resume_tells_what_happens_next(adjourn: Adjourn, plane: "Plane", job: Job, said: str) -> None:
    job.name = "jobs/x"
    plane.jobs["jobs/x"] = job
    assert said in adjourn("resume", "x").stdout


def test_a_resume_can_be_waited_for(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, attempt=1, pause=Pause(epoch=1))
    news = Pause(verdict=Pause.EXACT)
    plane.streams = [[change(Job.STARTING, attempt=2), change(Job.RUNNING, attempt=2, worker="workers/b", pause=news)]]
    plane.streams.append([change(Job.RUNNING, pause=news)])
    result = adjourn("resume", "x", "--wait")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:] == ["x trains on b", "restored state: EXACT"]


def test_a_verdict_that_comes_late_is_waited_for(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, attempt=1, pause=Pause(epoch=1))
    late = Pause(verdict=Pause.WITHIN_TOLERANCE)
    plane.streams = [[change(Job.RUNNING, attempt=2)], [change(Job.RUNNING), change(Job.RUNNING, pause=late)]]
    assert adjourn("resume", "x", "--wait").stdout.splitlines()[-1] == "restored state: WITHIN_TOLERANCE"


def test_a_verdict_that_does_not_come_is_not_waited_for(
    adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.add("x", Job.QUEUED, attempt=1, pause=Pause(epoch=1))
    plane.streams = [[change(Job.RUNNING, attempt=2)]]
    monkeypatch.setattr(verbs, "VERDICT_SECONDS", 0.2)
    assert adjourn("resume", "x", "--wait").stdout.splitlines()[-1] == "restored state: not compared"


def test_a_resume_that_fails_is_told(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x", Job.QUEUED, attempt=1)
    plane.streams = [[change(Job.FAILED, attempt=2)]]
    result = adjourn("resume", "x", "--wait")
    assert result.exit_code == 1
    assert "gave up" in result.stdout


def test_scripts_are_not_asked(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    assert adjourn("cancel", "x", "--reason", "enough").stdout == "x is being stopped for good\n"
    assert adjourn("delete", "x").stdout == "x is deleted\n"
    assert plane.jobs == {}


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_people_are_asked(adjourn: Adjourn, plane: "Plane", monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    plane.add("x", latest_checkpoint="jobs/x/checkpoints/1")
    questions: list[str] = []

    def refuse(question: str, *, abort: bool) -> None:
        questions.append(question)
        raise typer.Abort

    monkeypatch.setattr(verbs, "interactive", lambda: True)
    monkeypatch.setattr(typer, "confirm", refuse)
    assert adjourn(verb, "x").exit_code == 1
    assert [method for method, _ in plane.asked] == ["GetJob"]
    assert "x" in questions[0]
    assert adjourn(verb, "x", "--yes").exit_code == 0


def test_named_jobs_are_watched_to_their_end(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.add("y")
    gone = WatchJobsResponse(deleted="jobs/y")
    plane.streams = [[change(Job.RUNNING, 1), change(Job.RUNNING, 1), change(Job.SUCCEEDED, 3), gone]]
    result = adjourn("watch", "x", "y")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[1:] == ["x", "RUNNING", "epoch", "1/3"]
    assert lines[2] == "y was deleted"


def test_a_watch_for_programs_has_one_object_a_line(adjourn: Adjourn, plane: "Plane") -> None:
    plane.add("x")
    plane.streams = [[change(Job.RUNNING, 1), change(Job.SUCCEEDED, 3)]]
    lines = adjourn("watch", "x", "--json").stdout.splitlines()
    assert [json.loads(line)["job"]["state"] for line in lines] == ["RUNNING", "SUCCEEDED"]


def test_a_watch_of_all_ends_only_with_an_error(adjourn: Adjourn, plane: "Plane") -> None:
    plane.streams = [[change(Job.SUCCEEDED), errors.InternalError("broken", error_id="e7")]]
    result = adjourn("watch")
    assert result.exit_code == 1
    assert "error_id e7" in result.stderr


def test_an_unknown_job_cannot_be_watched(adjourn: Adjourn) -> None:
    assert "there is no jobs/x; `adjourn list` shows" in adjourn("watch", "x").stderr


@pytest.mark.parametrize("kind", sorted(set(errors.BY_REASON.values()) - {errors.InvalidRequestError}, key=str))
def test_every_error_is_one_line(adjourn: Adjourn, plane: "Plane", kind: type[errors.AdjournError]) -> None:
    plane.failures["GetJob"] = [kind("it is\nso", job="jobs/x")] * 10
    result = adjourn("get", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("adjourn: it is so")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_quiet(adjourn: Adjourn, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adjourn.client.blocking.Client.get_job", interrupt)
    result = adjourn("get", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_ends_a_real_watch_quietly(plane: "Plane") -> None:
    plane.add("x")
    argv = [sys.executable, "-m", "adjourn.cli", "--address", plane.address, "watch", "x"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert plane.watched.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_no_control_plane_is_told_in_a_line() -> None:
    result = CliRunner().invoke(cli.app, ["--address", "127.0.0.1:1", "list"])
    assert result.exit_code == 1
    assert result.stderr == (
        "adjourn: no control plane answers at 127.0.0.1:1 (Connection refused); "
        "start one with `adjourn up`, or name it by --address or ADJOURN_ADDRESS\n"
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:7400", "localhost", "a b:1"])
def test_an_address_is_host_and_port(address: str) -> None:
    result = CliRunner().invoke(cli.app, ["--address", address, "list"])
    assert result.exit_code == 2
    assert "host:port" in result.stderr


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"adjourn {__version__}\n")


def test_an_unexpected_fault_is_a_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("of\nours")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert (
        capsys.readouterr().err
        == f"adjourn: internal error, RuntimeError: of ours; {failures.TRACEBACK_VARIABLE}=1 shows where\n"
    )
    monkeypatch.setenv(failures.TRACEBACK_VARIABLE, "1")
    with pytest.raises(SystemExit):
        cli.main()
    assert "Traceback" in capsys.readouterr().err


def test_what_ctrl_c_left_half_built_is_told_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfBuilt:
        def __del__(self) -> None:
            raise AttributeError("_state")

    monkeypatch.setattr(sys, "unraisablehook", failures.aside)
    HalfBuilt()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(failures.TRACEBACK_VARIABLE, "1")
    HalfBuilt()
    assert "_state" in capsys.readouterr().err


def test_help_is_quick() -> None:
    program = (
        "import sys; from adjourn import cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: sys.exit(bool({'grpc', 'torch', 'minio'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_the_training_code_needs_no_grpc() -> None:
    program = "import sys, adjourn, adjourn.training; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("command", ["up", "demo"])
def test_options_of_the_embedded_stack_are_passed_on(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"adjourn {command}" in result.stdout
    assert CliRunner().invoke(cli.app, [command, "--no-such-option"]).exit_code == 2
