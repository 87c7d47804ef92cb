"""Jobs in files: what they may say, and what is said of those that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
import yaml
from google.protobuf.json_format import MessageToDict
from typer.testing import Result

from adjourn.cli import documents, job_file
from adjourn.v1.job_pb2 import Job, JobSpec

if TYPE_CHECKING:
    from tests.unit.clients.conftest import Plane

Adjourn = Callable[..., Result]
SPEC: dict[str, Any] = {"entry_point": "train.py:main", "total_epochs": 3}


def parse(**found: Any) -> job_file.JobFile:
    return job_file.parse(found, Path("folder/job.yaml"))


@pytest.fixture
def job_yaml(script: Path) -> Path:
    path = script.with_name("job.yaml")
    path.write_text(
        "name: digits\nlabels: {team: vision}\n"
        "spec:\n  entry_point: train.py:main\n  total_epochs: 20\n  gpu_count: 2\n  args: {lr: 0.1, width: 8}\n"
        "  checkpoint_interval: 10m\n  retention: {keep_last: 5, best_metric: acc, best: MAXIMUM}\n"
    )
    return path


def test_a_file_says_all_of_a_job() -> None:
    found = parse(name="digits", labels={"a": "b"}, include=["nets"], spec=SPEC | {"hang_timeout": 90})
    assert (found.job_id, found.labels, found.include) == ("digits", {"a": "b"}, (Path("folder/nets"),))
    assert (found.folder, found.spec.total_epochs, found.spec.hang_timeout.seconds) == (Path("folder"), 3, 90)


def test_what_get_prints_is_a_file() -> None:
    job = Job(
        name="jobs/x", labels={"a": "b"}, state=Job.FAILED, spec=JobSpec(entry_point="m:f", seed=7, max_restarts=0)
    )
    job.spec.checkpoint_interval.FromSeconds(90)
    job.spec.args.update({"lr": 0.5})
    found = job_file.parse(documents.document(job), Path("x.yaml"))
    assert (found.job_id, found.labels, found.spec) == ("x", {"a": "b"}, job.spec)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "should have name, labels, include, spec"),
        ({}, "spec is missing"),
        ({"spec": SPEC, "nmae": "x"}, "nmae is not known; did you mean name?"),
        ({"spec": SPEC, "total_epochs": 3}, "total_epochs is not known; it belongs below spec"),
        ({"spec": {"total_epoch": 3}}, "spec.total_epoch is not known; did you mean total_epochs?"),
        ({"spec": {"total_epochs": "many"}}, "spec.total_epochs: invalid literal"),
        ({"spec": {"total_epochs": 1 << 40}}, "spec.total_epochs: Value out of range"),
        ({"spec": {"hang_timeout": "soon"}}, "such as 90s"),
        ({"spec": {"retention": {"best": "MOST"}}}, "spec.retention: Invalid enum value MOST"),
        ({"spec": {"args": {"seed": 1 << 60}}}, "does not fit a JSON number exactly"),
        ({"spec": SPEC, "labels": {"a": 1}}, 'labels.a should be text: write it in quotes, "1"'),
        ({"spec": SPEC | {"worker_selector": {"a": True}}}, "spec.worker_selector.a should be text"),
        ({"spec": SPEC, "include": "nets"}, "include should be a list of paths"),
    ],
)
def test_what_is_no_job_is_told_with_its_place(found: Any, said: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        job_file.parse(found, Path("folder/job.yaml"))
    assert said in str(refused.value)


def test_the_template_has_every_field_and_is_a_job() -> None:
    text = job_file.TEMPLATE.read_text()
    assert job_file.read(job_file.TEMPLATE).spec.total_epochs == 12
    lines = [
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and (":" in line or "  - " in line) else line
        for line in text.splitlines()
    ]
    start = next(place for place, line in enumerate(lines) if line.startswith("spec:"))
    whole = yaml.safe_load("\n".join(lines[start:]))
    spec = job_file.parse(whole, job_file.TEMPLATE).spec
    assert {field.name for field in JobSpec.DESCRIPTOR.fields} - {field.name for field, _ in spec.ListFields()} == {
        *("bundle", "gpu_count"),  # the one is made of the code; the other is 0
    }


def test_a_file_is_submitted_and_options_change_it(adjourn: Adjourn, plane: "Plane", job_yaml: Path) -> None:
    words = (
        "--epochs",
        "0",
        "--gpus",
        "0",
        "--arg",
        "lr=0.5",
        "--label",
        "by=me",
        "--keep-last",
        "2",
        "--name",
        "other",
    )
    assert adjourn("submit", str(job_yaml)).exit_code == 0
    assert adjourn("submit", str(job_yaml), *words).exit_code == 0
    first, second = plane.jobs["jobs/digits"], plane.jobs["jobs/other"]
    assert (first.spec.entry_point, first.spec.total_epochs, first.spec.gpu_count) == ("train:main", 20, 2)
    assert first.spec.checkpoint_interval.seconds == 600
    assert first.spec.bundle
    assert (second.spec.total_epochs, second.spec.gpu_count) == (0, 0)
    assert MessageToDict(second.spec.args) == {"lr": 0.5, "width": 8}
    assert dict(second.labels) == {"team": "vision", "by": "me"}
    assert (second.spec.retention.keep_last, second.spec.retention.best_metric) == (2, "acc")


def test_a_dry_run_sends_nothing_and_says_what_it_would(adjourn: Adjourn, plane: "Plane", job_yaml: Path) -> None:
    shown = adjourn("submit", str(job_yaml), "--dry-run").stdout
    assert "would queue digits: train:main, 20 epochs, with train.py (1 file" in shown
    for fact in ("lr=0.1, width=8", "2 GPUs", "every 10 min 00 s", "team=vision"):
        assert fact in shown
    assert "jobs/digits" in adjourn("submit", str(job_yaml), "--dry-run", "-o", "json").stdout
    assert plane.asked == []


def test_epochs_are_said_in_the_file_or_beside_it(adjourn: Adjourn, plane: "Plane", job_yaml: Path) -> None:
    job_yaml.write_text("spec: {entry_point: m:f}\n")
    refused = adjourn("submit", str(job_yaml))
    assert refused.exit_code == 2
    assert "--epochs: is missing" in refused.stderr
    assert adjourn("submit", str(job_yaml), "--epochs", "0").exit_code == 0
    assert adjourn("submit", "m:f").exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"spec: {", "is not YAML"), (b"\xff\xfe\xfa", "is no text in UTF-8"), (None, "No such file")],
)
def test_a_file_that_cannot_be_read_is_told(
    adjourn: Adjourn, plane: "Plane", job_yaml: Path, content: bytes | None, said: str
) -> None:
    job_yaml.unlink() if content is None else job_yaml.write_bytes(content)
    refused = adjourn("submit", str(job_yaml))
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert plane.asked == []


def test_the_template_is_printed(adjourn: Adjourn) -> None:
    assert adjourn("submit", "--template").stdout == job_file.TEMPLATE.read_text()
