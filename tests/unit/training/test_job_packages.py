"""Packages that were installed for a job come before the worker's own, and are part of what a resume compares."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from adjourn import requirements, snapshots
from adjourn.environments import PACKAGES, listed, unlisted
from adjourn.v1.job_pb2 import JobSpec
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, failed
from tests.harness.wheels import wheel

SCRIPT = """
import os, subprocess, sys
import settings, {late}  # the launcher has another module of the first name

def main(run):
    print("settings", settings.version, os.environ["PATH"].split(":")[0])
    for _ in run.epochs():
        pass
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An environment with `settings` 1.0."""
    return install(tmp_path / "first", wheel(tmp_path / "wheels", "settings", "1.0", code="import json"))


def install(directory: Path, *wheels: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = directory / "lib" / version / "site-packages"
    site_packages.mkdir(parents=True)
    for each in wheels:
        with zipfile.ZipFile(each) as archive:
            archive.extractall(site_packages)
    return site_packages


def run(
    trainings: TrainingProcesses, tmp_path: Path, packages: Path | None, late: str = "settings", **fields: Any
) -> Attempt:
    code = tmp_path / "code"
    code.mkdir(exist_ok=True)
    (code / "needy.py").write_text(SCRIPT.format(late=late))
    spec = JobSpec(requirements=["settings", "numpy"])
    site_packages = str(packages) if packages else ""
    return trainings.run(
        "needy:main", epochs=2, code_directory=str(code), spec=spec, site_packages=site_packages, **fields
    )


def test_they_are_imported_and_their_versions_are_compared(
    trainings: TrainingProcesses, installed: Path, tmp_path: Path
) -> None:
    paused = run(trainings, tmp_path, installed, order=PAUSE)
    assert f"settings 1.0 {installed.parents[2] / 'bin'}\n" in paused.log
    environment = snapshots.read_state(Path(paused.snapshots[-1].directory)).environment
    assert environment[PACKAGES] == "settings==1.0", "numpy is the worker's own, and has a name of its own there"
    assert run(trainings, tmp_path, installed, restore=paused).kinds[-1] == "finished"
    other = install(tmp_path / "second", wheel(tmp_path / "wheels", "settings", "2.0"))
    message = failed(run(trainings, tmp_path, other, restore=paused), "ENVIRONMENT_DIFFERS")
    assert "packages was settings==1.0, is settings==2.0" in message
    allowed = run(trainings, tmp_path, other, restore=paused, allow_inexact=True)
    assert allowed.kinds[-1] == "finished"
    assert allowed.events[0].began.verdict_reasons == ["packages was settings==1.0, is settings==2.0"]


def test_lines_of_pth_files_count_as_in_any_environment(
    trainings: TrainingProcesses, installed: Path, tmp_path: Path
) -> None:
    (installed / "more.pth").write_text("beside\n")
    (installed / "beside").mkdir()
    (installed / "beside" / "deeper.py").write_text("")
    assert run(trainings, tmp_path, installed, "deeper").kinds[-1] == "finished"
    assert "settings is not installed" in failed(run(trainings, tmp_path, None), "REQUIREMENTS_UNMET")


def test_what_meets_requirements_is_found_with_all_that_it_needs() -> None:
    found = requirements.installed(["structlog", "minio", "nowhere", "numpy; python_version < '3'"])
    assert {"structlog", "minio", "urllib3", "certifi"} <= found.keys()
    assert "numpy" not in found
    assert requirements.pins(["hypothesis", "minio"]).keys() == {"hypothesis", "sortedcontainers"}, "minio is ours"
    assert {"torch", "numpy", "protobuf", "adjourn"} <= requirements.ours().keys()
    assert unlisted(listed({"b": "2", "a": "1.0+cpu"})) == {"a": "1.0+cpu", "b": "2"}
    assert unlisted("") == {}
