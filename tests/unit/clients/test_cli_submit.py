"""`adjourn submit` against a scripted control plane."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.json_format import MessageToDict
from typer.testing import Result

from adjourn import bundles, errors
from adjourn.cli.exit_status import Status
from adjourn.v1.job_pb2 import Failure, Job, JobSpec
from adjourn.v1.job_service_pb2 import WatchJobsResponse

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]


def asked(plane: "Plane", method: str) -> list[object]:
    return [request for name, request in plane.asked if name == method]


def test_a_script_is_submitted_with_all_that_belongs_to_it(adjourn: Adjourn, plane: "Plane", script: Path) -> None:
    (script.parent / "nets.py").write_text("x = 1\n")
    result = adjourn(
        "submit", f"{script}:main", "--epochs", "20", "--name", "digits", "--gpus", "2", "--seed", "7",
        "--args", '{"lr": 1, "deep": {"a": [1, null]}}', "--arg", "lr=0.001", "--arg", "name=adam", "--arg", "on=true",
        "--arg", "text=a=b", "--include", str(script.parent / "nets.py"), "--checkpoint-epochs", "0",
        "--max-restarts", "1", "--label", "team=a", "--worker-selector", "zone=b",
        "--model-name", "cnn", "--dataset-uri", "s3://d", "--hang-timeout", "1.5m", "--hang-policy", "report",
        "--checkpoint-steps", "500", "--checkpoint-interval", "10m",
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
    assert (spec.hang_timeout.ToTimedelta(), spec.hang_policy) == (timedelta(seconds=90), JobSpec.REPORT)
    assert (spec.checkpoint_steps, spec.checkpoint_interval.ToTimedelta()) == (500, timedelta(minutes=10))
    assert (spec.model_name, spec.dataset_uri, spec.bundle) == ("cnn", "s3://d", f"bundles/{len(packed):064x}")


@pytest.mark.parametrize("times", [1, 2])
def test_code_that_was_removed_meanwhile_is_uploaded_again_once(
    adjourn: Adjourn, plane: "Plane", script: Path, times: int
) -> None:
    plane.failures["CreateJob"] = [errors.BundleMissingError("it was removed; upload it again")] * times
    result = adjourn("submit", f"{script}:main", "--epochs", "3", "--name", "digits")
    assert len(asked(plane, "UploadBundle")) == 2
    assert (result.exit_code == 0) == (times == 1)
    assert ("jobs/digits" in plane.jobs) == (times == 1)
    assert times == 1 or "upload it again" in result.output


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (("m:f", "--drill", "50", "--epochs", "3"), 50),
        (("m:f", "--drill", "--epochs", "3"), 20),
        (("--drill", "m:f", "--epochs", "3"), 20),
        (("--epochs", "3", "m:f", "--drill"), 20),
        (("m:f", "--drill=7", "--epochs", "3"), 7),
        (("m:f", "--epochs", "3"), 0),
    ],
)
def test_a_drill_has_the_steps_that_are_given_or_twenty(
    adjourn: Adjourn, plane: "Plane", words: tuple[str, ...], steps: int
) -> None:
    result = adjourn("submit", *words)
    assert result.exit_code == 0, result.output
    assert plane.jobs["jobs/made-up"].spec.drill_steps == steps
    assert plane.jobs["jobs/made-up"].spec.HasField("drill_steps") == (steps > 0)


def test_installed_code_needs_no_bundle(adjourn: Adjourn, plane: "Plane") -> None:
    assert adjourn("submit", "adjourn.examples.digits:main", "--epochs", "3").exit_code == 0
    spec = plane.jobs["jobs/made-up"].spec
    assert (spec.entry_point, spec.bundle) == ("adjourn.examples.digits:main", "")
    chosen = {"seed", "checkpoint_epochs", "checkpoint_steps", "checkpoint_interval", "max_restarts"}
    chosen |= {"hang_timeout", "hang_policy"}
    assert chosen.isdisjoint(field.name for field, _ in spec.ListFields())


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
        (("m:f", "--arg", "lr=NaN"), "NaN looks like JSON and is none (NaN is not in JSON)"),
        (("m:f", "--arg", 'x={"a":[1,2'), """as text: 'x="{\\"a\\":[1,2"'"""),
        (("m:f", "--label", "=x"), "key=value"),
        (("m:f", "--seed", "99999999999999999999"), "--seed: 99999999999999999999 is out of range; the field has 64"),
        (("m:f", "--gpus", "2147483648"), "2147483648 is out of range; the field has 32 bits"),
        (("m:f", "--checkpoint-epochs", "-2147483649"), "out of range"),
        (("m:f", "--checkpoint-steps", "2147483648"), "out of range"),
        (("m:f", "--checkpoint-interval", "often"), "such as 90s"),
        (("m:f", "--max-restarts", "2147483648"), "out of range"),
        (("m:f", "--hang-timeout", "soon"), "such as 90s"),
        (("m:f", "--hang-timeout", "0"), "such as 90s"),
        (("m:f", "--hang-timeout", "9999999d"), "up to 1000d"),
        (("m:f", "--hang-policy", "ignore"), "neither restart nor report"),
        (("m:f", "--epochs", "2147483648"), "out of range"),
    ],
)
def test_bad_usage_is_told_and_nothing_is_sent(
    adjourn: Adjourn, plane: "Plane", words: tuple[str, ...], said: str
) -> None:
    result = adjourn("submit", *(() if "--epochs" in words else ("--epochs", "3")), *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith("adjourn: ")
    assert result.stderr.count("\n") == 1
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
    assert result.stderr == "adjourn: --epochs: must be 0 to 9; is -1; nothing was changed\n"


def test_what_a_file_says_is_told_by_its_key_and_what_options_say_by_theirs(
    adjourn: Adjourn, plane: "Plane", tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: a\nspec: {entry_point: 'm:f', total_epochs: -1, seed: -1, environment: {a b: c}}\n")
    wrong = {
        "job_id": "taken",
        "job.labels['k k']": "no",
        "job.spec.environment['a b']": "no",
        "job.spec.total_epochs": "no",
        "job.spec.seed": "no",
        "job.spec.args['x'][0]['y']": "no",
        "job.spec.new": "no",
    }
    plane.failures["CreateJob"] = [errors.InvalidRequestError(wrong)]
    result = adjourn("submit", str(file), "--seed", "1", "--label", "k k=v")
    assert result.stderr.split("; ")[:-1] == [
        f"adjourn: {file}: name: taken",
        "--label k k: no",
        f"{file}: spec.environment['a b']: no",
        f"{file}: spec.total_epochs: no",
        "--seed: no",
        f"{file}: spec.args['x'][0]['y']: no",
        f"{file}: spec.new: no",
    ]
    plane.failures["CreateJob"] = [errors.InvalidRequestError(wrong)]
    told = adjourn("submit", "m:f", "--epochs", "1").stderr
    assert (
        "--name: taken; --label k k: no; --env a b: no; --epochs: no; --seed: no; --arg x.y: no; job.spec.new" in told
    )


def test_a_job_without_epochs_is_said_to_be_a_task(adjourn: Adjourn, plane: "Plane") -> None:
    said = "m:f, a task without epochs, which cannot pause and keeps no checkpoint"
    assert said in adjourn("submit", "m:f", "--epochs", "0", "--dry-run").stdout
    plane.streams = [[WatchJobsResponse(job=Job(name="jobs/x", state=Job.SUCCEEDED))]]
    done = adjourn("submit", "m:f", "--epochs", "0", "--name", "x", "--wait")
    assert said in done.stdout
    plane.jobs["jobs/x"].state = Job.SUCCEEDED
    assert "ran to its end, a task without epochs" in adjourn("get", "x").stdout


def test_a_submission_is_waited_for_no_longer_than_its_timeout(
    adjourn: Adjourn, plane: "Plane", hour_passes: Callable[[], None]
) -> None:
    for words in ((), ("-o", "json")):
        plane.streams = [[plane.change(Job.RUNNING, 1), hour_passes]]
        result = adjourn("submit", "m:f", "--epochs", "3", "--name", "x", "--wait", "--timeout", "60s", *words)
        assert result.exit_code == Status.TIMEOUT, result.output
        assert result.stderr.startswith("adjourn: x ")
        assert "`adjourn watch x` follows it" in result.stderr
    refused = adjourn("submit", "m:f", "--epochs", "3", "--timeout", "3s")
    assert refused.exit_code == Status.USAGE
    assert "--timeout: is for --wait and --follow" in refused.stderr


@pytest.mark.parametrize(("end", "status"), [(Job.SUCCEEDED, 0), (Job.FAILED, 5), (Job.CANCELLED, 5)])
@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_a_submission_can_be_followed(
    adjourn: Adjourn, plane: "Plane", end: Job.State.ValueType, status: int, how: str
) -> None:
    plane.streams = [
        [plane.change(Job.QUEUED), plane.change(Job.RUNNING, 1), plane.change(Job.RUNNING, 1), plane.change(end, 3)]
    ]
    result = adjourn("submit", "m:f", "--epochs", "3", "--name", "x", how)
    assert result.exit_code == status
    assert Job.State.Name(end) in result.stdout
    assert result.stdout.count("RUNNING") == 1


@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_a_followed_job_that_failed_says_why(adjourn: Adjourn, plane: "Plane", how: str) -> None:
    failure = Failure(reason="TRAINING_RAISED", message="Traceback\nValueError: no")
    plane.streams = [[plane.change(Job.QUEUED), plane.change(Job.FAILED, 1, failure=failure)]]
    result = adjourn("submit", "m:f", "--epochs", "3", "--name", "x", how)
    assert result.exit_code == 5
    assert result.stdout.endswith("x failed (TRAINING_RAISED):\nTraceback\nValueError: no\n")


@pytest.mark.parametrize("how", ["--wait", "--follow"])
def test_a_followed_job_that_is_deleted_ends_the_wait(adjourn: Adjourn, plane: "Plane", how: str) -> None:
    plane.streams = [[plane.change(Job.QUEUED), WatchJobsResponse(deleted="jobs/x")]]
    result = adjourn("submit", "m:f", "--epochs", "3", "--name", "x", how)
    assert (result.exit_code, result.stderr) == (5, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--keep-last", "5"], JobSpec.Retention(keep_last=5)),
        (["--best", "loss"], JobSpec.Retention(best_metric="loss")),
        (["--best", "max:accuracy"], JobSpec.Retention(best_metric="accuracy", best=JobSpec.Retention.MAXIMUM)),
        (["--best", "min:a:b"], JobSpec.Retention(best_metric="a:b", best=JobSpec.Retention.MINIMUM)),
    ],
)
def test_retention_is_sent(
    adjourn: Adjourn, plane: "Plane", words: list[str], expected: JobSpec.Retention | None
) -> None:
    assert adjourn("submit", "a.b:main", "--epochs", "3", *words).exit_code == 0
    spec = plane.asked[-1][1].job.spec
    assert (spec.retention if spec.HasField("retention") else None) == expected


@pytest.mark.parametrize("best", ["big:loss", "max:"])
def test_a_best_that_says_nothing_is_refused(adjourn: Adjourn, best: str) -> None:
    done = adjourn("submit", "a.b:main", "--epochs", "3", "--best", best)
    assert done.exit_code == 2
    assert "should be METRIC, min:METRIC or max:METRIC" in " ".join(done.stderr.split())


def test_requirements_are_read_from_a_file(adjourn: Adjourn, plane: "Plane", tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# what it needs\ntorch >= 2  # a comment\n\neinops==0.8; python_version > '3'\n")
    assert adjourn("submit", "a.b:main", "--epochs", "3", "--requirements", str(path)).exit_code == 0
    (job,) = plane.jobs.values()
    assert list(job.spec.requirements) == ["torch>=2", 'einops==0.8; python_version > "3"']


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torch\n-r other.txt\n", "line 2, '-r other.txt': an option of pip"),
        ("a @ https://a.b/c.whl\n", "a place to install from"),
        ("torch >> 2\n", "line 1, 'torch >> 2'"),
        (None, "No such file"),
    ],
)
def test_what_is_no_file_of_requirements_is_told(
    adjourn: Adjourn, plane: "Plane", tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "requirements.txt"
    if text is not None:
        path.write_text(text)
    result = adjourn("submit", "a.b:main", "--epochs", "3", "--requirements", str(path))
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert plane.asked == []
